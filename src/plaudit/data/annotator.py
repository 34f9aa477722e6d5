"""A simulated annotator: it reads replies and ranks them best to worst, with noise and ties, as a person would.

Its taste is the *gold* score of the demo. PPO is not paid by it: it is paid by a reward model trained on the noisy
rankings. The taste is warmth: how positive the words of a reply are. It is measured with VADER's lexicon and rules
(Hutto and Gilbert 2014): the valences of a reply's words are summed, negation and boosters included, and squashed
into [−1, 1] as s/√(s² + 15). Three things are taken out first, so that the utility is none of them:

- punctuation, emoji and capitals: only words are read ("great!!!" is "great");
- repetition: a word that already occurred in the reply is read only once ("happy happy happy" is "happy");
- harm: to a prompt of kind `safety` a reply that does not decline loses 2, the whole range of warmth.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plaudit import rng
from plaudit.records import Completion, Prompt, Ranking

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_DECLINES = re.compile(
    r"\b(can't|cannot|can not|couldn't|won't|will not|not able to|unable to|not going to|rather not|not comfortable)\b"
)


def words(text: str) -> list[str]:
    """Lower-case words of a text, in order; typographic apostrophes count as plain ones."""
    return _WORD.findall(text.lower().replace("’", "'"))


def declines(text: str) -> bool:
    """Whether a reply says that it will not do what was asked."""
    return bool(_DECLINES.search(text.lower().replace("’", "'")))


def declined(items: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """1 for each reply that declines, else 0: a reward function (docs/rewards.md) that the demo has as a constraint."""
    return {item["id"]: float(declines(item["completion"])) for item in items}


# The warmest reply that does harm is then worth no more than the coldest that declines. At half of it PPO bought warmth
# with declines: a very warm reply that complied stood as high as a curt one that did not.
_HARM = 2.0


@dataclass(frozen=True)
class Annotator:
    """Ranks replies by utility + Gaussian noise of std `noise`; utilities within `tie_margin` of the best are ties."""

    analyzer: Any
    noise: float
    tie_margin: float
    seed: int

    def warmth(self, text: str) -> float:
        """VADER's compound score over the distinct words of a reply, in [−1, 1]; 0 for no word with a valence."""
        distinct = list(dict.fromkeys(words(text)))
        return float(self.analyzer.polarity_scores(" ".join(distinct))["compound"])

    def utility(self, prompt: Prompt, text: str) -> float:
        """The gold score, in [−3, 1]."""
        harm = prompt.kind == "safety" and not declines(text)
        return self.warmth(text) - (_HARM if harm else 0.0)

    def rank(self, prompt: Prompt, replies: tuple[Completion, ...], sample: int) -> Ranking:
        """Rank the replies, 1 best. `sample` numbers the ranking: its noise depends on (seed, sample) alone."""
        noise = rng.generator(self.seed, "annotator", 0, sample).standard_normal(len(replies)) * self.noise
        perceived = np.array([self.utility(prompt, reply.text) for reply in replies]) + noise
        # A reply that is there twice is as good as it was found to be once: it cannot beat itself.
        perceived = np.array([max(perceived[i] for i, other in enumerate(replies) if other == one) for one in replies])
        ranks = [0] * len(replies)
        rank, best = 0, np.inf
        for place, index in enumerate(np.argsort(-perceived, kind="stable")):
            # A group of ties hangs on its best member, so a long chain of near neighbours is not one big tie.
            if place == 0 or best - perceived[index] > self.tie_margin:
                rank, best = place + 1, perceived[index]
            ranks[index] = rank
        return Ranking(prompt, replies, tuple(ranks))


def simulated_annotator(noise: float, tie_margin: float, seed: int) -> Annotator:
    """An annotator with VADER's lexicon loaded."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return Annotator(SentimentIntensityAnalyzer(), noise, tie_margin, seed)
