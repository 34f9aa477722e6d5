"""`plaudit data check`: what is in data files and what is wrong with it, in one pass and bounded memory.

A row leaves numbers and 64-bit hashes behind, about 60 bytes; texts are not kept, but for a few thousand replies whose
diversity is measured. Near-duplicates and token lengths are taken from a sample above `SAMPLE` rows, which the report
says. Two different texts are taken for one with probability 1e-7 at a million rows.

Errors make training wrong (unreadable rows, a held-out prompt that is trained on, a pair that prefers a text to itself,
an id twice); warnings may be wanted.
"""

import hashlib
import random
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from plaudit.data.audit.near import NearDuplicates, Sample
from plaudit.data.formats.reader import KINDS, Item, Reader, prompt_of
from plaudit.data.formats.rows import SPLITS, shown
from plaudit.records import Demonstration, Message, Ranking, Record

SAMPLE = 200_000
_EXAMPLES = 5
_DIVERSITY = 5_000
_TOKEN_BATCH = 512
_WORD = re.compile(r"[\w']+")
# A reply whose last line is long, no item of a list, and stops on a plain word or a comma was probably cut.
_CUT = re.compile(r"(?:\A|\n)(?![ \t]*(?:[-*•#|]|\d+[.)]))[^\n]{60,}[ \t](?:[^\W\d_]+,?|\()\Z")
_PERCENTILES = (5, 25, 50, 75, 95, 99, 100)

LEVELS = {
    "bad row": ("error", "mend the row, or read with on_bad_row: quarantine"),
    "leak": ("error", "a held-out prompt must not be trained on: keep one split of it"),
    "identical replies": ("error", "one text cannot beat itself: give both the same rank or delete the row"),
    "repeated id": ("error", "make the id unique"),
    "contradiction": ("warning", "two rows prefer opposite replies: keep one, or make it a tie"),
    "duplicate": ("warning", "the row stands twice: delete one, or it counts twice"),
    "near-duplicate": ("warning", "the row nearly repeats another: keep one of them"),
    "near leak": ("warning", "a row close to a held-out one is trained on: keep one split of it"),
    "validation and test overlap": ("warning", "what chooses the policy should not judge it: keep one split"),
    "empty reply": ("warning", "write the reply or delete the row"),
    "cut reply": ("warning", "the reply seems to stop in the middle: complete it, or mark it finished: false"),
}
"""Kinds of problems: how bad each is, and what to do."""

CountTokens = Callable[[Sequence[str]], list[int]]


def _hash(*parts: str) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part.encode())
        digest.update(b"\x1f")
    return int.from_bytes(digest.digest(), "little")


def plain(text: str) -> str:
    """A text without capitals, punctuation and spacing: what a near-copy of a prompt shares."""
    return " ".join(_WORD.findall(text.lower())) or text.strip()


def replies_of(record: Record) -> tuple[str, ...]:
    if isinstance(record, Demonstration):
        return (record.completion,)
    return tuple(reply.text for reply in record.replies) if isinstance(record, Ranking) else ()


@dataclass
class _Lengths:
    """Lengths of prompts and of replies of one file."""

    prompt: "array[int]" = field(default_factory=lambda: array("I"))
    reply: "array[int]" = field(default_factory=lambda: array("I"))

    def percentiles(self) -> dict[str, dict[str, int]]:
        found = {}
        for name, values in (("prompt", self.prompt), ("reply", self.reply)):
            if len(values):
                cuts = np.percentile(np.asarray(values, dtype=np.uint32), _PERCENTILES, method="nearest")
                found[name] = {f"p{p}": int(v) for p, v in zip(_PERCENTILES, cuts, strict=True)}
        return found


@dataclass
class _File:
    """What one file adds up to."""

    reader: Reader
    first: int
    kinds: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)
    characters: _Lengths = field(default_factory=_Lengths)
    words: _Lengths = field(default_factory=_Lengths)
    tokens: _Lengths = field(default_factory=_Lengths)
    token_sample: Sample = field(default_factory=lambda: Sample(SAMPLE))
    token_entries: _Lengths = field(default_factory=_Lengths)
    waiting: list[tuple[int, str, tuple[str, ...]]] = field(default_factory=list)
    strict_pairs: int = 0
    ties: int = 0
    longer_wins: float = 0.0
    replies_seen: int = 0
    reservoir: list[str] = field(default_factory=list)
    last: int = 0


class Problems:
    """Counts every problem and keeps the first few of each kind."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[dict[str, str]]] = {}

    def add(self, kind: str, place: str, text: str) -> None:
        self.counts[kind] += 1
        kept = self.examples.setdefault(kind, [])
        if len(kept) < _EXAMPLES:
            kept.append({"place": place, "text": text})

    def as_json(self) -> list[dict[str, Any]]:
        return [
            {"level": level, "kind": kind, "count": self.counts[kind], "fix": fix, "examples": self.examples[kind]}
            for kind, (level, fix) in LEVELS.items()
            if self.counts[kind]
        ]


class Audit:
    """Give it files, then ask for the report. `count_tokens` counts the tokens of texts; without it words are counted.

    `near` can be turned off, which saves half of the time.
    """

    def __init__(self, count_tokens: CountTokens | None = None, near: bool = True):
        self.count_tokens = count_tokens
        self.problems = Problems()
        self.files: list[_File] = []
        self._prefixes: dict[str, int] = {}
        # One entry a row: its place, split, and the hashes of its content and of its prompt.
        self._prefix, self._line, self._split = array("I"), array("Q"), array("B")
        self._content, self._prompt = array("Q"), array("Q")
        # One entry a strict pair: prompt and both texts in either order, whether the first of them won, the row.
        self._pair, self._pair_first_won, self._pair_row = array("Q"), array("B"), array("Q")
        self._id, self._id_row = array("Q"), array("Q")
        self._near = NearDuplicates(SAMPLE) if near else None
        self._random = random.Random(0)

    def add(
        self, source: str | Path, format: str | None = None, on_rows: Callable[[int], None] = lambda rows: None
    ) -> None:
        """Read one file to its end; bad rows are problems, and the others are still looked at. `on_rows` hears now and
        then how many there were."""
        file = _File(Reader(source, format=format, quarantine=True), len(self._line))
        self.files.append(file)
        for item in file.reader:
            if file.reader.rows % 5000 == 0:
                on_rows(file.reader.rows)
            if item.record is None:
                assert item.bad is not None
                self.problems.add("bad row", item.place, item.bad.problem.removeprefix(f"{item.place}: "))
            else:
                self._row(file, item, item.record)
        self._count_waiting(file)
        file.last = len(self._line)

    def place(self, row: int) -> str:
        return f"{list(self._prefixes)[self._prefix[row]]}:{self._line[row]}"

    # --- a row ---

    def _row(self, file: _File, item: Item, record: Record) -> None:
        row = len(self._line)
        prefix, _, line = item.place.rpartition(":")
        self._prefix.append(self._prefixes.setdefault(prefix, len(self._prefixes)))
        self._line.append(int(line))
        prompt, replies = prompt_of(record), replies_of(record)
        asked = _flat(prompt.messages)
        self._split.append(SPLITS.index(prompt.split))
        self._prompt.append(_hash(*(part for m in prompt.messages for part in (m.role, plain(m.content)))))
        ranks = repr(record.ranks) if isinstance(record, Ranking) else ""
        self._content.append(_hash(asked, *replies, ranks))
        if not replies:
            self._id.append(_hash(prompt.id))
            self._id_row.append(row)
        file.kinds[prompt.kind] += 1
        file.splits[prompt.split] += 1
        for message in prompt.messages:
            file.roles[message.role] += 1
        file.roles["assistant"] += len(replies)
        self._lengths(file, asked, replies)
        if isinstance(record, Ranking):
            self._pairs(file, row, item.place, record)
        for number, reply in enumerate(replies):
            finished = not isinstance(record, Ranking) or record.replies[number].finished
            self._reply(file, item.place, reply, finished)
        if self._near is not None:
            self._near.add(row, "\n".join((asked, *replies)))

    def _lengths(self, file: _File, asked: str, replies: tuple[str, ...]) -> None:
        file.characters.prompt.append(len(asked))
        file.characters.reply.extend(map(len, replies))
        file.words.prompt.append(len(asked.split()))
        file.words.reply.extend(len(reply.split()) for reply in replies)
        if self.count_tokens is not None and (entry := file.token_sample.take()) is not None:
            file.waiting.append((entry, asked, replies))
            if len(file.waiting) >= _TOKEN_BATCH:
                self._count_waiting(file)

    def _count_waiting(self, file: _File) -> None:
        if self.count_tokens is None or not file.waiting:
            return
        counts = iter(self.count_tokens([text for _, asked, replies in file.waiting for text in (asked, *replies)]))
        for entry, _, replies in file.waiting:
            file.tokens.prompt.append(next(counts))
            file.token_entries.prompt.append(entry)
            for _ in replies:
                file.tokens.reply.append(next(counts))
                file.token_entries.reply.append(entry)
        file.waiting.clear()

    def _reply(self, file: _File, place: str, reply: str, finished: bool) -> None:
        stripped = reply.strip()
        if not stripped:
            self.problems.add("empty reply", place, f"a reply is {shown(reply)}")
        elif finished and stripped[-1] not in ".!?" and _cut(stripped):
            self.problems.add("cut reply", place, f"a reply ends in {shown(stripped[-40:])}")
        # Reservoir sampling: every reply has the same chance to be among those whose diversity is measured.
        file.replies_seen += 1
        at = file.replies_seen - 1 if len(file.reservoir) < _DIVERSITY else self._random.randrange(file.replies_seen)
        if at == len(file.reservoir):
            file.reservoir.append(reply[:2000])
        elif at < _DIVERSITY:
            file.reservoir[at] = reply[:2000]

    def _pairs(self, file: _File, row: int, place: str, ranking: Ranking) -> None:
        texts = [reply.text.strip() for reply in ranking.replies]
        hashes = [_hash(text) for text in texts]
        strict = ranking.pairs()
        file.strict_pairs += len(strict)
        file.ties += len(texts) * (len(texts) - 1) // 2 - len(strict)
        for better, worse in strict:
            a, b = len(ranking.replies[better].text), len(ranking.replies[worse].text)
            file.longer_wins += 0.5 if a == b else float(a > b)
            if hashes[better] == hashes[worse]:
                text = f"the better and the worse reply are {shown(texts[better])}"
                self.problems.add("identical replies", place, text)
                continue
            first, second = sorted((hashes[better], hashes[worse]))
            self._pair.append(_hash(str(self._prompt[row]), str(first), str(second)))
            self._pair_first_won.append(first == hashes[better])
            self._pair_row.append(row)

    # --- the end ---

    def report(self) -> dict[str, Any]:
        """Everything that was found, as JSON."""
        content = np.frombuffer(self._content, dtype=np.uint64) if self._content else np.zeros(0, dtype=np.uint64)
        repeated = self._duplicates(content)
        near = self._near_duplicates(content)
        self._leaks()
        self._contradictions()
        self._repeated_ids()
        files = [
            self._summary(file, repeated[number], near[number] if near is not None else None)
            for number, file in enumerate(self.files)
        ]
        problems = self.problems.as_json()
        totals = {
            level: sum(p["count"] for p in problems if p["level"] == level.removesuffix("s"))
            for level in ("errors", "warnings")
        }
        return {"files": files, "overlaps": self._overlaps(), "problems": problems, **totals}

    def _duplicates(self, content: Any) -> list[int]:
        """Rows of each file whose content stands earlier in the same file."""
        found = []
        for file in self.files:
            repeats = 0
            for group in _groups(content[file.first : file.last]):
                for at in group[1:]:
                    repeats += 1
                    row, first = file.first + int(at), file.first + int(group[0])
                    self.problems.add("duplicate", self.place(row), f"the same as {self.place(first)}")
            found.append(repeats)
        return found

    def _near_duplicates(self, content: Any) -> list[int] | None:
        if self._near is None:
            return None
        counts = [0] * len(self.files)
        sizes = [file.last - file.first for file in self.files]
        part = np.repeat(np.arange(len(self.files), dtype=np.uint64), sizes)
        for row, earlier in self._near.pairs(content, part):
            if not self._held_out_and_trained(row, earlier):
                counts[int(part[row])] += 1
                self.problems.add("near-duplicate", self.place(row), f"nearly the same as {self.place(earlier)}")
        # Two files may well share rows; what is held out in one and trained on in the other is another matter.
        for row, earlier in self._near.pairs(np.frombuffer(self._prompt, dtype=np.uint64)):
            if self._held_out_and_trained(row, earlier):
                text = f"nearly the same as {self.place(earlier)}, and one of them is held out"
                self.problems.add("near leak", self.place(row), text)
        return counts

    def _held_out_and_trained(self, row: int, other: int) -> bool:
        return (SPLITS[self._split[row]] == "train") != (SPLITS[self._split[other]] == "train")

    def _leaks(self) -> None:
        """A prompt of split train that is held out elsewhere, in one file or across them."""
        for group in _groups(np.frombuffer(self._prompt, dtype=np.uint64)):
            splits = {SPLITS[self._split[int(row)]]: int(row) for row in group[::-1]}
            if len(splits) == 1:
                continue
            first = splits.get("train", splits.get("validation", 0))
            for row in map(int, group):
                split = SPLITS[self._split[row]]
                if split == SPLITS[self._split[first]]:
                    continue
                kind = "leak" if "train" in (split, SPLITS[self._split[first]]) else "validation and test overlap"
                text = f"the prompt of split {split!r} is in split {SPLITS[self._split[first]]!r} at"
                self.problems.add(kind, self.place(row), f"{text} {self.place(first)}")

    def _contradictions(self) -> None:
        won = np.frombuffer(self._pair_first_won, dtype=np.uint8)
        for group in _groups(np.frombuffer(self._pair, dtype=np.uint64)):
            against = [int(at) for at in group if won[at] != won[group[0]]]
            for at in against:
                places = self.place(self._pair_row[at]), self.place(self._pair_row[int(group[0])])
                self.problems.add("contradiction", places[0], f"prefers the reply that loses at {places[1]}")

    def _repeated_ids(self) -> None:
        """In files of prompts alone; a demonstration may repeat the id of its prompt."""
        rows = np.frombuffer(self._id_row, dtype=np.uint64)
        for file in self.files:
            inside = np.flatnonzero((rows >= file.first) & (rows < file.last))
            for group in _groups(np.frombuffer(self._id, dtype=np.uint64)[inside]):
                first = self.place(int(rows[inside[group[0]]]))
                for at in group[1:]:
                    self.problems.add("repeated id", self.place(int(rows[inside[at]])), f"the id is that of {first}")

    def _overlaps(self) -> list[dict[str, Any]]:
        """Distinct prompts in common, for every two parts (file and split) of the files."""
        prompts, splits = np.frombuffer(self._prompt, np.uint64), np.frombuffer(self._split, np.uint8)
        parts = []
        for file in self.files:
            for number, split in enumerate(SPLITS):
                if file.splits[split]:
                    mine = prompts[file.first : file.last][splits[file.first : file.last] == number]
                    parts.append((str(file.reader.source), split, np.unique(mine)))
        found = []
        for (one, split, left), (other, other_split, right) in combinations(parts, 2):
            common = len(np.intersect1d(left, right, assume_unique=True))
            if common:
                found.append({"first": [one, split], "second": [other, other_split], "prompts": common})
        return found

    def _summary(self, file: _File, duplicates: int, near: int | None) -> dict[str, Any]:
        reader = file.reader
        summary: dict[str, Any] = {
            "file": str(reader.source),
            "format": reader.format,
            "detected": reader.given is None,
            "holds": KINDS[reader.format] if reader.format else None,
            "rows": reader.rows,
            "used": reader.rows - reader.bad,
            "bad": reader.bad,
            # A key may be half a surrogate pair, which no terminal takes.
            "ignored_keys": {
                key.encode("utf-8", "backslashreplace").decode(): count for key, count in sorted(reader.ignored.items())
            },
            "kinds": dict(file.kinds.most_common()),
            "splits": {split: file.splits[split] for split in SPLITS if file.splits[split]},
            "roles": dict(file.roles.most_common()),
            "characters": file.characters.percentiles(),
            "words": file.words.percentiles(),
        }
        if self.count_tokens is not None:
            kept = file.token_sample.mask()
            sampled = _Lengths(
                array("I", np.asarray(file.tokens.prompt)[kept[np.asarray(file.token_entries.prompt, dtype=int)]]),
                array("I", np.asarray(file.tokens.reply)[kept[np.asarray(file.token_entries.reply, dtype=int)]]),
            )
            summary["tokens"] = sampled.percentiles()
            summary["tokens_of_rows"] = int(kept.sum())
        summary["duplicates"] = duplicates
        if near is not None and self._near is not None:
            sample = self._near.sample
            summary["near_duplicates"] = near
            summary["near_sampled"] = not sample.whole
            summary["near_of_rows"] = int(sample.mask().sum())
        if file.strict_pairs or file.ties:
            summary["strict_pairs"], summary["tied_pairs"] = file.strict_pairs, file.ties
            summary["longer_wins"] = file.longer_wins / file.strict_pairs if file.strict_pairs else None
        if file.reservoir:
            summary["diversity"] = diversity(file.reservoir)
        return summary


def _cut(text: str) -> bool:
    return bool(_CUT.search(text[text.rfind("\n") + 1 :][-4000:]))


def _flat(messages: tuple[Message, ...]) -> str:
    return messages[0].content if len(messages) == 1 else "\n".join(f"{m.role}: {m.content}" for m in messages)


def _groups(hashes: Any) -> Iterator[Any]:
    """Indices of equal values, in order, for every value that stands more than once; in order of their first."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    same = ordered[1:] == ordered[:-1]
    begins = np.flatnonzero(np.concatenate(([True], ~same))) if len(ordered) else np.zeros(0, dtype=np.int64)
    ends = np.append(begins[1:], len(ordered))
    many = np.flatnonzero(ends - begins > 1)
    many = many[np.argsort(order[begins[many]], kind="stable")] if len(many) else many
    for number in many:
        yield order[begins[number] : ends[number]]


def diversity(replies: Sequence[str]) -> dict[str, float | int]:
    """distinct-n (Li et al. 2016): different n-grams over all n-grams of words. It falls with the number of replies,
    so it is measured on at most 5,000 of a file, each up to 2,000 characters."""
    found: dict[str, float | int] = {"replies": len(replies)}
    words = [reply.lower().split() for reply in replies]
    for n in (1, 2, 3):
        grams: set[tuple[str, ...]] = set()
        count = 0
        for text in words:
            shifted = [text[i:] for i in range(n)]
            grams.update(zip(*shifted, strict=False))
            count += max(0, len(text) - n + 1)
        found[f"distinct_{n}"] = len(grams) / count if count else 0.0
    openings = [tuple(text[:3]) for text in words if text]
    found["distinct_openings"] = len(set(openings)) / len(openings) if openings else 0.0
    return found
