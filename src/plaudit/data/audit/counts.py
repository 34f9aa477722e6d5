"""What the rows of one file add up to: kinds, splits, lengths, tokens, pairs, and how varied the replies are."""

from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np

from plaudit.algo.statistics import wilson_interval
from plaudit.data.audit import near
from plaudit.data.audit.texts import diversity
from plaudit.data.formats.reader import KINDS, Reader
from plaudit.data.formats.rows import SPLITS
from plaudit.records import Labelled, Prompt, Ranking

_DIVERSITY = 5_000  # replies, of 2,000 characters each
_TOKEN_BATCH = 512
_PERCENTILES = (5, 25, 50, 75, 95, 99, 100)

CountTokens = Callable[[Sequence[str]], list[int]]


class Lengths:
    """Lengths of prompts and of replies."""

    def __init__(self) -> None:
        self.prompts, self.replies = array("I"), array("I")

    def percentiles(self) -> dict[str, dict[str, int]]:
        cuts = {
            name: np.percentile(np.asarray(values), _PERCENTILES, method="nearest")
            for name, values in (("prompt", self.prompts), ("reply", self.replies))
            if len(values)
        }
        return {name: {f"p{p}": int(v) for p, v in zip(_PERCENTILES, at, strict=True)} for name, at in cuts.items()}


@dataclass
class Counts:
    """One file, of which row `first` of the audit is the first and row `last` the one after the last."""

    reader: Reader
    first: int
    count_tokens: CountTokens | None
    random: Random
    last: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    names_split: bool = False
    """Whether a row of the file says its split; one that does not counts as train."""
    roles: Counter[str] = field(default_factory=Counter)
    characters: Lengths = field(default_factory=Lengths)
    words: Lengths = field(default_factory=Lengths)
    strict_pairs: int = 0
    ties: int = 0
    labels: int = 0
    liked: int = 0
    annotators: Counter[str] = field(default_factory=Counter)
    # One entry a strict pair: whether the longer reply won (one half for equal ones), and the row.
    _longer: "array[float]" = field(default_factory=lambda: array("f"))
    _longer_row: "array[int]" = field(default_factory=lambda: array("Q"))
    _replies: int = 0
    _varied: list[str] = field(default_factory=list)
    # Above `near.SAMPLE` rows tokens are counted of a sample: its rows' entries and texts, then their counts.
    _sample: near.Sample = field(default_factory=lambda: near.Sample(near.SAMPLE))
    _waiting: list[tuple[int, str, Sequence[str]]] = field(default_factory=list)
    _tokens: list[tuple[int, int, list[int]]] = field(default_factory=list)

    def add(self, prompt: Prompt, asked: str, replies: Sequence[str]) -> None:
        """A row: its prompt, as a text too, and its replies."""
        self.kinds[prompt.kind] += 1
        self.splits[prompt.split] += 1
        for message in prompt.messages:
            self.roles[message.role] += 1
        self.roles["assistant"] += len(replies)
        self.characters.prompts.append(len(asked))
        self.characters.replies.extend(map(len, replies))
        self.words.prompts.append(len(asked.split()))
        self.words.replies.extend(len(reply.split()) for reply in replies)
        for reply in (reply[:2000] for reply in replies):
            # Reservoir sampling: every reply has the same chance to be among those whose diversity is measured.
            self._replies += 1
            if len(self._varied) < _DIVERSITY:
                self._varied.append(reply)
            elif (at := self.random.randrange(self._replies)) < _DIVERSITY:
                self._varied[at] = reply
        if self.count_tokens is not None and (entry := self._sample.take()) is not None:
            self._waiting.append((entry, asked, replies))
            if len(self._waiting) >= _TOKEN_BATCH:
                self.count_waiting()

    def add_pairs(self, ranking: Ranking, strict: Sequence[tuple[int, int]], row: int) -> None:
        """The pairs of a ranking, of which `strict` are (better, worse)."""
        if ranking.annotator is not None:
            self.annotators[ranking.annotator] += 1
        self.strict_pairs += len(strict)
        self.ties += len(ranking.replies) * (len(ranking.replies) - 1) // 2 - len(strict)
        for better, worse in strict:
            a, b = len(ranking.replies[better].text), len(ranking.replies[worse].text)
            self._longer.append(0.5 if a == b else float(a > b))
            self._longer_row.append(row)

    def longer_won(self) -> tuple[float, tuple[float, float], int] | None:
        """The share of strict pairs that the longer reply won, its 95 % interval over rows, and how many they are."""
        if not self._longer:
            return None
        return float(np.mean(self._longer)), wilson_interval(self._longer, self._longer_row), len(self._longer)

    def add_label(self, record: Labelled) -> None:
        """A label of a single reply."""
        self.labels += 1
        self.liked += record.label
        if record.annotator is not None:
            self.annotators[record.annotator] += 1

    def most_labels(self) -> tuple[str, float] | None:
        """Who gave most labels of single replies, and their share; None where there are none, or nobody is named."""
        most = self.annotators.most_common(1)
        return (most[0][0], most[0][1] / self.labels) if most and self.labels else None

    def count_waiting(self) -> None:
        """Count the tokens of the rows that wait for it."""
        if self.count_tokens is None or not self._waiting:
            return
        counts = iter(self.count_tokens([text for _, asked, replies in self._waiting for text in (asked, *replies)]))
        self._tokens += [(entry, next(counts), [next(counts) for _ in replies]) for entry, _, replies in self._waiting]
        self._waiting.clear()

    def summary(self, duplicates: int, near_duplicates: int, near_sample: near.Sample) -> dict[str, Any]:
        """As JSON; the numbers of duplicates are of this file."""
        reader = self.reader
        summary: dict[str, Any] = {
            "file": str(reader.source),
            "format": reader.format,
            "detected": reader.given is None,
            "holds": KINDS[reader.format] if reader.format else None,
            "rows": reader.rows,
            "used": reader.rows - reader.bad,
            "bad": reader.bad,
            "recognised": reader.columns.said,
            # A key may be half a surrogate pair, which no terminal takes.
            "ignored_keys": {
                key.encode("utf-8", "backslashreplace").decode(): count for key, count in sorted(reader.ignored.items())
            },
            "kinds": dict(self.kinds.most_common()),
            "splits": {split: self.splits[split] for split in SPLITS if self.splits[split]},
            "roles": dict(self.roles.most_common()),
            "characters": self.characters.percentiles(),
            "words": self.words.percentiles(),
        }
        if self.count_tokens is not None:
            kept, tokens = self._sample.mask(), Lengths()
            for entry, prompt, replies in self._tokens:
                if kept[entry]:
                    tokens.prompts.append(prompt)
                    tokens.replies.extend(replies)
            summary["tokens"] = tokens.percentiles()
            summary["tokens_of_rows"] = int(kept.sum())
        summary["duplicates"] = duplicates
        summary["near_duplicates"] = near_duplicates
        summary["near_sampled"] = not near_sample.whole
        summary["near_of_rows"] = int(near_sample.mask().sum())
        if self.strict_pairs or self.ties:
            summary["strict_pairs"], summary["tied_pairs"] = self.strict_pairs, self.ties
            summary["longer_wins"] = float(np.mean(self._longer)) if self.strict_pairs else None
        if self.labels:
            summary["liked"] = self.liked / self.labels
        if self.annotators:
            summary["annotators"] = dict(self.annotators.most_common())
        if self._varied:
            summary["diversity"] = diversity(self._varied)
        return summary
