"""vLLM itself, as `plaudit launch vllm` starts it: replies, swaps, a name that is gone, a server that is killed, a run.

REQUIRE_VLLM names the Python of an environment that has vLLM; without it these are skipped. Float32, on a CPU, a tiny
model whose heads have a size that vLLM's CPU attention knows.
"""

import base64
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from real_vllm import MARKS, PYTHON, Served, descendants, serving
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from conftest import CPU, command, make_tokenizer, stir
from plaudit import rng
from plaudit.launch.vllm import environment
from plaudit.models.config import LoraSettings
from plaudit.models.load import load_model
from plaudit.models.roles import Roles
from plaudit.models.rounding import Rounding
from plaudit.rollout.engine import Sampled
from plaudit.rollout.inprocess import InProcessEngine
from plaudit.rollout.vllm import policy_name
from plaudit.run.metrics import read_metrics
from plaudit.train.saving import load_parameters

pytestmark = MARKS
END, LENGTH, ROUNDING = 2, 12, Rounding(0, "vllm")
EDGE = 1e-5
"""Cumulative probabilities of two engines are no nearer than that in float32."""
PROMPTS = [[5 + (7 * place + 3 * row) % 280 for place in range(1 + 2 * row)] for row in range(24)]
UNIFORMS = rng.uniforms(3, "vllm", 0, list(range(len(PROMPTS))), LENGTH)


def shaped(folder: Path) -> Path:
    """The tiny model with two heads of 32."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2}
    more = {"intermediate_size": 96, "max_position_embeddings": 256, "initializer_range": 0.3}
    tokens = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True}
    LlamaForCausalLM(LlamaConfig(**shape, **more, **tokens)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def served(write_recipe: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("real")
    recipe = write_recipe(home, model=str(shaped(home / "model")))
    assert command("sft", recipe) == 0
    with serving(recipe, 64 << 20) as server:
        yield server


@pytest.fixture
def roles(served: Served) -> Roles:
    base = load_model(str(served.run / "sft/model"), torch.float32, CPU)
    return Roles(base, trained="policy", lora=LoraSettings(r=4, alpha=8))


@pytest.fixture
def own(served: Served) -> InProcessEngine:
    base = load_model(str(served.run / "sft/model"), torch.float32, CPU)
    return InProcessEngine(base, eos_id=END, temperature=0.7)


def same(found: Sequence[Sampled], expected: Sequence[Sampled], roles: Roles) -> None:
    """The same tokens, their log-probabilities within the bound of another engine. One reply may part from the other
    where its uniform number falls between two tokens of the law of `roles`, nearer than float32 adds up: there either
    is right, and what follows answers to another beginning."""
    parted = 0
    for prompt, uniforms, reply, other in zip(PROMPTS, UNIFORMS, found, expected, strict=True):
        pairs = list(zip(reply.ids, other.ids, strict=False))
        common = next((place for place, (a, b) in enumerate(pairs) if a != b), len(pairs))
        assert reply.logprobs[:common] == pytest.approx(other.logprobs[:common], abs=1e-3)
        if reply.ids == other.ids:
            continue
        parted += 1
        edges = cumulative(roles, [*prompt, *reply.ids[:common]])[min(pairs[common]) : max(pairs[common])]
        assert edges == pytest.approx(len(edges) * [float(uniforms[common])], abs=EDGE), (prompt, pairs[common])
    assert parted <= 1


@torch.no_grad()
def cumulative(roles: Roles, ids: list[int]) -> list[float]:
    """Of the policy's next token after `ids`, at the sampling temperature, in the order of the vocabulary."""
    roles.as_policy()
    return (roles.bases[0](torch.tensor([ids])).logits[0, -1].double() / 0.7).softmax(0).cumsum(0).tolist()


def offline(script: str, asked: str) -> Any:
    """What a script beside this one prints, in vLLM's environment and in one process: each more imports it anew."""
    assert PYTHON is not None
    known = {**environment(), "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    words = [PYTHON, str(Path(__file__).with_name(script)), asked]
    done = subprocess.run(words, env=known, text=True, capture_output=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_replies_of_the_model_and_of_two_policies_are_those_of_the_in_process_engine(
    served: Served, roles: Roles, own: InProcessEngine, tmp_path: Path
) -> None:
    engine = served.engine(tmp_path / "policies", [END])
    first = engine.generate(PROMPTS, UNIFORMS)
    same(first, own.generate(PROMPTS, UNIFORMS), roles)
    for seed in (5, 6):
        with torch.no_grad():
            stir(roles, seed)
        engine.take(roles, ROUNDING)
        own.take(roles, ROUNDING)
        found = engine.generate(PROMPTS, UNIFORMS)
        same(found, own.generate(PROMPTS, UNIFORMS), roles)
        assert [reply.ids for reply in found] != [reply.ids for reply in first], "it is another policy"
    engine.close()


def test_its_own_sampler_draws_what_the_in_process_engine_draws(tmp_path: Path) -> None:
    """Without a server, in one process: the model and two policies, by the logits processor and the adapters' files."""
    model = shaped(tmp_path / "model")
    roles = Roles(load_model(str(model), torch.float32, CPU), trained="policy", lora=LoraSettings(r=4, alpha=8))
    own = InProcessEngine(load_model(str(model), torch.float32, CPU), eos_id=END, temperature=0.7)
    expected, states, adapters = [own.generate(PROMPTS, UNIFORMS)], [roles.adapter_state()], []
    for seed in (5, 6):
        with torch.no_grad():
            stir(roles, seed)
        own.take(roles, ROUNDING)
        expected.append(own.generate(PROMPTS, UNIFORMS))
        states.append(roles.adapter_state())
        adapters.append(str(tmp_path / f"policy-{seed}"))
        roles.save_adapter(Path(adapters[-1]))
    draws = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in UNIFORMS]
    asked = {"model": str(model), "adapters": adapters, "prompts": PROMPTS, "length": LENGTH}
    file = tmp_path / "asked.json"
    file.write_text(json.dumps({**asked, "draws": draws, "temperature": 0.7}), encoding="utf-8")
    found = offline("draws_in_vllm.py", str(file))
    assert len(found) == len(expected)
    for replies, others, state in zip(found, expected, states, strict=True):
        load_parameters(roles.trainable(), state)
        same([Sampled(*reply) for reply in replies], others, roles)


def test_a_name_that_was_unloaded_is_404(served: Served, roles: Roles, tmp_path: Path) -> None:
    engine, names = served.engine(tmp_path / "policies", [END]), []
    for seed in (7, 8):
        with torch.no_grad():
            stir(roles, seed)
        engine.take(roles, ROUNDING)
        names.append(policy_name(roles.adapter_parameters("policy")))
    codes = [served.answers(name, PROMPTS[0]) for name in names]
    assert codes == [404, 200]
    engine.close()


def test_a_server_that_is_killed_comes_back_with_the_policy(
    served: Served, roles: Roles, own: InProcessEngine, tmp_path: Path
) -> None:
    """Killed when the first reply is there: it is started again, given the adapter by its digest, and asked for the
    rest; no process of the killed one stays."""
    with torch.no_grad():
        stir(roles, 9)
    engine = served.engine(tmp_path / "policies", [END])
    engine.take(roles, ROUNDING)
    own.take(roles, ROUNDING)
    before = descendants(served.launcher.pid)
    server = min(before)  # the child of the launcher
    killed: list[int] = []

    def kill(row: int, reply: object) -> None:
        if not killed:
            killed.append(row)
            os.kill(server, signal.SIGKILL)

    same(engine.generate(PROMPTS, UNIFORMS, kill), own.generate(PROMPTS, UNIFORMS), roles)
    assert killed
    left = [pid for pid in before if Path(f"/proc/{pid}").exists()]
    assert left == [], "the workers of the one that was killed"
    engine.close()


def test_a_run_with_it_has_the_numbers_of_the_run_without(served: Served) -> None:
    """Rankings, and the replies of SFT model and policy that evaluation compares."""
    home = served.recipe.parent
    rollout = ["rollout.engine=vllm", f"rollout.urls=['{served.url}']", "rollout.sampler_correction=tis"]
    for folder, changes in ((home / "served", rollout), (home / "alone", [])):
        words = ["run", served.recipe, f"folder={folder}", *changes, "--from", "preferences", "--copy-from", served.run]
        assert command(*words) == 0
    rankings, replies = "preferences/rankings.jsonl", "evaluate/replies.jsonl"
    assert read_metrics(home / "served" / rankings) == read_metrics(home / "alone" / rankings)
    texts = [
        [(row["sft"]["text"], row["ppo"]["text"]) for row in read_metrics(home / folder / replies)]
        for folder in ("served", "alone")
    ]
    assert texts[0] == texts[1]
    for row in read_metrics(home / "served/ppo/metrics.jsonl"):
        assert row["sampler_gap_mean"] < 1e-4
        assert row["sampler_weight"] == pytest.approx(1.0, abs=1e-3)


def test_it_samples_ahead(served: Served) -> None:
    """`rollout.lag: 1`: the replies of an update are those of the policy before, which the trainer judges too."""
    home = served.recipe.parent
    rollout = f"rollout={{engine: vllm, urls: ['{served.url}'], sampler_correction: tis, lag: 1}}"
    folder, from_ppo = home / "ahead", ["--from", "ppo", "--copy-from", home / "alone"]
    assert command("run", served.recipe, f"folder={folder}", rollout, "ppo.updates=3", *from_ppo) == 0
    rows = read_metrics(folder / "ppo/metrics.jsonl")
    assert [row["lag"] for row in rows] == [0, 1, 1]
    assert all(row["sampler_gap_mean"] < 1e-4 for row in rows), rows
    assert rows[1]["lag_kl"] > 0, "the policy has moved between"


def test_what_is_exported_is_read_by_it(served: Served, tmp_path: Path) -> None:
    """The policy writes what transformers writes of it, and the reward model scores as transformers' classifier."""
    found = {}
    for role in ("policy", "reward"):
        folder = tmp_path / role
        assert command("export", served.recipe.parent / "alone", "--to", folder, "--role", role) == 0
        asked = {"role": role, "model": str(folder), "prompts": PROMPTS, "length": LENGTH}
        found[role] = offline("exports_in_vllm.py", json.dumps(asked))
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    scorer = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    replies, scores = [], []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        replies.append(policy.generate(ids, max_new_tokens=LENGTH, do_sample=False)[0, len(prompt) :].tolist())
        with torch.no_grad():
            scores.append(scorer(torch.tensor([[*prompt, END]])).logits.item())
    assert found["policy"] == replies
    assert found["reward"] == pytest.approx(scores, abs=1e-4)
    assert max(scores) - min(scores) > 0.01, "they differ"
