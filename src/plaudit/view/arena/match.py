"""One question to the arena: who said what stays here until somebody has chosen."""

import random
import secrets
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plaudit.data.hashes import sha256_text
from plaudit.label.queue.items import Draft
from plaudit.records import Completion, Message, Prompt

KEPT = 50
"""Matches that wait for a choice."""


@dataclass(frozen=True)
class Match:
    """A prompt with the replies as they are shown, in an order that says nothing. `run`: whose policies wrote them."""

    run: str
    prompt: str
    replies: tuple[Mapping[str, Any], ...]

    @property
    def blind(self) -> list[dict[str, Any]]:
        """What is shown before the choice: no name, no score, no KL."""
        return [{"text": reply["text"], "finished": reply["finished"]} for reply in self.replies]

    def draft(self) -> Draft | None:
        """The item that the choice is a label of; None where all replies say the same. Of replies with one text the
        first counts, since people cannot order them."""
        first = self._distinct()
        if len(first) < 2:
            return None
        kept = [self.replies[place] for place in first]
        prompt = Prompt(f"arena-{sha256_text(self.prompt)[:12]}", (Message("user", self.prompt),), "arena", "train")
        replies = tuple(Completion(reply["text"], reply["finished"]) for reply in kept)
        return Draft("rank", prompt, replies, tuple(reply["policy"] for reply in kept), source_file=self.run)

    def ranks(self, best: Sequence[int]) -> list[int]:
        """1 for the replies of the item whose text was chosen, 2 for the others; all 1 where every one was."""
        chosen = {self.replies[place]["text"] for place in best}
        return [1 if self.replies[place]["text"] in chosen else 2 for place in self._distinct()]

    def _distinct(self) -> list[int]:
        first: dict[str, int] = {}
        for place, reply in enumerate(self.replies):
            first.setdefault(reply["text"], place)
        return list(first.values())


class Matches:
    """Those that wait for a choice, by an id that cannot be guessed."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, Match] = OrderedDict()

    def begin(self, run: str, prompt: str, replies: Sequence[Mapping[str, Any]]) -> tuple[str, Match]:
        """A new one, its replies shuffled."""
        shuffled = list(replies)
        random.SystemRandom().shuffle(shuffled)
        match, number = Match(run, prompt, tuple(shuffled)), secrets.token_urlsafe(12)
        self._open[number] = match
        while len(self._open) > KEPT:
            self._open.popitem(last=False)
        return number, match

    def get(self, number: str) -> Match | None:
        """None where it was chosen already, is too old, or never was."""
        return self._open.get(number)

    def end(self, number: str) -> None:
        """It was chosen: names, scores and KL are told, so nobody is blind to it any more."""
        self._open.pop(number, None)
