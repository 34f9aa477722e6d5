"""What a person sees: numbers, tables and progress, on a terminal and on a pipe."""

import io

import pytest
from rich.console import Console

from plaudit.run import display


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines do not wrap, whatever COLUMNS says."""
    monkeypatch.setattr(display.console, "_width", 200)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.12345, "0.123"),
        (-2.0, "-2.000"),
        (7, "7"),
        ("text", "text"),
        (None, "-"),
        ([0.1, 0.25], "[0.100, 0.250]"),
        ((1, 0.5), "[1, 0.500]"),
        ([], "[]"),
    ],
)
def test_values_are_shown_as_a_person_reads_them(value: object, shown: str) -> None:
    assert display.format_value(value) == shown


def test_a_stage_ends_with_its_title_and_one_line_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    display.stage_table("SFT", {"steps": 48, "eval_loss": 0.6789, "eval_loss_ci": [0.5, 0.75]})
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == ["SFT", "steps 48", "held-out loss 0.679", "held-out loss, 95 % interval [0.500, 0.750]"]


@pytest.mark.parametrize("value", ["[bold]", "[/x]", "a [red]word[/red]", ["b", "c"]])
def test_text_is_shown_as_it_stands_and_never_read_as_markup(capsys: pytest.CaptureFixture[str], value: object) -> None:
    """Some values are words that a model or a person wrote (the word that the gold score hangs on, for example)."""
    display.stage_table("Table", {"gold_word": value})
    expected = value if isinstance(value, str) else "[b, c]"
    assert expected in capsys.readouterr().out


def test_on_a_pipe_progress_is_a_plain_line_with_rate_and_estimate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, *[110.0] * 20])
    monkeypatch.setattr(display.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(display, "_LINE_EVERY_S", 5.0)
    with display.progress("PPO", 8, "update") as advance:
        advance("score 1.0", count=2)
        advance("quiet")  # no time has passed since the last line
    # Two updates in ten seconds: 0.2 a second, six left: 30 s.
    assert capsys.readouterr().out == "PPO: 2/8 update, 0.2 update/s, 30 s left score 1.0\n"


def test_on_a_pipe_quick_work_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with display.progress("SFT", 3, "step") as advance:
        for _ in range(3):
            advance()
    assert capsys.readouterr().out == ""


def test_on_a_terminal_progress_is_one_bar_with_count_rate_and_note(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    terminal = Console(file=out, width=160, highlight=False, force_terminal=True, color_system=None)
    monkeypatch.setattr(display, "console", terminal)
    with display.progress("Reward model", 4, "step") as advance:
        advance("loss 0.693", count=3)
    shown = out.getvalue()
    for part in ("Reward model", "3/4", "step/s", "loss 0.693"):
        assert part in shown


@pytest.mark.parametrize("terminal", [True, False])
def test_an_error_inside_the_bar_comes_through(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    monkeypatch.setattr(display, "console", Console(file=io.StringIO(), width=80, force_terminal=terminal))
    with pytest.raises(ZeroDivisionError), display.progress("x", 1, "y"):
        1 / 0  # noqa: B018
