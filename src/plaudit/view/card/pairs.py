"""The strict pairs that a report card judges, and what can be said of each without a model.

A reply is scored once; its number counts through all rankings in order, so scores are one flat array.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plaudit.records import Completion, Message, Ranking

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """One strict pair of a ranking: places of winner and loser in it, and the number of its first reply."""

    ranking: Ranking
    winner: int
    loser: int
    first: int

    @property
    def chosen(self) -> Completion:
        return self.ranking.replies[self.winner]

    @property
    def rejected(self) -> Completion:
        return self.ranking.replies[self.loser]

    def judge_margin(self) -> tuple[str, float] | None:
        """(what it is, how much better the winner is by it), as far as the file says."""
        ranking = self.ranking
        if ranking.judge_scores is not None:
            return "judge scores", ranking.judge_scores[self.winner] - ranking.judge_scores[self.loser]
        if ranking.strength is not None:
            return "stated strength", ranking.strength
        if ranking.votes is not None:
            return "votes", float(ranking.votes[self.winner] - ranking.votes[self.loser])
        return None


class Pairs:
    """All strict pairs of some rankings, in order, with the numbers of their replies and of their prompts.

    Of every pair: `clusters` numbers its prompt, since pairs of one prompt are not independent; `gaps` are the
    characters that the winner is longer; `longer_won` is 1 where the longer reply won, 0 where the shorter one did, ½
    where they are equally long; `winners` and `losers` number the replies.
    """

    def __init__(self, rankings: Sequence[Ranking]):
        self.rankings = tuple(rankings)
        self.items: list[Pair] = []
        first = 0
        for ranking in self.rankings:
            self.items += [Pair(ranking, winner, loser, first) for winner, loser in ranking.pairs()]
            first += len(ranking.replies)
        self.replies = first
        numbers: dict[tuple[Message, ...], int] = {}
        clusters = [numbers.setdefault(pair.ranking.prompt.messages, len(numbers)) for pair in self.items]
        self.clusters = np.array(clusters, np.int64)
        self.gaps = np.array([len(pair.chosen.text) - len(pair.rejected.text) for pair in self.items], np.float64)
        self.longer_won = verdicts(self.gaps)
        self.winners = [pair.first + pair.winner for pair in self.items]
        self.losers = [pair.first + pair.loser for pair in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def margins(self, scores_N: Floats) -> Floats:
        """score(winner) − score(loser) of every pair, [pairs] or, for scores [N, M] of M members, [pairs, M]."""
        return scores_N[self.winners] - scores_N[self.losers]


def verdicts(differences: Floats) -> Floats:
    """1 where a difference is above 0, 0 where it is below, ½ at 0."""
    return np.where(differences > 0, 1.0, np.where(differences == 0, 0.5, 0.0))
