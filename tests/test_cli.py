"""The command line: help, the worked example, chat and export of a run, exit codes."""

import io
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from plaudit.data.hashes import sha256
from plaudit.errors import RunStopped
from plaudit.stages import pipeline
from plaudit.view import chat

Plaudit = Callable[..., SimpleNamespace]
COMMANDS = {
    "demo": "Run the whole pipeline on the embedded default",
    "run": "Run a recipe",
    "sft": "Stage 1",
    "preferences": "Stage 2",
    "reward": "Stage 3",
    "ppo": "Stage 4",
    "evaluate": "Stage 5",
    "report": "Stage 6",
    "chat": "Talk to the SFT model and the PPO policy",
    "export": "Copy the merged policy",
    "data": "What is in data files",
    "worked-example": "The design's worked example",
}


def words(text: str) -> str:
    """Text without the help page's boxes and line breaks."""
    return " ".join(text.translate(str.maketrans("│╭╮╰╯─", "      ")).split())


def test_help_lists_every_command(plaudit: Plaudit) -> None:
    page = plaudit("--help")
    assert page.code == 0
    assert all(command in page.out for command in COMMANDS)
    assert "--debug" in page.out


@pytest.mark.parametrize(("command", "text"), COMMANDS.items())
def test_help_of_every_command(command: str, text: str, plaudit: Plaudit) -> None:
    page = plaudit(command, "--help")
    assert page.code == 0
    assert text in words(page.out)
    assert page.err == ""


def test_demo_help_shows_how_to_change_a_key(plaudit: Plaudit) -> None:
    assert "ppo.updates=10" in words(plaudit("demo", "--help").out)


def test_no_arguments_is_help(plaudit: Plaudit) -> None:
    page = plaudit()
    assert all(command in page.out + page.err for command in COMMANDS)


def test_worked_example_through_the_installed_command() -> None:
    """V=1.5, R=5, γ=0.9, π_old=0.60, π=0.75, ε=0.2: Â=3.5, r=1.25, unclipped 4.375, clipped 4.2, L_CLIP=4.2."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("plaudit")), "worked-example"], capture_output=True, text=True, check=True
    )
    rows = {}
    for line in done.stdout.splitlines():
        cells = [cell.strip() for cell in line.split("│")[1:-1]]
        if cells:
            rows[cells[0]] = float(cells[2])
    assert rows == {
        "value V(s)": 1.5,
        "reward R": 5.0,
        "discount γ": 0.9,
        "advantage Â": 3.5,
        "ratio r": 1.25,
        "unclipped": 4.375,
        "clipped": 4.2,
        "L_CLIP": 4.2,
    }
    assert done.stderr == ""


def test_the_embedded_demo_on_a_tiny_model(
    plaudit: Plaudit, tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None
) -> None:
    """The shipped recipe and its data, with another model and little work; a second one gets its own folder."""
    monkeypatch.chdir(tmp_path)
    small = (
        f"model={tiny_model()}",
        "dtype=float32",
        "sft.epochs=1",
        "preferences.train_prompts=8",
        "preferences.replies=2",
        "sampling.max_new_tokens=4",
        "ppo.updates=1",
        "ppo.batch_size=16",
        "evaluate.replies=1",
    )
    done = plaudit("demo", *small)
    assert (done.code, done.err) == (0, "")
    assert (tmp_path / "runs" / "demo" / "report.html").is_file()
    for title in ("SFT", "Preferences", "Reward model", "PPO", "Evaluation"):
        assert title in done.out
    folders: list[Path] = []
    monkeypatch.setattr(pipeline, "run_pipeline", lambda recipe: folders.append(recipe.run_folder))
    assert plaudit("demo", *small).code == plaudit("demo", "folder=mine").code == 0
    assert folders == [Path("runs/demo-2"), Path("mine")]


def ask(plaudit: Plaudit, monkeypatch: pytest.MonkeyPatch, text: str, *arguments: object) -> SimpleNamespace:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return plaudit("chat", *arguments)


def test_chat_with_piped_messages(plaudit: Plaudit, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[list[str]] = []
    replies = chat.SideBySide.replies

    def listening(self: chat.SideBySide, text: str) -> list[str]:
        said.append(replies(self, text))
        return said[-1]

    monkeypatch.setattr(chat.SideBySide, "replies", listening)
    arguments = (trained, "--max-new-tokens", "6")
    done = ask(plaudit, monkeypatch, "Tell me about tea.\nHi\n", *arguments)
    assert (done.code, done.err) == (0, "")
    assert len(said) == 2
    assert done.out.count("SFT") == 2
    # The same seed says the same, another seed does not, and an empty line ends the chat.
    first = list(said)
    ask(plaudit, monkeypatch, "Tell me about tea.\n\nHi\n", *arguments)
    assert said[2:] == first[:1]
    ask(plaudit, monkeypatch, "Tell me about tea.\nHi\n", *arguments, "--seed", "5")
    assert said[3:] != first


def test_chat_shows_replies_as_they_are(plaudit: Plaudit, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may write what looks like the display's own markup."""
    monkeypatch.setattr(chat.SideBySide, "replies", lambda self, text: ["[/b] fine", "a [bold]b[/bold]"])
    done = ask(plaudit, monkeypatch, "Hi\n", trained)
    assert done.code == 0
    assert "[/b] fine" in done.out
    assert "a [bold]b[/bold]" in done.out


def test_chat_without_a_run(plaudit: Plaudit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = ask(plaudit, monkeypatch, "", tmp_path)
    assert done.code == 2
    assert "no run of Plaudit is here" in done.err


@pytest.mark.parametrize(("role", "folder"), [("policy", "ppo/model"), ("reward", "reward/model")])
def test_export(role: str, folder: str, plaudit: Plaudit, trained: Path, tmp_path: Path) -> None:
    to = tmp_path / ("exported-" + "x" * 60)
    done = plaudit("export", trained, "--to", to, "--role", role)
    assert (done.code, done.err) == (0, "")
    assert str(to) in done.out, "the path is broken over lines, so it cannot be copied"
    assert list(tmp_path.iterdir()) == [to]
    assert sha256(to / "model.safetensors") == sha256(trained / folder / "model.safetensors")
    auto = AutoModelForCausalLM if role == "policy" else AutoModelForSequenceClassification
    with torch.no_grad():
        assert auto.from_pretrained(to)(input_ids=torch.tensor([[5, 6, 7]])).logits.isfinite().all()


def test_export_refuses_what_exists_and_what_it_does_not_know(plaudit: Plaudit, trained: Path, tmp_path: Path) -> None:
    taken = plaudit("export", trained, "--to", tmp_path)
    assert (taken.code, "already exists" in taken.err) == (2, True)
    unknown = plaudit("export", trained, "--to", tmp_path / "new", "--role", "critic")
    assert (unknown.code, "not one of policy, reward" in unknown.err) == (2, True)
    nothing = plaudit("export", tmp_path, "--to", tmp_path / "new")
    assert (nothing.code, "is missing" in nothing.err) == (2, True)
    assert not list(tmp_path.iterdir())


def stopped_by(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(pipeline, "run_pipeline", stop)


def test_a_guards_stop_is_exit_code_3(
    plaudit: Plaudit, write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_by(RunStopped("the loss is nan"), monkeypatch)
    done = plaudit("run", write_recipe(tmp_path))
    assert (done.code, done.err) == (3, "Stopped by a guard: the loss is nan\n")


def test_control_c_says_how_to_go_on(
    plaudit: Plaudit, write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "run_stage", lambda *_: signal.raise_signal(signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    done = plaudit("run", write_recipe(tmp_path))
    assert done.code == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert "--resume" in done.err


def test_until_a_stage_no_later_one_runs_and_the_way_on_is_said(
    plaudit: Plaudit, write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(pipeline, "run_stage", lambda name, *_: ran.append(name))
    done = plaudit("run", write_recipe(tmp_path), "--until", "sft")
    assert (done.code, ran) == (0, ["sft"]), done.err
    assert f"Next: plaudit run {tmp_path / 'run' / 'recipe.yaml'} --resume" in done.out
    assert "--until 'card': not a stage" in plaudit("run", write_recipe(tmp_path), "--until", "card").err


def test_our_own_bugs_keep_their_traceback(
    plaudit: Plaudit, write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_by(ZeroDivisionError("ours"), monkeypatch)
    with pytest.raises(ZeroDivisionError):
        plaudit("run", write_recipe(tmp_path))


@pytest.mark.parametrize("arguments", [("nonsense",), ("run",), ("run", "a.yaml", "--nonsense"), ("export", "x")])
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...], plaudit: Plaudit) -> None:
    done = plaudit(*arguments)
    assert done.code == 2
    assert "Usage" in done.err
