"""Two answers and which of them is better: a row of such becomes a ranking of two.

The names of the answers end, or begin, in the two sides; the verdict says one of them in so many words. What could mean
either answer is refused: a number where the answers are not numbered, and a name that says which one is worse.
"""

import json
import re
from functools import lru_cache
from typing import Any, NamedTuple

from plaudit.data.formats.cells import messages_in, refuse_missing
from plaudit.data.formats.key_words import ANSWERS, GRADES, SIDES, VERDICTS, WORSE, words_of
from plaudit.data.formats.message_keys import content_of
from plaudit.data.formats.rows import shown
from plaudit.errors import UserError

_TIES = {"tie", "tied", "draw", "equal", "equally", "same", "both", "bothbad", "neither"}
_BESIDE = ANSWERS | {
    *("model", "assistant", "text", "is", "are", "the", "and", "better", "best", "wins", "won", "winner", "preferred"),
    *("much", "slightly", "clearly", "significantly", "good", "bad", "side"),
    *("antwort", "réponse", "reponse", "respuesta", "resposta", "risposta", "antwoord", "svar", "odpowiedź", "ответ"),
}
"""What a verdict may say beside its side."""
_ORDERED = re.compile(r"\[*([^<>=]+)(>+|=)([^<>=\]]+)\]*")
"""A > B, A = B, [[B>>A]]."""
_NUMBERED = (("0", "1"), ("1", "2"))


class Duel(NamedTuple):
    """The keys of two answers, of what says which is better, and of their writers; the words that tell the answers
    apart, and the columns that might be the verdict where there is no one of them."""

    first: str
    second: str
    verdict: tuple[str, ...]
    writers: tuple[str, ...]
    sides: tuple[str, str]
    unsure: tuple[str, ...]


@lru_cache(maxsize=256)
def duel_of(keys: tuple[str, ...]) -> Duel | None:
    """The two answers of a row with these keys; None where there are none, or more than two."""
    words = {key: words_of(key) for key in keys}
    found = [
        (one, other)
        for pair in SIDES
        for one in keys
        if pair[0] in words[one] and set(words[one]) & ANSWERS and not set(words[one]) & (VERDICTS | WORSE | GRADES)
        for other in keys
        if words[other] == [pair[1] if word == pair[0] else word for word in words[one]]
    ]
    # is_response_0_safe tells of response_0.
    least = min((len(words[one]) for one, _ in found), default=0)
    found = [both for both in found if len(words[both[0]]) == least]
    if len(found) != 1:
        return None
    first, second = (words[key] for key in found[0])
    at = next(at for at, word in enumerate(first) if word != second[at])
    if sum(len(words[key]) == len(first) and _without(words[key], at) == _without(first, at) for key in keys) > 2:
        return None  # there is a third
    # {winner_model_a, winner_model_b, winner_tie} is one verdict in three columns.
    hot = tuple(key for key in keys if words[key][:1] == ["winner"] and len(words[key]) > 1)
    said = [
        key
        for key in keys
        if set(words[key]) & VERDICTS and not set(words[key]) & WORSE and key not in (*found[0], *hot)
    ]
    plain = [key for key in said if len(words[key]) == 1] or said
    verdict = tuple(plain) if len(plain) == 1 else hot if len(hot) == 3 else ()
    writers = tuple(key for key in keys if words[key] in (["model", "a"], ["model", "b"]))
    return Duel(*found[0], verdict, writers if len(writers) == 2 else (), (first[at], second[at]), tuple(said))


def _without(words: list[str], at: int) -> list[str]:
    return words[:at] + words[at + 1 :]


def compared(place: str, row: dict[str, Any]) -> dict[str, Any]:
    """The row as one of format rankings."""
    duel = duel_of(tuple(row))
    if duel is None:
        raise UserError(f"{place}: there are not two answers, as in answer_a and answer_b, among {shown(list(row))}")
    if not duel.verdict:
        several = f" ({', '.join(map(shown, duel.unsure))} may)" if len(duel.unsure) > 1 else ""
        worse = next((key for key in row if set(words_of(key)) & WORSE), None)
        several = f" ({shown(worse)} names the worse one)" if worse and not several else several
        raise UserError(
            f"{place}: no one column says which of {duel.first!r} and {duel.second!r} is better{several}; say which "
            "does with columns winner=THEIRS, or add a column 'winner' that holds a, b or tie"
        )
    won = _won(place, row, duel)
    asked, texts = _apart(place, row, duel)
    refuse_blank_winner(place, {None: None, 0: duel.first, 1: duel.second}[won], texts, won)
    replies = [
        {"text": text, "rank": rank}
        for text, rank in zip(texts, {0: (1, 2), 1: (2, 1), None: (1, 1)}[won], strict=True)
    ]
    for reply, writer in zip(replies, duel.writers, strict=False):
        reply["source"] = row[writer]
    used = {duel.first, duel.second, *duel.verdict, *duel.writers}
    return {**{key: row[key] for key in row if key not in used}, "prompt": asked, "responses": replies}


def refuse_blank_winner(place: str, name: str | None, texts: list[Any], won: int | None) -> None:
    """UserError where an answer that nobody wrote was preferred to one that somebody did."""
    blank = [isinstance(text, str) and not text.strip() for text in texts]
    if won is not None and blank[won] and not blank[1 - won]:
        raise UserError(
            f"{place}: field {name!r} has no reply, which cannot be the better one; write it or delete the row"
        )


# --- what was asked, and the two answers ---


def _apart(place: str, row: dict[str, Any], duel: Duel) -> tuple[Any, list[Any]]:
    """(the prompt, both answers); two conversations are taken apart into what they share and their last replies."""
    names, asked = (duel.first, duel.second), row.get("prompt")
    for name in names:
        refuse_missing(place, name, row[name])
    said = [messages_in(place, name, row[name]) for name in names]
    questions, *answers = (_list_in(value) for value in (asked, *said))
    if questions and answers != [None, None]:
        said = [_interleaved(place, name, questions, one or []) for name, one in zip(names, answers, strict=True)]
        asked = None
    if not all(isinstance(one, list) and one for one in said):
        return asked, said
    talks = [[_message(place, turn) for turn in one] for one in said]
    for name, talk in zip(names, talks, strict=True):
        if talk[-1]["role"] != "assistant":
            raise UserError(f"{place}: field {name!r} must end with an assistant message, found {shown(talk[-1])}")
    before = talks[0][:-1]
    if before != talks[1][:-1]:
        raise UserError(
            f"{place}: fields {duel.first!r} and {duel.second!r} continue different prompts; they may differ in their "
            "last assistant message only: take the row out"
        )
    if asked and not isinstance(asked, (str, list)):
        return asked, said  # which is no prompt, as whoever reads it says
    if isinstance(asked, str):
        asked = [{"role": "user", "content": asked}] if asked.strip() else []
    given = [_message(place, turn) for turn in asked or []]
    if before and given and before[-len(given) :] != given:
        raise UserError(f"{place}: fields {duel.first!r} and {duel.second!r} do not continue the field 'prompt'")
    return before or given, [talk[-1]["content"] for talk in talks]


def _list_in(value: Any) -> list[str | None] | None:
    """The texts of a JSON list that stands in a text, one a turn; None for one that was never written."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return None
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) and all(isinstance(one, str | None) for one in found) else None


def _interleaved(
    place: str, name: str, questions: list[str | None], answers: list[str | None]
) -> list[dict[str, str | None]]:
    if None in (*questions, *answers):
        raise UserError(f"{place}: a turn of 'prompt' or {name!r} is null, which is no text; delete the row")
    if len(questions) != len(answers):
        raise UserError(f"{place}: field {name!r} has {len(answers)} turns where 'prompt' has {len(questions)}")
    turns = zip(questions, answers, strict=True)
    return [
        {"role": role, "content": text}
        for both in turns
        for role, text in zip(("user", "assistant"), both, strict=True)
    ]


def _message(place: str, turn: Any) -> dict[str, Any]:
    """A turn as role and content, also of ShareGPT's keys."""
    if not isinstance(turn, dict):
        raise UserError(f"{place}: a message must be an object with 'role' and 'content', found {shown(turn)}")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    named = {"human": "user", "gpt": "assistant"}.get(str(role), role)
    read = content_of(place, {"role": named, "content": content})
    return {"role": read["role"], "content": read["content"]}


# --- the verdict ---


def _won(place: str, row: dict[str, Any], duel: Duel) -> int | None:
    """0 or 1, whichever answer is better; None is a tie."""
    if len(duel.verdict) == 3:
        given = [key for key in duel.verdict if str(row[key]) in ("1", "1.0", "True", "true")]
        if len(given) != 1:
            raise UserError(f"{place}: exactly one of {', '.join(duel.verdict)} must be 1")
        return _side(place, duel, given[0].removeprefix("winner"))
    value = row[duel.verdict[0]]
    sides = ((duel.first, *duel.writers[:1]), (duel.second, *duel.writers[1:]))
    named = [at for at, keys in enumerate(sides) if any(value == row[key] for key in keys)]
    if len(named) != 1:
        return _side(place, duel, value)
    try:
        said = _side(place, duel, value)
    except UserError:
        return named[0]
    if said not in (None, named[0]):
        raise UserError(
            f"{place}: field {duel.verdict[0]!r} {shown(value)} names one answer and says the other one; write a or b"
        )
    return named[0]


def _side(place: str, duel: Duel, value: Any) -> int | None:
    key = duel.verdict[0]
    if (number := _number(value)) is not None:
        return _numbered(place, duel, value, number)
    if order := _ORDERED.fullmatch(str(value).strip()):
        said = tuple((words_of(order[at]) or [""])[-1] for at in (1, 3))
        if said in (duel.sides, duel.sides[::-1]):
            return None if order[2] == "=" else duel.sides.index(said[0])
    words = set(words_of(str(value)))
    able = [pair for pair in SIDES if pair not in _NUMBERED or pair == duel.sides]
    firsts, seconds = ({pair[at] for pair in able} & words for at in (0, 1))
    tied = bool(words & _TIES) and bool(firsts) == bool(seconds)
    plain = not words - _TIES - _BESIDE - firsts - seconds and not isinstance(value, bool)
    if not plain or (not tied and (bool(firsts) == bool(seconds) or words & _TIES)):
        raise UserError(
            f"{place}: field {key!r} must say which answer is better: {_able(duel)}, or tie; found {shown(value)}"
        )
    return None if tied else 0 if firsts else 1


def _able(duel: Duel) -> str:
    numbers = f"{' or '.join(duel.sides)}, " if duel.sides in _NUMBERED else ""
    return f"{numbers}a or b, left or right, first or second"


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _numbered(place: str, duel: Duel, value: Any, number: float) -> int:
    """A number is a side where the answers are numbered, and where it can be no strength of a preference."""
    key, found = duel.verdict[0], f"{number:g}"
    if "preference" in words_of(key) and duel.sides in _NUMBERED:
        raise UserError(
            f"{place}: field {key!r} is the number {shown(value)}: an answer's, or how much one is better? Say so with "
            f"columns winner={key}, or response_1={duel.first},response_2={duel.second},preference_strength={key} "
            "(below 0 the first is better)"
        )
    if duel.sides not in _NUMBERED:
        raise UserError(
            f"{place}: field {key!r} must say which answer is better: {_able(duel)}, or tie; found the number "
            f"{shown(value)}: is it counted from 0 or from 1? Say so with columns answer_0={duel.first},"
            f"answer_1={duel.second}, or answer_1={duel.first},answer_2={duel.second}"
        )
    if found not in duel.sides:
        raise UserError(
            f"{place}: field {key!r} must say which answer is better: {_able(duel)}, or tie; found {shown(value)}"
        )
    return duel.sides.index(found)
