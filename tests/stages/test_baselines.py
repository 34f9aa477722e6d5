"""Best-of-n, rejection sampling and DPO beside PPO: what stands in the table, and the words its intervals decide."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from plaudit.algo.statistics import best_of_n_kl
from plaudit.models.load import load_model
from plaudit.models.roles import plain_logprobs, plain_logprobs_at
from plaudit.models.tokens import pad_right
from plaudit.records import Completion
from plaudit.rewards.sources import RewardSources
from plaudit.run.metrics import read_metrics
from plaudit.stages.baselines import loop as baselines
from plaudit.stages.baselines.loop import at_kl
from plaudit.stages.evaluate.judging import Passes
from plaudit.stages.plan import Flags, plan_of
from plaudit.stages.prepare import prepare
from plaudit.stages.recipe import load_recipe
from plaudit.view.report.baselines import verdicts


def test_best_of_n_at_a_kl_lies_between_two_n() -> None:
    best = {n: {"gold": np.array([float(n), 2.0 * n])} for n in range(1, 5)}
    assert at_kl(best, "gold", 0.0)[0].tolist() == [1.0, 2.0]
    # ln 2 − ½ = 0.193147 is best of 2; half-way from there to best of 3 it is worth 2.5 and 5.
    value, kl, n = at_kl(best, "gold", (best_of_n_kl(2) + best_of_n_kl(3)) / 2)
    assert (value.tolist(), n) == (pytest.approx([2.5, 5.0]), pytest.approx(2.5))
    # Beyond the pool: its last n, at the KL that this one has.
    value, kl, n = at_kl(best, "gold", 9.0)
    assert (value.tolist(), kl, n) == ([4.0, 8.0], pytest.approx(math.log(4) - 0.75), 4.0)


def told(difference: float, ci: list[float], kl: float = 2.0, measured: float = 2.0) -> dict[str, Any]:
    best = {"n": 20.2, "kl": kl, "difference": difference, "ci": ci}
    return {"measure": "gold", "methods": {"ppo": {"kl": measured, "over_best_of_n": best}}}


def test_the_interval_decides_who_wins() -> None:
    (line,) = verdicts(told(0.25, [0.125, 0.375]))
    assert line == "At 2.00 nats: PPO wins over best of 20 (PPO's gold score +0.25, 95 % interval 0.12 to 0.38)."
    (line,) = verdicts(told(-0.25, [-0.375, -0.125], kl=3.17, measured=8.0))
    assert line.startswith("At 8.00 nats: best of 20, which costs 3.17 nats wins over PPO (PPO's gold score −0.25")
    (line,) = verdicts(told(0.1, [-0.1, 0.3]))
    assert "no clear difference between PPO and best of 20" in line
    gap = {"difference": -0.5, "ci": [-0.75, -0.25]}
    both = told(0.1, [-0.1, 0.3]) | {"ppo_over": {"rejection": {**gap, "ci": [-1.0, 0.5]}, "dpo": gap}}
    both["methods"] |= {"rejection": {"kl": 1.0}, "dpo": {"kl": 5.0}}
    _, rejection, dpo = verdicts(both)
    assert rejection.startswith(
        "PPO at 2.00 nats, rejection sampling at 1.00: no clear difference between PPO and rejection sampling (gold"
    )
    assert dpo.startswith("PPO at 2.00 nats, DPO at 5.00: DPO wins over PPO (PPO's gold score −0.50")


def test_beside_a_finished_run_over_the_command_line(
    trained: Path, tmp_path: Path, plaudit: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`plaudit rejection`, `plaudit dpo` and `plaudit baselines` replace nothing but the report, which tells them."""
    monkeypatch.setattr(baselines, "POOL", 4)
    monkeypatch.setattr(baselines, "SHOWN", (1, 2, 4))
    home = tmp_path / "home"
    shutil.copytree(trained.parent, home)
    folder, recipe = home / "run", home / "recipe.yaml"
    keys = [f"folder={folder}", "dpo.learning_rate=0.01", "baselines=[best_of_n, rejection, dpo]"]
    keys += ["rejection.replies=4", "rejection.learning_rate=0.01"]
    for stage in ("rejection", "dpo", "baselines", "report"):
        done = plaudit(stage, recipe, *keys)
        assert done.code == 0, done.err
    stages = json.loads((folder / "manifest.json").read_text())["stages"]
    assert " ".join(stages) == "sft preferences reward ppo evaluate rejection dpo baselines report"
    read = json.loads((folder / "dpo/inputs.json").read_text())["made"]
    assert read.keys() == {"sft/model", "preferences/rankings.jsonl"}

    found, evaluated = (json.loads((folder / name / "summary.json").read_text()) for name in ("baselines", "evaluate"))
    for name in ("sft", "ppo"):
        row = found["sft"] if name == "sft" else found["methods"]["ppo"]
        assert (row["gold"], row["proxy"]) == pytest.approx((evaluated[f"gold_{name}"], evaluated[f"proxy_{name}"]))
    assert found["methods"]["ppo"]["gain"] == pytest.approx(evaluated["gold_gain"])
    pool = read_metrics(folder / "baselines/pool.jsonl")
    by_prompt = [pool[start : start + 4] for start in range(0, len(pool), 4)]
    assert all(len({row["id"] for row in group}) == 1 for group in by_prompt)
    assert [row["n"] for row in found["best_of_n"]] == [1, 2, 4]
    # Best of the whole pool is its highest proxy, and best of one the mean of all.
    assert found["best_of_n"][0]["proxy"] == pytest.approx(np.mean([row["proxy"] for row in pool]))
    highest = np.mean([max(row["proxy"] for row in group) for group in by_prompt])
    assert found["best_of_n"][2]["proxy"] == pytest.approx(highest)
    replies = read_metrics(folder / "baselines/replies.jsonl")
    for name in ("rejection", "dpo"):
        gold = [row["gold"] for row in replies if row["model"] == name]
        assert found["methods"][name]["gold"] == pytest.approx(np.mean(gold))
        assert found["methods"][name]["kl"] > 0
        assert len(gold) == found["prompts"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Was PPO worth it?" in page and "best of 4" in page and "rejection sampling</th>" in page
    assert all(line[:20] in done.out for line in verdicts(found))


def test_a_pool_reads_each_prompt_once_and_scores_as_evaluate_does(
    trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What `share` saves: the tokens of a prompt that several replies have; the scores are the same to rounding."""
    monkeypatch.delenv("PLAUDIT_PLAIN", raising=False)
    home = tmp_path / "home"
    shutil.copytree(trained.parent, home)
    recipe = load_recipe(home / "recipe.yaml", [f"folder={home / 'run'}"])
    run = prepare(recipe, plan_of(recipe, set(), set(), Flags(only=("evaluate",))))
    chat, prompts = run.chat(run.sft_model), [prompt for prompt in run.split("test")[:2] for _ in range(4)]
    prompt_ids = [chat.prompt_ids(prompt.messages) for prompt in prompts]
    replies = [chat.reply_ids(Completion(text)) for text in ("one", "a longer one", "two", "no more than that") * 2]
    passes, seen = Passes(run, chat, prompts, prompt_ids, replies), list[int]()
    scores = []
    for share in (False, True):
        rewards = RewardSources(recipe.ppo.rewards, run.machine)
        rewards.load(run.folder.path / "ppo")
        base = load_model(str(run.sft_model), run.machine.dtype, run.machine.device)
        base.get_input_embeddings().register_forward_hook(lambda _m, given, _out: seen.append(given[0].numel()))
        seen.clear()
        scores.append(passes.proxy(rewards, base, lambda note="", count=1: None, share=share))
        read = sum(seen[-1:])
        whole = sum(map(len, prompt_ids)) + sum(map(len, replies))
        assert read == (
            whole - 3 * (len(prompt_ids[0]) + len(prompt_ids[4]))
            if share
            else len(replies) * max(len(prompt) + len(reply) for prompt, reply in zip(prompt_ids, replies, strict=True))
        )
    assert scores[1] == pytest.approx(scores[0], abs=1e-4)
    assert np.ptp(scores[0]) > 1e-3, "not all replies score alike"


def test_one_pass_gives_the_log_probabilities_of_every_temperature(trained: Path) -> None:
    model = load_model(str(trained / "sft/model"), torch.float32, torch.device("cpu"))
    tokens = pad_right([[5, 6, 7], [8, 9]], [[10, 11], [12, 13, 14]], 0, torch.device("cpu"))
    found = plain_logprobs_at(model, tokens, [0.7, 1.0])
    assert [torch.equal(one, plain_logprobs(model, tokens, t)) for one, t in zip(found, (0.7, 1.0), strict=True)] == [
        True,
        True,
    ]
    assert not torch.equal(*found)
