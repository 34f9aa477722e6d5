"""The arena: which policies a run has, what they answer in a process of their own, and that nobody sees who is who."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from plaudit.errors import UserError
from plaudit.models.load import load_chat, load_model
from plaudit.records import Completion, Message, Prompt
from plaudit.rewards.saved import load_reward_model
from plaudit.rewards.texts.answers import ScoreItem
from plaudit.view.arena.match import KEPT, Match, Matches
from plaudit.view.arena.policies import policies_of
from plaudit.view.arena.process import ModelProcess

ASKED = {"prompt": "Tell me about a train.", "policies": ["SFT", "PPO"], "max_new_tokens": 8, "temperature": 0.7}


def test_policies_are_those_of_every_round_and_those_of_before(tmp_path: Path) -> None:
    (tmp_path / "round-2").mkdir()
    (tmp_path / "round-2/recipe.yaml").touch()
    for model in ("sft", "ppo", "rejection", "dpo", "before/ppo", "round-2/sft", "round-2/ppo"):
        (tmp_path / model / "model").mkdir(parents=True)
        (tmp_path / model / "model/config.json").touch()
    (tmp_path / "round-2/dpo/model").mkdir(parents=True)  # being written: no config yet
    expected = {
        "SFT": "sft",
        "PPO, before": "before/ppo",
        "PPO": "ppo",
        "Rejection sampling": "rejection",
        "DPO": "dpo",
        "PPO, round 2": "round-2/ppo",
    }
    assert policies_of(tmp_path) == {name: tmp_path / place / "model" for name, place in expected.items()}


@pytest.fixture(scope="module")
def models() -> Iterator[ModelProcess]:
    process = ModelProcess(idle_s=60)
    yield process
    process.close()


@pytest.fixture(scope="module")
def replies(models: ModelProcess, trained: Path) -> list[dict[str, Any]]:
    return models.ask(trained, {**ASKED, "seed": 3})


def test_kl_and_score_are_those_of_the_saved_models(replies: list[dict[str, Any]], trained: Path) -> None:
    """The KL from the logits of both checkpoints, loaded anew: Σ log π − log π_ref over the reply's tokens."""
    cpu, chat = torch.device("cpu"), load_chat(str(trained / "sft/model"))
    sft, ppo = (load_model(str(trained / stage / "model"), torch.float32, cpu) for stage in ("sft", "ppo"))
    reward = load_reward_model(trained / "reward", torch.float32, cpu)
    prompt = Prompt("x", (Message("user", ASKED["prompt"]),), "x", "train")
    assert [one["policy"] for one in replies] == ["SFT", "PPO"]
    assert replies[0]["kl"] == 0 and replies[0]["text"] != replies[1]["text"]
    for reply in replies:
        item = ScoreItem("x", prompt, Completion(reply["text"], reply["finished"]))
        assert reply["score"] == pytest.approx(reward.score([item])["x"], abs=1e-4)
    asked = chat.prompt_ids(prompt.messages)
    written = chat.tokenizer.encode(replies[1]["text"], add_special_tokens=False)
    if len(written) == replies[1]["length"]:  # the text became the same tokens again
        ids = torch.tensor([[*asked, *written]])

        def logprob(model: Any) -> torch.Tensor:
            logits = model(ids).logits[0, len(asked) - 1 : -1].double() / ASKED["temperature"]
            return logits.log_softmax(-1).gather(1, torch.tensor(written)[:, None]).sum()

        with torch.no_grad():
            assert replies[1]["kl"] == pytest.approx((logprob(ppo) - logprob(sft)).item(), abs=1e-4)


def test_a_policy_that_is_not_there_is_named_and_the_process_goes_on(
    models: ModelProcess, replies: list[dict[str, Any]], trained: Path
) -> None:
    process = models.process
    with pytest.raises(UserError, match="no policy 'DPO'; it has SFT, PPO"):
        models.ask(trained, {**ASKED, "policies": ["DPO"], "seed": 3})
    assert models.ask(trained, {**ASKED, "seed": 3}) == replies and models.process is process


def pretended(script: str, folder: Path, **times: float) -> ModelProcess:
    """One whose process runs `script` instead of loading models."""
    made = ModelProcess(**times)
    made.folder, made._said = folder, tempfile.TemporaryFile()  # noqa: SIM115
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": made._said}
    made.process = subprocess.Popen([sys.executable, "-c", script], bufsize=0, **pipes)
    return made


def test_a_process_that_dies_says_with_which_words(tmp_path: Path) -> None:
    script = "import sys; sys.stdin.readline(); print('out of memory', file=sys.stderr); sys.exit(3)"
    models = pretended(script, tmp_path)
    with pytest.raises(UserError, match=r"has ended \(code 3\): out of memory; ask again"):
        models.ask(tmp_path, ASKED)
    assert models.process is None


def test_an_answer_that_does_not_come_ends_the_process(tmp_path: Path) -> None:
    models = pretended("import time; time.sleep(60)", tmp_path, answer_s=0.1)
    process = models.process
    with pytest.raises(UserError, match=r"no answer in 0\.1 s"):
        models.ask(tmp_path, ASKED)
    assert process is not None and process.poll() is not None


def test_models_are_gone_when_nobody_asks(tmp_path: Path) -> None:
    script = "import sys\nfor _ in sys.stdin: print('{\"replies\": []}', flush=True)"
    models = pretended(script, tmp_path, idle_s=0.1)
    process = models.process
    assert models.ask(tmp_path, ASKED) == [] and process is not None
    until = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    assert process.poll() is not None and models.process is None


REPLIES = tuple(
    {"policy": name, "text": text, "finished": True, "length": 1, "kl": 0.0, "score": 1.0}
    for name, text in (("SFT", "same"), ("PPO", "better"), ("DPO", "same"))
)


def test_nothing_that_is_shown_says_who_wrote_it() -> None:
    assert [set(one) for one in Match("run", "p", REPLIES).blind] == [{"text", "finished"}] * 3


def test_a_choice_is_a_ranking_of_the_texts() -> None:
    """The first and the third say the same: one reply of the item, chosen when either of them is."""
    match = Match("run", "p", REPLIES)
    draft = match.draft()
    assert draft is not None and [reply.text for reply in draft.replies] == ["same", "better"]
    assert draft.sources == ("SFT", "PPO")
    assert (match.ranks([1]), match.ranks([2]), match.ranks([0, 1, 2])) == ([2, 1], [1, 2], [1, 1])
    assert Match("run", "p", REPLIES[::2]).draft() is None


def test_the_order_is_shuffled_and_old_matches_go() -> None:
    matches = Matches()
    orders = {tuple(one["policy"] for one in matches.begin("run", "p", REPLIES)[1].replies) for _ in range(60)}
    assert len(orders) == 6  # all of 3!: the chance to miss one is 6·(5/6)^60, one in ten thousand
    first, _ = matches.begin("run", "p", REPLIES)
    for _ in range(KEPT):
        matches.begin("run", "p", REPLIES)
    assert matches.get(first) is None
