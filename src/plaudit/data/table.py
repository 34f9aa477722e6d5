"""Demonstrations on disk: a file of any size is used without being held in memory.

The rows are written once, as JSON, to a file in the user's cache folder that has no name any more: it goes when the
process ends. A row is read and becomes a record when it is asked for; kinds, splits and places are in memory. (A mapped
file would count as memory of the process, page by page as it is read.)
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, overload

import numpy as np
import numpy.typing as npt

from plaudit.data.cache import cache_folder
from plaudit.errors import writing
from plaudit.records import Demonstration, Message, Prompt, messages_as_json


@dataclass(frozen=True)
class _Stored:
    """The file, and where each row begins; the last entry is the file's end. `sha256` is of the rows, kinds and splits
    included."""

    file: BinaryIO
    starts: npt.NDArray[np.int64]
    sha256: str

    def row(self, place: int) -> list[object]:
        start, end = int(self.starts[place]), int(self.starts[place + 1])
        stored: list[object] = json.loads(os.pread(self.file.fileno(), end - start, start))
        return stored


class DemonstrationTable(Sequence[Demonstration]):
    """A sequence of demonstrations; `kinds` and `splits` hold one entry a row, `keys` tells rows of one file apart.
    `sha256` is of every row of the file, whichever of them this view shows."""

    def __init__(
        self,
        stored: _Stored,
        index: npt.NDArray[np.int64],
        kinds: npt.NDArray[np.object_],
        splits: npt.NDArray[np.object_],
    ):
        self._stored, self._index = stored, index
        self.kinds, self.splits, self.sha256 = kinds, splits, stored.sha256

    @classmethod
    def of(cls, records: Iterable[Demonstration]) -> "DemonstrationTable":
        """Write the records as they come; one of them is held at a time."""
        cache_folder().mkdir(parents=True, exist_ok=True)
        # The file stays open as long as a table needs it, so no `with`.
        file = tempfile.TemporaryFile(dir=cache_folder(), suffix=".rows")  # noqa: SIM115
        known: dict[str, str] = {}  # one string object for each kind and split, not one a row
        kinds, splits, starts = [], [], [0]
        whole = hashlib.sha256()
        for row in records:
            kinds.append(known.setdefault(row.prompt.kind, row.prompt.kind))
            splits.append(known.setdefault(row.prompt.split, row.prompt.split))
            packed = [row.prompt.id, messages_as_json(row.prompt.messages), row.completion]
            line = json.dumps(packed, ensure_ascii=False).encode()
            with writing(cache_folder()):
                starts.append(starts[-1] + file.write(line))
            whole.update(line + f"{kinds[-1]}\0{splits[-1]}\n".encode())
        with writing(cache_folder()):
            file.flush()
        columns = [np.array(column, dtype=object) for column in (kinds, splits)]
        return cls(_Stored(file, np.array(starts), whole.hexdigest()), np.arange(len(kinds)), *columns)

    def __len__(self) -> int:
        return len(self._index)

    @overload
    def __getitem__(self, row: int) -> Demonstration: ...
    @overload
    def __getitem__(self, row: slice) -> "DemonstrationTable": ...
    def __getitem__(self, row: int | slice) -> "Demonstration | DemonstrationTable":
        if isinstance(row, slice):
            return self._view(np.arange(len(self))[row])
        identity, messages, completion = self._stored.row(int(self._index[row]))
        assert isinstance(identity, str) and isinstance(messages, list) and isinstance(completion, str)
        turns = tuple(Message(**message) for message in messages)
        return Demonstration(Prompt(identity, turns, self.kinds[row], self.splits[row]), completion)

    def __iter__(self) -> Iterator[Demonstration]:
        for row in range(len(self)):
            yield self[row]

    def where(self, kept: npt.NDArray[np.bool_]) -> "DemonstrationTable":
        """The rows for which `kept` is true, in their order."""
        return self._view(np.flatnonzero(kept))

    def labelled(self, kind: str) -> "DemonstrationTable":
        """The same rows, all of this kind."""
        return DemonstrationTable(self._stored, self._index, np.full(len(self), kind, dtype=object), self.splits)

    @property
    def keys(self) -> list[tuple[int, int]]:
        """What a row is, however many views of its file it stands in."""
        return [(id(self._stored), int(row)) for row in self._index]

    def _view(self, rows: npt.NDArray[np.int64]) -> "DemonstrationTable":
        return DemonstrationTable(self._stored, self._index[rows], self.kinds[rows], self.splits[rows])
