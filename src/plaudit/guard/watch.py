"""The watch against reward hacking: it audits every evaluation and says when to stop; it does not prophesy.

Rows are those of ppo/evaluations.jsonl. What the watch reads of them, where it is there:

    update                        updates done before this look; the first row is the SFT model
    score                         the proxy: what PPO is paid by
    held_out_score                a score that PPO does not optimise: gold, or a second reward model
    score_gain_se, held_out_gain_se
                                  standard error of the mean difference to the first row, paired by prompt (`gain_se`)
    kl, length, entropy           nats a reply, tokens a reply, nats a token
    repeated_trigrams, distinct_bigrams
                                  shares: within a reply, over all replies

A held-out score that fell while the proxy rose stops a run. So do symptoms that come with gaming, against the first
row, and of two sorts. What no score of single replies can see always counts: replies that have become alike, that
repeat themselves, an entropy that has collapsed. Without a held-out score nobody can know whether a rising proxy is a
better policy; then the KL and the length count too.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain

from pydantic import Field

from plaudit.config import StrictConfig

Row = Mapping[str, float]


class WatchConfig(StrictConfig):
    """When to stop PPO because its reward is being gamed."""

    enabled: bool = True
    """Whether the watch may stop the run; the policy that is kept is chosen by the evaluations either way."""
    patience: int = Field(3, ge=1)
    """Evaluations in a row that must all show it."""
    tolerance: float = Field(2.0, ge=0)
    """Standard errors by which the held-out score must have fallen, and the proxy risen, to count."""
    smallest_change: float = Field(0.02, ge=0)
    """A change of either score below this never counts, however small its standard error is."""
    max_repetition: float = Field(2.0, gt=1)
    """Repeated 3-grams within replies as a multiple of the SFT model's (shares below 0.1 never count)."""
    min_variety: float = Field(0.6, gt=0, lt=1)
    """Distinct 2-grams over all replies of an evaluation as a share of the SFT model's."""
    min_entropy: float = Field(0.25, gt=0, lt=1)
    """The entropy as a share of the SFT model's."""
    max_kl: float = Field(30.0, gt=0)
    """Without a held-out score: nats a reply from the reference above which the policy has run away."""
    max_length_change: float = Field(2.0, gt=1)
    """The same: the length of a reply over the SFT model's, or under it, by this factor."""


REPEATS_THAT_NEVER_COUNT = 0.1
KL_BUDGET = 10.0
"""Nats a reply from the reference up to which a score that PPO is paid by is trusted, unless ppo.kl_budget is given."""


def gain_se(name: str, now: Sequence[float], first: Sequence[float]) -> dict[str, float]:
    """{f"{name}_gain_se": standard error of mean(now − first)}, paired: entry i of both belongs to one prompt.

    Prompts differ far more among each other than one prompt's reply does before and after, so the difference is known
    better than either mean. (1, 2, 3) against (0, 1, 1): differences 1, 1, 2 and their standard error 1/3. Of fewer
    than two prompts there is none: {}.
    """
    assert len(now) == len(first), (len(now), len(first))
    if len(now) < 2:
        return {}
    differences = [a - b for a, b in zip(now, first, strict=True)]
    return {f"{name}_gain_se": statistics.stdev(differences) / math.sqrt(len(differences))}


def verdict(evaluations: Sequence[Row], config: WatchConfig) -> str | None:
    """Why to stop now, in words with the evidence; None: go on. The rows are in the order they were written.

    - With `held_out_score`: each of the last `patience` rows lies below the best row before them, and its proxy above
      that row's, both by more than `tolerance` standard errors. Looks that are merely unlucky do not come in a row.
    - Each of the last `patience` rows shows the same symptom, against the first row.
    """
    if not config.enabled or len(evaluations) <= config.patience:
        return None
    last, judged = evaluations[-config.patience :], "held_out_score" in evaluations[-1]
    if judged:
        found = _gaming([row for row in evaluations if "held_out_score" in row], config)
        if found is not None:
            return found
    symptoms = chain(_unseen(evaluations[0], config), () if judged else _unjudged(evaluations[0], config))
    for name, shows, says in symptoms:
        if all(name in row and shows(row[name]) for row in last):
            values = ", ".join(f"{row[name]:.3g}" for row in last)
            why = _UNSEEN if judged else _UNJUDGED
            return f"{says}: {values} {_after(last)}; {why}"
    return None


def _gaming(rows: Sequence[Row], config: WatchConfig) -> str | None:
    before, last = rows[: -config.patience], rows[-config.patience :]
    if not before:
        return None
    best = max(before, key=lambda row: row["held_out_score"])
    fell = all(best["held_out_score"] - row["held_out_score"] > _noise("held_out", best, row, config) for row in last)
    rose = all(row["score"] - best["score"] > _noise("score", best, row, config) for row in last)
    if not (fell and rose):
        return None
    noise = _noise("held_out", best, last[-1], config)
    held_out, proxy = (", ".join(f"{row[name]:.3g}" for row in last) for name in ("held_out_score", "score"))
    return (
        f"the held-out score fell while the score PPO is paid by rose, {config.patience} evaluations in a row: "
        f"held-out {best['held_out_score']:.3g} after update {best['update']:g}, then {held_out} {_after(last)} "
        f"(falls below {noise:.2g} count as noise); paid {best['score']:.3g}, then {proxy}"
    )


def _noise(name: str, one: Row, other: Row, config: WatchConfig) -> float:
    """How far a score may differ between two rows by chance: `tolerance` standard errors of the difference.

    Both errors are of differences to the first row, whose noise they share, so √(a² + b²) is rather too large.
    """
    error = math.hypot(one.get(f"{name}_gain_se", 0.0), other.get(f"{name}_gain_se", 0.0))
    return max(config.tolerance * error, config.smallest_change)


_UNSEEN = "a score of single replies, held out or not, does not see that"
_UNJUDGED = "no held-out score is there to say whether the replies are better"
Symptom = tuple[str, Callable[[float], bool], str]
"""(column, test, what it says)."""


def _unseen(first: Row, config: WatchConfig) -> Iterator[Symptom]:
    """What the first row allows to be watched of the symptoms that always count."""
    if "repeated_trigrams" in first:
        limit = max(config.max_repetition * first["repeated_trigrams"], REPEATS_THAT_NEVER_COUNT)
        text = (
            f"the replies repeat themselves, repeated 3-grams over {limit:.3g} (first {first['repeated_trigrams']:.3g})"
        )
        yield "repeated_trigrams", lambda share: share > limit, text
    if "distinct_bigrams" in first:
        least = config.min_variety * first["distinct_bigrams"]
        text = (
            f"the replies to different prompts have become alike, distinct 2-grams below {least:.3g} "
            f"(first {first['distinct_bigrams']:.3g})"
        )
        yield "distinct_bigrams", lambda share: share < least, text
    if "entropy" in first:
        floor = config.min_entropy * first["entropy"]
        text = f"the entropy has collapsed below {floor:.3g} nats a token (first {first['entropy']:.3g})"
        yield "entropy", lambda entropy: entropy < floor, text


def _unjudged(first: Row, config: WatchConfig) -> Iterator[Symptom]:
    """What counts as well where no held-out score speaks for the replies."""
    yield "kl", lambda kl: kl > config.max_kl, f"the KL from the reference is over {config.max_kl:g} nats a reply"
    if "length" in first:
        start, factor = first["length"], config.max_length_change
        text = f"the length of a reply has left {start / factor:.3g} to {start * factor:.3g} tokens (first {start:.3g})"
        yield "length", lambda length: not start / factor <= length <= start * factor, text


def _after(rows: Sequence[Row]) -> str:
    return "after updates " + ", ".join(f"{row['update']:g}" for row in rows)
