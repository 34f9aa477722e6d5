"""What the studio's tests share: a run of many updates made of one, and a server of its own."""

import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import uvicorn
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient

from plaudit.view.studio.server import Studio, create_app

REPLIES = 64
HOSTILE = "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>"


class Answers:
    """In place of the process with the models."""

    def ask(self, folder: Path, question: Mapping[str, Any]) -> list[dict[str, Any]]:
        told = {"finished": True, "length": 3, "kl": 0.5, "score": 1.0}
        return [{"policy": name, "text": f"{HOSTILE} by {name.lower()}", **told} for name in question["policies"]]


def browser(studio: Studio) -> TestClient:
    return TestClient(create_app(studio), base_url="http://127.0.0.1:4000", follow_redirects=False)


def let_in(studio: Studio) -> TestClient:
    """A browser that the link has let in, with the token that its POSTs carry."""
    client = browser(studio)
    assert client.get(f"/open/{studio.token}").status_code == 303
    client.headers["X-CSRF-Token"] = client.get("/api/me").json()["csrf"]
    return client


def many_updates(trained: Path, to: Path, updates: int) -> Path:
    """A run with `updates` rows in its log and as many rollouts of 64 replies, made of the first one of `trained`."""
    for part in ("sft", "preferences", "reward", "evaluate"):
        shutil.copytree(trained / part, to / part, copy_function=os.link)
    for file in ("recipe.yaml", "manifest.json"):
        shutil.copy(trained / file, to / file)
    shutil.copytree(trained / "ppo/validation", to / "ppo/validation")
    shutil.copytree(trained / "ppo/model", to / "ppo/model", copy_function=os.link)
    (to / "ppo/rollouts").mkdir()
    first = json.loads((trained / "ppo/metrics.jsonl").read_text().split("\n")[0])
    rows = [{**first, "update": update, "score": update / 1000} for update in range(1, updates + 1)]
    (to / "ppo/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tensors, stored = load_file(min((trained / "ppo/rollouts").iterdir())), to / "ppo/one.safetensors"
    replies = torch.arange(REPLIES) % len(tensors["lengths_B"])
    save_file({name: tensor[replies].contiguous() for name, tensor in tensors.items()}, stored)
    for update in range(1, updates + 1):
        os.link(stored, to / f"ppo/rollouts/{update:05d}.safetensors")
    return to


@contextmanager
def served(*folders: Path) -> Iterator[Any]:
    """A studio on a port of its own: (address, studio)."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(50)
        studio = Studio(folders, listening.getsockname()[1])
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(studio, lambda: server.should_exit), log_level="warning", timeout_graceful_shutdown=2
            )
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{studio.port}", studio
        server.should_exit = True
        thread.join()
