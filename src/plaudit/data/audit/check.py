"""`plaudit data check`: what is in data files and what is wrong with it, in one pass and bounded memory.

A row leaves numbers and 64-bit hashes behind, about 60 bytes; texts are not kept, but for a few thousand replies whose
diversity is measured. Near-duplicates and token lengths are taken from a sample above `near.SAMPLE` rows, which the
report says.
"""

import math
import re
from array import array
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from plaudit.data.audit import near
from plaudit.data.audit.counts import Counts, CountTokens
from plaudit.data.audit.problems import MOST_OF_ONE, Problems
from plaudit.data.audit.texts import hash_of, joined, seems_cut, template_mark, words_alone
from plaudit.data.formats.reader import Reader, is_implicit, prompt_of, replies_of
from plaudit.data.formats.rows import SPLITS, shown
from plaudit.records import Labelled, Ranking, Record

_NUMBER = re.compile(r"\d+\Z")  # of the line or element, at the end of a place

_SCORES = [
    (kind, better, worse)
    for kind in ("score", "rating", "reward")
    for better, worse in (
        (f"chosen_{kind}", f"rejected_{kind}"),
        (f"{kind}_chosen", f"{kind}_rejected"),
        (f"chosen-{kind}", f"rejected-{kind}"),
    )
]
LENGTH_BIAS = 0.1
"""How far from one half the share of pairs that the longer reply wins must surely be."""
_FEW_WORDS = 5  # of a prompt that no one wrote as one


class Audit:
    """Give it files, then ask for the report; `count_tokens` counts the tokens of texts, where they are wanted."""

    def __init__(self, count_tokens: CountTokens | None = None):
        self._count_tokens = count_tokens
        self._problems = Problems()
        self._files: list[Counts] = []
        self._prefixes: dict[str, int] = {}
        # One entry a row: its place, split, and the hashes of its content and of its prompt.
        self._prefix, self._line, self._split = array("I"), array("Q"), array("B")
        self._content, self._prompt, self._texts = array("Q"), array("Q"), array("Q")
        # One entry a strict pair: prompt and both texts in either order, whether the first of them won, the row, who.
        self._pair, self._pair_first_won, self._pair_row = array("Q"), array("B"), array("Q")
        self._pair_by = array("Q")
        self._judged_alike: list[bool] = []
        self._id, self._id_row = array("Q"), array("Q")
        self._near = near.NearDuplicates(near.SAMPLE)
        self._random = Random(0)

    def add(
        self,
        source: str | Path,
        format: str | None = None,
        on_rows: Callable[[int], None] = lambda rows: None,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        """Read one file to its end; bad rows are problems, and the others are still looked at. `on_rows` hears now and
        then how many there were."""
        reader = Reader(source, format=format, quarantine=True, columns=columns)
        file = Counts(reader, len(self._line), self._count_tokens, self._random)
        self._files.append(file)
        for row, record in reader:
            if reader.rows % 5000 == 0:
                on_rows(reader.rows)
            if record is not None:
                self._row(file, row.place, record)
                said = row.value or {}
                file.names_split |= bool(said.get("split"))
                self._scored(row.place, said)
                if is_implicit(reader.format, row.value) and len(prompt_of(record).text.split()) < _FEW_WORDS:
                    text = f"the prompt is {shown(prompt_of(record).text)}"
                    self._problems.add("short shared prompt", row.place, text)
            else:
                self._problems.add("bad row", row.place, str(row.problem).removeprefix(f"{row.place}: "))
        file.count_waiting()
        file.last = len(self._line)

    def _place(self, row: int) -> str:
        return f"{list(self._prefixes)[self._prefix[row]]}{self._line[row]}"

    # --- a row ---

    def _row(self, file: Counts, place: str, record: Record) -> None:
        row = len(self._line)
        line = _NUMBER.findall(place)[0]
        prefix = place.removesuffix(line)
        self._prefix.append(self._prefixes.setdefault(prefix, len(self._prefixes)))
        self._line.append(int(line))
        prompt, replies = prompt_of(record), replies_of(record)
        asked, texts = joined(prompt.messages), [reply.text for reply in replies]
        self._split.append(SPLITS.index(prompt.split))
        self._prompt.append(hash_of(*(part for m in prompt.messages for part in (m.role, words_alone(m.content)))))
        self._texts.append(hash_of(asked, *texts))
        self._content.append(hash_of(asked, *texts, *_judgement(record)))
        if not replies:
            self._id.append(hash_of(prompt.id))
            self._id_row.append(row)
        file.add(prompt, asked, texts)
        if isinstance(record, Ranking):
            self._pairs(file, row, place, record)
        if isinstance(record, Labelled):
            file.add_label(record)
        for reply in replies:
            text = reply.text.strip()
            if not text:
                self._problems.add("empty reply", place, f"a reply is {shown(reply.text)}")
            elif reply.finished and seems_cut(text):
                self._problems.add("cut reply", place, f"a reply ends in {shown(text[-40:])}")
        marks = (template_mark(text) for text in (*(message.content for message in prompt.messages), *texts))
        if mark := next(filter(None, marks), None):
            self._problems.add("template mark", place, f"a text holds {mark}")
        self._near.add(row, "\n".join((asked, *texts)))

    def _scored(self, place: str, row: dict[str, Any]) -> None:
        """What a row of a pair says of both replies beside which one was chosen."""
        for kind, better, worse in _SCORES:
            chosen, rejected = _number_of(row.get(better)), _number_of(row.get(worse))
            if chosen is not None and rejected is not None and not chosen > rejected:
                name = "scored otherwise" if chosen < rejected else "scored alike"
                self._problems.add(name, place, f"the {kind} of chosen is {chosen:g}, of rejected {rejected:g}")

    def _pairs(self, file: Counts, row: int, place: str, ranking: Ranking) -> None:
        texts = [reply.text.strip() for reply in ranking.replies]
        hashes = [hash_of(text) for text in texts]
        strict = ranking.pairs()
        file.add_pairs(ranking, strict, row)
        for better, worse in strict:
            if hashes[better] == hashes[worse]:
                text = f"the better and the worse reply are {shown(texts[better])}"
                self._problems.add("identical replies", place, text)
                continue
            first, second = sorted((hashes[better], hashes[worse]))
            self._pair.append(hash_of(str(self._prompt[row]), str(first), str(second)))
            self._pair_first_won.append(first == hashes[better])
            self._pair_row.append(row)
            self._pair_by.append(hash_of(ranking.annotator or ""))

    # --- the end ---

    def report(self) -> dict[str, Any]:
        """Everything that was found, as JSON."""
        content = np.frombuffer(self._content, dtype=np.uint64) if self._content else np.zeros(0, dtype=np.uint64)
        repeated, nearly = self._duplicates(content), self._near_duplicates()
        self._leaks()
        self._contradictions()
        self._repeated_ids()
        self._length_bias()
        for file in self._files:
            if (most := file.most_labels()) is not None and most[1] > MOST_OF_ONE:
                text = f"{shown(most[0])} gave {most[1]:.0%} of {file.labels:,} labels"
                self._problems.add("one annotator", str(file.reader.source), text)
        counts = zip(self._files, repeated, nearly, strict=True)
        files = [file.summary(same, near, self._near.sample) for file, same, near in counts]
        if not any(file.names_split for file in self._files):
            files = [{**file, "splits": {}} for file in files]  # a run divides the rows (data/splits.py)
        problems = self._problems.as_json()
        errors, warnings = (sum(p["count"] for p in problems if p["level"] == level) for level in ("error", "warning"))
        overlaps = self._overlaps()
        alike = self._judged_alike
        agreed = {"agreement": {"pairs": len(alike), "share": float(np.mean(alike))}} if alike else {}
        found = {"files": files, "overlaps": overlaps, **agreed, "problems": problems}
        return {**found, "errors": errors, "warnings": warnings}

    def _duplicates(self, content: Any) -> list[int]:
        """Rows of each file whose content stands earlier in the same file."""
        repeats = [0] * len(self._files)
        for number, file in enumerate(self._files):
            for group in _groups(content[file.first : file.last]):
                for at in group[1:]:
                    repeats[number] += 1
                    row, first = file.first + int(at), file.first + int(group[0])
                    self._problems.add("duplicate", self._place(row), f"the same as {self._place(first)}")
        return repeats

    def _near_duplicates(self) -> list[int]:
        """Sampled rows of each file that nearly repeat an earlier one of it."""
        counts = [0] * len(self._files)
        sizes = [file.last - file.first for file in self._files]
        part = np.repeat(np.arange(len(self._files), dtype=np.uint64), sizes)
        # Several people may rank the same replies.
        same = np.frombuffer(self._texts, dtype=np.uint64) if self._texts else np.zeros(0, dtype=np.uint64)
        for row, earlier in self._near.pairs(same, part):
            if not self._held_out_and_trained(row, earlier):
                counts[int(part[row])] += 1
                self._problems.add("near-duplicate", self._place(row), f"nearly the same as {self._place(earlier)}")
        # Two files may well share rows; what is held out in one and trained on in the other is another matter.
        for row, earlier in self._near.pairs(np.frombuffer(self._prompt, dtype=np.uint64)):
            if self._held_out_and_trained(row, earlier):
                text = f"nearly the same as {self._place(earlier)}, and one of them is held out"
                self._problems.add("near leak", self._place(row), text)
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
                self._problems.add(kind, self._place(row), f"{text} {self._place(first)}")

    def _contradictions(self) -> None:
        """One annotator who judged a pair both ways; of different ones it is counted how often they agree."""
        won, by = np.frombuffer(self._pair_first_won, dtype=np.uint8), np.frombuffer(self._pair_by, dtype=np.uint64)
        for group in _groups(np.frombuffer(self._pair, dtype=np.uint64)):
            first: dict[int, int] = {}
            for at in map(int, group):
                known = first.setdefault(int(by[at]), at)
                if won[at] != won[known]:
                    places = self._place(self._pair_row[at]), self._place(self._pair_row[known])
                    self._problems.add("contradiction", places[0], f"prefers the reply that loses at {places[1]}")
            self._judged_alike += [bool(won[one] == won[other]) for one, other in combinations(first.values(), 2)]

    def _length_bias(self) -> None:
        for file in self._files:
            if (found := file.longer_won()) is not None:
                share, (low, high), pairs = found
                if low > 0.5 + LENGTH_BIAS or high < 0.5 - LENGTH_BIAS:
                    text = (
                        f"the longer reply wins {share:.0%} of {pairs:,} pairs (95 % interval {low:.0%} to {high:.0%})"
                    )
                    self._problems.add("length bias", str(file.reader.source), text)

    def _repeated_ids(self) -> None:
        """In files of prompts alone; a demonstration may repeat the id of its prompt."""
        rows = np.frombuffer(self._id_row, dtype=np.uint64)
        for file in self._files:
            inside = np.flatnonzero((rows >= file.first) & (rows < file.last))
            for group in _groups(np.frombuffer(self._id, dtype=np.uint64)[inside]):
                first = self._place(int(rows[inside[group[0]]]))
                for at in group[1:]:
                    self._problems.add("repeated id", self._place(int(rows[inside[at]])), f"the id is that of {first}")

    def _overlaps(self) -> list[dict[str, Any]]:
        """Distinct prompts in common, for every two parts (file and split) of the files."""
        prompts, splits = np.frombuffer(self._prompt, np.uint64), np.frombuffer(self._split, np.uint8)
        parts = []
        for file in self._files:
            for number, split in enumerate(SPLITS):
                if file.splits[split]:
                    mine = prompts[file.first : file.last][splits[file.first : file.last] == number]
                    parts.append((str(file.reader.source), split, np.unique(mine)))
        overlaps = []
        for (one, split, left), (other, other_split, right) in combinations(parts, 2):
            common = len(np.intersect1d(left, right, assume_unique=True))
            if common:
                overlaps.append({"first": [one, split], "second": [other, other_split], "prompts": common})
        return overlaps


def _number_of(value: object) -> float | None:
    """A score, of a table as text; None for anything else."""
    if not isinstance(value, (int, float, str)) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _judgement(record: Record) -> tuple[str, str]:
    """What a row says of its replies, and who: the same replies with another judgement are no duplicate."""
    if not isinstance(record, Ranking | Labelled):
        return "", ""
    return repr(record.label if isinstance(record, Labelled) else record.ranks), record.annotator or ""


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
