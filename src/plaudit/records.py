"""The nouns that cross a stage: plain frozen records, no tensors.

Each record knows how it is written as one JSON object a line (`as_json`); reading is `data.files`' work, because
only a reader knows the file and the line an error belongs to.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Any


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is system, user or assistant."""

    role: str
    content: str

    def as_json(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True)
class Prompt:
    """The conversation a reply continues: it ends with the user's turn."""

    id: str
    messages: tuple[Message, ...]
    kind: str
    split: str

    @property
    def text(self) -> str:
        """The last user turn, for tables and reports."""
        return self.messages[-1].content

    def as_json(self) -> dict[str, Any]:
        return {"id": self.id, "kind": self.kind, "split": self.split, "prompt": messages_as_json(self.messages)}


@dataclass(frozen=True)
class Demonstration:
    """A prompt and its ideal reply; and who wrote it, where that is known."""

    prompt: Prompt
    completion: str
    annotator: str | None = None

    def as_json(self) -> dict[str, Any]:
        row = {**self.prompt.as_json(), "completion": self.completion}
        return row if self.annotator is None else {**row, "annotator": self.annotator}


@dataclass(frozen=True)
class Labelled:
    """A prompt with one reply and whether it was liked: an unpaired preference; and by whom, where that is known."""

    prompt: Prompt
    completion: str
    label: bool
    annotator: str | None = None

    def as_json(self) -> dict[str, Any]:
        row = {**self.prompt.as_json(), "completion": self.completion, "label": self.label}
        return row if self.annotator is None else {**row, "annotator": self.annotator}


@dataclass(frozen=True)
class Completion:
    """A reply. `finished` is False when the length limit cut it before its end-of-turn token."""

    text: str
    finished: bool = True

    def as_json(self) -> dict[str, Any]:
        return {"text": self.text, "finished": self.finished}


@dataclass(frozen=True)
class Ranking:
    """K replies to one prompt, each with a rank: 1 is best, equal ranks are ties.

    What else the file says of them, where it does: `votes` and `judge_scores` (a judge's own score) of each reply,
    `sources` (who wrote each), `strength` (how much better the better of two is, > 0) and `annotator` (who ranked).
    """

    prompt: Prompt
    replies: tuple[Completion, ...]
    ranks: tuple[int, ...]
    votes: tuple[int, ...] | None = None
    judge_scores: tuple[float, ...] | None = None
    sources: tuple[str, ...] | None = None
    strength: float | None = None
    annotator: str | None = None

    def pairs(self) -> list[tuple[int, int]]:
        """Index pairs (winner, loser) of the replies that are strictly ordered; ties give no pair."""
        both = combinations(range(len(self.replies)), 2)
        ordered = (sorted(pair, key=lambda reply: self.ranks[reply]) for pair in both)
        return [(better, worse) for better, worse in ordered if self.ranks[better] != self.ranks[worse]]

    def as_json(self) -> dict[str, Any]:
        replies = [{**reply.as_json(), "rank": rank} for reply, rank in zip(self.replies, self.ranks, strict=True)]
        for name, values in (("votes", self.votes), ("score", self.judge_scores), ("source", self.sources)):
            for reply, value in zip(replies, values or (), strict=False):
                reply[name] = value
        row = {**self.prompt.as_json(), "responses": replies}
        more = {"strength": self.strength, "annotator": self.annotator}
        return row | {name: value for name, value in more.items() if value is not None}


Record = Prompt | Demonstration | Ranking | Labelled
"""What a row of a data file may be."""


@dataclass(frozen=True)
class Preference:
    """One strict pair: `chosen` was preferred to `rejected`."""

    prompt: Prompt
    chosen: Completion
    rejected: Completion

    def as_json(self) -> dict[str, Any]:
        """The conversational `prompt/chosen/rejected` form that the ecosystem's trainers read."""
        return {
            "prompt": messages_as_json(self.prompt.messages),
            "chosen": [{"role": "assistant", "content": self.chosen.text}],
            "rejected": [{"role": "assistant", "content": self.rejected.text}],
        }


def messages_as_json(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [message.as_json() for message in messages]


def preferences_of(ranking: Ranking) -> list[Preference]:
    """Every strict pair of a ranking, in the order of the replies."""
    return [
        Preference(ranking.prompt, ranking.replies[better], ranking.replies[worse]) for better, worse in ranking.pairs()
    ]
