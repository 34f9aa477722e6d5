"""`rollout.lag: 1`: the servers sample an update's replies while the one before it trains, from the policy before that
training; old log-probabilities and values are the trainer's own, and the weights make up for the difference."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_vllm import FakeVllm
from safetensors.torch import load_file, save_file
from test_train import LEARNING, even, plant, rewarded

from conftest import TINY, command, tiny_stage
from plaudit.errors import RunStopped, UserError
from plaudit.rollout import vllm
from plaudit.rollout.config import RolloutConfig
from plaudit.rollout.vllm import DRAWS, policy_name, served_name
from plaudit.run.folder import MANIFEST, finished_stages, sft_files
from plaudit.run.metrics import read_metrics
from plaudit.stages.ppo import loop as ppo
from plaudit.stages.ppo.sampling import Sampler
from plaudit.stages.recipe import load_recipe
from plaudit.train.run import Run

UPDATES = 4
# One step an update, so that what a token weighs can be told from the logged loss; a large one.
PPO = {
    **TINY["ppo"],
    "updates": UPDATES,
    "batch_size": 8,
    "minibatch_size": 8,
    "epochs": 1,
    "learning_rate": 3e-2,
    "micro_batch_size": 4,
    "evaluate_every": 2,
    "watch": {"enabled": False},
}
ONLY_PPO = ("--from", "ppo", "--until", "ppo")


@pytest.fixture(scope="module")
def server(trained: Path) -> Iterator[FakeVllm]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        made = FakeVllm(trained / "sft/model", served_name(sft_files(trained), DRAWS))
        yield made
        made.stop()


def lagged(server: FakeVllm, **changes: Any) -> dict[str, Any]:
    return {"engine": "vllm", "urls": [server.url], "sampler_correction": "tis", "lag": 1, **changes}


@pytest.fixture(scope="module")
def recipe(server: FakeVllm, write_recipe: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("lag")
    return write_recipe(home, rollout=lagged(server), ppo=PPO, checkpoints={"every_steps": 1})


@pytest.fixture(scope="module")
def policies() -> list[str]:
    """The name of the policy before each update of `run`."""
    return []


@pytest.fixture(scope="module")
def run(recipe: Path, trained: Path, policies: list[str]) -> Path:
    """A PPO stage with lag 1. Read only."""
    learn = ppo.update

    def named(trainer: Any, *rest: Any) -> Any:
        policies.append(policy_name(trainer.roles.adapter_parameters("policy")))
        return learn(trainer, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo, "update", named)
        assert from_ppo_on(recipe, trained, recipe.parent) == 0
    return recipe.parent / "run"


def from_ppo_on(recipe: Path, source: Path, home: Path, *changes: str) -> int:
    """The exit code of a PPO stage in home/run, on the stages before it of `source`."""
    return command("run", recipe, f"folder={home / 'run'}", *changes, "--copy-from", source, *ONLY_PPO)


def goes_on(recipe: Path, home: Path) -> int:
    return command("run", recipe, f"folder={home / 'run'}", "--resume", "--until", "ppo")


def closes_when_asked(server: FakeVllm, patch: pytest.MonkeyPatch) -> None:
    """The server answers no more from when replies are asked for ahead until somebody opens it."""
    ask = Sampler.ask

    def closed(sampler: Sampler, prompts: Any, number: int) -> None:
        server.arrived.clear()
        server.open.clear()
        ask(sampler, prompts, number)

    patch.setattr(Sampler, "ask", closed)


def until(holds: Callable[[], bool]) -> None:
    """Wait for it, ten seconds at most."""
    for _ in range(1000):
        if holds():
            return
        threading.Event().wait(0.01)


def rollouts(run: Path) -> list[dict[str, torch.Tensor]]:
    return [load_file(file) for file in sorted((run / "ppo/rollouts").glob("*.safetensors"))]


def same_files(found: Path, expected: Path) -> None:
    known, ours = (finished_stages(one)["ppo"]["files"] for one in (expected, found))
    compared = [name for name in known if name.endswith((".safetensors", ".jsonl")) and name != "ppo/times.jsonl"]
    assert len(compared) > 2 * UPDATES
    assert [name for name in compared if ours.get(name) != known[name]] == []


def test_an_update_trains_on_replies_of_the_policy_before_the_last_one(run: Path, policies: list[str]) -> None:
    """The first two on those of the SFT model: the second's were asked for before the first trained."""
    assert len(set(policies)) == UPDATES
    sampled = sorted(file.stem for file in (run / "ppo/sampled").glob("ppo-rollout-*"))
    expected = [policies[0], *policies[:-1]]
    assert sampled == [f"ppo-rollout-{number:05d}-{name}" for number, name in enumerate(expected)]
    assert not any((run / "policies").iterdir()), "adapters that nobody samples any more"


@pytest.mark.row(7, 8, 31)
def test_the_sampler_is_the_policy_before_and_the_old_log_probs_are_of_the_policy_now(run: Path) -> None:
    """In float32 the sampler's log-probs are those of the policy that was to sample, and clearly not the old ones."""
    first, *later = rollouts(run)
    assert "behaviour_logprobs_BT" not in first, "nothing was trained before it"
    for tensors in later:
        mask_BT, sampler_BT = tensors["mask_BT"], tensors["sampler_logprobs_BT"]
        behaviour_BT, old_BT = tensors["behaviour_logprobs_BT"], tensors["old_logprobs_BT"]
        assert (sampler_BT - behaviour_BT)[mask_BT].abs().max() < 1e-4
        assert (old_BT - behaviour_BT)[mask_BT].abs().mean() > 1e-2
    # The policy of an update is what the next one's replies come from.
    rows = read_metrics(run / "ppo/metrics.jsonl")
    assert [row["lag"] for row in rows] == [0, 1, 1, 1]
    assert max(row["sampler_gap_mean"] for row in rows) < 1e-4
    assert max(abs(row["sampler_slope"]) for row in rows if "sampler_slope" in row) < 0.05


@pytest.mark.row(8)
def test_what_a_token_weighs_by_hand(run: Path) -> None:
    """Before the only step of an update the ratio is 1, so L_CLIP is the mean of weight times advantage: the weight is
    min(π_now/π_sampler, 2). Without it the number would be another."""
    for tensors, row in zip(rollouts(run), read_metrics(run / "ppo/metrics.jsonl"), strict=True):
        mask_BT = tensors["mask_BT"]
        old_N, sampler_N, advantage_N = (
            tensors[name][mask_BT].double() for name in ("old_logprobs_BT", "sampler_logprobs_BT", "advantages_BT")
        )
        ratio_N = (old_N - sampler_N).exp()
        weight_N = torch.minimum(ratio_N, torch.tensor(2.0))
        assert row["l_clip"] == pytest.approx((weight_N * advantage_N).mean().item(), abs=1e-5)
        assert row["sampler_weight"] == pytest.approx(weight_N.mean().item(), abs=1e-5)
        assert row["sampler_weight_cut"] == pytest.approx((ratio_N > 2).double().mean().item(), abs=1e-6)
        behaviour_N = tensors.get("behaviour_logprobs_BT", tensors["old_logprobs_BT"])[mask_BT].double()
        step_N = old_N - behaviour_N
        assert row["lag_kl"] == pytest.approx((step_N.exp() - 1 - step_N).mean().item(), abs=1e-5)
        if row["lag"]:
            assert row["lag_kl"] > 1e-3
            assert abs(row["l_clip"] - advantage_N.mean().item()) > 1e-3


def test_the_log_says_of_the_sample_what_is_true_of_the_policy_that_sampled_it(run: Path) -> None:
    """So the KL of replies of the SFT model is 0, though the policy that trains on them has left it."""
    _, second, *_ = read_metrics(run / "ppo/metrics.jsonl")
    assert second["kl"] == pytest.approx(0.0, abs=1e-4)
    tensors = rollouts(run)[1]
    assert tensors["kl_BT"].abs().max() > 1e-2, "and is charged for that"


def test_the_doctor_and_inspect_know_of_the_lag(
    run: Path, plaudit: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    """No fault where there is none; and without the log-probs of the policy that sampled they would see one."""
    assert " 0 faults" in plaudit("doctor", run).out.replace("\n", " ")
    assert "from the policy of the update before" in plaudit("inspect", run, "--step", 3, "--sample", 1).out
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns(".lock"))
    for file in (copy / "ppo/rollouts").glob("*.safetensors"):
        save_file({name: one for name, one in load_file(file).items() if name != "behaviour_logprobs_BT"}, file)
    blind = plaudit("doctor", copy).out
    assert "stale or lost adapter" in blind or "temperature mismatch" in blind


def test_replies_are_asked_for_before_the_training_they_do_not_wait_for(
    recipe: Path, server: FakeVllm, run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By the order of events: before an update trains, all replies of the next one are asked for, and the server
    answers none of them until it has trained. The files are those of the run whose server was quick."""
    learn, seen = ppo.update, list[tuple[int, int, bool]]()
    closes_when_asked(server, monkeypatch)

    def watched(trainer: Any, batch: Any, number: int, clock: Any) -> Any:
        ahead = trainer.sampler.ahead
        if ahead is None:  # the last update, which nothing follows
            return learn(trainer, batch, number, clock)
        until(lambda: len(server.arrived) == PPO["batch_size"])
        asked, found = len(server.arrived), learn(trainer, batch, number, clock)
        seen.append((number, asked, ahead.coming.done()))
        server.open.set()
        return found

    monkeypatch.setattr(ppo, "update", watched)
    assert from_ppo_on(recipe, run, tmp_path) == 0
    assert seen == [(number, PPO["batch_size"], False) for number in range(UPDATES - 1)]
    same_files(tmp_path / "run", run)


def test_a_replay_needs_no_server(run: Path, server: FakeVllm, plaudit: Callable[..., SimpleNamespace]) -> None:
    asked = len(server.arrived)
    done = plaudit("replay", run)
    assert done.code == 0 and "came out the same, bit for bit" in done.out, done.err
    assert len(server.arrived) == asked


def test_a_server_that_dies_while_it_is_asked_ends_the_run_with_4_and_the_run_goes_on(
    recipe: Path,
    run: Path,
    server: FakeVllm,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """It dies among the replies of the third update, while the second trains: that one is trained once more, on the
    replies that are stored, and the third's are asked for of the policy that was to sample them."""
    monkeypatch.setattr(vllm, "WAIT", 0.05)
    dying = FakeVllm(trained / "sft/model", server.name)
    looked = len(read_metrics(run / "ppo/validation/00000.jsonl"))
    dying.fails, dying.comes_back = looked + 2 * PPO["batch_size"] + 3, False
    assert from_ppo_on(recipe, run, tmp_path, f"rollout.urls=[{json.dumps(dying.url)}]") == 4
    assert "start it with `plaudit launch vllm RECIPE`" in capsys.readouterr().err
    assert [row["update"] for row in read_metrics(tmp_path / "run/ppo/metrics.jsonl")] == [1, 2]
    server.arrived.clear()
    assert goes_on(recipe, tmp_path) == 0
    # The third and fourth update's replies, and the second and third look: what was stored is not asked for again.
    assert len(server.arrived) == 2 * PPO["batch_size"] + 2 * looked
    same_files(tmp_path / "run", run)


def test_replies_that_a_checkpoint_counts_on_must_be_there(
    recipe: Path, run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their policy is gone, so nobody could sample them again."""
    learn = ppo.update

    def ended(trainer: Any, batch: Any, number: int, clock: Any) -> Any:
        if number == 2:
            raise RunStopped("here")
        return learn(trainer, batch, number, clock)

    with monkeypatch.context() as patch:
        patch.setattr(ppo, "update", ended)
        assert from_ppo_on(recipe, run, tmp_path) == 3
    (file,) = (tmp_path / "run/ppo/sampled").glob("ppo-rollout-00002-*")
    file.rename(tmp_path / file.name)
    assert goes_on(recipe, tmp_path) == 2
    said = capsys.readouterr().err
    assert "the replies of update 3 from policy-" in said and "put the file back" in said
    (tmp_path / file.name).rename(file)
    assert goes_on(recipe, tmp_path) == 0
    same_files(tmp_path / "run", run)


def test_a_run_that_stops_does_not_wait_for_the_replies(
    recipe: Path,
    run: Path,
    server: FakeVllm,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """A guard stops the first update while the server holds back the second's replies: no thread is left that the end
    of the process would wait for."""
    closes_when_asked(server, monkeypatch)

    def stopped(*_: Any) -> Any:
        until(lambda: len(server.arrived) == PPO["batch_size"])
        raise RunStopped("here")

    monkeypatch.setattr(ppo, "update", stopped)
    before = set(threading.enumerate())
    assert from_ppo_on(recipe, run, tmp_path) == 3
    assert "here" in capsys.readouterr().err
    workers = [one for one in set(threading.enumerate()) - before if one.name.startswith("ThreadPoolExecutor")]
    for worker in workers:
        worker.join(10)
    assert not [worker for worker in workers if worker.is_alive()]
    assert not server.open.is_set(), "nor were the replies there"
    server.open.set()


@pytest.mark.row(31)
def test_a_server_that_samples_an_older_policy_is_found_with_a_lag_too(
    recipe: Path,
    run: Path,
    trained: Path,
    server: FakeVllm,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """It says that it has the adapter, and answers with the SFT model: the check is against the policy that was to
    sample, so the lag is no excuse."""
    stale = FakeVllm(trained / "sft/model", server.name)
    engine = stale._engine
    monkeypatch.setattr(stale, "_engine", lambda name, *law: engine(stale.name, *law))
    code = from_ppo_on(recipe, run, tmp_path, f"rollout.urls=[{json.dumps(stale.url)}]")
    stale.stop()
    assert code == 3 and "stale or lost adapter" in capsys.readouterr().err
    assert [row["update"] for row in read_metrics(tmp_path / "run/ppo/metrics.jsonl")] == [1, 2]


def test_with_a_lag_the_policy_learns_about_as_much(
    tiny_run: Callable[..., Run], trained: Path, server: FakeVllm, tmp_path: Path
) -> None:
    """The task of test_ppo_learns_what_is_rewarded, sampled in-process without a lag and by a server with one."""
    gains = {}
    for lag in (0, 1):
        run = tiny_run(tmp_path / str(lag), trained)
        shutil.copy(trained / MANIFEST, run.folder.path / MANIFEST)
        rollout = RolloutConfig(**lagged(server)) if lag else RolloutConfig()
        with pytest.MonkeyPatch.context() as patch:
            plant(rewarded(even), patch)
            ppo.train(*tiny_stage("ppo", replace(run, rollout=rollout), **LEARNING, kl_budget=1000))
        looks = [row["score"] for row in read_metrics(run.folder.path / "ppo/evaluations.jsonl")]
        gains[lag] = looks[-1] - looks[0]
    assert gains[0] > 0.15
    assert gains[1] > 0.7 * gains[0], gains


@pytest.mark.parametrize(
    ("rollout", "ppo_changes", "message"),
    [
        ({"engine": "inprocess", "lag": 1}, {}, "engine=inprocess has none: set engine=vllm, or lag=0"),
        ({"engine": "vllm", "lag": 1}, {}, "set sampler_correction=tis or icepop, or lag=0"),
        ({"engine": "vllm", "lag": 2, "sampler_correction": "tis"}, {}, "rollout.lag"),
        (
            {"engine": "vllm", "lag": 1, "sampler_correction": "icepop"},
            {"updates": 1},
            "rollout.lag=1 would do nothing beside ppo.updates=1",
        ),
    ],
)
def test_a_lag_that_cannot_be_is_refused(
    rollout: dict[str, Any], ppo_changes: dict[str, Any], message: str, write_recipe: Any, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(write_recipe(tmp_path, rollout=rollout, ppo={**TINY["ppo"], **ppo_changes}))
