"""Demonstrations on disk: a file of any size is used without being held in memory.

The rows are written once to an Arrow file in the user's cache folder, which is memory-mapped and has no name any more:
it goes when the process ends. A row becomes a record when it is asked for; kinds and splits are columns.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from plaudit.data.cache import cache_folder
from plaudit.records import Demonstration, Message, Prompt, messages_as_json

_SCHEMA = pa.schema([(name, pa.large_string()) for name in ("id", "messages", "completion")])
_ROWS = 1024  # in one record batch


class DemonstrationTable(Sequence[Demonstration]):
    """A sequence of demonstrations; `kinds` and `splits` hold one entry a row, `keys` tells rows of one file apart."""

    def __init__(self, table: pa.Table, index: npt.NDArray[np.int64], kinds: npt.NDArray[np.object_],
                 splits: npt.NDArray[np.object_]):  # fmt: skip
        self._table, self._index = table, index
        self.kinds, self.splits = kinds, splits

    @classmethod
    def of(cls, records: Iterable[Demonstration]) -> "DemonstrationTable":
        """Write the records as they come; at most one batch of them is held."""
        cache_folder().mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(suffix=".arrow", dir=cache_folder())
        os.close(handle)
        try:
            kinds, splits = _write(name, iter(records))
            table = pa.ipc.open_file(pa.memory_map(name)).read_all()
        finally:
            os.unlink(name)
        return cls(table, np.arange(table.num_rows), np.array(kinds, dtype=object), np.array(splits, dtype=object))

    def __len__(self) -> int:
        return len(self._index)

    @overload
    def __getitem__(self, row: int) -> Demonstration: ...
    @overload
    def __getitem__(self, row: slice) -> "DemonstrationTable": ...
    def __getitem__(self, row: int | slice) -> "Demonstration | DemonstrationTable":
        if isinstance(row, slice):
            return self._view(np.arange(len(self))[row])
        place = int(self._index[row])
        identity, messages, completion = (self._table.column(name)[place].as_py() for name in _SCHEMA.names)
        turns = tuple(Message(**message) for message in json.loads(messages))
        return Demonstration(Prompt(identity, turns, self.kinds[row], self.splits[row]), completion)

    def __iter__(self) -> Iterator[Demonstration]:
        for row in range(len(self)):
            yield self[row]

    def where(self, kept: npt.NDArray[np.bool_]) -> "DemonstrationTable":
        """The rows for which `kept` is true, in their order."""
        return self._view(np.flatnonzero(kept))

    def labelled(self, kind: str) -> "DemonstrationTable":
        """The same rows, all of this kind."""
        return DemonstrationTable(self._table, self._index, np.full(len(self), kind, dtype=object), self.splits)

    @property
    def keys(self) -> list[tuple[int, int]]:
        """What a row is, however many views of its file it stands in."""
        return [(id(self._table), int(row)) for row in self._index]

    def _view(self, rows: npt.NDArray[np.int64]) -> "DemonstrationTable":
        return DemonstrationTable(self._table, self._index[rows], self.kinds[rows], self.splits[rows])


def _write(name: str, records: Iterator[Demonstration]) -> tuple[list[str], list[str]]:
    known: dict[str, str] = {}  # one string object for each kind and split, not one a row
    kinds, splits = [], []
    with pa.ipc.new_file(name, _SCHEMA) as file:
        while batch := list(islice(records, _ROWS)):
            kinds += [known.setdefault(row.prompt.kind, row.prompt.kind) for row in batch]
            splits += [known.setdefault(row.prompt.split, row.prompt.split) for row in batch]
            rows = [(row.prompt.id, _packed(row), row.completion) for row in batch]
            file.write_batch(pa.record_batch([list(column) for column in zip(*rows, strict=True)], schema=_SCHEMA))
    return kinds, splits


def _packed(row: Demonstration) -> str:
    return json.dumps(messages_as_json(row.prompt.messages), ensure_ascii=False)
