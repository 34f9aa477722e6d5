"""One rank = two ranks: a whole PPO stage in one process and in two, and what happens when a rank is lost."""

import json
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import two_ranks
from alike import alike, close
from safetensors.torch import load_file
from torch import nn

from plaudit.dist import ranks
from plaudit.dist.ranks import ALONE, Ranks
from plaudit.errors import RunStopped, UserError
from plaudit.guard.invariants import check_ranks_agree
from plaudit.run.folder import FollowedFolder
from plaudit.run.metrics import read_metrics
from plaudit.stages.ppo.config import PPOConfig


@pytest.fixture(scope="module")
def both(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every case of two_ranks in `one` and in `two` processes, and what these two printed."""
    home = tmp_path_factory.mktemp("ranks")
    for name in ("one", "two"):
        two_ranks.prepare(home / name, trained)
    for case in two_ranks.CASES:
        two_ranks.train(home / "one", case)
    for rank, (code, printed) in enumerate(two_ranks.pair("ppo", home / "two")):
        (home / f"printed-{rank}.txt").write_text(f"{printed}\nexit code {code}\n")
    return home


@pytest.mark.row(10, 14)
@pytest.mark.parametrize("case", two_ranks.CASES)
def test_two_ranks_leave_the_numbers_of_one(case: str, both: Path) -> None:
    """Metrics, evaluations, kept replies, every tensor of every rollout, and what learnt with its optimiser's state."""
    alike(both / "one" / case, both / "two" / case)


def test_two_ranks_that_one_signal_stopped_go_on_as_if_there_had_been_none(both: Path) -> None:
    """Every rank loads the checkpoint, the first one wrote it: both have its very weights and moments, and the logs,
    of the two ranks that were not stopped."""
    plain, stopped = both / "two" / next(iter(two_ranks.CASES)), both / "two" / two_ranks.STOPPED
    for rank in range(2):
        assert "left by 15: ppo is saved" in (both / f"printed-{rank}.txt").read_text()
        state, other = (load_file(home / f"state-{rank}.safetensors") for home in (plain, stopped))
        assert state.keys() == other.keys()
        assert all(torch.equal(state[name], other[name]) for name in state)
    for name in ("metrics.jsonl", "evaluations.jsonl", "adapter/adapter_model.safetensors"):
        assert (stopped / "run/ppo" / name).read_bytes() == (plain / "run/ppo" / name).read_bytes(), name


@pytest.mark.parametrize("case", two_ranks.CASES)
def test_the_cases_are_what_they_claim(case: str, both: Path) -> None:
    """Ragged replies, several steps an update, numbers that move: else the test above would show little."""
    run = both / "one" / case / "run/ppo"
    batches = [load_file(file) for file in sorted((run / "rollouts").iterdir())]
    ragged = [len(set((batch["lengths_B"] - batch["prompt_lengths_B"]).tolist())) > 1 for batch in batches]
    assert sum(ragged) >= 2, "the last few updates of a policy that learns to go on may have none"
    metrics = read_metrics(run / "metrics.jsonl")
    assert len({row["score"] for row in metrics}) == 3
    config = two_ranks.config_of(case, both / "one")
    if config.kl_target:
        assert len({row["kl_coef"] for row in metrics}) == 3
    if config.target_kl:
        assert min(row["steps"] for row in metrics) < config.steps_per_update
    else:
        assert {row["steps"] for row in metrics} == {config.steps_per_update}


@pytest.mark.parametrize("case", two_ranks.CASES)
def test_the_work_is_divided_and_the_ranks_agree_to_the_last_bit(case: str, both: Path) -> None:
    first, second = (json.loads((both / "two" / case / f"done-{rank}.json").read_text()) for rank in range(2))
    alone = json.loads((both / "one" / case / "done-0.json").read_text())
    for what in ("sampled", "trained"):
        assert first[what] + second[what] == alone[what]
        assert min(first[what], second[what]) > 0.2 * alone[what]
    assert first["numbers"] == second["numbers"]
    close(first["numbers"], alone["numbers"], "numbers")
    states = [load_file(both / "two" / case / f"state-{rank}.safetensors") for rank in range(2)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# --- what goes wrong ---


def test_a_rank_that_ends_ends_the_others(both: Path) -> None:
    """At once, each with its own reason; nobody waits for the time limit of half an hour."""
    first, second = ((both / f"printed-{rank}.txt").read_text() for rank in range(2))
    assert float(re.search(r"lost after ([\d.]+) s", first)[1]) < 20
    assert "RankLost: another rank has ended" in first
    assert "UserError: this rank cannot go on" in second
    assert first.endswith("exit code 1\n") and second.endswith("exit code 1\n")


def test_ranks_that_drift_apart_are_stopped(both: Path) -> None:
    """One number of one rank's critic is moved by 1e-7: the next update does not begin, on either rank."""
    for rank in range(2):
        reason = (both / "two" / f"{two_ranks.DRIFT}-{rank}.txt").read_text()
        assert reason.startswith("rank 1 no longer trains what rank 0 trains: ")
    assert len(read_metrics(both / "two" / two_ranks.DRIFT / "run/ppo/metrics.jsonl")) == 1


def test_the_guard_names_the_rank_and_the_tensor() -> None:
    check_ranks_agree([{"a": "1", "b": "2"}, {"a": "1", "b": "2"}])
    with pytest.raises(RunStopped, match=r"rank 2 no longer trains what rank 0 trains: 1 of 2 tensors differ, .* b;"):
        check_ranks_agree([{"a": "1", "b": "2"}, {"a": "1", "b": "2"}, {"a": "1", "b": "3"}])


@pytest.mark.parametrize(
    ("count", "fix"),
    [(1, None), (4, None), (5, "ppo.micro_batch_size to at most 3"), (32, "ppo.minibatch_size to at least 32")],
)
def test_more_ranks_than_micro_batches_are_refused(count: int, fix: str | None) -> None:
    config = PPOConfig(batch_size=16, minibatch_size=16, micro_batch_size=4)
    if fix is None:
        return config.check_ranks(count)
    with pytest.raises(UserError, match=rf"ppo\.micro_batch_size=4 makes 4 micro-batches .*: set {fix}, or"):
        config.check_ranks(count)
    return None


# --- gradients ---


@pytest.mark.parametrize(
    ("speaks", "device", "expected"),
    [
        ("cpu:gloo,cuda:nccl", "cuda:1", "cuda:1"),
        ("cpu:gloo,cuda:nccl", "cpu", "cpu"),
        ("cpu:gloo,cuda:gloo", "cuda:1", "cpu"),
    ],
)
def test_gradients_stay_on_a_gpu_where_nccl_adds_them_up(
    speaks: str, device: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "get_backend_config", lambda: speaks)
    assert ranks._meets_on(torch.device(device)) == torch.device(expected)


def test_gradients_are_added_up_in_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other rank has gradients of 10, but for the fourth, and for the last, which no rank has. At most four numbers
    at once, but for a parameter that has more; in float32, though a gradient of bfloat16 is so again."""
    sent: list[tuple[list[float], torch.dtype]] = []
    answers = iter([[1.0, 1, 1, 0, 1, 0], [10.0, 10, 10, 10], [10.0] * 5, [0.0, 10, 10]])

    def all_reduce(flat: torch.Tensor) -> None:
        sent.append((flat.tolist(), flat.dtype))
        flat.add_(torch.tensor(next(answers)))

    monkeypatch.setattr(ranks, "BUCKET", 4)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(dist, "get_backend_config", lambda: "cpu:gloo,cuda:gloo")
    known = [nn.Parameter(torch.zeros(size)) for size in (3, 1, 5, 1, 2, 2)]
    known[1] = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    for place, value in enumerate([1.0, 2.0, 3.0, 4.0]):
        known[place].grad = torch.full_like(known[place], value)
    Ranks(0, 2).add_gradients(known)
    assert [flat for flat, _ in sent] == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 2], [3] * 5, [4, 0, 0]]
    assert {dtype for _, dtype in sent} == {torch.float32}
    found = [None if p.grad is None else p.grad.tolist() for p in known]
    assert found == [[11] * 3, [12], [13] * 5, [4], [10] * 2, None]
    assert known[1].grad is not None and known[1].grad.dtype == torch.bfloat16


# --- one process ---


def test_alone_nothing_is_changed_or_copied() -> None:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = gradient = torch.ones(2)
    ALONE.add_gradients([parameter])
    ALONE.wait()
    assert parameter.grad is gradient
    assert ALONE.total({"x": gradient})["x"] is gradient
    assert ALONE.gathered("a") == ["a"]
    assert ALONE.share([3, 4, 5]) == [3, 4, 5]
    assert ALONE.first


def test_another_process_leaves_the_run_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    with FollowedFolder(tmp_path) as folder:
        assert folder.require("sft", "sft") == tmp_path / "sft"
        own = folder.stage("ppo")
        (own / "metrics.jsonl").write_text("{}\n")
        folder.begin("sft")
        folder.end("ppo", 1.0, {})
    assert not own.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["sft"]
