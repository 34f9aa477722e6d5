"""Rows as other people's files have them, made into rows of the formats; what was taken for what is said.

A row that names its answers and says who won becomes a ranking of two; a question beside two replies is their prompt,
so that none is invented; a key that would be lost although it looks like an answer or a judgement is found here.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from plaudit.data.formats.rows import shown
from plaudit.data.formats.thumbs import thumbed
from plaudit.errors import UserError

_ANSWERS = {
    *("answer", "answers", "response", "responses", "reply", "replies", "completion", "completions", "output"),
    *("outputs", "candidate", "candidates", "generation", "generations", "summary", "summaries", "conversation"),
    *("chosen", "rejected", "option", "options"),
}
_VERDICTS = {
    *("winner", "win", "preferred", "preference", "better", "best", "worse", "worst", "choice", "chosen", "label"),
    *("labels", "verdict", "vote", "votes", "selected", "judgement", "judgment", "thumbs", "rank", "ranking"),
}
_GRADES = {"rating", "ratings", "score", "scores", "reward", "feedback", "grade"}
_SIDES = (("a", "b"), ("1", "2"), ("left", "right"), ("first", "second"))
_TIES = {"tie", "tied", "draw", "equal", "same", "both", "bothbad", "neither"}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_ANY_WORD = re.compile(r"[^\W\d_]+|\d+")
# What the Alpaca files and spreadsheets write for nothing.
_NOTHING = {"<noinput>", "<no input>", "noinput", "no input", "nan"}
_NO_REPLY = {"<nooutput>", "<no output>", "nan"}
_ASKED = ("question", "query", "input")
_MAY_ASK = {"question", "query", "input", "instruction", "context", "post", "title", "task", "user", "human", "request"}
_OPTIONAL = {"id", "kind", "split", "system", "input", "history", "annotator", "strength", "label"}
Say = Callable[[str], None]


def _words(key: str) -> list[str]:
    return [word.lower() for word in (_WORD if key.isascii() else _ANY_WORD).findall(key)]


def seems_judged(key: str) -> bool:
    """Whether a key looks like that of an answer or of a judgement."""
    return bool(set(_words(key)) & (_ANSWERS | _VERDICTS | _GRADES))


def seem_answers(key: str, row: dict[str, Any]) -> tuple[str, str] | None:
    """This key and another one, in any language, where only a side tells them apart ('Antwort A', 'Antwort B') and both
    hold sentences; None where there is none."""
    for pair in _SIDES:
        for here, there in (pair, pair[::-1]):
            wanted = [there if word == here else word for word in _words(key)]
            for other in row if wanted != _words(key) else ():
                both = (key, other) if here == pair[0] else (other, key)
                texts = (row[name] for name in both)
                if _words(other) == wanted and all(isinstance(t, str) and len(t.split()) > 1 for t in texts):
                    return both
    return None


# --- two answers and a winner ---


class Duel(NamedTuple):
    """The keys of two answers, of what says which is better, and of their writers."""

    first: str
    second: str
    verdict: tuple[str, ...]
    writers: tuple[str, ...]


@lru_cache(maxsize=256)
def duel_of(keys: tuple[str, ...]) -> Duel | None:
    """The two answers of a row with these keys; None where there are none, or more than two."""
    words = {key: _words(key) for key in keys}
    found = [
        (one, other)
        for pair in _SIDES
        for one in keys
        if pair[0] in words[one] and set(words[one]) & _ANSWERS and not set(words[one]) & (_VERDICTS | _GRADES)
        for other in keys
        if words[other] == [pair[1] if word == pair[0] else word for word in words[one]]
    ]
    if len(found) != 1:
        return None
    first, second = (words[key] for key in found[0])
    at = next(at for at, word in enumerate(first) if word != second[at])
    if sum(len(words[key]) == len(first) and _without(words[key], at) == _without(first, at) for key in keys) > 2:
        return None  # there is a third
    # {winner_model_a, winner_model_b, winner_tie} is one verdict in three columns.
    hot = tuple(key for key in keys if words[key][:1] == ["winner"] and len(words[key]) > 1)
    said = [key for key in keys if set(words[key]) & _VERDICTS and key not in (*found[0], *hot)]
    plain = [key for key in said if len(words[key]) == 1] or said
    verdict = tuple(plain) if len(plain) == 1 else hot if len(hot) == 3 else ()
    writers = tuple(key for key in keys if words[key] in (["model", "a"], ["model", "b"]))
    return Duel(*found[0], verdict, writers if len(writers) == 2 else ())


def _without(words: list[str], at: int) -> list[str]:
    return words[:at] + words[at + 1 :]


def compared(place: str, row: dict[str, Any]) -> dict[str, Any]:
    """The row as one of format rankings."""
    duel = duel_of(tuple(row))
    if duel is None:
        raise UserError(f"{place}: there are not two answers, as in answer_a and answer_b, among {shown(list(row))}")
    if not duel.verdict:
        raise UserError(
            f"{place}: no one column says which of {duel.first!r} and {duel.second!r} is better; add a column 'winner' "
            "that holds a, b or tie"
        )
    won = _won(place, row, duel)
    texts, asked = [row[duel.first], row[duel.second]], row.get("prompt")
    if all(isinstance(text, list) and text and isinstance(text[-1], dict) for text in texts):
        if texts[0][:-1] != texts[1][:-1]:
            raise UserError(f"{place}: fields {duel.first!r} and {duel.second!r} continue different prompts")
        asked = asked or texts[0][:-1]
        texts = [text[-1].get("content") for text in texts]
    replies = [
        {"text": text, "rank": rank}
        for text, rank in zip(texts, {0: (1, 2), 1: (2, 1), None: (1, 1)}[won], strict=True)
    ]
    for reply, writer in zip(replies, duel.writers, strict=False):
        reply["source"] = row[writer]
    used = {duel.first, duel.second, *duel.verdict, *duel.writers}
    return {**{key: row[key] for key in row if key not in used}, "prompt": asked, "responses": replies}


def _won(place: str, row: dict[str, Any], duel: Duel) -> int | None:
    """0 or 1, whichever answer is better; None is a tie."""
    if len(duel.verdict) == 3:
        given = [key for key in duel.verdict if str(row[key]) in ("1", "1.0", "True", "true")]
        if len(given) != 1:
            raise UserError(f"{place}: exactly one of {', '.join(duel.verdict)} must be 1")
        value: Any = given[0].removeprefix("winner")
    else:
        value = row[duel.verdict[0]]
    for at, keys in enumerate(((duel.first, *duel.writers[:1]), (duel.second, *duel.writers[1:]))):
        other = (duel.second, *duel.writers[1:]) if at == 0 else (duel.first, *duel.writers[:1])
        if any(value == row[key] for key in keys) and not any(value == row[key] for key in other):
            return at
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    words = set(_words(text))
    firsts, seconds = ({pair[at] for pair in _SIDES} & words for at in (0, 1))
    if words & _TIES:
        return None
    if bool(firsts) == bool(seconds) or isinstance(value, bool):
        raise UserError(
            f"{place}: field {duel.verdict[0]!r} must say which answer is better: a or b, 1 or 2, left or right, first "
            f"or second, or tie; found {shown(value)}"
        )
    return 0 if firsts else 1


# --- any row ---


def fits(row: dict[str, Any]) -> list[str]:
    """The formats that a row's keys fit; a row of none or of several is not understood."""
    own = {"messages": "messages", "conversations": "sharegpt", "instruction": "alpaca"}
    names = [name for key, name in own.items() if key in row]
    duel = duel_of(tuple(row)) if "rejected" not in row and "preference_strength" not in row else None
    if duel is not None and duel.verdict:
        return [*names, "winner"]
    if "completion" in row:
        names.append("unpaired" if "label" in row else "prompt-completion")
    if "chosen" in row or "rejected" in row:
        names.append("hh" if _is_hh(row) else "pairs")
    if "responses" in row:
        items = row["responses"] if isinstance(row["responses"], list) else []
        keys = {key for item in items if isinstance(item, dict) for key in ("votes", "rank") if key in item}
        names.append("votes" if keys == {"votes"} else "rankings")
    if "preference_strength" in row or {"response_1", "response_2"} <= row.keys():
        names.append("strength")
    return names or (["winner"] if duel else ["prompts"] * ("prompt" in row))


def _is_hh(row: dict[str, Any]) -> bool:
    texts = [row.get("chosen"), row.get("rejected")]
    return "prompt" not in row and all(isinstance(t, str) and t.lstrip().startswith("Human:") for t in texts)


def shaped(place: str, row: dict[str, Any], say: Say) -> dict[str, Any]:
    """The row with the keys of a format, where it has them under other names or in another form."""
    row = thumbed(place, row, say)
    row = {key: value for key, value in row.items() if value is not None or key not in _OPTIONAL}
    if None in row.values() and fits(bare := {k: v for k, v in row.items() if v is not None}) not in ([], ["prompts"]):
        row = bare
    for name in ("id", "annotator"):  # people are numbered as rows are
        if isinstance(row.get(name), (int, float)) and not isinstance(row[name], bool):
            row[name] = str(row[name])
    if "items" in row and "conversations" not in row and isinstance(row["items"], list):
        row["conversations"] = row.pop("items")
        say("'items' read as 'conversations'")
    if isinstance(row.get("conversations"), list):
        row["conversations"] = [_turn(turn) for turn in row["conversations"]]
    if _is_ranked(row.get("answers")) and "responses" not in row:
        row["responses"] = [_ranked(answer) for answer in row.pop("answers")]
        say("'answers' read as 'responses'")
    if "messages" in row and row["messages"] == row.get("chosen"):
        del row["messages"]
        say("'messages' is 'chosen' again")
    _take_placeholders(place, row, say)
    return _with_prompt(place, row, say)


def _turn(turn: Any) -> Any:
    """A turn of ShareGPT, also with the keys of OpenAI or the name that ShareGPT's own exports have for the model."""
    if not isinstance(turn, dict):
        return turn
    if "from" not in turn and "role" in turn:
        turn = {**turn, "from": turn["role"], "value": turn.get("content")}
        del turn["role"]
        turn.pop("content", None)
    return {**turn, "from": "gpt"} if turn.get("from") == "chatgpt" else turn


def _is_ranked(answers: Any) -> bool:
    return isinstance(answers, list) and all(
        isinstance(one, dict) and {"answer", "rank"} <= one.keys() for one in answers
    )


def _ranked(answer: dict[str, Any]) -> dict[str, Any]:
    rank = answer["rank"]
    rank = int(rank) if isinstance(rank, float) and rank.is_integer() else rank
    source = {"source": answer["model"]} if answer.get("model") else {}
    return {"text": answer["answer"], "rank": rank, **source}


def _take_placeholders(place: str, row: dict[str, Any], say: Say) -> None:
    given, made = row.get("input"), row.get("output")
    if "instruction" in row and isinstance(given, str) and given.strip().lower() in _NOTHING:
        row["input"] = ""
        say(f"'input' {shown(given)} read as none")
    if "instruction" in row and isinstance(made, str) and made.strip().lower() in _NO_REPLY:
        raise UserError(f"{place}: field 'output' {shown(made)} stands for no reply; write one or delete the row")


def _with_prompt(place: str, row: dict[str, Any], say: Say) -> dict[str, Any]:
    """The row's question as its prompt, where it has replies and no prompt of its own."""
    answered = {"chosen", "rejected", "completion", "responses"} & row.keys() or duel_of(tuple(row))
    if "prompt" in row or not answered or _is_hh(row) or "output" in row:
        return row
    if isinstance(row.get("conversations"), list) and {"chosen", "rejected"} <= row.keys():
        names = {"human": "user", "gpt": "assistant"}
        turns = [turn for turn in row.pop("conversations") if isinstance(turn, dict)]
        spoken = [
            {"role": names.get(str(turn.get("from")), turn.get("from")), "content": turn.get("value")} for turn in turns
        ]
        both = {
            key: row[key].get("value", row[key].get("content"))
            for key in ("chosen", "rejected")
            if isinstance(row[key], dict)
        }
        return {**row, **both, "prompt": spoken}
    if isinstance(row.get("instruction"), str):
        given = row.pop("input", "")
        asked = row.pop("instruction")
        row["prompt"] = f"{asked}\n\n{given}" if isinstance(given, str) and given.strip() else asked
        say("'instruction' (and 'input') read as 'prompt'")
    elif name := next((key for key in _ASKED if isinstance(row.get(key), str) and row[key].strip()), None):
        row["prompt"] = row.pop(name)
        say(f"{name!r} read as 'prompt'")
    elif isinstance(row.get("chosen"), str) and (near := [key for key in row if set(_words(key)) & _MAY_ASK]):
        raise UserError(
            f"{place}: no field 'prompt', but {near[0]!r} seems to be it: say so with columns prompt={near[0]}"
        )
    return row
