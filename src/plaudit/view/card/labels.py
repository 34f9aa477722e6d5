"""What the labels themselves say, before any model: how far annotators agree, and what gives the winner away.

A leak is anything that separates winners from losers and that a better reply would not have: a training prompt among
the held-out ones, or a mark in the text (a space at the end, one word that only winners have).
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from plaudit.algo.agreement import best_accuracy, same_verdicts, verdict_agreement
from plaudit.algo.statistics import bootstrap_interval
from plaudit.data.audit.texts import words_alone
from plaudit.records import Message, Ranking
from plaudit.view.card.pairs import Pairs, verdicts

LOOKED_AT = 20_000
"""Pairs whose texts are searched for marks; of more, the first ones."""
MARK_PAIRS, MARK_SHARE, MARK_COVERAGE = 20, 0.97, 0.2
"""A mark counts where one reply of a pair has it and the other not, in so many pairs and so large a share of all of
them, and goes with the winner (or with the loser) in at least this share of those."""
EXPLAINED_BY_LENGTH = 0.9
_SHOWN = 10
_CHARACTERS = 4000
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_ALNUM = "a letter or digit"
_NAMES = {"\n": "a line break", "\t": "a tab", "\u00a0": "a no-break space", "\u200b": "a zero-width space"}

Unit = tuple[tuple[Message, ...], str, str]


def human_ceiling(rankings: Sequence[Ranking], pairs: Pairs, right: Sequence[float]) -> dict[str, Any]:
    """How often annotators who ranked the same replies agree, and how often the model agrees with them there.

    Compared are two annotators' verdicts on one pair of replies that both ordered strictly. `agreement` is the share
    of those that are the same, `best_accuracy` the most that any model can expect at that agreement, `alpha` that of
    Krippendorff (nominal: first better, second better, tie; each pair counted both ways round, since which of the two
    is called the first means nothing), `between` the same for two annotators at a time, with Cohen's kappa.
    """
    verdict_of: dict[Unit, dict[str, int]] = defaultdict(dict)
    for ranking in rankings:
        if ranking.annotator is not None:
            ranked = sorted(zip((reply.text for reply in ranking.replies), ranking.ranks, strict=True))
            for (text, rank), (other, other_rank) in combinations(ranked, 2):
                if text != other:
                    unit: Unit = (ranking.prompt.messages, text, other)
                    verdict_of[unit][ranking.annotator] = (other_rank > rank) - (other_rank < rank)
    several = {unit: given for unit, given in verdict_of.items() if len(given) > 1}
    number_of = {messages: number for number, messages in enumerate(dict.fromkeys(unit[0] for unit in several))}
    compared = [(value, number_of[messages]) for value, (messages, *_) in same_verdicts(several)]
    if not compared:
        named = {ranking.annotator for ranking in rankings} - {None}
        why = "no annotators are named" if not named else "no two annotators ordered the same two replies"
        return {"compared": 0, "why": why}
    units = [(p.ranking.prompt.messages, *sorted((p.chosen.text, p.rejected.text))) for p in pairs.items]
    judged = [number for number, unit in enumerate(units) if unit in several]
    same, prompts = zip(*compared, strict=True)
    agreement, (alpha, between) = float(np.mean(same)), verdict_agreement(several)
    ceiling: dict[str, Any] = {
        "compared": len(same),
        "annotators": len({name for given in several.values() for name in given}),
        "agreement": agreement,
        "agreement_ci": bootstrap_interval(same, prompts),
        "best_accuracy": best_accuracy(agreement),
        "alpha": alpha,
        "between": sorted(between, key=lambda row: -row["pairs"])[:_SHOWN],
    }
    if judged:
        there = [right[n] for n in judged]
        ceiling["pairs"] = len(there)
        ceiling["accuracy"] = float(np.mean(there))
        ceiling["accuracy_ci"] = bootstrap_interval(there, pairs.clusters[judged])
    return ceiling


def leaks(pairs: Pairs, train: Sequence[Ranking]) -> dict[str, Any]:
    """Prompts that were trained on among the judged ones, and marks that give the winner away.

    `trained_prompts` counts judged prompts that stand in `train` word for word, `near_trained_prompts` those that do
    but for capitals, punctuation and spacing; both are None without training rankings.
    """
    judged = list(dict.fromkeys(pair.ranking.prompt for pair in pairs.items))
    by_messages = {prompt.messages: prompt for prompt in judged}
    trained = {ranking.prompt.messages for ranking in train}
    trained_words = {_words_alone(messages) for messages in trained}
    exact = [prompt for messages, prompt in by_messages.items() if messages in trained]
    near = [
        p for messages, p in by_messages.items() if messages not in trained and _words_alone(messages) in trained_words
    ]
    return {
        "prompts": len(by_messages),
        "trained_prompts": len(exact) if train else None,
        "near_trained_prompts": len(near) if train else None,
        "examples": [{"id": prompt.id, "text": prompt.text} for prompt in (exact + near)[:_SHOWN]],
        "marks": marks(pairs),
    }


def _words_alone(messages: tuple[Message, ...]) -> str:
    return "\n".join(f"{message.role} {words_alone(message.content)}" for message in messages)


def marks(pairs: Pairs) -> list[dict[str, Any]]:
    """Marks that separate winners from losers, most telling first.

    Each: `mark`, `layout` (how a text is laid out, not what it says), `pairs` in which one reply has it, their share
    of all (`coverage`), and the `share` of them in which that reply won. A mark that length explains as well is left
    out: every word is likelier in a longer reply.
    """
    with_mark: dict[tuple[bool, str], list[int]] = defaultdict(list)
    for number, pair in enumerate(pairs.items[:LOOKED_AT]):
        chosen, rejected = set(_features(pair.chosen.text)), set(_features(pair.rejected.text))
        for feature in chosen - rejected:
            with_mark[feature].append(number + 1)
        for feature in rejected - chosen:
            with_mark[feature].append(-number - 1)
    looked_at = min(len(pairs), LOOKED_AT)
    found: list[dict[str, Any]] = []
    for (layout, name), signed in with_mark.items():
        numbers = np.array(signed, dtype=np.int64)
        share, coverage = float(np.mean(numbers > 0)), len(numbers) / looked_at
        telling = max(share, 1 - share)
        if len(numbers) < MARK_PAIRS or coverage < MARK_COVERAGE or telling < MARK_SHARE:
            continue
        # By length: is the one that has the mark the longer one, and does the longer one win here as surely?
        gaps = pairs.gaps[np.abs(numbers) - 1]
        # A mark that is itself a character or two makes its reply longer by as much; that is no matter of length.
        by_length = float(np.mean(verdicts(np.where(np.abs(gaps) <= 2, 0.0, gaps))))
        if max(by_length, 1 - by_length) >= EXPLAINED_BY_LENGTH:
            continue
        found.append({"mark": name, "layout": layout, "pairs": len(numbers), "coverage": coverage, "share": share})
    # What names a character says more than what names a class of them.
    telling_most = sorted(
        found, key=lambda row: (not row["layout"], _ALNUM in row["mark"], -row["coverage"], row["mark"])
    )
    return telling_most[:_SHOWN]


def _features(text: str) -> Iterator[tuple[bool, str]]:
    """(of the layout?, what it is) of everything simple that a text has and another may not have."""
    text = text if len(text) <= _CHARACTERS else text[: _CHARACTERS // 2] + text[-_CHARACTERS // 2 :]
    bare = text.strip()
    if text != text.lstrip():
        yield True, "begins with white space"
    if text != text.rstrip():
        yield True, "ends with white space"
    if bare:
        yield True, f"begins with {_name(bare[0])}" if not bare[0].isalnum() else f"begins with {_ALNUM}"
        yield True, f"ends with {_name(bare[-1])}" if not bare[-1].isalnum() else f"ends with {_ALNUM}"
    for character in set(text):
        if not character.isalnum() and character != " ":
            yield True, f"has {_name(character)}"
    for word in {word.lower() for word in _WORD.findall(text)}:
        yield False, f"has the word “{word}”"


def _name(character: str) -> str:
    if character in _NAMES:
        return _NAMES[character]
    return f"“{character}”" if character.isprintable() else f"U+{ord(character):04X}"
