"""Terminals that cannot show everything, readers that go away, and a chat that is fed what is no text.

The commands run as programs of their own: what a stream's encoding does, and what the interpreter says when it ends,
is not seen from inside.
"""

import errno
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest import tiny_rows, write_lines
from plaudit.algo import worked
from plaudit.cli import main
from plaudit.run.display import print_json
from plaudit.stages import pipeline
from plaudit.view import chat

Plaudit = Callable[..., SimpleNamespace]
COMMAND = [sys.executable, "-c", "from plaudit.cli.main import main; main()"]
# C without the interpreter's rescue is what a bare container or cron gives; the other is what editors' terminals set.
ASCII = {
    "PYTHONIOENCODING": {"PYTHONIOENCODING": "ascii"},
    "LANG=C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
}


def ran(*arguments: object, **options: object) -> subprocess.CompletedProcess[bytes]:
    environ = {**os.environ, **(options.pop("env", None) or {})}  # type: ignore[dict-item]
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, env=environ, **options)  # type: ignore


@pytest.fixture
def odd_rows(tmp_path: Path) -> Path:
    """A data file whose texts, kinds and name are beyond ASCII, with a bad row at its end."""
    rows = [{**row, "kind": "Größe ≥ 3 😀", "prompt": f"¿{row['prompt']}?"} for row in tiny_rows()[1]]
    file = write_lines(tmp_path / "Größe.jsonl", rows)
    file.write_text(file.read_text(encoding="utf-8") + '{"prömpt": "x"}\n', encoding="utf-8")
    return file


@pytest.mark.parametrize("environ", ASCII.values(), ids=list(ASCII))
def test_the_worked_example_on_a_terminal_that_knows_only_ascii(environ: dict[str, str]) -> None:
    example = ran("worked-example", env=environ)
    assert (example.returncode, example.stderr) == (0, b"")
    assert example.stdout.isascii() and b"3.5" in example.stdout and b"clip(r, 1" in example.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--help",), 0, b"worked-example"),
        (("data", "check", "DATA"), 1, b"Gr"),
        (("data", "check", "Größe.txt"), 2, b": no such file"),
        (("data", "größe"), 2, b"No such command"),
    ],
)
def test_every_command_shows_what_such_a_terminal_can(
    arguments: tuple[str, ...], code: int, says: bytes, odd_rows: Path
) -> None:
    done = ran(*(str(odd_rows) if one == "DATA" else one for one in arguments), env=ASCII["LANG=C"])
    said = done.stdout + done.stderr
    assert (done.returncode, b"Traceback" in said) == (code, False), said
    assert says in said and said.isascii(), said


def test_json_on_such_a_terminal_is_whole(odd_rows: Path) -> None:
    """A question mark in the place of a letter would be other data."""
    plain = ran("data", "check", odd_rows, "--json")
    escaped = ran("data", "check", odd_rows, "--json", env=ASCII["PYTHONIOENCODING"])
    assert "Größe ≥ 3 😀" in plain.stdout.decode() and escaped.stdout.isascii()
    assert json.loads(escaped.stdout) == json.loads(plain.stdout)


def test_half_a_character_in_json_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"text": "a\ud800"})
    assert json.loads(capsys.readouterr().out) == {"text": "a\ud800"}


@pytest.mark.parametrize("closed", ["stdin", "stdout", "stderr"])
def test_a_stream_that_was_closed_before_is_no_fault(closed: str, odd_rows: Path) -> None:
    number = ("stdin", "stdout", "stderr").index(closed)
    done = ran("data", "check", odd_rows, "--json", preexec_fn=lambda: os.close(number))
    assert done.returncode == 1
    assert done.stderr == b"" and (closed == "stdout") == (done.stdout == b"")


# --- readers that go ---


def first_byte(*arguments: object) -> tuple[int, bytes]:
    """`plaudit ... | head -c1`: exit code of plaudit, and what it said on stderr."""
    process = subprocess.Popen([*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read1(1)
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    return process.wait(), said


def unread(*arguments: object) -> tuple[int, bytes]:
    """With a reader that was gone before the first byte."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([*COMMAND, *map(str, arguments)], stdout=writer, stderr=subprocess.PIPE)
    finally:
        os.close(writer)
    return done.returncode, done.stderr


def test_output_that_nobody_reads_is_quiet(odd_rows: Path, tmp_path: Path) -> None:
    """141, as the shell says of tools that SIGPIPE ends; also where the answer's own exit code would be 1."""
    many = write_lines(tmp_path / "many.jsonl", [{"prompt": f"{i} {'word ' * 20}", f"k{i}": 1} for i in range(900)])
    for arguments in (("data", "check", many, "--json"), ("data", "check", odd_rows, "--json"), ("worked-example",)):
        assert unread(*arguments) == (141, b"")
    assert first_byte("data", "check", many, "--json")[1] == b""
    assert unread("--help") == (141, b"")


def test_output_that_was_read_keeps_its_exit_code(odd_rows: Path) -> None:
    """Though the reader is gone when the command ends."""
    code, said = first_byte("data", "check", odd_rows)
    assert (code in (1, 141), said) == (True, b"")
    assert ran("data", "check", odd_rows).returncode == 1


def test_a_run_whose_reader_goes_says_how_it_goes_on(
    plaudit: Plaudit, write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quiet as the others, or hours of work would end without a word."""

    def stage(*_: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(pipeline, "run_stage", stage)
    monkeypatch.setattr(main, "unread", lambda error: isinstance(error, BrokenPipeError))
    done = plaudit("run", write_recipe(tmp_path))
    assert done.code == 141
    kept = "checkpoints and the stages that ended are kept"
    how = f"go on with `plaudit run {tmp_path / 'run/recipe.yaml'} --resume`"
    assert done.err == f"Stopped: nobody reads its output any more; {kept}; {how}\n"


def test_a_connection_that_breaks_is_not_taken_for_a_reader(plaudit: Plaudit, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(worked, "worked_example", broken)
    assert (plaudit("worked-example").code, plaudit("worked-example").err) == (2, "Error: Broken pipe\n")


# --- chat ---


class Both:
    """In the place of two models: says what it was asked, and what no terminal can show."""

    asked: list[str]

    def __init__(self, *_: object) -> None:
        self.asked = []

    def replies(self, text: str) -> list[str]:
        text.encode()  # as every tokenizer does
        self.asked.append(text)
        return [f"half \ud83d {text}", "\udcff"]


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made = Both()
    monkeypatch.setattr(chat, "SideBySide", lambda *_: made)
    return made.asked


def test_chat_takes_and_shows_half_characters(
    both: list[str], plaudit: Plaudit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("half \ud83d a pair\n\udcff\nwhole\n"))
    done = plaudit("chat", tmp_path)
    assert (done.code, done.err, both) == (0, "", ["half ? a pair", "?", "whole"])
    assert "half ? whole" in done.out


def test_chat_reads_bytes_that_are_no_text(
    both: list[str], plaudit: Plaudit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"a\xff\xfe\nb\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stdin)
    assert (plaudit("chat", tmp_path).code, both) == (0, ["a\ufffd\ufffd", "b"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_chat_ends_with_a_signal_and_gives_no_advice_about_runs(
    number: signal.Signals, both: list[str], plaudit: Plaudit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> str:
        signal.raise_signal(number)
        raise AssertionError("heard")

    monkeypatch.setattr("builtins.input", read)
    done = plaudit("chat", tmp_path)
    assert (done.code, done.err) == (128 + number, "Stopped.\n")


def test_chat_ends_with_ctrl_d(
    both: list[str], plaudit: Plaudit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert (plaudit("chat", tmp_path).code, both) == (0, [])
