"""The one loop by which models score texts."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from plaudit.data.chat import ChatFormat
from plaudit.data.packing import by_length
from plaudit.dist.ranks import ALONE, Ranks
from plaudit.models.full import FullReward, raw_scores
from plaudit.models.roles import Roles
from plaudit.models.tokens import pad_right
from plaudit.records import Completion, Prompt
from plaudit.run.display import Step

ROWS = 32
"""Replies scored at once."""


def unseen(note: str = "", count: int = 1) -> None:
    """The `Step` of a loop that nobody watches."""


def in_batches(
    lengths: Sequence[int],
    rows: int,
    score: Callable[[list[int]], Tensor],
    advance: Step,
    members: int = 1,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Scores [B, M] on the CPU of B texts, in order; `score` is given the numbers of at most `rows` of like length,
    on each of `ranks` its share.

    Long ones come first, so that what does not fit into memory fails at once and the estimate of the time falls.
    """
    scores_BM = torch.zeros(len(lengths), members)
    done = 0
    for part in ranks.share(by_length(lengths, ranks.rows(rows, len(lengths)))[::-1]):
        scores_BM[part] = score(part).cpu()
        advance(count=len(part))
        done += len(part)
    whole_BM = ranks.total({"scores": scores_BM})["scores"]
    advance(count=len(lengths) - done)
    return whole_BM


@torch.no_grad()
def score_replies(
    model: Roles | FullReward,
    chat: ChatFormat,
    replies: Sequence[tuple[Prompt, Completion]],
    advance: Step = unseen,
    rows: int = ROWS,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Raw scores of replies by a reward model of ours, [B, M]; `ranks` divide them."""

    def score(part: list[int]) -> Tensor:
        prompts = [chat.prompt_ids(replies[i][0].messages) for i in part]
        tokens = pad_right(prompts, [chat.reply_ids(replies[i][1]) for i in part], chat.pad_id, model.device)
        return raw_scores(model, tokens)

    lengths = [len(prompt.text) + len(reply.text) for prompt, reply in replies]
    return in_batches(lengths, rows, score, advance, model.members, ranks)
