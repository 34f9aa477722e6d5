"""`plaudit launch vllm`: the command line of the server, and a server that dies. The real one is in
test_vllm_real.py."""

import stat
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from plaudit.launch.vllm import Serving, command, environment
from plaudit.rollout.server import plaudit_draws
from plaudit.rollout.vllm import DRAWS, SEEDS, served_name
from plaudit.run.folder import sft_files
from plaudit.stages.recipe import load_recipe


def options(words: list[str]) -> dict[str, str]:
    return {word: value for word, value in pairwise(words) if word.startswith("--")}


def test_the_server_gets_the_model_the_law_and_room_for_the_adapter(trained: Path) -> None:
    recipe = load_recipe(trained / "recipe.yaml")
    found = options(command(recipe, Serving(python="py", port=8123)))
    assert found["--model"] == str(trained / "sft/model")
    assert found["--served-model-name"] == served_name(sft_files(trained), DRAWS)
    assert found["--dtype"] == "float32", "vLLM's own choice would be 16 bits"
    assert found["--max-lora-rank"] == "8", "the least that vLLM has for lora.r=4"
    assert (found["--host"], found["--port"]) == ("127.0.0.1", "8123")
    assert found["--generation-config"] == "vllm", "no top-k of the model's own"
    assert found["--logits-processors"] == "plaudit_draws.processor:Draws"
    assert found["--logprobs-mode"] == "processed_logits"
    seeds = options(command(recipe, Serving(seeds=True)))
    assert seeds["--served-model-name"] == served_name(sft_files(trained), SEEDS)
    assert seeds["--logprobs-mode"] == "processed_logprobs" and "--logits-processors" not in seeds


def test_the_processor_is_on_the_servers_path_and_plaudit_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    folder = Path(environment()["PYTHONPATH"])
    assert folder == Path(plaudit_draws.__file__).parents[1]
    assert {file.name for file in folder.iterdir()} - {"__pycache__"} == {"__init__.py", "plaudit_draws"}


def test_a_server_that_dies_is_started_again_so_often(
    trained: Path, plaudit: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    """And nothing stays of it: a server that is killed leaves its workers behind."""
    python, log, workers = (tmp_path / name for name in ("python", "log", "workers"))
    text = f"#!{sys.executable}\nimport subprocess, sys\nopen({str(log)!r}, 'a').write(sys.argv[-1] + ' ')\n"
    text += f"open({str(workers)!r}, 'a').write(str(subprocess.Popen(['sleep', '60']).pid) + ' ')\nsys.exit(9)\n"
    python.write_text(text, encoding="utf-8")
    python.chmod(python.stat().st_mode | stat.S_IEXEC)
    done = plaudit(
        "launch", "vllm", trained / "recipe.yaml", "--python", python, "--restarts", 2, "--", "--max-num-seqs", 8
    )
    assert done.code == 4 and "the server ended with code 9" in done.err
    assert log.read_text(encoding="utf-8").split() == ["8", "8", "8"]
    for pid in workers.read_text(encoding="utf-8").split():
        state = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True, check=False).stdout
        assert state.strip()[:1] in ("", "Z"), f"{pid} lives"


def test_what_cannot_be_started_is_named(
    trained: Path, plaudit: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    done = plaudit("launch", "vllm", trained / "recipe.yaml", "--python", tmp_path / "none")
    assert done.code == 2 and f"--python {tmp_path / 'none'}: cannot be started" in done.err
    done = plaudit("launch", "vllm", trained / "recipe.yaml", "lora.stages.ppo=null")
    assert done.code == 2 and "full fine-tuning has none" in done.err
