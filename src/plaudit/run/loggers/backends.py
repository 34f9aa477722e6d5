"""The loggers: each is opened for one run and takes rows of numbers and tables of replies. All that Plaudit knows of a
logger's library stands here; it is imported when the logger is opened.

A logger that is opened once more under the id it had goes on in the same run of its own.
"""

import importlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from plaudit.errors import UserError

LoggerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]
PROJECT = "plaudit"
"""The project or experiment of a run, where the logger's own variable in the environment names no other."""


@dataclass(frozen=True)
class Opened:
    """What a logger is opened for. `id` names its run and stays the same when the run is resumed."""

    id: str
    name: str
    folder: Path
    recipe: Mapping[str, Any]


class Logger(Protocol):
    """What a logger can do. Names are `stage/metric`; `counted` is the name of what `step` counts, `stage/update`."""

    def log(self, counted: str, step: int, numbers: Mapping[str, float]) -> None: ...

    def replies(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of {"prompt": messages, "reply": text, and numbers}."""

    def close(self) -> None: ...


def opener(name: LoggerName) -> Callable[[Opened], Logger]:
    """How the logger of this name is opened; UserError where its library is not installed."""
    if find_spec(name) is None:
        raise UserError(f"loggers: {name} is not installed; pip install 'plaudit[{name}]', or leave it out")
    return _LOGGERS[name]


class TensorBoard:
    """Event files in the run's folder; `tensorboard --logdir runs` shows them. The writer is TensorBoard's own."""

    def __init__(self, opened: Opened):
        writer = importlib.import_module("tensorboard.summary.writer.event_file_writer")
        self._event = importlib.import_module("tensorboard.compat.proto.event_pb2").Event
        self._proto = importlib.import_module("tensorboard.compat.proto.summary_pb2")
        self._tensor = importlib.import_module("tensorboard.compat.proto.tensor_pb2").TensorProto
        self._writer = writer.EventFileWriter(str(opened.folder / "tensorboard" / opened.id))

    def log(self, counted: str, step: int, numbers: Mapping[str, float]) -> None:
        self._write(step, [self._proto.Summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()])

    def replies(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        # Indented by four it is code to Markdown, which shows a text as the characters it is made of.
        said = [
            [*(f"{turn['role']}: {turn['content']}" for turn in _conversation(row)), _said(row), ""] for row in rows
        ]
        text = "\n".join(f"    {line}" for lines in said for line in "\n".join(lines).splitlines())
        kind = self._proto.SummaryMetadata(plugin_data=self._proto.SummaryMetadata.PluginData(plugin_name="text"))
        tensor = self._tensor(dtype="DT_STRING", string_val=[text.encode()])
        self._write(step, [self._proto.Summary.Value(tag=name, metadata=kind, tensor=tensor)])

    def _write(self, step: int, values: list[Any]) -> None:
        summary = self._proto.Summary(value=values)
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()  # what was sent must be there after a kill: it is not sent twice

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """WANDB_MODE=offline writes into the run's folder only; WANDB_PROJECT and the rest of its variables hold."""

    def __init__(self, opened: Opened):
        wandb = importlib.import_module("wandb")
        self._table, self._counted = wandb.Table, set[str]()
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=opened.id,
            name=opened.name,
            dir=str(opened.folder),
            config=dict(opened.recipe),
            resume="allow",
            reinit="create_new",
        )

    def log(self, counted: str, step: int, numbers: Mapping[str, float]) -> None:
        self._count_by(counted)
        self._run.log({counted: step, **numbers})

    def replies(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        counted = f"{name.partition('/')[0]}/update"
        columns = list(dict.fromkeys(key for row in rows for key in row))
        table = self._table(columns=columns, data=[[_cell(row, key) for key in columns] for row in rows])
        self._count_by(counted)
        self._run.log({counted: step, name: table})

    def _count_by(self, counted: str) -> None:
        """Curves of a stage lie over the steps of that stage, not over W&B's own count."""
        if counted not in self._counted:
            self._run.define_metric(counted)
            self._run.define_metric(f"{counted.partition('/')[0]}/*", step_metric=counted)
            self._counted.add(counted)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A local database (TRACKIO_DIR; `trackio show`); replies are traces: conversations with their numbers."""

    def __init__(self, opened: Opened):
        trackio = importlib.import_module("trackio")
        self._trace = trackio.Trace
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=opened.id,
            config=dict(opened.recipe),
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def log(self, counted: str, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def replies(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        for number, row in enumerate(rows, start=1):
            about = {key: value for key, value in row.items() if key not in ("prompt", "reply")}
            trace = self._trace(messages=_conversation(row), metadata=about)
            self._run.log({f"{name}/{number}": trace}, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """Where MLFLOW_TRACKING_URI says, else MLflow's own default; replies are tables among the run's artefacts."""

    def __init__(self, opened: Opened):
        mlflow = importlib.import_module("mlflow")
        self._metric = importlib.import_module("mlflow.entities").Metric
        self._client = mlflow.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        # MLflow gives its own ids: ours is a tag by which the run is found again.
        runs = self._client.search_runs([experiment], f"tags.`plaudit.id` = '{opened.id}'")
        tags = {"plaudit.id": opened.id}
        run = runs[0] if runs else self._client.create_run(experiment, tags=tags, run_name=opened.name)
        self._run = run.info.run_id
        if not runs:
            self._client.log_dict(self._run, dict(opened.recipe), "recipe.json")

    def log(self, counted: str, step: int, numbers: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        self._client.log_batch(self._run, [self._metric(name, value, now, step) for name, value in numbers.items()])

    def replies(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        table = {"columns": columns, "data": [[_cell(row, key) for key in columns] for row in rows]}
        self._client.log_dict(self._run, table, f"{name}/{step:05d}.json")

    def close(self) -> None:
        self._client.set_terminated(self._run)


def _conversation(row: Mapping[str, Any]) -> list[dict[str, str]]:
    return [*row["prompt"], {"role": "assistant", "content": row["reply"]}]


def _said(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in row.items() if isinstance(value, float))


def _cell(row: Mapping[str, Any], key: str) -> Any:
    return row["prompt"][-1]["content"] if key == "prompt" else row.get(key)


_LOGGERS: dict[LoggerName, Callable[[Opened], Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
    "mlflow": MLflow,
}
