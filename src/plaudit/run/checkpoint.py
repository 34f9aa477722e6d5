"""Checkpoints: a folder of files that is there whole or not at all, with a checksum for every byte.

    STAGE/checkpoints/00012/  state.json  tensors-0000.safetensors  ...  manifest.json

A checkpoint is written into a fresh folder under another name: every file is flushed to disk, the manifest with their
SHA-256 comes last, then the folder is renamed and its parent flushed. So a folder with a final name is whole unless the
disk changed it later, and that is found: `newest` hashes every file, names what is torn and takes the one before it.
Old checkpoints go only after the new one is whole. What is in the files belongs to whoever saves them.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plaudit.data.files import clear_halves, whole_folder
from plaudit.data.hashes import sha256, sha256_json
from plaudit.errors import writing

MANIFEST = "manifest.json"
BLOCK = 1 << 20
"""Bytes in one write."""
WAIT = 60.0
"""Seconds in which a shared folder shows what another machine has written."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: the `step` after which it was made, its folder and the names of its files."""

    step: int
    path: Path
    names: tuple[str, ...]

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


@dataclass(frozen=True)
class Written:
    """What a save cost."""

    bytes: int
    seconds: float


class Checkpoints:
    """The checkpoints in one folder; `keep` of them stay. `say` hears of every one that is not whole."""

    def __init__(self, folder: Path, keep: int, say: Callable[[str], None]):
        assert keep >= 1, keep
        self.folder, self.keep, self.say = folder, keep, say
        self._torn: set[int] = set()

    def newest(self) -> Checkpoint | None:
        """The newest one that is whole, every byte checked; what is torn on the way to it is named and ignored."""
        for step in reversed(self._steps()):
            found = self._read(step)
            if isinstance(found, Checkpoint):
                return found
            self._torn.add(step)
            self.say(f"{self._path(step)} is not whole ({found}): ignored, the one before it is used")
        return None

    def at(self, step: int) -> Checkpoint:
        """That of a step which another process has found whole; OSError when it is not so from here within WAIT."""
        until = time.monotonic() + WAIT
        while not isinstance(found := self._read(step), Checkpoint):
            if time.monotonic() > until:
                raise OSError(f"{self._path(step)} is whole for the first process and not for this one ({found})")
            time.sleep(0.5)
        return found

    def clear(self) -> None:
        """Delete what an earlier attempt left half-written or half-deleted."""
        clear_halves(self.folder)

    def save(self, step: int, files: Iterable[tuple[str, bytes]]) -> Written:
        """Write a checkpoint of (name, contents); OSError when that fails, and all that were whole before still are."""
        started = time.perf_counter()
        self.clear()
        # What has this step's name already was torn, or is of this very step.
        listed: dict[str, dict[str, Any]] = {}
        with whole_folder(self._path(step)) as part:
            for name, contents in files:
                assert name != MANIFEST and name not in listed, name
                _write_file(part / name, contents)
                listed[name] = {"bytes": len(contents), "sha256": hashlib.sha256(contents).hexdigest()}
            _write_file(part / MANIFEST, _manifest(step, listed))
            _flush_folder(part)
        _flush_folder(self.folder)
        self._torn.discard(step)
        kept = sorted(s for s in self._steps() if s <= step and s not in self._torn)[-self.keep :]
        for path in (self._path(old) for old in self._steps() if old not in kept):
            # Its final name goes first, so that one that is half deleted has none.
            gone = path.with_name(path.name + ".gone")
            os.replace(path, gone)
            shutil.rmtree(gone)
        return Written(sum(entry["bytes"] for entry in listed.values()), time.perf_counter() - started)

    def _read(self, step: int) -> Checkpoint | str:
        """The checkpoint, or what is wrong with it."""
        path = self._path(step)
        manifest = path / MANIFEST
        if not manifest.is_file():
            return f"{MANIFEST} is missing"
        text = manifest.read_bytes()
        try:
            listed = json.loads(text)["files"]
            whole = text == _manifest(step, listed)
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            return f"{MANIFEST} is damaged"
        for name, entry in listed.items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if sha256(path / name) != entry["sha256"]:
                return f"the SHA-256 of {name} is not the manifest's"
        return Checkpoint(step, path, tuple(listed))

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:08d}"

    def _steps(self) -> list[int]:
        """Steps of everything with a final name, whole or not, in order."""
        if not self.folder.is_dir():
            return []
        return sorted(int(one.name) for one in self.folder.iterdir() if one.is_dir() and one.name.isdigit())


def _manifest(step: int, listed: dict[str, dict[str, Any]]) -> bytes:
    """One spelling for one content, so that comparing bytes finds any change; its own SHA-256 is in it."""
    body = {"files": listed, "step": step}
    return (json.dumps({**body, "sha256": sha256_json(body)}, sort_keys=True, indent=1) + "\n").encode()


def _write_file(path: Path, contents: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with writing(path):
            view = memoryview(contents)
            while view:
                view = view[os.write(handle, view[:BLOCK]) :]
            os.fsync(handle)
    finally:
        os.close(handle)


def _flush_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        with writing(path):
            os.fsync(handle)
    finally:
        os.close(handle)
