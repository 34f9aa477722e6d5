"""Demonstrations -> token examples, and the optimiser steps they make up; no tensors.

A demonstration becomes tokens when a step first needs it, so a short run over a large file tokenises what it uses and
no more. A conversation that is longer than the limit meets one explicit rule, and what the rule did is counted.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import numpy as np

from plaudit import rng
from plaudit.data.chat import ChatFormat
from plaudit.data.mixture import Share, epoch_order
from plaudit.data.packing import Example
from plaudit.data.table import DemonstrationTable
from plaudit.errors import UserError
from plaudit.records import Completion, Demonstration

TooLong = Literal["refuse", "drop", "left_truncate"]
Learn = Literal["last", "all"]


@dataclass
class Encoder:
    """Tokenises demonstrations under one chat format, each row once; `dropped` and `truncated` count what `too_long`
    did."""

    chat: ChatFormat
    max_length: int
    too_long: TooLong = "refuse"
    learn: Learn = "last"
    dropped: int = 0
    truncated: int = 0
    _made: dict[tuple[int, int], Example | None] = field(default_factory=dict)

    def example(self, source: int, row: int, rows: Sequence[Demonstration]) -> Example | None:
        """The example of a row of a source, or None when it was dropped."""
        if (source, row) not in self._made:
            self._made[source, row] = self.encode(rows[row])
        return self._made[source, row]

    def encode(self, item: Demonstration) -> Example | None:
        """The example of a demonstration, or None when it was dropped."""
        messages = item.prompt.messages
        if self.learn == "all" and any(message.role == "assistant" for message in messages):
            ids, learnt = self.chat.conversation_ids(messages, item.completion)
        else:
            prompt, reply = self.chat.prompt_ids(messages), self.chat.reply_ids(Completion(item.completion))
            ids, learnt = prompt + reply, [False] * len(prompt) + [True] * len(reply)
        over = len(ids) - self.max_length
        if over > 0:
            if self.too_long == "refuse":
                raise UserError(
                    f"demonstration {item.prompt.id!r} has {len(ids)} tokens, more than sft.max_length="
                    f"{self.max_length}; shorten it, raise sft.max_length, or set sft.too_long to drop or left_truncate"
                )
            reply_length = learnt[::-1].index(False)
            # A reply is never cut: it would teach to stop early or to go on from nothing.
            if self.too_long == "drop" or reply_length >= self.max_length:
                self.dropped += 1
                return None
            self.truncated += 1
            ids, learnt = ids[over:], learnt[over:]
            whole = learnt.index(False)  # what is left of an earlier reply that was cut in two is not learnt
            learnt = [False] * whole + learnt[whole:]
        return Example(array("i", ids), bytes(learnt), item.prompt.kind)


@dataclass(frozen=True)
class Source:
    """The demonstrations of one part of the mixture, and its share."""

    demonstrations: Sequence[Demonstration]
    share: Share


@dataclass(frozen=True)
class Step:
    """The examples of one optimiser step, and whether it is the last of its epoch."""

    examples: list[Example]
    ends_epoch: bool


def training_steps(
    sources: Sequence[Source], encoder: Encoder, *, seed: int, epochs: int, size: int, limit: int | None
) -> list[Step]:
    """Every optimiser step of the run, in order; `limit` is the most there may be."""
    steps: list[Step] = []
    for epoch in range(epochs):
        order = epoch_order([source.share for source in sources], seed, epoch)
        made = (encoder.example(source, row, sources[source].demonstrations) for source, row in order)
        kept = (example for example in made if example is not None)
        first = len(steps)
        while examples := list(islice(kept, size)):
            if limit is not None and len(steps) >= limit:
                return steps
            steps.append(Step(examples, ends_epoch=False))
        if len(steps) == first:
            raise UserError(
                f"every training demonstration is longer than sft.max_length={encoder.max_length}; raise it"
            )
        steps[-1] = Step(steps[-1].examples, ends_epoch=True)
    return steps


def held_out_rows(sources: Sequence[DemonstrationTable], most: int, seed: int) -> list[Demonstration]:
    """The rows of other splits than train, each once however many sources share it: all of them, or a seeded choice of
    `most`, in their order."""
    places: dict[tuple[int, int], tuple[int, int]] = {}
    for number, rows in enumerate(sources):
        keys = rows.keys
        for row in np.flatnonzero(rows.splits != "train").tolist():
            places.setdefault(keys[row], (number, row))
    chosen = list(places.values())
    if len(chosen) > most:
        chosen = [chosen[i] for i in sorted(rng.permutation(seed, "sft/held_out", 0, len(chosen))[:most])]
    return [sources[number][row] for number, row in chosen]
