"""The vLLM engine: replies come over HTTP from servers that hold the SFT model, and get the policy's adapter alone.

Token ids go out and come back. A policy is loaded under the digest of its weights, so a name means one policy for ever,
and a server that lacks it says so (404) instead of answering with another. The one before is unloaded once the new one
is there. A request brings the uniform numbers of its reply, and the server's logits processor draws by them
(`server/plaudit_draws`); a server started with `--seeds` draws by itself, from a seed that is made of them.

A server that is killed is waited for, given the adapter again, and asked for the replies that are missing, `RESTARTS`
times; then the run stops with exit code 4. Imports no vLLM: that is in an environment of its own.
"""

import base64
import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plaudit.data.hashes import sha256_json
from plaudit.dist.asking import Answer, Asking, Failed, address_of
from plaudit.dist.ranks import Ranks
from plaudit.errors import EngineLost, RunStopped, UserError
from plaudit.models.roles import Roles
from plaudit.models.rounding import Rounding
from plaudit.rollout.engine import Sampled, Weights
from plaudit.run.display import console

RESTARTS = 3
"""How often the servers may fail without bringing one more reply."""
WAIT = 900.0
"""Seconds that a server may take to start and load its model."""
TIMEOUT = 1800.0
"""Seconds that a request may take: a long reply behind many others."""
AT_ONCE = 256
"""Requests under way at one server: as many as vLLM decodes together unless it is told otherwise."""
LARGEST = 64 << 20
DRAWS, SEEDS = "draws", "seeds"


def served_name(sft_files: dict[str, str], how: str) -> str:
    """The name under which a server has a run's SFT model, from the SHA-256 of its files: who serves another model, or
    draws otherwise, has no such name."""
    weights = {name: one for name, one in sft_files.items() if name.endswith((".safetensors", "/config.json"))}
    return f"sft-{sha256_json(weights)[:16]}-{how}"


def policy_name(adapter: Iterable[Tensor]) -> str:
    """The name of a policy, from the bits of its adapter."""
    whole = hashlib.sha256()
    for tensor in adapter:
        whole.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return f"policy-{whole.hexdigest()[:32]}"


@dataclass
class _Server:
    """One server: how it is asked, the name of its base, and the adapters that it was seen to have."""

    asking: Asking
    base: str = ""
    loaded: str = ""


class VllmEngine:
    """Samples at `temperature` from the SFT model whose files have the hashes `sft_files`, or that with an adapter."""

    def __init__(
        self,
        urls: Sequence[str],
        sft_files: dict[str, str],
        folder: Path,
        *,
        eos_id: Collection[int],
        temperature: float,
        ranks: Ranks,
    ):
        """Adapters are written into `folder`, which the servers read too. No server is asked before it is needed."""
        self.batch_rows = 0
        self._sft_files, self._folder, self._ranks = sft_files, folder.absolute(), ranks
        self._ends, self._temperature = sorted(eos_id), temperature
        self._servers = []
        for url in urls:
            name = f"vLLM at {address_of('rollout.urls', url)}"
            self._servers.append(_Server(Asking(name, url.rstrip("/"), TIMEOUT, largest=LARGEST, holds="one reply")))
        self._adapter: tuple[str, Path] | None = None
        self._left = False

    def take(self, roles: Weights, rounding: Rounding) -> None:
        """Every rank calls this, and the first one writes; nothing is merged, so nothing is rounded."""
        assert isinstance(roles, Roles)
        name = policy_name(roles.adapter_parameters("policy"))
        before, self._adapter = self._adapter, (name, self._folder / name)
        if before is not None and before[0] == name:
            return
        if self._ranks.first:
            roles.save_adapter(self._folder / name)
        self._ranks.wait()
        for server in self._servers:
            self._ready(server)
        self._ranks.wait()
        if before is not None and self._ranks.first:
            self._forget(before)

    def use_adapter(self, folder: Path) -> None:
        """Sample from the policy whose adapter a stage has left in `folder`."""
        name = policy_name(
            [torch.frombuffer(bytearray((folder / "adapter_model.safetensors").read_bytes()), dtype=torch.uint8)]
        )
        self._adapter = name, folder.absolute()

    @property
    def joins(self) -> "VllmEngine":
        """A server takes the next request up when one is done."""
        return self

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        uniforms: np.ndarray,
        on_reply: Callable[[int, Sampled], None] | None = None,
    ) -> list[Sampled]:
        """See `Engine.generate`. What is there is kept when a server fails, and the rest asked for again."""
        assert len(prompts) == len(uniforms)
        found: dict[int, Sampled] = {}
        failures, reason = 0, ""
        while len(found) < len(prompts):
            if self._left:
                raise EngineLost(f"hung up with {len(prompts) - len(found)} replies missing")
            if failures > RESTARTS:
                raise EngineLost(
                    f"{reason}; given up after {RESTARTS} restarts with {len(prompts) - len(found)} replies missing"
                )
            before = len(found)
            unloaded = [self._ready(server, anew=failures > 0) for server in self._servers]
            missed = self._ask(prompts, uniforms, found, on_reply)
            reason = next(filter(None, [*unloaded, missed]), reason)
            failures = failures + 1 if len(found) == before else 1
        return [found[row] for row in range(len(prompts))]

    def hang_up(self) -> None:
        """From another thread: `generate` ends soon, without its replies. Nothing can be asked after that."""
        self._left = True
        for server in self._servers:
            server.asking.close()

    def close(self) -> None:
        """Unload the policy that was sampled last."""
        if self._adapter is not None and self._ranks.first:
            self._forget(self._adapter)
        self._adapter = None

    def _ask(
        self,
        prompts: Sequence[Sequence[int]],
        uniforms: np.ndarray,
        found: dict[int, Sampled],
        on_reply: Callable[[int, Sampled], None] | None,
    ) -> str:
        """Ask for the replies that `found` lacks and put there what comes; returns why one did not come, if so."""
        reason, missing = "", [row for row in range(len(prompts)) if row not in found]
        with ThreadPoolExecutor(min(AT_ONCE * len(self._servers), len(missing))) as pool:
            asked = {
                pool.submit(self._reply, self._servers[row % len(self._servers)], prompts[row], uniforms[row]): row
                for row in missing
            }
            try:
                for done in as_completed(asked):
                    answer = done.result()
                    if isinstance(answer, Failed):
                        reason = answer.reason
                        continue
                    found[asked[done]] = answer
                    if on_reply is not None:
                        on_reply(asked[done], answer)
            except BaseException:  # a second Ctrl-C, a wrong answer: the pool must not wait for all the others
                self.hang_up()
                raise
        return reason

    def _reply(self, server: _Server, prompt: Sequence[int], uniforms_N: np.ndarray) -> Sampled | Failed:
        """One reply; RunStopped where the server says that what it is asked can not be."""
        body = {
            "model": server.base if self._adapter is None else self._adapter[0],
            "prompt": list(prompt),
            "max_tokens": len(uniforms_N),
            "stop_token_ids": self._ends,
            "ignore_eos": True,  # a reply ends where the in-process engine ends it, and nowhere else
            "logprobs": 0,
            "return_token_ids": True,
            **self._law(server, uniforms_N),
        }
        answer = server.asking.ask(json.dumps(body).encode(), "/v1/completions")
        if isinstance(answer, Failed) or answer.code in (404, 429) or answer.code >= 500:
            # 404: a server that was started anew has no adapter.
            return _failed(server, answer)
        if answer.code != 200:
            raise RunStopped(f"{server.asking.name}: status {answer.code}: {answer.begins}")
        return self._checked(server, answer, len(uniforms_N))

    def _law(self, server: _Server, uniforms_N: np.ndarray) -> dict[str, Any]:
        """How the server draws: by our numbers, or from a seed that is a function of them."""
        draws = np.ascontiguousarray(uniforms_N, dtype="<f4").tobytes()
        if server.base.endswith(DRAWS):
            given = {"plaudit_draws": base64.b64encode(draws).decode(), "plaudit_temperature": self._temperature}
            return {"temperature": 0.0, "vllm_xargs": given}
        seed = int.from_bytes(hashlib.sha256(draws).digest()[:7], "little")
        return {"temperature": self._temperature, "seed": seed, "top_p": 1.0, "top_k": 0}

    def _checked(self, server: _Server, answer: Answer, longest: int) -> Sampled:
        """The reply in an answer; RunStopped for one that is none."""
        try:
            (choice,) = json.loads(answer.body)["choices"]
            ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
            numbers = all(type(one) is int for one in ids) and all(math.isfinite(one) for one in logprobs)
        except (ValueError, KeyError, TypeError) as error:
            raise RunStopped(
                f"{server.asking.name}: the answer holds no reply ({type(error).__name__} {error}): {answer.begins}"
            ) from error
        ends = [one in self._ends for one in ids]
        whole = 0 < len(ids) == len(logprobs) <= longest and (len(ids) == longest or ends[-1])
        if not numbers or not whole or any(ends[:-1]):
            raise RunStopped(
                f"{server.asking.name}: {len(ids)} ids with {len(logprobs)} log-probabilities are no reply of at most "
                f"{longest} tokens that ends at one of {self._ends}: {ids[:8]}"
            )
        return Sampled(ids, logprobs)

    def _ready(self, server: _Server, *, anew: bool = False) -> str:
        """Wait until the server is there with this run's SFT model, and give it the policy; returns why it did not take
        that, if so. EngineLost when it is not there within `WAIT` seconds."""
        if anew:
            server.base = server.loaded = ""
        if not server.base:
            server.base = self._base_of(server)
        if self._adapter is None or server.loaded == self._adapter[0]:
            return ""
        name, folder = self._adapter
        body = json.dumps({"lora_name": name, "lora_path": str(folder)}).encode()
        answer = server.asking.ask(body, "/v1/load_lora_adapter")
        if isinstance(answer, Failed) or (answer.code != 200 and b"already" not in answer.body):
            return f"{_failed(server, answer).reason} (to load {folder})"
        server.loaded = name
        return ""

    def _base_of(self, server: _Server) -> str:
        """The name of this run's SFT model there."""
        until, told = time.monotonic() + WAIT, False
        while isinstance(answer := server.asking.ask(None, "/v1/models"), Failed) or answer.code != 200:
            if self._left or time.monotonic() > until:
                why = _failed(server, answer).reason
                raise EngineLost(
                    f"{why}; nothing answered for {WAIT:.0f} s: start it with `plaudit launch vllm RECIPE`"
                )
            if not told:
                console.print(f"Waiting for {server.asking.name}", soft_wrap=True)
            told = True
            time.sleep(1.0)
        try:
            names = {str(one["id"]) for one in json.loads(answer.body)["data"]}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{server.asking.name}: is no vLLM server: it answers {answer.begins}") from error
        for how in (DRAWS, SEEDS):
            if (name := served_name(self._sft_files, how)) in names:
                return name
        raise UserError(
            f"{server.asking.name}: serves {', '.join(sorted(names))}, not this run's SFT model "
            f"({served_name(self._sft_files, DRAWS)}); stop it and start `plaudit launch vllm RECIPE`"
        )

    def _forget(self, adapter: tuple[str, Path]) -> None:
        """Unload an adapter, and delete what `take` wrote; one that a server does not have is no matter."""
        name, folder = adapter
        for server in self._servers:
            server.asking.ask(json.dumps({"lora_name": name}).encode(), "/v1/unload_lora_adapter")
            server.loaded = "" if server.loaded == name else server.loaded
        if folder.parent == self._folder:
            shutil.rmtree(folder, ignore_errors=True)


def _failed(server: _Server, answer: Answer | Failed) -> Failed:
    why = answer.reason if isinstance(answer, Failed) else f"status {answer.code}: {answer.begins}"
    return Failed(f"{server.asking.name}: {why}")
