"""Loggers: every row once, in order, through kills, resumes, stages that run again, and loggers that fail."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from plaudit.data.files import write_json, write_rows
from plaudit.errors import UserError
from plaudit.run.loggers.backends import LoggerName, Opened, opener
from plaudit.run.loggers.follow import STATE, Loggers
from plaudit.run.metrics import Metrics, read_metrics
from plaudit.stages.pipeline import run_pipeline
from plaudit.stages.plan import Flags
from plaudit.stages.recipe import load_recipe

RECIPE = {"name": "tiny"}


@dataclass
class Recording:
    """A logger that keeps what it gets, by the id it was opened under; `broken` says how often it fails before."""

    got: dict[str, list[tuple[str, int, dict[str, float]]]] = field(default_factory=dict)
    texts: list[tuple[str, int, list[Mapping[str, Any]]]] = field(default_factory=list)
    closed: int = 0
    broken: int = 0
    id: str = ""

    def __call__(self, name: LoggerName) -> Any:
        def opened(what: Opened) -> "Recording":
            self.id = what.id
            self.got.setdefault(what.id, [])
            return self

        return opened

    def log(self, counted: str, step: int, numbers: Mapping[str, float]) -> None:
        if self.broken:
            self.broken -= 1
            raise ConnectionError("the server is away")
        self.got[self.id].append((counted, step, dict(numbers)))

    def replies(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self.texts.append((name, step, list(rows)))

    def close(self) -> None:
        self.closed += 1

    def steps(self, counted: str = "ppo/update") -> list[int]:
        return [step for what, step, _ in self.got[self.id] if what == counted]


def following(folder: Path, fake: Recording) -> Loggers:
    """No thread looks before the test says so."""
    return Loggers(folder, ["tensorboard"], RECIPE, fake, every_s=3600)


def log_updates(folder: Path, updates: range, start: int = 0) -> int:
    with Metrics(folder / "ppo" / "metrics.jsonl", start) as metrics:
        for update in updates:
            metrics.log(update=update, score=update / 10, kind="x", ok=True)
        return metrics.end()


def test_a_row_is_sent_as_numbers_under_its_stage_and_over_what_it_counts(tmp_path: Path) -> None:
    fake = Recording()
    with following(tmp_path, fake) as loggers:
        log_updates(tmp_path, range(1, 3))
        loggers.send()
        loggers.send()
    assert fake.got[fake.id] == [("ppo/update", 1, {"ppo/score": 0.1}), ("ppo/update", 2, {"ppo/score": 0.2})]
    assert fake.closed == 1


def test_what_is_sent_is_named_by_stage_log_and_member(tmp_path: Path) -> None:
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward/metrics.jsonl").write_text(
        '{"step": 1, "member": 0, "loss": 1}\n{"step": 1, "member": 1, "loss": 2}\n'
    )
    (tmp_path / "ppo").mkdir()
    (tmp_path / "ppo/evaluations.jsonl").write_text('{"update": 0, "score": 0.5}\n{"update": 5, "sco')
    write_json(tmp_path / "ppo/summary.json", {"kl": 3.0, "kept_by": "score", "stopped": None})
    fake = Recording()
    with following(tmp_path, fake):
        pass
    assert fake.got[fake.id] == [
        ("reward/step", 1, {"reward/loss": 1.0}),
        ("reward/step", 1, {"reward/1/loss": 2.0}),
        ("ppo/update", 0, {"ppo/validation/score": 0.5}),
        ("ppo/end", 0, {"ppo/summary/kl": 3.0}),
    ]


def test_replies_go_with_their_prompt_and_numbers(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "Hi"}]
    (tmp_path / "ppo").mkdir()
    write_rows(tmp_path / "ppo/validation/00005.jsonl", [{"id": "1", "prompt": asked, "text": "Ho", "score": 0.5}])
    fake = Recording()
    with following(tmp_path, fake):
        pass
    assert fake.texts == [("ppo/replies", 5, [{"prompt": asked, "reply": "Ho", "score": 0.5}])]


def test_a_resumed_run_doubles_no_step_and_misses_none(tmp_path: Path) -> None:
    fake = Recording()
    with following(tmp_path, fake):
        end = log_updates(tmp_path, range(1, 4))  # the checkpoint was made here
        log_updates(tmp_path, range(4, 6), end)  # and the run was killed two updates later
    first = fake.id
    with following(tmp_path, fake) as loggers:
        loggers.begin("ppo", resume=True)
        log_updates(tmp_path, range(4, 5), end)
        loggers.send()
        assert fake.steps() == [1, 2, 3, 4, 5]  # the fourth was sent before
        log_updates(tmp_path, range(4, 9), end)
    assert fake.id == first
    assert fake.steps() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_rows_of_before_the_logger_are_sent_as_well(tmp_path: Path) -> None:
    log_updates(tmp_path, range(1, 4))
    fake = Recording()
    with following(tmp_path, fake):
        pass
    assert fake.steps() == [1, 2, 3]


def test_a_stage_that_runs_again_goes_into_a_new_run_with_all_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft/metrics.jsonl").write_text('{"step": 0, "loss": 1}\n')
    fake = Recording()
    with following(tmp_path, fake):
        log_updates(tmp_path, range(1, 4))
    first = fake.id
    with following(tmp_path, fake) as loggers:
        (tmp_path / "ppo/metrics.jsonl").unlink()
        loggers.begin("ppo", resume=False)
        log_updates(tmp_path, range(1, 3))
    assert fake.id != first
    assert fake.steps() == [1, 2]
    assert fake.steps("sft/step") == [0]


def test_a_stage_that_no_logger_knows_yet_begins_no_new_run(tmp_path: Path) -> None:
    fake = Recording()
    with following(tmp_path, fake) as loggers:
        log_updates(tmp_path, range(1, 2))
        loggers.send()
        first = fake.id
        loggers.begin("evaluate", resume=False)
    assert fake.id == first


def test_a_logger_that_fails_ends_no_run_and_gets_later_what_it_missed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = Recording(broken=2)
    with following(tmp_path, fake) as loggers:
        log_updates(tmp_path, range(1, 4))
        loggers.send()
        loggers.send()
        loggers.send()
    assert fake.steps() == [1, 2, 3]
    assert capsys.readouterr().out.count("the server is away; the run goes on") == 1


def test_the_count_is_on_the_disk_before_the_row_is_sent(tmp_path: Path) -> None:
    class Killed(Recording):
        def log(self, counted: str, step: int, numbers: Mapping[str, float]) -> None:
            assert json.loads((tmp_path / STATE).read_text())["tensorboard"]["rows"]["ppo/metrics.jsonl"] >= step
            super().log(counted, step, numbers)

    log_updates(tmp_path, range(1, 250))
    fake = Killed()
    with following(tmp_path, fake):
        pass
    assert fake.steps() == [*range(1, 250)]


def test_rows_are_sent_while_the_run_goes_on(tmp_path: Path) -> None:
    import time

    fake = Recording()
    with Loggers(tmp_path, ["wandb"], RECIPE, fake, every_s=0.01):
        log_updates(tmp_path, range(1, 2))
        until = time.monotonic() + 10
        while not fake.got[fake.id] and time.monotonic() < until:
            time.sleep(0.01)
        assert fake.steps() == [1]


def test_without_loggers_nothing_is_written(tmp_path: Path) -> None:
    with Loggers(tmp_path, (), RECIPE):
        log_updates(tmp_path, range(1, 2))
    assert not (tmp_path / STATE).exists()


def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plaudit.run.loggers.backends.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"loggers: trackio is not installed; pip install 'plaudit\[trackio\]'"):
        opener("trackio")


def test_a_logger_that_cannot_be_opened_stops_the_run_before_it_begins(tmp_path: Path) -> None:
    def refuses(name: LoggerName) -> Any:
        def opened(what: Opened) -> Any:
            raise RuntimeError("no key")

        return opened

    with (
        pytest.raises(UserError, match=r"wandb cannot be opened \(no key\)"),
        Loggers(tmp_path, ["wandb"], RECIPE, refuses),
    ):
        pass


def test_a_run_sends_what_its_stages_logged(
    trained: Path, tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named in the recipe when only the report was left to write: it gets the rows of before too."""
    fake, folder = Recording(), tmp_path / "run"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns(".lock"))
    monkeypatch.setattr("plaudit.run.loggers.backends.find_spec", lambda name: True)
    monkeypatch.setattr("plaudit.stages.pipeline.Loggers", partial(Loggers, open_with=fake))
    recipe = load_recipe(trained.parent / "recipe.yaml", [f"folder={folder}", "loggers=[tensorboard]"])
    run_pipeline(recipe, Flags(only=("report",)))
    updates = [row["update"] for row in read_metrics(folder / "ppo/metrics.jsonl")]
    looks = [row["update"] for row in read_metrics(folder / "ppo/evaluations.jsonl")]
    assert sorted(fake.steps()) == sorted([*updates, *looks])
    assert len(fake.texts) == len(looks) and fake.closed == 1


# --- the libraries themselves, offline; skipped visibly where they are not installed ---


def run_and_resume(folder: Path, name: LoggerName) -> None:
    """Five updates and a table of replies, a kill, and a resume from the third update to the eighth."""
    asked = [{"role": "user", "content": "<script>alert(1)</script>"}]
    with Loggers(folder, [name], RECIPE):
        end = log_updates(folder, range(1, 4))
        log_updates(folder, range(4, 6), end)
        write_rows(folder / "ppo/validation/00005.jsonl", [{"prompt": asked, "text": "Ho", "score": 0.5}])
    with Loggers(folder, [name], RECIPE) as loggers:
        loggers.begin("ppo", resume=True)
        log_updates(folder, range(4, 9), end)


UPDATES = list(range(1, 9))


def test_tensorboard_shows_every_step_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_and_resume(tmp_path, "tensorboard")
    (folder,) = (tmp_path / "tensorboard").iterdir()
    found = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in found.Scalars("ppo/score")] == UPDATES
    assert [event.value for event in found.Scalars("ppo/score")] == pytest.approx([u / 10 for u in UPDATES])
    (text,) = found.Tensors("ppo/replies")
    assert b"    user: <script>alert(1)</script>" in text.tensor_proto.string_val[0]


def test_trackio_holds_every_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    run_and_resume(tmp_path, "trackio")
    (run,) = SQLiteStorage.get_runs("plaudit")
    logs = SQLiteStorage.get_logs("plaudit", run)
    assert [(row["step"], row["ppo/score"]) for row in logs if "ppo/score" in row] == [(u, u / 10) for u in UPDATES]
    (trace,) = SQLiteStorage.get_traces("plaudit", run)
    assert [turn["content"] for turn in trace["messages"]] == ["<script>alert(1)</script>", "Ho"]


def test_mlflow_holds_every_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    run_and_resume(tmp_path, "mlflow")
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("plaudit").experiment_id])
    history = client.get_metric_history(run.info.run_id, "ppo/score")
    assert [(one.step, one.value) for one in history] == [(u, u / 10) for u in UPDATES]
    assert [file.path for file in client.list_artifacts(run.info.run_id, "ppo/replies")] == ["ppo/replies/00005.json"]


def wandb_records(file: Path) -> Iterator[bytes]:
    """W&B's file: seven bytes, then LevelDB's log, blocks of 32 kB with (CRC, length, kind) before each part."""
    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def test_wandb_offline_holds_every_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_and_resume(tmp_path, "wandb")
    rows: list[tuple[int, float]] = []
    ids = set()
    for file in sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb")):
        for data in wandb_records(file):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
            items = {"".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            if "ppo/score" in items:
                rows.append((json.loads(items["ppo/update"]), json.loads(items["ppo/score"])))
    assert sorted(rows) == [(u, u / 10) for u in UPDATES]
    assert len(ids) == 1
