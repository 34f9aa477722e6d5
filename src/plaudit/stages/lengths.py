"""How long the rows of a run are in tokens, and what is said before it where they do not fit its settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from plaudit.data.chat import ChatFormat
from plaudit.records import Completion
from plaudit.stages.recipe import Recipe
from plaudit.stages.run_data import RunData

SAMPLE = 1000
"""Rows of a file whose tokens are counted, evenly spaced: a share is then known to 3 points."""
CUT = 0.05
"""Share of ideal replies beyond the limit from which it is said."""
Row = TypeVar("Row")


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts, of the demonstrations' replies, and of ranked and labelled ones."""

    prompts: list[int]
    demonstrations: list[int]
    ranked: list[int]
    labelled: list[int]


def lengths_of(chat: ChatFormat, data: RunData) -> Lengths:
    """Of at most `SAMPLE` rows each."""

    def reply(text: str) -> int:
        return len(chat.reply_ids(Completion(text)))

    return Lengths(
        [len(chat.prompt_ids(prompt.messages)) for prompt in spaced(data.prompts)],
        [reply(row.completion) for row in spaced(data.demonstrations)],
        [len(chat.reply_ids(one)) for ranking in spaced(data.rankings or ()) for one in ranking.replies],
        [reply(row.completion) for row in spaced(data.labels or ())],
    )


def spaced(rows: Sequence[Row], most: int = SAMPLE) -> list[Row]:
    """At most so many of the rows, evenly spaced."""
    count = min(len(rows), most)
    return [rows[at * len(rows) // count] for at in range(count)]


def cut_short(recipe: Recipe, lengths: Lengths) -> str | None:
    """What is to be said where ideal replies are longer than the policy may write: it learns replies that never end."""
    limit = min(recipe.sampling.of(stage).max_new_tokens for stage in ("preferences", "ppo", "evaluate"))
    replies, what = lengths.demonstrations or lengths.ranked, "ideal" if lengths.demonstrations else "ranked"
    if not replies or float(np.mean(np.array(replies) > limit)) <= CUT:
        return None
    share, fits = float(np.mean(np.array(replies) > limit)), int(np.quantile(replies, 0.95))
    return (
        f"{share:.0%} of the {what} replies have more tokens than sampling.max_new_tokens={limit}: what the model "
        f"samples will be cut off as often. 95 % of them fit in {fits}: set sampling.max_new_tokens={fits}, or shorten "
        "the replies"
    )
