"""The run folder: whom it refuses and why, what a stage's beginning and end leave, and the lock between processes."""

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from plaudit.data.files import free_folder, read_json, write_json
from plaudit.errors import UserError
from plaudit.run.folder import RunFolder, finished_model, finished_stages, read_recipe
from plaudit.run.provenance import environment, versions

STAGES = ("sft", "preferences", "reward", "ppo", "evaluate", "report")
RECIPE: dict[str, Any] = {
    "name": "demo",
    "seed": 0,
    "preferences": {"temperature": 0.7, "noise": 0.1},
    "ppo": {"temperature": 0.7, "updates": 20},
    "evaluate": {"temperature": 0.7},
}


def text(recipe: dict[str, Any]) -> str:
    return yaml.safe_dump(recipe, sort_keys=False)


def refusal(path: Path, recipe: str = text(RECIPE), **options: Any) -> str:
    """The one-line message with which the folder is refused, without the folder it begins with."""
    options.setdefault("resume", False)
    with pytest.raises(UserError) as caught:
        RunFolder.open(path, recipe, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder.open(tmp_path / "run", text(RECIPE), resume=False) as opened:
        yield opened


def made(path: Path) -> Path:
    """A run whose first stage has begun."""
    with RunFolder.open(path, text(RECIPE), resume=False) as run:
        run.begin("sft")
        (run.stage("sft") / "metrics.jsonl").touch()
    return path


# --- opening ---


def test_a_new_folder_gets_recipe_and_environment(tmp_path: Path) -> None:
    path = made(tmp_path / "runs" / "demo")
    assert (path / "recipe.yaml").read_text() == text(RECIPE)
    assert read_recipe(path) == RECIPE
    assert set(json.loads((path / "environment.json").read_text())) == {
        "versions",
        "platform",
        "cores",
        "command",
        "git",
        "started",
    }


def test_an_empty_folder_that_is_there_already_will_do(tmp_path: Path) -> None:
    assert (made(tmp_path) / "recipe.yaml").is_file()


def test_a_run_that_never_began_leaves_its_folder_to_any_recipe(tmp_path: Path) -> None:
    for seed in (1, 2):
        with RunFolder.open(tmp_path / "run", text({**RECIPE, "seed": seed}), resume=False):
            assert read_recipe(tmp_path / "run")["seed"] == seed


def test_a_second_opening_needs_resume(tmp_path: Path) -> None:
    path = made(tmp_path / "run")
    assert "--resume" in refusal(path)
    with RunFolder.open(path, text(RECIPE), resume=True) as again:
        assert again.path == path


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize(
    ("section", "key", "value"),
    [(None, "seed", 1), ("ppo", "updates", 21), ("ppo", "temperature", 1.0), ("preferences", "noise", 0.7)],
)
def test_another_recipe_is_refused_and_the_differing_key_is_named(
    tmp_path: Path, section: str | None, key: str, value: float, resume: bool
) -> None:
    path = made(tmp_path / "run")
    changed: dict[str, Any] = json.loads(json.dumps(RECIPE))
    (changed[section] if section else changed)[key] = value
    message = refusal(path, text(changed), resume=resume)
    assert key in message
    assert "folder=" in message
    assert (path / "recipe.yaml").read_text() == text(RECIPE)


def test_the_differing_key_is_named_even_when_its_new_line_stands_elsewhere_in_the_old_recipe(tmp_path: Path) -> None:
    """Three sections have a `temperature`: ppo's goes back from 1.0 to the 0.7 that the others have."""
    old = {**RECIPE, "ppo": {"temperature": 1.0, "updates": 20}}
    with RunFolder.open(tmp_path / "run", text(old), resume=False) as run:
        (run.stage("sft") / "metrics.jsonl").touch()
    message = refusal(tmp_path / "run", text(RECIPE), resume=True)
    assert "temperature" in message
    assert "ppo" in message


def test_a_key_that_the_new_recipe_lacks_is_named(tmp_path: Path) -> None:
    path = made(tmp_path / "run")
    fewer = {**RECIPE, "preferences": {"temperature": 0.7}}
    assert "noise" in refusal(path, text(fewer))


def test_a_key_that_the_old_recipe_lacks_is_named(tmp_path: Path) -> None:
    path = made(tmp_path / "run")
    more = {**RECIPE, "preferences": {"temperature": 0.7, "noise": 0.1, "replies": 5}}
    assert "preferences.replies" in refusal(path, text(more), resume=True)


def test_the_sections_of_stages_that_run_again_may_change_and_no_other(tmp_path: Path) -> None:
    path = made(tmp_path / "run")
    changed = {**RECIPE, "ppo": {"temperature": 1.0, "updates": 5}, "evaluate": {"temperature": 1.0}}
    message = refusal(path, text(changed), resume=True, may_change=("evaluate", "report"))
    assert "ppo.updates" in message
    assert "ppo.temperature" in message
    assert "evaluate.temperature" not in message
    assert read_recipe(path) == RECIPE
    with RunFolder.open(path, text(changed), resume=True, may_change=("ppo", "evaluate", "report")):
        assert read_recipe(path) == changed
    also_the_seed = {**changed, "seed": 1}
    assert "seed" in refusal(path, text(also_the_seed), resume=True, may_change=STAGES)


def test_a_change_that_is_allowed_still_needs_resume(tmp_path: Path) -> None:
    path = made(tmp_path / "run")
    changed = {**RECIPE, "evaluate": {"temperature": 1.0}}
    assert "--resume" in refusal(path, text(changed), may_change=("evaluate",))
    assert read_recipe(path) == RECIPE


def test_a_folder_in_use_keeps_its_recipe_whatever_may_change(tmp_path: Path) -> None:
    path = made(tmp_path / "run")
    changed = {**RECIPE, "evaluate": {"temperature": 1.0}}
    with RunFolder.open(path, text(RECIPE), resume=True):
        refusal(path, text(changed), resume=True, may_change=("evaluate",))
    refusal(path, text(changed), resume=True, may_change=("evaluate",), need_mb=1e12)
    assert read_recipe(path) == RECIPE


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("work")
    message = refusal(tmp_path)
    assert "not empty" in message
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    refusal(tmp_path / "run")
    assert (tmp_path / "run").read_text() == "x"


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "cannot be written" in refusal(tmp_path / "file" / "run")


def test_too_little_disk_is_refused_with_both_numbers(tmp_path: Path) -> None:
    message = refusal(tmp_path / "run", need_mb=1e12)
    assert "1000000000000 MB" in message
    assert "MB free" in message


def test_a_folder_refused_for_the_disk_can_be_used_once_there_is_room(tmp_path: Path) -> None:
    refusal(tmp_path / "run", need_mb=1e12)
    with RunFolder.open(tmp_path / "run", text(RECIPE), resume=False) as opened:
        assert (opened.path / "recipe.yaml").is_file()


def test_a_start_that_was_cut_right_after_the_lock_can_be_repeated(tmp_path: Path) -> None:
    """A process killed between its lock and its recipe leaves a folder with an empty .lock and nothing else."""
    (tmp_path / ".lock").touch()
    with RunFolder.open(tmp_path, text(RECIPE), resume=False) as opened:
        assert (opened.path / "recipe.yaml").is_file()


# --- the lock ---

HOLD = """
import sys
import threading
from pathlib import Path
from plaudit.run.folder import RunFolder
with RunFolder.open(Path(sys.argv[1]), Path(sys.argv[2]).read_text(), resume=True):
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    recipe = path.with_suffix(".txt")
    recipe.write_text(text(RECIPE))
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), str(recipe)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "locked\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_folder_that_another_process_writes_to_is_refused_by_its_pid(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with held_by_another_process(path) as process:
        for _ in range(2):
            message = refusal(path, resume=True)
            assert "in use" in message
            assert f"pid {process.pid} " in message
    # The other process was killed, not ended: its lock went with it.
    with RunFolder.open(path, text(RECIPE), resume=True):
        pass


def test_the_lock_is_given_back_at_the_end_and_after_an_error(tmp_path: Path) -> None:
    path = made(tmp_path / "run")
    with pytest.raises(ZeroDivisionError), RunFolder.open(path, text(RECIPE), resume=True):
        1 / 0  # noqa: B018
    with RunFolder.open(path, text(RECIPE), resume=True):
        assert "in use" in refusal(path, resume=True)


def test_a_look_at_the_run_does_not_stop_whoever_is_about_to_write(tmp_path: Path) -> None:
    """A studio or `plaudit status` holds the lock for the instant in which it asks whether the run goes on."""
    path = made(tmp_path / "run")
    with (path / ".lock").open() as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        ends = threading.Timer(0.2, look.close)
        ends.start()
        with RunFolder.open(path, text(RECIPE), resume=True):
            assert look.closed


# --- stages ---


def fill(run: RunFolder, *stages: str) -> None:
    for stage in stages:
        (run.stage(stage) / "inner").mkdir()
        (run.stage(stage) / "inner" / "result.txt").write_text(f"made by {stage}")
        run.end(stage, 1.23456, {"peak_rss_mb": 99.94})


def test_the_end_of_a_stage_hashes_every_file_it_left(run: RunFolder) -> None:
    (run.stage("sft") / "model").mkdir()
    (run.stage("sft") / "model" / "weights").write_bytes(b"\x00\xff")
    (run.stage("sft") / "summary.json").write_text("{}")
    run.end("sft", 12.34567, {"peak_rss_mb": 321.98, "peak_gpu_mb": 1234.56})
    assert run.finished() == {
        "sft": {
            "seconds": 12.346,
            "peak_rss_mb": 322.0,
            "peak_gpu_mb": 1234.6,
            "files": {
                "sft/model/weights": hashlib.sha256(b"\x00\xff").hexdigest(),
                "sft/summary.json": hashlib.sha256(b"{}").hexdigest(),
            },
        }
    }


def test_a_new_run_has_finished_nothing_and_a_resumed_one_what_it_had(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "run", text(RECIPE), resume=False) as run:
        assert run.finished() == {}
        fill(run, "sft", "preferences")
    with RunFolder.open(tmp_path / "run", text(RECIPE), resume=True) as run:
        assert list(run.finished()) == ["sft", "preferences"]


def test_a_stage_that_begins_forgets_itself_and_all_later_ones(run: RunFolder) -> None:
    fill(run, *STAGES[:5])
    for name in ("summary.json", "report.html"):
        (run.path / name).write_text("old")
    before = run.finished()
    run.begin("reward")
    assert run.finished() == {name: before[name] for name in ("sft", "preferences")}
    for stage in ("sft", "preferences"):
        assert (run.path / stage / "inner" / "result.txt").read_text() == f"made by {stage}"
    for gone in ("reward", "ppo", "evaluate", "summary.json", "report.html"):
        assert not (run.path / gone).exists()
    assert read_recipe(run.path) == RECIPE


def test_what_lies_beside_ppo_stays_where_what_it_learnt_from_does(run: RunFolder) -> None:
    fill(run, *STAGES[:5], "rejection", "dpo", "baselines")
    for name in ("rejection", "evaluate", "ppo", "reward"):
        run.begin(name)
        assert (run.path / "dpo/inner/result.txt").is_file() and "dpo" in run.finished()
    assert not (run.path / "baselines").exists() and "baselines" not in run.finished()
    fill(run, *STAGES[2:5], "rejection")
    run.begin("evaluate")
    assert "rejection" in run.finished()
    run.begin("ppo")
    assert not (run.path / "rejection").exists()
    run.begin("preferences")
    assert not (run.path / "dpo").exists() and [*run.finished()] == ["sft"]


def test_what_ended_is_kept_until_it_has_ended_again(run: RunFolder) -> None:
    fill(run, *STAGES[:5])
    old = run.path / "before"
    run.begin("ppo")
    assert sorted(one.name for one in old.iterdir()) == ["evaluate", "ppo"]
    assert (old / "ppo/inner/result.txt").read_text() == "made by ppo"
    # Killed and begun again: what was not ended goes, what was kept stays.
    (run.stage("ppo") / "half").write_text("x")
    run.begin("ppo")
    assert (old / "ppo/inner/result.txt").is_file() and not (run.path / "ppo").exists()
    fill(run, "ppo")
    assert [one.name for one in old.iterdir()] == ["evaluate"]
    fill(run, "evaluate")
    assert not old.exists()


def test_a_kill_while_stages_are_put_aside_loses_none(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(run, *STAGES[:5])
    rename, moved = Path.rename, list[str]()

    def killed_after_the_first(self: Path, target: Path) -> Path:
        if moved:
            raise KeyboardInterrupt
        moved.append(self.name)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed_after_the_first)
    with pytest.raises(KeyboardInterrupt):
        run.begin("ppo")
    monkeypatch.undo()
    assert moved == ["ppo"] and list(run.finished()) == ["sft", "preferences", "reward", "evaluate"]
    run.begin("ppo")  # as --resume does: the first stage that has not ended
    assert sorted(one.name for one in (run.path / "before").iterdir()) == ["evaluate", "ppo"]
    with pytest.raises(UserError, match=r"the one of before is in .*before/ppo/inner"):
        finished_model(run.path, "ppo/inner")


def test_what_a_stopped_stage_left_is_gone_when_it_begins_again(run: RunFolder) -> None:
    (run.stage("sft") / "half").write_text("x")
    assert "sft" not in run.finished()
    run.begin("sft")
    assert list(run.stage("sft").iterdir()) == []


def test_a_stage_that_goes_on_keeps_its_files_but_not_halves_of_files(run: RunFolder) -> None:
    fill(run, "sft", "preferences")
    stage = run.stage("preferences")
    (stage / "checkpoints" / "00000001").mkdir(parents=True)
    (stage / "inner" / "half.json.part").write_text("x")
    (stage / "model.part-123").mkdir()
    (stage / "model.part-123" / "weights.part").write_text("x")
    run.begin("preferences", resume=True)
    assert list(run.finished()) == ["sft"]
    left = sorted(str(one.relative_to(stage)) for one in stage.rglob("*"))
    assert left == ["checkpoints", "checkpoints/00000001", "inner", "inner/result.txt"]
    run.end("preferences", 1.0, {})
    assert list(run.finished()["preferences"]["files"]) == ["preferences/inner/result.txt"]
    run.drop_checkpoints("preferences")
    run.begin("preferences", resume=True)
    assert not stage.exists(), "without a checkpoint it begins anew"


def test_a_stage_stopped_between_begin_and_end_is_not_in_the_manifest(run: RunFolder) -> None:
    fill(run, "sft", "preferences")
    run.begin("preferences")
    (run.stage("preferences") / "rankings.jsonl").write_text("x")
    assert list(run.finished()) == ["sft"]


def test_what_is_missing_is_named_with_the_stage_that_makes_it(run: RunFolder) -> None:
    with pytest.raises(UserError, match=r"sft/model is missing: stage 'sft' makes it.*plaudit sft"):
        run.require("sft/model", "sft")
    (run.stage("sft") / "model").mkdir()
    assert run.require("sft/model", "sft") == run.path / "sft" / "model"


# --- around it ---


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"recipe\.yaml is missing"):
        read_recipe(tmp_path)


def test_a_free_folder_is_the_first_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "demo"
    assert free_folder(path) == path
    path.mkdir()
    assert free_folder(path) == tmp_path / "demo-2"
    (tmp_path / "demo-2").mkdir()
    (tmp_path / "demo-4").mkdir()
    assert free_folder(path) == tmp_path / "demo-3"


def test_the_environment_names_python_and_every_package_a_result_depends_on() -> None:
    found = versions()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"plaudit", "torch", "transformers", "peft", "safetensors", "numpy"} <= set(found)
    assert environment()["cores"] >= 1


def test_an_environment_without_git_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment()["git"] is None
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert environment()["git"] is None


# --- what was cut short ---


@pytest.mark.parametrize("end", [0, -3])
@pytest.mark.parametrize("name", ["manifest.json", "recipe.yaml", "some.json"])
def test_a_file_of_a_run_that_was_cut_short_is_named(tmp_path: Path, name: str, end: int) -> None:
    path = made(tmp_path)
    write_json(path / "some.json", {"a": "b" * 50})
    reading = {"manifest.json": finished_stages, "recipe.yaml": read_recipe}.get(
        name, lambda run: read_json(run / name)
    )
    reading(path)
    (path / name).write_text((path / name).read_text()[:end])
    with pytest.raises(UserError, match=rf"{name} is cut short or damaged.*; put it back"):
        reading(path)


def test_a_run_without_its_manifest_does_not_begin_again_over_what_it_made(tmp_path: Path) -> None:
    path = made(tmp_path)
    (path / "manifest.json").unlink()
    (path / "sft/inputs.json").write_text("{}\n")  # a stage began here; without, somebody put rows there by hand
    assert "manifest.json is missing, and nothing else says which stages ended" in refusal(
        path, text(RECIPE), resume=True
    )
    assert (path / "sft/metrics.jsonl").is_file()
