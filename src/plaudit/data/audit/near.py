"""Near-duplicates of texts in bounded memory: MinHash signatures (datasketch) of word triples, banded with numpy.

datasketch's own LSH index keeps a Python set a bucket, a gigabyte at 200,000 rows; sorting the bands needs no index.
A pair is near when the estimated Jaccard similarity of its word triples is at least `THRESHOLD`.
"""

import zlib
from array import array
from typing import Any

import numpy as np

SAMPLE = 200_000
"""Rows above which an audit looks at a sample."""
THRESHOLD = 0.8
PERMUTATIONS = 64
_BAND = 4  # 16 bands of 4: a pair of similarity 0.8 shares a band with probability 0.9998
_CHARACTERS = 20_000  # of a longer text only the beginning is compared
_MASK = (1 << 64) - 1
Numbers = np.ndarray[Any, np.dtype[np.uint64]]


def _mixed(number: int) -> int:
    """splitmix64: a row number spread over 64 bits, so that a threshold on it is a sample without a pattern."""
    z = (number + 1) * 0x9E3779B97F4A7C15 & _MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)


class Sample:
    """A sample of a stream of unknown length: all rows up to `capacity`, then a share that is halved when it fills.

    What was kept for a row that has left the sample since is dropped by `mask`.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.seen = 0
        self._below = 1 << 64
        self._kept = 0
        self._marks = array("Q")

    def take(self) -> int | None:
        """The next row's entry in `mask`, or None when it is not in the sample."""
        mark = _mixed(self.seen)
        self.seen += 1
        if mark >= self._below:
            return None
        self._marks.append(mark)
        self._kept += 1
        while self._kept > self.capacity:
            self._below //= 2
            self._kept = int(self.mask().sum())
        return len(self._marks) - 1

    def mask(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Of the rows taken, in order: which are still in the sample."""
        marks = np.frombuffer(self._marks, dtype=np.uint64)
        return np.ones(len(marks), dtype=bool) if self._below > _MASK else marks < np.uint64(self._below)

    @property
    def whole(self) -> bool:
        return self._below > _MASK


class NearDuplicates:
    """Collects signatures row by row, then finds the rows that nearly repeat an earlier one."""

    def __init__(self, capacity: int):
        from datasketch import MinHash

        self.sample = Sample(capacity)
        self._hash = MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=zlib.crc32)
        self._signatures = bytearray()
        self._rows = array("Q")

    def add(self, row: int, text: str) -> None:
        """The text of row number `row`; sampled above the capacity."""
        if self.sample.take() is None:
            return
        self._rows.append(row)
        words = text[:_CHARACTERS].lower().split()
        triples: set[tuple[str, ...]] = set(zip(words, words[1:], words[2:], strict=False)) or {tuple(words)}
        self._hash.clear()
        self._hash.update_batch([" ".join(triple).encode() for triple in triples])
        self._signatures += self._hash.hashvalues.astype(np.uint32).tobytes()

    def pairs(self, same: Numbers, part: Numbers | None = None) -> list[tuple[int, int]]:
        """(row, earlier row) for every sampled row that nearly repeats an earlier one of the same `part`.

        Rows of equal `same` do not count: they are known already.
        """
        mask = self.sample.mask()
        if not mask.any():
            return []
        rows = np.frombuffer(self._rows, dtype=np.uint64)[mask].astype(np.int64)
        signatures = np.frombuffer(self._signatures, dtype=np.uint32).reshape(-1, PERMUTATIONS)[mask]
        earlier = np.full(len(rows), -1, dtype=np.int64)
        for start in range(0, PERMUTATIONS, _BAND):
            band = np.ascontiguousarray(signatures[:, start : start + _BAND]).view(np.uint64)
            # Two rows of one key that are unlike each other are told apart below.
            key = band[:, 0] * np.uint64(0x9E3779B97F4A7C15) + band[:, 1] * np.uint64(0xC2B2AE3D27D4EB4F)
            if part is not None:
                key = key + part[rows] * np.uint64(0xD6E8FEB86659FD93)
            order = np.argsort(key, kind="stable")
            begins = np.concatenate(([True], key[order][1:] != key[order][:-1]))
            # Each row is compared with the first of its bucket only, so a bucket costs its size, not its square.
            first = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))]
            later = (order != first) & (earlier[order] < 0)
            later &= same[rows[order]] != same[rows[first]]
            if part is not None:
                later &= part[rows[order]] == part[rows[first]]
            mine, theirs = order[later], first[later]
            for at in range(0, len(mine), 100_000):
                m, t = mine[at : at + 100_000], theirs[at : at + 100_000]
                near = (signatures[m] == signatures[t]).mean(axis=1) >= THRESHOLD
                earlier[m[near]] = t[near]
        return [(int(rows[i]), int(rows[earlier[i]])) for i in np.flatnonzero(earlier >= 0)]
