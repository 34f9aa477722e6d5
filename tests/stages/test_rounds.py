"""Rounds: the policy's own replies are ranked, the reward model learns from all rankings on one scale, PPO again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from conftest import CPU, leave_plots_undrawn
from plaudit.data.files import read_rankings
from plaudit.errors import UserError
from plaudit.records import Completion, Message, Prompt, Ranking
from plaudit.rewards.contract import RewardContract
from plaudit.rewards.saved import load_reward_model
from plaudit.rewards.score import score_replies
from plaudit.run.branch import begin_round, rounds_before, rounds_of
from plaudit.run.folder import finished_stages
from plaudit.run.metrics import read_metrics
from plaudit.stages.pipeline import next_round, one_more_round
from plaudit.stages.preferences.sampling import dealt, prompts_of_round
from plaudit.stages.recipe import load_recipe
from plaudit.stages.reward.anchors import Anchors, on_one_scale, told
from plaudit.train.config import RoundsConfig
from plaudit.view.card.alarms import with_anchors

Plaudit = Callable[..., SimpleNamespace]


@pytest.fixture(scope="module")
def grown(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three rounds. The policy that round 1 kept is moved away from the SFT model first, so that it matters
    where PPO starts. Round 2 starts from it on SFT's reference, round 3 from round 2's, which is its reference too."""
    run = tmp_path_factory.mktemp("rounds") / "run"
    shutil.copytree(trained, run)
    adapter = run / "ppo/adapter/adapter_model.safetensors"
    generator = torch.Generator().manual_seed(1)
    moved = {name: t + 0.01 * torch.randn(t.shape, generator=generator) for name, t in load_file(adapter).items()}
    save_file(moved, adapter)
    with pytest.MonkeyPatch.context() as patch:
        leave_plots_undrawn(patch)
        one_more_round(run, ["rounds.start=last", "rounds.earlier=0.5", "ppo.updates=1"])
        one_more_round(run, ["rounds.reference=last"])
    return run


def test_rounds_lie_beside_each_other_on_one_sft_model(grown: Path, trained: Path) -> None:
    assert [path.name for path in rounds_of(grown)] == ["run", "round-2", "round-3"]
    for number in (2, 3):
        folder = grown / f"round-{number}"
        assert (folder / "sft").is_symlink() and (folder / "sft").resolve() == (grown / "sft").resolve()
        assert list(finished_stages(folder)) == ["sft", "preferences", "reward", "ppo", "evaluate", "report"]
        assert load_recipe(folder / "recipe.yaml").rounds.number == number
    for name in ("preferences/rankings.jsonl", "reward/reward.json", "ppo/metrics.jsonl", "report.html"):
        assert (grown / name).read_bytes() == (trained / name).read_bytes(), name


def test_the_reward_model_learns_from_the_rankings_of_all_rounds(grown: Path) -> None:
    own = [read_rankings(folder / "preferences/rankings.jsonl") for folder in rounds_of(grown)]
    assert read_rankings(grown / "round-3/preferences/earlier.jsonl") == own[0] + own[1]
    for number in (2, 3):
        summary = json.loads((grown / f"round-{number}/reward/summary.json").read_text())
        pairs = [r.pairs() for rankings in own[:number] for r in rankings if r.prompt.split == "train"]
        assert summary["pairs_train"] == sum(map(len, pairs))
    names = {name for ranking in own[2] for name in ranking.sources or ()}
    assert names <= {"sft", "round 1", "round 2"} and "round 2" in names and len(names) > 1


def test_a_text_is_not_ranked_twice(grown: Path) -> None:
    seen: dict[tuple[Message, ...], list[str]] = {}
    for number, folder in enumerate(rounds_of(grown)):
        for ranking in read_rankings(folder / "preferences/rankings.jsonl"):
            before = seen.setdefault(ranking.prompt.messages, [])
            if number:
                assert not {reply.text for reply in ranking.replies} & {*before}
            before += [reply.text for reply in ranking.replies]


def test_the_anchors_score_as_in_round_1(grown: Path) -> None:
    """By the reward models that lie on the disk."""
    rankings = [r for r in read_rankings(grown / "preferences/rankings.jsonl") if r.prompt.split == "train"]
    replies = [(r.prompt, reply) for r in rankings if r.pairs() for reply in r.replies][:256]
    moments = []
    for folder in rounds_of(grown):
        reward = load_reward_model(folder / "reward", torch.float32, CPU)
        scores = reward.contract.normalised(score_replies(reward.model, reward.chat, replies))
        moments.append([scores.mean().item(), scores.std(correction=0).item()])
    assert moments[0] == pytest.approx([0, 1], abs=1e-4)
    assert np.allclose(moments, moments[0], atol=1e-4), moments
    card = json.loads((grown / "round-3/reward/card.json").read_text())
    assert card["anchors"]["replies"] == len(replies) and card["anchors"]["off"] < 1e-4


def test_ppo_starts_and_is_held_where_the_recipe_says(grown: Path) -> None:
    kl = [read_metrics(folder / "ppo/evaluations.jsonl")[0]["kl"] for folder in rounds_of(grown)]
    assert abs(kl[0]) < 1e-5, "round 1 starts as its reference"
    assert kl[1] > 0.001, "round 2 starts from round 1's policy, away from the SFT model"
    assert abs(kl[2]) < 1e-5, "round 3 starts from its reference, round 2's policy"
    away = json.loads((grown / "round-3/evaluate/summary.json").read_text())["kl"]
    assert away > 0.001, "which is not the SFT model"
    summary = json.loads((grown / "round-3/ppo/summary.json").read_text())
    assert summary["started_from"] == summary["reference"] == "round 2"


def test_views_know_rounds(grown: Path, plaudit: Plaudit) -> None:
    said = json.loads(plaudit("status", grown, "--json").out)
    assert [Path(one["run"]).name for one in said] == ["run", "round-2", "round-3"]
    assert {one["state"] for one in said} == {"finished"}
    whole = sum(file.stat().st_size for file in grown.rglob("*") if file.is_file() and not file.is_symlink())
    assert sum(one["bytes"] for one in said) <= whole * 1.01, "a round is counted once"
    rows = json.loads((grown / "round-3/summary.json").read_text())["rounds"]
    golds = [json.loads((folder / "evaluate/summary.json").read_text())["gold_ppo"] for folder in rounds_of(grown)]
    assert [row["gold"] for row in rows] == golds and [row["round"] for row in rows] == [1, 2, 3]
    assert rows[1]["since"]["difference"] == pytest.approx(golds[1] - golds[0])
    assert 'id="rounds"' in (grown / "round-3/report.html").read_text()
    assert 'id="rounds"' not in (grown / "report.html").read_text()
    assert "wrong reference" not in plaudit("doctor", grown / "round-2").out
    listed = plaudit("clean", grown).out
    assert f"{grown}/reward/model" in listed and f"{grown}/round-2/reward/model" in listed


def test_what_changed_in_a_round_before_is_seen(grown: Path, tmp_path: Path, plaudit: Plaudit) -> None:
    run = tmp_path / "run"
    shutil.copytree(grown, run, symlinks=True)
    (run / "round-3/manifest.json").write_text(
        json.dumps({"stages": {k: v for k, v in finished_stages(run / "round-3").items() if k != "report"}})
    )
    path = run / "ppo/model/config.json"
    path.write_text(path.read_text() + " ")
    done = plaudit("run", run / "round-3/recipe.yaml", f"folder={run / 'round-3'}", "--resume")
    assert done.code == 2 and "../ppo/model is not what it was" in done.err and "--from preferences" in done.err


def test_what_a_round_refuses(grown: Path, trained: Path, tmp_path: Path, plaudit: Plaudit) -> None:
    done = plaudit("round", grown, "rounds.reference=sft")
    assert done.code == 2 and "stands on the policy of the round before it" in done.err
    with pytest.raises(UserError, match=r"with rounds.start=last PPO takes over the adapter"):
        next_round(grown / "round-2", 2, ["rounds.count=3", "lora.r=2"])
    done = plaudit("sft", grown / "round-2/recipe.yaml")
    assert done.code == 2 and "round 2 stands on the SFT model of its run" in done.err
    half = tmp_path / "half"
    shutil.copytree(trained, half)
    stages = {name: entry for name, entry in finished_stages(half).items() if name != "report"}
    (half / "manifest.json").write_text(json.dumps({"stages": stages}))
    done = plaudit("round", half)
    assert done.code == 2 and "round 1 has not ended (report is missing)" in done.err and "--resume" in done.err
    with pytest.raises(UserError, match="holds no run whose SFT has ended"):
        begin_round(tmp_path / "nothing/round-2", "name: x\n")


def test_the_recipe_refuses_rounds_that_cannot_be(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    assert load_recipe(path, ["rounds=3"]).rounds.count == 3
    for overrides, why in (
        (["rounds.start=last"], "start would do nothing with count=1"),
        (["rounds=0"], "greater than or equal to 1"),
        (["rounds={count: 2, reference: last}"], "reference=last with start=sft"),
        (["rounds=2", "ppo.rewards=[{function: 'reward:score'}]"], "no reward model of the run's own pays PPO"),
        (["rounds=2", "preferences.rankings=ranked.jsonl", "preferences.train_prompts=320"], "nothing is sampled"),
        (["rounds={count: 2, start: last, reference: last}", "ppo.critic=own"], "exclude each other"),
    ):
        with pytest.raises(UserError, match=why):
            load_recipe(path, overrides)
    with pytest.raises(ValidationError, match="number=3 is beyond count=2"):
        RoundsConfig(count=2, number=3)


# --- who answers what ---


def a_run(number: int, **changes: Any) -> Any:
    """What of a run decides who answers what."""
    prompts = [Prompt(f"p{i}", (Message("user", f"Say {i}"),), "", "train" if i < 6 else "test") for i in range(7)]
    return SimpleNamespace(
        seed=0,
        rounds=RoundsConfig(count=number + 1, number=number, **changes),
        before=rounds_before(Path("run/here"), number),
        prompts=prompts,
        split=lambda *names: [prompt for prompt in prompts if prompt.split in names],
    )


def test_new_prompts_come_first_and_the_same_where_they_are_asked_for() -> None:
    config: Any = SimpleNamespace(train_prompts=4)
    first = prompts_of_round(config, a_run(1), [])
    assert len(first) == 5 and first[-1].split == "test"
    earlier = [Ranking(prompt, (Completion("a"), Completion("b")), (1, 2)) for prompt in first]
    second = prompts_of_round(config, a_run(2), earlier)
    unseen = {f"p{i}" for i in range(6)} - {prompt.id for prompt in first}
    assert {prompt.id for prompt in second[:2]} == unseen and len(second) == 5
    assert prompts_of_round(config, a_run(2, prompts="same"), earlier) == first


def test_the_last_policy_writes_what_the_earlier_ones_do_not() -> None:
    assert set(dealt(a_run(1), 50)) == {0}
    places = dealt(a_run(3, earlier=0.5), 4000)
    shares = [np.mean(places == voice) for voice in range(3)]
    assert shares == pytest.approx([0.25, 0.25, 0.5], abs=0.03)
    assert set(dealt(a_run(3, earlier=0.0), 50)) == {2}
    assert list(dealt(a_run(3), 50)) != list(dealt(a_run(4), 50))


# --- one scale ---

RAW = torch.tensor([[1.0, 4.0], [3.0, 2.0], [5.0, 9.0], [-1.0, 5.0]])


def a_contract(**changes: Any) -> RewardContract:
    return RewardContract(mean=(0.5, 3.0), std=(2.0, 4.0), eos_id=2, system=None, template_sha256="", **changes)


def test_the_scale_is_moved_by_the_formula() -> None:
    """One member, by hand: raw 1, 3, 5, 7 have mean 4 and std √5; the anchors had mean 1 and std 2."""
    raw, before = torch.tensor([[1.0], [3.0], [5.0], [7.0]]), torch.tensor([-1.0, 3.0, -1.0, 3.0])
    start = RewardContract(mean=(0.0,), std=(10.0,), eos_id=2, system=None, template_sha256="")
    moved = on_one_scale(start, raw, before)
    assert moved.std[0] == pytest.approx(5**0.5 / 2) and moved.mean[0] == pytest.approx(4 - 5**0.5 / 2)
    assert moved.normalised(raw).tolist() == pytest.approx([1 + 2 * (x - 4) / 5**0.5 for x in (1, 3, 5, 7)])


@pytest.mark.parametrize("rule", [{"aggregate": name} for name in ("mean", "min", "mean_minus_std", "pessimistic")])
def test_every_aggregate_is_put_on_the_scale(rule: dict[str, Any]) -> None:
    before = torch.tensor([0.3, -1.2, 1.4, 0.1])
    anchors = Anchors([], before)
    off = told(a_contract(**rule), RAW, anchors)["off"]
    moved = on_one_scale(a_contract(**rule), RAW, before)
    assert off > 0.05 and told(moved, RAW, anchors)["off"] < 1e-3
    order = a_contract(**rule).normalised(RAW).argsort() if rule["aggregate"] == "mean" else None
    assert order is None or order.tolist() == moved.normalised(RAW).argsort().tolist()


def test_anchors_that_cannot_be_held_raise_an_alarm() -> None:
    flat, before = torch.ones(4, 2), torch.tensor([0.3, -1.2, 1.4, 0.1])
    contract = on_one_scale(a_contract(), flat, before)
    ruler = told(contract, flat, Anchors([], before))
    card = with_anchors({"alarms": [{"kind": "chance"}]}, ruler)
    assert [alarm["kind"] for alarm in card["alarms"]] == ["anchors", "chance"]
    assert card["alarms"][0]["level"] == "alarm" and "cannot be compared" in card["alarms"][0]["says"]
    assert with_anchors({"alarms": []}, {**ruler, "off": 0.1})["alarms"] == []
