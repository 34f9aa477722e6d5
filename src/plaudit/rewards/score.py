"""A reward behind one call, and the one loop by which models score texts.

    score(items) -> {id: score}

A scorer answers for every id it was asked about, once, with a finite number, or the run stops: a reward that fails is
never a score of 0. Results are matched by id, never by order.
"""

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from plaudit.data.chat import ChatFormat
from plaudit.data.packing import by_length
from plaudit.errors import RunStopped
from plaudit.models.full import FullReward, raw_scores
from plaudit.models.roles import Roles
from plaudit.models.tokens import pad_right
from plaudit.records import Completion, Message, Prompt, messages_as_json
from plaudit.run.display import Step

ROWS = 32
"""Replies scored at once."""


@dataclass(frozen=True)
class ScoreItem:
    """One reply to be scored; `id` is unique within a call."""

    id: str
    prompt: Prompt
    completion: Completion

    def as_json(self) -> dict[str, Any]:
        """What a function or an endpoint is given: id, prompt (messages), completion (text), finished."""
        return {
            "id": self.id,
            "prompt": messages_as_json(self.prompt.messages),
            "completion": self.completion.text,
            "finished": self.completion.finished,
        }


PROBE = ScoreItem(
    "probe",
    Prompt("probe", (Message("user", "How do I boil an egg?"),), "probe", "train"),
    Completion("Boil it for eight minutes."),
)
"""What a reward is asked before long work begins."""


class Scorer(Protocol):
    """Anything that scores texts."""

    @property
    def name(self) -> str:
        """What errors call it."""
        ...

    def score(self, items: Sequence[ScoreItem]) -> dict[str, float]:
        """A finite score for the id of every item; RunStopped, with the reason, when there is none."""
        ...


def matched(name: str, items: Sequence[ScoreItem], answer: object) -> dict[str, float]:
    """`answer` as id -> score, exactly the ids of `items`; RunStopped that names what is wrong with it.

    It is a mapping of ids to scores, or a list of mappings with the keys `id` and `score`.
    """
    if isinstance(answer, Mapping):
        pairs = list(answer.items())
    elif isinstance(answer, Sequence) and not isinstance(answer, str):
        bad = next((row for row in answer if not isinstance(row, Mapping) or not {"id", "score"} <= set(row)), None)
        if bad is not None:
            raise RunStopped(f"{name}: {str(bad)[:80]!r} is no score; write {{'id': ..., 'score': ...}}")
        pairs = [(row["id"], row["score"]) for row in answer]
    else:
        raise RunStopped(
            f"{name}: answered {type(answer).__name__} {str(answer)[:80]!r}; it must answer {{id: score}} or a list of "
            "{'id': ..., 'score': ...}"
        )
    asked = {item.id for item in items}
    assert len(asked) == len(items), "ids of one call are unique"
    scores: dict[str, float] = {}
    for number, value in pairs:
        if number not in asked:
            raise RunStopped(f"{name}: answered for id {number!r}, which it was not asked about")
        if number in scores:
            raise RunStopped(f"{name}: answered twice for id {number!r}")
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise RunStopped(f"{name}: the score of {number!r} is {str(value)[:80]!r}, not a number")
        if not math.isfinite(value):
            raise RunStopped(f"{name}: the score of {number!r} is {value}; nothing can be learnt from it")
        scores[number] = float(value)
    missing = sorted(asked - scores.keys())
    if missing:
        raise RunStopped(
            f"{name}: gave {len(scores)} scores for {len(items)} replies; there is none for id {missing[0]!r}"
        )
    return scores


def unseen(note: str = "", count: int = 1) -> None:
    """The `Step` of a loop that nobody watches."""


def in_batches(
    lengths: Sequence[int], rows: int, score: Callable[[list[int]], Tensor], advance: Step, members: int = 1
) -> Tensor:
    """Scores [B, M] on the CPU of B texts, in order; `score` is given the numbers of at most `rows` of like length.

    Long ones come first, so that what does not fit into memory fails at once and the estimate of the time falls.
    """
    scores_BM = torch.zeros(len(lengths), members)
    for part in reversed(by_length(lengths, rows)):
        scores_BM[part] = score(part).cpu()
        advance(count=len(part))
    return scores_BM


@torch.no_grad()
def score_replies(
    model: Roles | FullReward,
    chat: ChatFormat,
    replies: Sequence[tuple[Prompt, Completion]],
    advance: Step = unseen,
    rows: int = ROWS,
) -> Tensor:
    """Raw scores of replies by a reward model of ours, [B, M]."""

    def score(part: list[int]) -> Tensor:
        prompts = [chat.prompt_ids(replies[i][0].messages) for i in part]
        tokens = pad_right(prompts, [chat.reply_ids(replies[i][1]) for i in part], chat.pad_id, model.device)
        return raw_scores(model, tokens)

    lengths = [len(prompt.text) + len(reply.text) for prompt, reply in replies]
    return in_batches(lengths, rows, score, advance, model.members)
