"""A stage that is asked to stop saves itself and leaves; a resumed one goes on only with what it was made with, and
says what it uses."""

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conftest import command
from plaudit.data.hashes import sha256
from plaudit.errors import UserError
from plaudit.run import stopping
from plaudit.run.metrics import read_metrics
from plaudit.run.stopping import Interrupted
from plaudit.stages import prepare
from plaudit.stages.ppo import loop as ppo
from plaudit.stages.recipe import MAY_CHANGE, Recipe
from plaudit.stages.sft import loop as sft
from plaudit.stages.sft.config import SFTConfig
from plaudit.train import saving
from plaudit.train.config import CheckpointConfig
from plaudit.train.run import Run
from plaudit.train.saving import Saver, State

# What a seed decides, of the stages that the runs here go through after a stop.
DECIDED = (
    "sft/model/model.safetensors",
    "reward/reward.json",
    "ppo/metrics.jsonl",
    "ppo/evaluations.jsonl",
    "ppo/adapter/adapter_model.safetensors",
    "ppo/rollouts/00001.safetensors",
    "ppo/rollouts/00002.safetensors",
    "ppo/model/model.safetensors",
    "evaluate/replies.jsonl",
    "evaluate/summary.json",
)
pytestmark = pytest.mark.usefixtures("undrawn")
NEVER = "checkpoints.every_minutes=1000"


def hashes(folder: Path) -> dict[str, str]:
    return {name: sha256(folder / name) for name in DECIDED}


def signalled(module: Any, name: str, at: int, number: int, patch: pytest.MonkeyPatch) -> None:
    """In the `at`-th call of module.name the process gets a signal, and the call goes on."""
    real, calls = getattr(module, name), [0]

    def call(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            signal.raise_signal(number)
        return real(*arguments, **options)

    patch.setattr(module, name, call)


@pytest.fixture(scope="module")
def halfway(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was sent SIGTERM in the first of PPO's two updates. Read only; copy it."""
    folder = tmp_path_factory.mktemp("halfway") / "run"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns(".lock", "ppo", "evaluate"))
    manifest = json.loads((folder / "manifest.json").read_text())
    kept = {name: manifest["stages"][name] for name in ("sft", "preferences", "reward")}
    (folder / "manifest.json").write_text(json.dumps({"stages": kept}))
    with pytest.MonkeyPatch.context() as patch:
        signalled(ppo, "update", 1, signal.SIGTERM, patch)
        recipe = trained.parent / "recipe.yaml"
        assert command("run", recipe, f"folder={folder}", NEVER, "--resume") == 143
    return folder


@pytest.fixture
def going_on(halfway: Path, trained: Path, tmp_path: Path, plaudit: Callable[..., SimpleNamespace]) -> Any:
    """going_on(*arguments) -> a copy of the stopped run, resumed by the command line; its folder is going_on.folder."""
    folder = shutil.copytree(halfway, tmp_path / "run")
    recipe = trained.parent / "recipe.yaml"

    def call(*arguments: object) -> SimpleNamespace:
        return plaudit("run", recipe, f"folder={folder}", *arguments, "--resume")

    return SimpleNamespace(folder=folder, run=call)


# --- asked to stop ---


def test_sigterm_saves_after_the_step_and_the_resumed_run_is_the_unbroken_one(going_on: Any, trained: Path) -> None:
    folder = going_on.folder
    assert [one.name for one in (folder / "ppo/checkpoints").iterdir()] == ["00000001"]
    assert len(read_metrics(folder / "ppo/metrics.jsonl")) == 1
    assert "ppo" not in json.loads((folder / "manifest.json").read_text())["stages"]
    done = going_on.run()
    assert (done.code, done.err) == (0, "")
    assert "Resuming ppo after step 1" in " ".join(done.out.split())
    assert hashes(folder) == hashes(trained)
    assert not list(folder.glob("*/checkpoints")), "a stage that ended needs none"
    saved = [row for row in read_metrics(folder / "saves.jsonl") if row["stage"] == "ppo"][-2]
    assert saved["step"] == 1
    assert saved["bytes"] > 1000
    assert saved["seconds"] > 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_says_what_is_saved_and_how_to_go_on(
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    plaudit: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    code: int,
) -> None:
    signalled(sft, "optimiser_step", 3, number, monkeypatch)
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    done = plaudit("run", write_recipe(tmp_path), NEVER)
    assert done.code == code
    assert f"sft is saved; go on with `plaudit run {tmp_path / 'run/recipe.yaml'} --resume`" in done.err
    assert [one.name for one in (tmp_path / "run/sft/checkpoints").iterdir()] == ["00000003"]
    assert {one: signal.getsignal(one) for one in before} == before
    assert stopping.STOP.asked is None


def test_a_signal_after_the_last_look_is_not_lost() -> None:
    stop = stopping.Stop()
    with pytest.raises(Interrupted), stop.deferred():
        stop.hear(signal.SIGTERM, None)
    assert stop.asked is None
    with pytest.raises(KeyError), stop.deferred():
        raise KeyError(stop.hear(signal.SIGTERM, None))


def test_the_second_control_c_leaves_at_once() -> None:
    stop = stopping.Stop()

    def twice() -> None:
        with stop.deferred():
            stop.hear(signal.SIGINT, None)
            assert stop.asked == signal.SIGINT
            stop.hear(signal.SIGINT, None)
            pytest.fail("it went on")

    with pytest.raises(Interrupted):
        twice()
    with pytest.raises(Interrupted) as left:
        stop.hear(signal.SIGTERM, None)
    assert left.value.exit_code == 143


# --- what must be the same ---


@pytest.mark.row(35)
def test_a_changed_key_is_refused_by_name(going_on: Any) -> None:
    before = {name: sha256(going_on.folder / name) for name in ("recipe.yaml", "ppo/metrics.jsonl")}
    for override in ("ppo.gamma=0.9", "ppo.updates=3", "seed=1", "sft.epochs=1", "ppo.kl_target=1.0"):
        done = going_on.run(override)
        assert done.code == 2, override
        assert override.partition("=")[0] in done.err
    assert {name: sha256(going_on.folder / name) for name in before} == before


def test_a_key_that_may_change_does_and_so_may_those_of_stages_that_have_not_begun(going_on: Any) -> None:
    done = going_on.run("checkpoints.every_steps=3", "evaluate.replies=2")
    assert (done.code, done.err) == (0, "")
    assert len(read_metrics(going_on.folder / "evaluate/replies.jsonl")) == 2 * 6


def test_every_key_that_may_change_is_a_key() -> None:
    for key in MAY_CHANGE:
        fields: Any = Recipe.model_fields
        for name in key.split("."):
            assert name in fields, key
            kinds = [fields[name].annotation, *getattr(fields[name].annotation, "__args__", ())]
            inner = [kind for kind in kinds if isinstance(kind, type) and hasattr(kind, "model_fields")]
            fields = inner[0].model_fields if inner else {}


@pytest.mark.row(35)
def test_changed_data_is_refused(going_on: Any, trained: Path, tmp_path: Path) -> None:
    """Another row of the prompts, in a file of the recipe's own format; the same rows from another place will do."""
    rows = (trained.parent / "prompts.jsonl").read_text().splitlines(keepends=True)
    assert "Tell me about" in rows[0]
    (tmp_path / "other.jsonl").write_text("".join([rows[0].replace("Tell me about", "Speak of"), *rows[1:]]))
    (tmp_path / "moved.jsonl").write_text("".join(rows))
    done = going_on.run(f"data.prompts={tmp_path / 'other.jsonl'}")
    assert done.code == 2
    assert "data.prompts, split train: " in done.err
    assert f"{tmp_path / 'other.jsonl'}: 1 changed, of 24 rows" in done.err
    assert "--from preferences" in done.err, "the first stage that read them"
    assert going_on.run(f"data.prompts={tmp_path / 'moved.jsonl'}").code == 0


@pytest.mark.row(35)
def test_a_vanished_or_changed_input_is_named(going_on: Any) -> None:
    model = going_on.folder / "sft/model/model.safetensors"
    weights = model.read_bytes()
    model.write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    changed = going_on.run()
    assert (changed.code, "has changed since stage 'sft' made it" in changed.err) == (2, True)
    model.unlink()
    gone = going_on.run()
    assert (gone.code, "model.safetensors is missing: stage 'sft' made it" in gone.err) == (2, True)


def test_other_versions_need_inexact(going_on: Any, monkeypatch: pytest.MonkeyPatch, trained: Path) -> None:
    real = prepare.versions()
    monkeypatch.setattr(prepare, "versions", lambda: {**real, "torch": "9.9"})
    done = going_on.run()
    assert done.code == 2
    assert f"versions.torch: {real['torch']!r} -> '9.9'" in done.err
    assert "--inexact" in done.err
    accepted = going_on.run("--inexact")
    assert accepted.code == 0
    assert "not bit for bit" in " ".join(accepted.out.split())
    assert hashes(going_on.folder) == hashes(trained)


def test_inexact_without_resume_is_refused(plaudit: Callable[..., Any], trained: Path) -> None:
    assert plaudit("run", trained.parent / "recipe.yaml", "--inexact").code == 2


def test_a_log_that_was_cut_is_refused(going_on: Any) -> None:
    (going_on.folder / "ppo/metrics.jsonl").write_text("")
    done = going_on.run()
    assert (done.code, "metrics.jsonl has 0 bytes" in done.err) == (2, True)


# --- torn checkpoints and a full disk, in a run ---


def run_of(tiny_run: Callable[..., Run], home: Path, **checkpoints: Any) -> Run:
    return replace(tiny_run(home), checkpoints=CheckpointConfig(**checkpoints))


SFT = SFTConfig(epochs=1, batch_size=8, micro_batch_size=4, samples=0)


def test_a_flipped_byte_is_named_and_the_checkpoint_before_it_is_used(
    tmp_path: Path, tiny_run: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tiny_run, tmp_path, every_steps=1)
    summary = sft.train(SFT, run)
    whole = {name: sha256(run.folder.path / "sft" / name) for name in ("metrics.jsonl", "model/model.safetensors")}
    saved = run.folder.path / "sft/checkpoints"
    assert [one.name for one in sorted(saved.iterdir())] == ["00000002", "00000003"]
    file = saved / "00000003/tensors-0000.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    capsys.readouterr()
    again = sft.train(SFT, replace(run, resume=True))
    said = capsys.readouterr().out
    assert "00000003 is not whole" in said
    assert "Resuming sft after step 2" in said
    assert {name: sha256(run.folder.path / "sft" / name) for name in whole} == whole
    assert again["eval_loss_after"] == summary["eval_loss_after"]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOSPC, "/state.json: No space left on device"),
        (errno.EIO, "/state.json: the disk fails to read or write it"),
        (errno.EROFS, "/state.json: is on a disk that can only be read"),
    ],
)
def test_a_disk_that_fails_stops_the_run_and_the_old_checkpoint_stays(
    write_recipe: Callable[..., Path], tmp_path: Path, plaudit: Callable[..., Any], code: int, says: str, trained: Path
) -> None:
    recipe = write_recipe(tmp_path)
    real = os.write
    with pytest.MonkeyPatch.context() as patch:

        def full(handle: int, data: Any) -> int:
            if (tmp_path / "run/sft/checkpoints/00000002").is_dir():
                raise OSError(code, os.strerror(code))
            return real(handle, data)

        patch.setattr(os, "write", full)
        done = plaudit("run", recipe, "checkpoints.every_steps=1")
    assert done.code == 2
    assert says in done.err
    assert "--resume" in done.err
    assert sorted(one.name for one in (tmp_path / "run/sft/checkpoints").iterdir()) == ["00000001", "00000002"]
    if code == errno.ENOSPC:
        assert plaudit("run", recipe, "--resume").code == 0
        assert hashes(tmp_path / "run") == hashes(trained)


# --- when it saves ---


class Clock:
    now = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(saving.time, "monotonic", lambda: made.now)
    return made


def steps_saved(saver: Saver, clock: Clock, seconds: float, steps: int) -> list[int]:
    for step in range(1, steps + 1):
        clock.now += seconds
        saver.checkpoint(step, State)
    return [row["step"] for row in read_metrics(saver._run / "saves.jsonl")]


@pytest.mark.parametrize(
    ("settings", "seconds", "saved"),
    [
        ({"every_minutes": 0.5}, 10, [3, 6, 9]),
        ({"every_minutes": 1000, "every_steps": 4}, 10, [4, 8]),
        ({"every_minutes": 0.5, "every_steps": 4}, 10, [3, 4, 7, 8]),
        ({"every_minutes": 1000}, 10, []),
    ],
)
def test_it_saves_by_minutes_and_by_steps(
    tmp_path: Path,
    tiny_run: Callable[..., Run],
    clock: Clock,
    settings: dict[str, Any],
    seconds: float,
    saved: list[int],
) -> None:
    with Saver.open(run_of(tiny_run, tmp_path, **settings), "sft") as saver:
        (saver._run / "saves.jsonl").touch()
        assert steps_saved(saver, clock, seconds, 10) == saved


def test_by_the_clock_saving_takes_at_most_a_fiftieth_of_the_time(
    tmp_path: Path, tiny_run: Callable[..., Run], clock: Clock
) -> None:
    with Saver.open(run_of(tiny_run, tmp_path, every_minutes=0.5), "sft") as saver:
        clock.now = 30
        saver.checkpoint(1, State)
        saver._cost = 2.0  # what that save is said to have taken
        assert steps_saved(saver, clock, 10, 12) == [1, 10]


def test_the_tensors_and_numbers_come_back_exactly(tmp_path: Path, tiny_run: Callable[..., Run]) -> None:
    run = run_of(tiny_run, tmp_path)
    values = {"a": 0.1 + 0.2, "b": [1e-300, 3, None], "c": {"x": True}}
    tensors = {"x/w": torch.randn(3, 2), "x/b": torch.randn(4).bfloat16(), "y": torch.tensor(7.0)}
    with Saver.open(run, "sft", {"base": "abc"}) as saver, pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "TENSOR_BYTES", 10)
        saver.checkpoint(3, lambda: State(tensors, values, {"seconds": 1.5}), last=True)
    again = Saver.open(replace(run, resume=True), "sft", {"base": "abc"})
    assert again.step == 3
    assert again.state is not None
    assert again.state.values == values
    assert again.state.times == {"seconds": 1.5}
    assert {name: t.dtype for name, t in again.state.tensors.items()} == {n: t.dtype for n, t in tensors.items()}
    assert all(torch.equal(t, tensors[name]) for name, t in again.state.tensors.items())
    assert set(again.state.under("x")) == {"w", "b"}
    with pytest.raises(UserError, match=r"was made with inputs\.base: 'abc' -> 'abd'"):
        Saver.open(replace(run, resume=True), "sft", {"base": "abd"})


def test_a_stage_that_begins_anew_forgets_its_checkpoints(tmp_path: Path, tiny_run: Callable[..., Run]) -> None:
    run = run_of(tiny_run, tmp_path)
    with Saver.open(run, "sft") as saver:
        saver.checkpoint(1, State, last=True)
    Saver(run, "sft", {})  # to make one deletes nothing
    assert (run.folder.path / "sft/checkpoints/00000001").is_dir()
    assert Saver.open(run, "sft").state is None
    assert not (run.folder.path / "sft/checkpoints").exists()


def test_what_a_kill_left_half_deleted_goes_even_if_no_step_is_left_to_save(
    tmp_path: Path, tiny_run: Callable[..., Run]
) -> None:
    """Killed after its last save, while an older checkpoint was being deleted."""
    run = tiny_run(tmp_path)
    with Saver.open(run, "sft") as saver:
        saver.checkpoint(6, State, last=True)
    folder = run.folder.path / "sft/checkpoints"
    for name in ("00000005.gone", "00000007.part"):
        (folder / name).mkdir()
        (folder / name / "state.json").write_text("{}")
    with Saver.open(replace(run, resume=True), "sft") as again:
        again.checkpoint(6, State, last=True)
    assert [one.name for one in folder.iterdir()] == ["00000006"]
