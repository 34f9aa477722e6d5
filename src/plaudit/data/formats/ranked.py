"""Several answers in columns of their own, with their ranks beside them, as people rank in a spreadsheet.

`answer_a`, `answer_b`, `answer_c` with `rank_a`, `rank_b`, `rank_c`, or with one column `ranking` that says A > B = C:
such a row becomes one of format rankings. The names are those of formats/duels.py, the side is any letter or number.
Two answers and a verdict, A > B among them, are that file's business.
"""

import re
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from plaudit.data.formats.cells import refuse_missing
from plaudit.data.formats.duels import duel_of
from plaudit.data.formats.key_words import ANSWERS, GRADES, VERDICTS, WORSE, words_of
from plaudit.data.formats.rows import shown
from plaudit.errors import UserError

_RANKS = {"rank", "ranks"}
_SIDE = re.compile(r"[a-p]|\d{1,2}")
Sides = dict[str, str]
"""Side -> key."""


def ranked_columns(place: str, row: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """The row as one of format rankings; as it is where it has no ranks beside two answers or more."""
    if (found := _columns(tuple(row))) is None:
        return row
    texts, beside, writers, orders = found
    said = {str(row[key]) for key in texts.values()}
    orders = [key for key in orders if _says_order(row[key]) and row[key] not in said] if len(texts) > 2 else []
    duel = duel_of(tuple(row))
    if len(beside) + len(orders) != 1 or (beside and duel is not None and duel.verdict):
        return row  # a verdict beside ranks is the answer
    given = {side: row[key] for side, key in beside[0].items()} if beside else _order(place, orders[0], row, texts)
    if writers.keys() != texts.keys() or any(_is_blank(row[key]) for key in writers.values()):
        writers = {}
    responses = []
    for side, key in texts.items():
        text, rank = row[key], given[side]
        if _is_blank(text) and _is_blank(rank):
            continue  # fewer answers than columns
        refuse_missing(place, key, text)
        number = re.fullmatch(r"([1-9]\d*)(?:\.0+)?", str(rank).strip())
        if _is_blank(text) or not number:
            raise UserError(
                f"{place}: the answer in {key!r} needs a text and a rank, a whole number from 1 up, found "
                f"{shown(text)} and {shown(rank)}"
            )
        source = {"source": row[writers[side]]} if writers else {}
        responses.append({"text": text, "rank": int(number[1]), **source})
    say("answers and their ranks read as 'responses'")
    used = {*texts.values(), *(beside[0].values() if beside else orders), *writers.values()}
    return {**{key: value for key, value in row.items() if key not in used}, "responses": responses}


_JUDGED = VERDICTS | WORSE | GRADES | _RANKS
_ORDERS = VERDICTS | {"order"}


@lru_cache(maxsize=256)
def _columns(keys: tuple[str, ...]) -> tuple[Sides, list[Sides], Sides, list[str]] | None:
    """The answers, the ranks beside them, their writers, and the keys that may say an order; None without answers."""
    groups = _by_side(keys)
    answers = [sides for base, sides in groups.items() if set(base) & ANSWERS and not set(base) & _JUDGED]
    if len(answers) != 1 or len(answers[0]) < 2:
        return None
    (texts,) = answers
    beside = [sides for base, sides in groups.items() if set(base) & _RANKS and sides.keys() == texts.keys()]
    orders = [key for key in keys if words_of(key) and not set(words_of(key)) - _ORDERS]
    return texts, beside, groups.get(("model",), {}), orders


def _by_side(keys: tuple[str, ...]) -> dict[tuple[str, ...], Sides]:
    """The keys that differ in a letter or number alone, by their other words."""
    groups: dict[tuple[str, ...], Sides] = defaultdict(dict)
    for key in keys:
        words = words_of(key)
        sides = [word for word in words if _SIDE.fullmatch(word)]
        if len(sides) == 1 and len(words) > 1:
            groups[tuple(word for word in words if word != sides[0])][sides[0]] = key
    return groups


def _is_blank(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _says_order(value: Any) -> bool:
    return isinstance(value, str) and (">" in value or "=" in value) and "<" not in value


def _order(place: str, key: str, row: dict[str, Any], texts: Sides) -> dict[str, int | None]:
    """Side -> rank, of `A > B = C`: 1, 2, 2."""
    groups = [part.split("=") for part in re.split(">+", row[key].strip("[] "))]
    said = [[(words_of(name) or [""])[-1] for name in group] for group in groups]
    found: dict[str, int | None] = {side: at for at, group in enumerate(said, start=1) for side in group}
    written = {side for side, name in texts.items() if not _is_blank(row[name])}
    if found.keys() != written or sum(map(len, said)) != len(written):
        raise UserError(
            f"{place}: field {key!r} must name each answer once, as in {' > '.join(sorted(written))} (or = for a tie), "
            f"found {shown(row[key])}"
        )
    return dict.fromkeys(texts) | found
