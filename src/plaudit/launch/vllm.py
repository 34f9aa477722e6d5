"""A vLLM server for a run: the run's SFT model, with room for the policy's adapter, started again when it dies.

The server has an environment of its own (`--python`), without Plaudit: of that it gets one folder, whose logits
processor draws the tokens by the run's numbers. It listens on this machine alone unless told otherwise, because it
loads whatever adapter it is told to.

    plaudit launch vllm RECIPE --python ~/vllm/bin/python
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from plaudit.data.files import read_json
from plaudit.errors import EngineLost, UserError
from plaudit.rollout import server
from plaudit.rollout.vllm import DRAWS, SEEDS, served_name
from plaudit.run.display import console
from plaudit.run.folder import finished_model, sft_files
from plaudit.stages.recipe import Recipe

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks of adapters that vLLM has kernels for."""
STEADY = 300.0
"""Seconds after which a server that dies is not one that cannot start."""


@dataclass(frozen=True)
class Serving:
    """How a server is started; `more` are options for vLLM itself."""

    python: str = sys.executable
    host: str = "127.0.0.1"
    port: int = 8000
    seeds: bool = False
    """Whether it draws by itself, from a seed a reply."""
    restarts: int = 3
    more: Sequence[str] = ()


def command(recipe: Recipe, serving: Serving) -> list[str]:
    """The server's command line; UserError where the recipe has no adapter that could be served."""
    lora = recipe.lora.of("ppo")
    if lora is None:
        raise UserError("lora.stages.ppo=null: a server is given adapters, and full fine-tuning has none")
    if lora.r > RANKS[-1]:
        raise UserError(f"lora.r={lora.r}: vLLM serves adapters up to rank {RANKS[-1]}")
    model, how = finished_model(recipe.run_folder, "sft/model").absolute(), SEEDS if serving.seeds else DRAWS
    config = read_json(model / "config.json")
    options = {
        "--model": str(model),
        "--served-model-name": served_name(sft_files(recipe.run_folder), how),
        "--host": serving.host,
        "--port": str(serving.port),
        # As the trainer holds it; vLLM's own choice for float32 would be a format of 16 bits.
        "--dtype": config.get("dtype") or config["torch_dtype"],
        "--max-lora-rank": str(next(rank for rank in RANKS if rank >= lora.r)),
        "--max-cpu-loras": "2",  # the new policy is loaded before the old one goes
        "--generation-config": "vllm",  # else the model's own top-k and top-p would be the law
        "--logprobs-mode": "processed_logprobs" if serving.seeds else "processed_logits",
        **({} if serving.seeds else {"--logits-processors": "plaudit_draws.processor:Draws"}),
    }
    words = [word for option in options.items() for word in option]
    # The processor counts the tokens that are there: it may not run ahead of them.
    flags = ["--enable-lora", "--no-async-scheduling"]
    return [serving.python, "-m", "vllm.entrypoints.openai.api_server", *words, *flags, *serving.more]


def environment() -> dict[str, str]:
    """The server's: ours, with the processor's folder on its path."""
    path = os.pathsep.join([str(Path(server.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {
        **os.environ,
        "PYTHONPATH": path,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_USE_V2_MODEL_RUNNER": "0",  # it takes no processor of others
    }


def serve(recipe: Recipe, serving: Serving) -> None:
    """Wait for the run's SFT model, start the server, and start it again when it dies; until a signal ends both.
    EngineLost when it has died `restarts` times in a row without having worked for a while."""
    _wait_for_sft(recipe)
    words, died = command(recipe, serving), 0
    while True:
        began = time.monotonic()
        console.print(f"Serving {recipe.run_folder}/sft/model on http://{serving.host}:{serving.port}", soft_wrap=True)
        try:
            process = subprocess.Popen(words, env=environment(), start_new_session=True)
        except OSError as error:
            raise UserError(
                f"--python {serving.python}: cannot be started ({error.strerror}); name a Python"
            ) from error
        try:
            code = process.wait()
        finally:
            _end(process)
        died = 1 if time.monotonic() - began > STEADY else died + 1
        if died > serving.restarts:
            raise EngineLost(f"the server ended with code {code}, for the {died}. time; its own messages say why")
        console.print(f"The server ended with code {code}; it is started again")


def _wait_for_sft(recipe: Recipe) -> None:
    told = False
    while not sft_files(recipe.run_folder):
        if not told:
            console.print(f"Waiting until SFT has ended in {recipe.run_folder}", soft_wrap=True)
        told = True
        time.sleep(1.0)


def _end(process: subprocess.Popen[bytes]) -> None:
    """A server that is told to go ends its own workers; those of one that cannot, or was killed, are killed."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
