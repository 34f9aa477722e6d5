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
better policy; then the KL and the length count too. The symptoms are the doctor's, with the same limits.
"""

from collections.abc import Sequence

from plaudit.guard.gaming import after, gaming
from plaudit.guard.limits import Row, WatchConfig
from plaudit.guard.symptoms import ENTROPY_COLLAPSE, KL_RUNAWAY, LENGTH_DRIFT, REPEATED_TEXT, REPLIES_ALIKE

_ALWAYS = (
    (REPEATED_TEXT, "the replies repeat themselves, repeated 3-grams over {highest:.3g} (first {first:.3g})"),
    (
        REPLIES_ALIKE,
        "the replies to different prompts have become alike, distinct 2-grams below {lowest:.3g} (first {first:.3g})",
    ),
    (ENTROPY_COLLAPSE, "the entropy has collapsed below {lowest:.3g} nats a token (first {first:.3g})"),
)
_UNJUDGED = (
    (KL_RUNAWAY, "the KL from the reference is over {highest:g} nats a reply"),
    (
        LENGTH_DRIFT,
        "the length of a reply has left {lowest:.3g} to {highest:.3g} tokens (first {first:.3g})",
    ),
)
"""Where no held-out score speaks for the replies."""


def verdict(evaluations: Sequence[Row], config: WatchConfig) -> str | None:
    """Why to stop now, in words with the evidence; None: go on. The rows are in the order they were written.

    Gaming (gaming.py), or a symptom that each of the last `patience` rows shows, against the first row.
    """
    if not config.enabled or len(evaluations) <= config.patience:
        return None
    first, last, judged = evaluations[0], evaluations[-config.patience :], "held_out_score" in evaluations[-1]
    found = gaming(evaluations, config.patience) if judged else None
    if found is not None:
        return found
    why = "no held-out score is there to say whether the replies are better"
    if judged:
        why = "a score of single replies, held out or not, does not see that"
    for symptom, says in _ALWAYS if judged else (*_ALWAYS, *_UNJUDGED):
        column = symptom.column
        if all(column in row and symptom.shows(row[column], first, config) for row in last):
            values = ", ".join(f"{row[column]:.3g}" for row in last)
            return f"{says.format(**symptom.limits(first, config))}: {values} {after(last)}; {why}"
    return None
