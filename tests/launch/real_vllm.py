"""A real vLLM server for the tests, started by `plaudit launch vllm`; REQUIRE_VLLM names the Python that has vLLM."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

import plaudit as package
from plaudit.dist.ranks import ALONE
from plaudit.rollout.vllm import VllmEngine
from plaudit.run.folder import sft_files

PYTHON = os.environ.get("REQUIRE_VLLM")
MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="REQUIRE_VLLM names no Python that has vLLM"),
]
OPTIONS = ("--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "16")


@dataclass(frozen=True)
class Served:
    """A recipe whose SFT has ended, and the server of its model."""

    recipe: Path
    url: str
    launcher: subprocess.Popen[bytes]

    @property
    def run(self) -> Path:
        return self.recipe.parent / "run"

    def engine(self, folder: Path, ends: list[int], temperature: float = 0.7) -> VllmEngine:
        files = sft_files(self.run)
        return VllmEngine([self.url], files, folder, eos_id=ends, temperature=temperature, ranks=ALONE)

    def answers(self, name: str, prompt: list[int]) -> int:
        """The status of a request to the model of this name."""
        body = {"model": name, "prompt": prompt, "max_tokens": 1}
        return httpx2.post(f"{self.url}/v1/completions", json=body, timeout=60, trust_env=False).status_code


@contextmanager
def serving(recipe: Path, cache: int) -> Iterator[Served]:
    """The server of a recipe whose SFT has ended, with `cache` bytes for keys and values; nothing of it is left."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = {**os.environ, "PYTHONPATH": str(Path(package.__file__).resolve().parents[1])}
    start = "from plaudit.cli.main import main; main()"
    words = ["launch", "vllm", recipe, "rollout.engine=vllm", "--python", PYTHON, "--port", port]
    more = ["--", *OPTIONS, "--kv-cache-memory-bytes", cache]
    with (recipe.parent / "server.log").open("wb") as log:
        launcher = subprocess.Popen(
            [sys.executable, "-c", start, *map(str, [*words, *more])], env=known, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            yield Served(recipe, f"http://127.0.0.1:{port}", launcher)
        finally:
            launcher.terminate()
            launcher.wait(120)
    for _ in range(100):
        if not descendants(launcher.pid):
            break
        time.sleep(0.2)
    assert descendants(launcher.pid) == []


def descendants(pid: int) -> list[int]:
    """Processes that are below another, as /proc has them."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(int(status.parent.name))
    below = children.get(pid, [])
    return below + [one for child in below for one in descendants(child)]
