"""A server that answers as vLLM does, as far as the client asks it: the in-process engine over HTTP, in this process.

It draws by the numbers that come with a request, has adapters under names, and can be killed and started again.
"""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conftest import CPU
from plaudit.models.load import load_model
from plaudit.models.roles import Roles
from plaudit.rollout.inprocess import InProcessEngine


class FakeVllm:
    """`fails` is how many completions are answered before the server dies, `comes_back` whether it then does: without
    an adapter, as a process that was started anew."""

    def __init__(self, model: Path, name: str, *, off: float = 0.0):
        self.model, self.name, self.off = model, name, off
        self.adapters: dict[str, str] = {}
        self.unloaded: list[str] = []
        self.sampled: list[dict[str, Any]] = []
        self.arrived: list[str] = []
        """The models of all completions that were asked for, also of those that are held back."""
        self.open = threading.Event()
        """While it is not set, no completion is answered for a minute."""
        self.open.set()
        self.fails: int | None = None
        self.comes_back = True
        self._lock = threading.Lock()
        self._engines: dict[tuple[str, tuple[int, ...], float], InProcessEngine] = {}
        self._start(0)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def _start(self, port: int) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if outer.fails == -1:
                    self.connection.close()
                    return
                names = [outer.name, *outer.adapters]
                self._say(200, {"data": [{"id": name} for name in names]} if self.path == "/v1/models" else {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path == "/v1/completions":
                    outer.arrived.append(body["model"])
                    outer.open.wait(60)
                with outer._lock:
                    if outer.fails == 0 and self.path == "/v1/completions":
                        outer.fails = -1
                        self.connection.close()
                        threading.Thread(target=outer._die, daemon=True).start()
                        return
                    if outer.fails == -1:
                        self.connection.close()
                        return
                    if outer.fails is not None and self.path == "/v1/completions":
                        outer.fails -= 1
                    self._say(*outer.answer(self.path, body))

            def _say(self, code: int, value: Any) -> None:
                data = json.dumps(value).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except (OSError, ValueError):  # the connection was closed under it
                    self.close_connection = True

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def _die(self) -> None:
        port = self._server.server_address[1]
        self.stop()
        if self.comes_back:
            self.adapters, self.fails = {}, None
            self._start(int(port))

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/load_lora_adapter":
            if body["lora_name"] in self.adapters:
                return 400, {"error": {"message": "The lora adapter has already been loaded."}}
            self.adapters[body["lora_name"]] = body["lora_path"]
            return 200, {}
        if path == "/v1/unload_lora_adapter":
            self.unloaded.append(body["lora_name"])
            return (200, {}) if self.adapters.pop(body["lora_name"], None) else (404, {})
        if body["model"] not in (self.name, *self.adapters):
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        self.sampled.append(body)
        return 200, self._complete(body)

    def _engine(self, name: str, ends: tuple[int, ...], temperature: float) -> InProcessEngine:
        key = name, ends, temperature
        if key not in self._engines:
            model = load_model(str(self.model), torch.float32, CPU)
            self._engines[key] = InProcessEngine(model, eos_id=ends, temperature=temperature)
            if name != self.name:
                base = load_model(str(self.model), torch.float32, CPU)
                roles = Roles(base, reward=[Path(self.adapters[name])])
                self._engines[key].load_weights(roles.merged_weights("reward", None))
        return self._engines[key]

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        given = body["vllm_xargs"]
        draws = np.frombuffer(base64.b64decode(given["plaudit_draws"]), dtype="<f4")[None, : body["max_tokens"]]
        ends, temperature = tuple(body["stop_token_ids"]), given["plaudit_temperature"]
        (reply,) = self._engine(body["model"], ends, temperature).generate([body["prompt"]], draws.copy())
        logprobs = [one - self.off for one in reply.logprobs]
        return {"choices": [{"token_ids": reply.ids, "logprobs": {"token_logprobs": logprobs}}]}
