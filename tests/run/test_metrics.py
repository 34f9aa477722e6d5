"""Metrics: written at once, read back as they were, and never a NaN."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from plaudit.data.files import write_rows
from plaudit.errors import UserError
from plaudit.run.metrics import TAIL, Metrics, last_rows, read_metrics


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    with Metrics(tmp_path / "ppo" / "metrics.jsonl") as metrics:
        metrics.log(step=1, loss=0.1, note="ünï")
        metrics.log(step=2, loss=1e-30, ok=True, none=None)
    assert read_metrics(tmp_path / "ppo" / "metrics.jsonl") == [
        {"step": 1, "loss": 0.1, "note": "ünï"},
        {"step": 2, "loss": 1e-30, "ok": True, "none": None},
    ]


def test_a_row_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    with Metrics(tmp_path / "m.jsonl") as metrics:
        for step in range(3):
            metrics.log(step=step)
            assert [row["step"] for row in read_metrics(tmp_path / "m.jsonl")] == list(range(step + 1))


def test_a_log_that_is_being_written_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text(json.dumps({"update": 1}) + "\n" + '{"update": 2, "sco')
    assert read_metrics(log) == [{"update": 1}]


def test_a_line_separator_inside_a_reply_ends_no_line(tmp_path: Path) -> None:
    write_rows(tmp_path / "replies.jsonl", [{"sft": "a\u2028b\u0085c"}, {"sft": "d"}])
    assert [row["sft"] for row in read_metrics(tmp_path / "replies.jsonl")] == ["a\u2028b\u0085c", "d"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float64("nan")])
def test_a_number_that_is_not_finite_is_refused_by_name_and_nothing_is_written(tmp_path: Path, value: float) -> None:
    with Metrics(tmp_path / "m.jsonl") as metrics:
        metrics.log(step=1, loss=0.5)
        with pytest.raises(FloatingPointError, match=r"'loss' is (nan|-?inf)"):
            metrics.log(step=2, loss=value)
    assert read_metrics(tmp_path / "m.jsonl") == [{"step": 1, "loss": 0.5}]


def test_a_number_inside_a_list_that_is_not_finite_is_refused_too(tmp_path: Path) -> None:
    with Metrics(tmp_path / "m.jsonl") as metrics, pytest.raises((FloatingPointError, ValueError)):
        metrics.log(step=1, interval=[0.0, math.nan])
    assert (tmp_path / "m.jsonl").read_text() == ""


def test_every_line_is_json_that_any_reader_takes(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    with Metrics(tmp_path / "m.jsonl") as metrics:
        metrics.log(step=1, small=5e-324, big=1.7e308, zero=-0.0)
    for line in (tmp_path / "m.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_a_stage_that_runs_again_starts_its_file_again(tmp_path: Path) -> None:
    for step in (1, 2):
        with Metrics(tmp_path / "m.jsonl") as metrics:
            metrics.log(step=step)
    assert read_metrics(tmp_path / "m.jsonl") == [{"step": 2}]


def test_a_resumed_log_is_cut_where_the_checkpoint_was_made_and_goes_on_there(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    with Metrics(path) as metrics:
        metrics.log(step=1, note="é")
        end = metrics.end()
        assert end == path.stat().st_size == len('{"step": 1, "note": "\\u00e9"}\n')
        metrics.log(step=2, by="the process that died")
    with path.open("ab") as handle:
        handle.write(b'{"step": 3, "torn')
    with Metrics(path, end) as metrics:
        metrics.log(step=2, by="the one that went on")
        assert metrics.end() == path.stat().st_size
    assert [row.get("by") for row in read_metrics(path)] == [None, "the one that went on"]


def test_a_log_that_is_shorter_than_its_checkpoint_says_is_refused(tmp_path: Path) -> None:
    with Metrics(tmp_path / "m.jsonl") as metrics:
        metrics.log(step=1)
    before = (tmp_path / "m.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"m\.jsonl has 12 bytes, its checkpoint was made after 13"):
        Metrics(tmp_path / "m.jsonl", 13)
    assert (tmp_path / "m.jsonl").read_bytes() == before
    with pytest.raises(UserError, match=r"gone\.jsonl is missing"):
        Metrics(tmp_path / "gone.jsonl", 1)


def test_the_last_rows_are_read_from_the_end(tmp_path: Path) -> None:
    """Rows of every length around what is read at a time; a last line without its end is not read yet."""
    log = tmp_path / "m.jsonl"
    assert last_rows(log, 1) == []
    for length in (1, TAIL // 3, TAIL - 20, TAIL - 19, TAIL, 3 * TAIL):
        rows = [{"step": step, "text": "é" * length} for step in range(5)]
        log.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) + '{"step": 5, "te')
        for count in (1, 3, 9):
            assert last_rows(log, count) == rows[-count:]
    log.write_text("")
    assert last_rows(log, 2) == []
