"""The task `rank`: replies are put in order, ties allowed. Its answer is {"ranks", "verdict", "strength", "reason",
"flags"}: ranks dense from 1, which is best, or null with a verdict. The task `compare` is that of two sources' replies
to one prompt: people say blindly which is better."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import combinations
from typing import Any

from plaudit.data.formats.parsers import PARSERS
from plaudit.errors import UserError
from plaudit.label.db.ledger import ItemRow, Label
from plaudit.label.kinds.shared import BadAnswer, Body, Format, Kind, Reply, quoted, reason_of
from plaudit.records import Completion, Preference, Ranking, preferences_of

VERDICTS = ("all_bad", "cannot_judge")
STRENGTHS = (1, 2, 3)
Verdicts = Mapping[tuple[int, int], int]
"""(i, j) with i < j -> 1: reply i is better, −1: reply j is, 0: a tie."""


@lru_cache(maxsize=4096)  # there are few orders of few replies, and every measure asks for those of every label
def verdicts_of(ranks: tuple[int, ...]) -> Verdicts:
    """What ranks (1 is best) say of every pair of replies."""
    return {(i, j): (ranks[i] < ranks[j]) - (ranks[i] > ranks[j]) for i, j in combinations(range(len(ranks)), 2)}


def dense(ranks: Sequence[float]) -> tuple[int, ...]:
    """The same order as ranks without gaps: (2, 5, 2) -> (1, 2, 1)."""
    place = {value: number + 1 for number, value in enumerate(sorted(set(ranks)))}
    return tuple(place[value] for value in ranks)


# --- answers ---


def judgement(task: str, order: Sequence[int], flags: Sequence[str], sent: Body) -> Body:
    """The body of an answer to a task that judges replies."""
    if sent.get("text") is not None:
        raise BadAnswer("text", f"a text where the task is {task}", "send null")
    verdict = sent.get("verdict")
    if verdict is not None and verdict not in VERDICTS:
        raise BadAnswer("verdict", f"unknown verdict {quoted(verdict)}", f"send null or one of {', '.join(VERDICTS)}")
    strength = sent.get("strength")
    if strength is not None and (isinstance(strength, bool) or strength not in STRENGTHS):
        raise BadAnswer("strength", f"unknown strength {quoted(strength)}", "send null, 1, 2 or 3")
    return {
        "ranks": _ranks(order, verdict, sent.get("ranks")),
        "verdict": verdict,
        "strength": strength,
        "reason": reason_of(sent),
        "flags": _flags(order, flags, sent.get("flags")),
    }


def _ranks(order: Sequence[int], verdict: str | None, sent: Any) -> list[int] | None:
    count = len(order)
    if sent is None:
        if verdict is None:
            raise BadAnswer("ranks", "there are no ranks", "rank every reply, or say all_bad or cannot_judge")
        return None
    if verdict == "cannot_judge":
        raise BadAnswer("ranks", "ranks of replies that cannot be judged", "send ranks null with cannot_judge")
    whole = isinstance(sent, list) and all(isinstance(rank, int) and not isinstance(rank, bool) for rank in sent)
    if not whole or len(sent) != count or not all(1 <= rank <= count for rank in sent):
        raise BadAnswer("ranks", f"not {count} ranks from 1 to {count}: {quoted(sent)}", "send one rank a reply")
    return _in_items_order(order, dense(sent))


def _flags(order: Sequence[int], known: Sequence[str], sent: Any) -> list[list[str]]:
    if sent is None:
        return [[] for _ in order]
    if not isinstance(sent, list) or len(sent) != len(order) or not all(isinstance(own, list) for own in sent):
        raise BadAnswer("flags", f"not {len(order)} lists of flags: {quoted(sent)}", "send one list a reply")
    for flag in (flag for own in sent for flag in own):
        if flag not in known:
            raise BadAnswer("flags", f"unknown flag {quoted(flag)}", f"the flags are {', '.join(known) or 'none'}")
    return _in_items_order(order, [[flag for flag in known if flag in own] for own in sent])


def _in_items_order(order: Sequence[int], sent: Sequence[Any]) -> list[Any]:
    """kept[order[p]] = sent[p]."""
    kept = dict(zip(order, sent, strict=True))
    return [kept[reply] for reply in range(len(order))]


def sent_of(order: Sequence[int], body: Body) -> Body:
    """The inverse of `judgement`."""
    ranks = None if body["ranks"] is None else [body["ranks"][reply] for reply in order]
    return {**body, "ranks": ranks, "flags": [body["flags"][reply] for reply in order]}


def shown_replies(order: Sequence[int], replies: list[Reply]) -> tuple[list[Reply], str | None]:
    """The replies in the order that was drawn."""
    return [replies[reply] for reply in order], None


# --- export ---


def ranking_of(item: ItemRow, ranks: Sequence[int]) -> Ranking:
    """The item's replies with these ranks, as a record."""
    replies = tuple(Completion(reply.text, reply.ended) for reply in item.replies)
    sources = tuple(reply.source for reply in item.replies if reply.source is not None)
    return Ranking(item.prompt, replies, tuple(ranks), sources=sources if len(sources) == len(replies) else None)


def labelled_ranking(item: ItemRow, label: Label, annotator: str | None) -> Ranking:
    """A label as a record. A strength is kept where there are two replies, as the format has it."""
    assert label.ranks is not None
    strength = float(label.strength) if label.strength is not None and len(item.replies) == 2 else None
    return replace(ranking_of(item, label.ranks), strength=strength, annotator=annotator)


def rows_of(rankings: Sequence[Ranking], format: Format, left_out: Counter[str]) -> list[dict[str, Any]]:
    """The rows of a format; what it cannot hold is counted in `left_out`."""
    if format in ("rankings", "comparisons"):
        return [ranking.as_json() for ranking in rankings]
    pairs = [_pair_row(ranking, pair) for ranking in rankings for pair in preferences_of(ranking)]
    ties = sum(len(ranking.replies) * (len(ranking.replies) - 1) // 2 for ranking in rankings) - len(pairs)
    if ties:
        left_out["pairs that tie"] = ties
    # Neither form says which of two equal texts was cut, and HH keeps no blanks: such a text would beat itself.
    said = [[row[side][0]["content"] for side in ("chosen", "rejected")] for row in pairs]
    alike = [a == b or (format == "hh" and a.strip() == b.strip()) for a, b in said]
    if any(alike):
        left_out["pairs that say the same"] = sum(alike)
    pairs = [row for row, same in zip(pairs, alike, strict=True) if not same]
    return pairs if format == "pairs" else list(_as_hh(pairs, left_out))


def _pair_row(ranking: Ranking, pair: Preference) -> dict[str, Any]:
    known = {name: value for name in ("strength", "annotator") if (value := getattr(ranking, name)) is not None}
    head = {name: value for name, value in ranking.prompt.as_json().items() if name != "prompt"}
    return {**head, **pair.as_json(), **known}


def _as_hh(rows: Sequence[dict[str, Any]], left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    """Texts of turns. What the form cannot hold is left out and counted: a system message, or text that itself looks
    like a turn."""
    names = {"user": "Human", "assistant": "Assistant"}
    for row in rows:
        if any(message["role"] not in names for message in row["prompt"]):
            left_out["a system message, which HH cannot hold"] += 1
            continue
        made = {name: value for name, value in row.items() if name not in ("prompt", "chosen", "rejected")}
        for side in ("chosen", "rejected"):
            turns = [*row["prompt"], *row[side]]
            made[side] = "".join(f"\n\n{names[turn['role']]}: {turn['content'].strip()}" for turn in turns)
        if _reads_back(made, row):
            yield made
        else:
            left_out["text that HH cannot hold (marks of turns, an empty better reply)"] += 1


def _reads_back(made: dict[str, Any], row: dict[str, Any]) -> bool:
    try:
        ranking = PARSERS["hh"]("export", 1, made)
    except UserError:
        return False
    assert isinstance(ranking, Ranking)
    asked = [(turn["role"], turn["content"].strip()) for turn in row["prompt"]]
    said = [row[side][0]["content"].strip() for side in ("chosen", "rejected")]
    turns = [(message.role, message.content) for message in ranking.prompt.messages]
    return turns == asked and [reply.text for reply in ranking.replies] == said


RANK = Kind("rank", partial(judgement, "rank"), sent_of, shown_replies, ("rankings", "pairs", "hh"))
# Labels of comparisons are exported apart, since they compare and do not train.
COMPARE = Kind("compare", partial(judgement, "compare"), sent_of, shown_replies, ("comparisons",))
