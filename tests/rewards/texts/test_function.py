"""A reward that is a Python function: asked about texts with ids, in a process of its own."""

import gc
import json
import locale
import logging
import os
import random
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plaudit.errors import RunStopped, UserError
from plaudit.records import Completion, Message, Prompt
from plaudit.rewards.texts.answers import ScoreItem
from plaudit.rewards.texts.function import FunctionScorer

ITEMS = [
    ScoreItem(f"p{i}#0", Prompt(f"p{i}", (Message("user", f"Question {i}?"),), "domain", "train"), Completion("x" * i))
    for i in range(5)
]
LENGTHS = {f"p{i}#0": float(i) for i in range(5)}


def module(folder: Path, text: str, name: str = "rewards") -> str:
    (folder / f"{name}.py").write_text(text)
    return f"{folder / name}.py"


def test_a_function_gets_texts_with_ids(tmp_path: Path) -> None:
    path = module(
        tmp_path,
        "import json, pathlib\ndef score(items):\n"
        "    pathlib.Path(__file__).with_name('seen.json').write_text(json.dumps(items))\n"
        "    return {i['id']: len(i['completion']) for i in items}",
    )
    scorer = FunctionScorer(f"{path}:score")
    assert scorer.score(ITEMS) == LENGTHS
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert len(seen) == 5
    assert seen[2] == {
        "id": "p2#0",
        "prompt": [{"role": "user", "content": "Question 2?"}],
        "completion": "xx",
        "finished": True,
    }


def test_an_installed_function_is_found_by_its_module() -> None:
    scorer = FunctionScorer("json:dumps")
    with pytest.raises(RunStopped, match="reward function json:dumps: answered str"):
        scorer.score(ITEMS)


def test_two_recipes_may_have_files_of_one_name_and_neighbours(tmp_path: Path) -> None:
    """A file is known by its path; a dataclass with postponed annotations in it works; it may import a neighbour."""
    found = []
    for value in (1, 2):
        home = tmp_path / str(value)
        home.mkdir()
        (home / f"neighbour{value}.py").write_text(f"VALUE = {value}\n")
        path = module(
            home,
            "from __future__ import annotations\nimport dataclasses\n"
            f"from neighbour{value} import VALUE\n"
            "@dataclasses.dataclass\nclass Row:\n    value: int = VALUE\n"
            "def score(items):\n    return {i['id']: Row().value for i in items}\n",
        )
        found.append(FunctionScorer(f"{path}:score"))
    assert [set(scorer.score(ITEMS).values()) for scorer in found] == [{1.0}, {2.0}]


FUNCTIONS = {
    "no name": ("rewards", r"'rewards': write MODULE:NAME, for example rewards:score"),
    "no module": (":score", r"write MODULE:NAME"),
    "unknown module": (
        "no_such_module_here:score",
        r"module 'no_such_module_here' cannot be imported \(ModuleNotFoundError.*put the file beside the recipe",
    ),
    "unknown name": ("json:scores", r"module 'json' has no 'scores'; it has .*dumps"),
    "no function": ("json:__name__", r"'__name__' is str, not a function"),
}


@pytest.mark.parametrize(("function", "message"), FUNCTIONS.values(), ids=list(FUNCTIONS))
def test_a_function_that_is_not_there_is_named(function: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        FunctionScorer(function)


@pytest.mark.parametrize("text", ["def score(:\n", "import no_such_thing\n", "1 / 0\n", "import sys\nsys.exit('no')\n"])
def test_a_file_that_cannot_be_imported_is_named_and_leaves_nothing(tmp_path: Path, text: str) -> None:
    before = (list(sys.path), set(sys.modules), children())
    with pytest.raises(
        UserError, match=r"rewards\.py' cannot be imported \((SyntaxError|ModuleNotFound|ZeroDiv|SystemExit)"
    ):
        FunctionScorer(f"{module(tmp_path, text)}:score")
    assert (list(sys.path), set(sys.modules), children()) == before


def test_a_file_that_ends_its_process_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rewards\.py:score: its process ended while it was imported \(exit code 3\)"):
        FunctionScorer(module(tmp_path, "import os\nos._exit(3)") + ":score")


def test_a_function_that_raises_stops_the_run_with_its_reason(tmp_path: Path) -> None:
    path = module(tmp_path, "def score(items):\n    return {i['id']: i['text'] for i in items}")
    with pytest.raises(RunStopped, match=r"reward function .*rewards\.py:score raised KeyError: 'text'"):
        FunctionScorer(f"{path}:score").score(ITEMS)


# --- what a function may do to its process without a word about it in the run ---

SCORES = "    return {i['id']: len(i['completion']) for i in items}\n"
BENDS = """\
import builtins, gc, json, locale, logging, os, random, signal, sys, tempfile, threading, warnings
import numpy as np
import torch

CALLS = []

def nothing(*_): ...

def score(items):
    CALLS.append(1)
    os.chdir(tempfile.gettempdir())
    os.umask(0o777)
    os.environ["HOME"] = "/nowhere"
    os.environ.pop("PATH", None)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, nothing)
    signal.alarm(1000)
    sys.path.insert(0, "/nowhere")
    sys.modules.pop("json", None)
    sys.setrecursionlimit(900)
    sys.stdin = sys.stdout = sys.stderr = None
    locale.setlocale(locale.LC_ALL, "C")
    warnings.simplefilter("error")
    logging.basicConfig(level=1, force=True)
    logging.disable(50)
    gc.disable()
    threading.Thread(target=sys.exit, args=(0,)).start()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    np.seterr(all="raise")
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("medium")
    torch.inference_mode(True).__enter__()
    torch.autocast("cpu", torch.bfloat16).__enter__()
    builtins.len, length = None, len
    answer = [{"id": i["id"], "score": length(i["completion"])} for i in items]
    builtins.len = length
    for item in items:
        item["id"], item["completion"] = "changed", item["prompt"].clear()
    items.clear()
    assert length(CALLS) < 3
    return answer
"""


def children() -> set[str]:
    """Processes that this one has started and not waited for; those of scorers that nobody holds are gone."""
    gc.collect()
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def state() -> dict[str, Any]:
    """Of this process, what a function could bend and a run would feel."""
    umask = os.umask(0)
    os.umask(umask)
    return {
        "cwd": os.getcwd(),
        "umask": umask,
        "environ": dict(os.environ),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)],
        "alarm": signal.getitimer(signal.ITIMER_REAL),
        "path": list(sys.path),
        "modules": set(sys.modules),
        "recursion": sys.getrecursionlimit(),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "locale": locale.setlocale(locale.LC_ALL),
        "warnings": list(warnings.filters),
        "logging": (logging.root.level, logging.root.manager.disable),
        "gc": gc.isenabled(),
        "random": random.getstate(),
        "numpy": [str(part) for part in np.random.get_state()],
        "seterr": np.geterr(),
        "torch": torch.get_rng_state().tolist(),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        "numbers": (torch.get_default_dtype(), torch.get_default_device(), torch.get_float32_matmul_precision()),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def test_nothing_that_a_function_does_to_its_process_reaches_the_run(tmp_path: Path) -> None:
    before = state()
    scorer = FunctionScorer(f"{module(tmp_path, BENDS)}:score")
    for _ in range(2):
        assert scorer.score(ITEMS) == LENGTHS
    assert state() == before
    with pytest.raises(RunStopped, match=r"raised AssertionError \(.*rewards\.py, line \d+\)"):  # its globals stayed
        scorer.score(ITEMS)


ENDS = {
    "sys.exit": ("sys.exit(0)", r"called sys\.exit\(0\) \(.*rewards\.py, line 3\); let it return scores, or raise"),
    "os._exit": ("os._exit(0)", r"ended its process \(exit code 0\); let it return scores, or raise an exception"),
    "a crash": ("os.kill(os.getpid(), 11)", r"ended its process \(SIGSEGV\)"),
    "out of memory": ("os.kill(os.getpid(), 9)", r"ended its process \(SIGKILL\)"),
    "a child that stays": ("os.fork() and os._exit(1); time.sleep(60)", r"ended its process \(exit code 1\)"),
    "closed files": ("os.closerange(0, 99)", r"ended its process"),
    "Ctrl-C": ("raise KeyboardInterrupt", r"raised KeyboardInterrupt \(.*rewards\.py, line 3\)"),
    "generator's end": ("raise GeneratorExit", r"raised GeneratorExit"),
    "no words": ("raise Mute", r"raised Mute: \(its text cannot be shown\)"),
    "recursion": ("score(items)", r"raised RecursionError"),
    "half a surrogate": ("raise ValueError('\\ud800')", r"raised ValueError"),
    "what is no score": ("return object()", r"answered object"),
    "a mapping that fails": ("return Bad(a=1)", r"raised ZeroDivisionError"),
}
MUTE = """\

class Mute(Exception):
    def __str__(self):
        sys.exit(1)

class Bad(dict):
    def items(self):
        return 1 / 0
"""


@pytest.mark.parametrize(("line", "message"), ENDS.values(), ids=list(ENDS))
def test_a_function_that_ends_instead_of_answering_stops_the_run(line: str, message: str, tmp_path: Path) -> None:
    text = f"import os, sys, time\ndef score(items):\n    {line}\n{SCORES}{MUTE}"
    before = children()
    scorer = FunctionScorer(f"{module(tmp_path, text)}:score")
    with pytest.raises(
        RunStopped, match=f"^reward function .*rewards\\.py:score {message}".replace("score answ", "score: answ")
    ):
        scorer.score(ITEMS)
    del scorer
    assert children() == before


def test_a_copy_that_a_function_forks_and_lets_return_answers_nothing(tmp_path: Path) -> None:
    text = f"import os\nCALLS = []\ndef score(items):\n    CALLS.append(1)\n    os.fork()\n{SCORES}"
    scorer = FunctionScorer(f"{module(tmp_path, text)}:score")
    for part in (ITEMS, ITEMS[:2], ITEMS[3:]):
        assert scorer.score(part) == {item.id: LENGTHS[item.id] for item in part}


def test_what_a_function_prints_and_reads_is_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The run's terminal gets what it prints, whatever it cannot show; there is nothing to read."""
    text = f"import sys\ndef score(items):\n    print('scored \\ud800', len(items), sys.stdin.read())\n{SCORES}"
    assert FunctionScorer(f"{module(tmp_path, text)}:score").score(ITEMS) == LENGTHS
    assert capfd.readouterr().out == "scored ? 5 \n"


def test_a_function_may_import_its_neighbours_when_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "later.py").write_text("VALUE = 2\n")
    text = "def score(items):\n    import later\n    return {i['id']: later.VALUE for i in items}\n"
    assert set(FunctionScorer(f"{module(tmp_path, text)}:score").score(ITEMS).values()) == {2.0}


def test_two_runs_see_sets_of_strings_in_one_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    text = "def score(items):\n    return {i['id']: hash('a') for i in items}\n"
    path = module(tmp_path, text)
    assert FunctionScorer(f"{path}:score").score(ITEMS) == FunctionScorer(f"{path}:score").score(ITEMS)


def test_ctrl_c_leaves_the_function_at_work_and_its_process_goes_with_the_scorer(tmp_path: Path) -> None:
    text = (
        "import os, signal, threading, time\ndef score(items):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    os.kill(os.getpid(), signal.SIGTERM)\n" + SCORES
    )
    before = children()
    scorer = FunctionScorer(f"{module(tmp_path, text)}:score")
    assert scorer.score(ITEMS) == LENGTHS
    assert len(children()) == len(before) + 1
    del scorer
    assert children() == before
