"""Rows as other people's files have them, made into rows of the formats; what was taken for what is said.

A question beside two replies is their prompt, so that none is invented; names that other people's files have for ours
become ours.
"""

from collections.abc import Callable
from typing import Any

from plaudit.data.formats.cells import is_message, is_printed_list, read_cells
from plaudit.data.formats.duels import duel_of
from plaudit.data.formats.key_words import words_of
from plaudit.data.formats.rows import shown
from plaudit.data.formats.thumbs import thumbed
from plaudit.errors import UserError

# What the Alpaca files and spreadsheets write for nothing.
_NOTHING = {"<noinput>", "<no input>", "noinput", "no input", "nan"}
_NO_REPLY = {"<nooutput>", "<no output>"}
_ASKED = ("question", "query", "input")
_MAY_ASK = {"question", "query", "input", "instruction", "context", "post", "title", "task", "user", "human", "request"}
_FEW_WORDS = 3
_OPTIONAL = {"id", "kind", "split", "system", "input", "history", "annotator", "strength", "label"}
_SYSTEM = ("system_prompt", "system_message", "system_instruction")
# What the true and false of spreadsheets are called in other languages is what such a program writes into a CSV.
LIKED = {
    *("true", "1", "1.0", "yes", "👍"),
    *("wahr", "vrai", "vero", "verdadero", "verdadeiro", "waar", "prawda", "истина"),
    *("sant", "sand", "sann", "tosi", "pravda", "igaz", "doğru", "cert"),
}
NOT_LIKED = {
    *("false", "0", "0.0", "no", "👎"),
    *("falsch", "faux", "falso", "onwaar", "fałsz", "ложь"),
    *("falskt", "falsk", "usann", "epätosi", "nepravda", "hamis", "yanliş", "yanlış", "fals"),
}
Say = Callable[[str], None]


def fits(row: dict[str, Any]) -> list[str]:
    """The formats that a row's keys fit; a row of none or of several is not understood."""
    own = {"messages": "messages", "conversations": "sharegpt", "instruction": "alpaca"}
    names = [name for key, name in own.items() if key in row]
    duel = duel_of(tuple(row)) if "rejected" not in row else None
    if duel is not None and "preference_strength" in row:
        return [*names, "strength", *(["winner"] if duel.verdict not in ((), ("preference_strength",)) else [])]
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


def shaped(place: str, row: dict[str, Any], say: Say, given: str | None = None) -> dict[str, Any]:
    """The row with the keys of a format, where it has them under other names or in another form; `given` is the format
    that the user named."""
    row = thumbed(place, row, say)
    row = {key: value for key, value in row.items() if not _is_absent(value) or key not in _OPTIONAL}
    if None in row.values() and fits(bare := {k: v for k, v in row.items() if v is not None}) not in ([], ["prompts"]):
        row = bare
    for name in ("id", "annotator"):  # people are numbered as rows are
        if isinstance(row.get(name), (int, float)) and not isinstance(row[name], bool):
            row[name] = str(row[name]).removesuffix(".0")
    row = read_cells(place, _renamed(row, say), say)
    if isinstance(row.get("conversations"), list):
        row["conversations"] = [_turn(turn) for turn in row["conversations"]]
    for key in ("prompt", "completion", "chosen", "rejected"):
        turns = [row[key]] if is_message(row.get(key)) else row.get(key)
        if isinstance(turns, list):
            row[key] = [_spoken(turn) for turn in turns]
    if given not in ("messages", "sharegpt"):
        _take_label(row, say)
    for again in ("messages", "response"):
        if again in row and _plain(row[again]) == _plain(row.get("chosen")):
            del row[again]
            say(f"{again!r} is 'chosen' again")
    _take_placeholders(place, row, say)
    if given is None:
        _check_replies(place, row)
    return _with_prompt(place, row, say)


def _check_replies(place: str, row: dict[str, Any]) -> None:
    """UserError for replies that begin with their whole prompt, text of both that was joined, and for lists of texts
    that became texts; a single reply may be one, as code answers."""
    asked = row.get("prompt")
    names = [key for key in ("chosen", "rejected", "completion") if isinstance(row.get(key), str)]
    listed = [key for key in ("prompt", *names) if is_printed_list(row.get(key))]
    if "prompt" in listed or listed == ["chosen", "rejected"]:
        raise UserError(
            f"{place}: field {listed[0]!r} holds a list of one text, written as text: {shown(row[listed[0]])}; take "
            "the text out of the list, or name the format to leave it there"
        )
    if not isinstance(asked, str) or len(asked.split()) < _FEW_WORDS or not names:
        return
    if all(row[key].lstrip().startswith(asked.strip()) and len(row[key].strip()) > len(asked.strip()) for key in names):
        fix = "delete the column 'prompt', which is then what both begin with" if "chosen" in names else "take it off"
        raise UserError(
            f"{place}: {' and '.join(map(repr, names))} begin with the whole prompt: {fix}, or name the format to "
            "leave it there"
        )


def _plain(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _is_absent(value: Any) -> bool:
    """Null, or what a column of numbers has for it."""
    return value is None or (isinstance(value, float) and value != value)


def _renamed(row: dict[str, Any], say: Say) -> dict[str, Any]:
    """The row with our names for a few that have only one meaning."""
    if "items" in row and "conversations" not in row and isinstance(row["items"], list):
        row["conversations"] = row.pop("items")
        say("'items' read as 'conversations'")
    if _is_ranked(row.get("answers")) and "responses" not in row:
        row["responses"] = [_ranked(answer) for answer in row.pop("answers")]
        say("'answers' read as 'responses'")
    if (name := next((key for key in _SYSTEM if isinstance(row.get(key), str)), None)) and "system" not in row:
        row["system"] = row.pop(name)
        say(f"{name!r} read as 'system'")
    if isinstance(row.get("kto_tag"), bool) and "label" not in row:
        row["label"] = row.pop("kto_tag")
        say("'kto_tag' read as 'label'")
    others = {"input", "output", "prompt", "completion", "chosen", "rejected", "responses"}
    if {"instruction", "response"} <= row.keys() and not others & row.keys():
        row["input"], row["output"] = row.pop("context", ""), row.pop("response")
        say("'response' read as 'output', and 'context' as 'input'")
    return row


def _take_label(row: dict[str, Any], say: Say) -> None:
    """A conversation that was judged as a whole is a completion with a label."""
    key = next((key for key in ("messages", "conversations") if isinstance(row.get(key), list)), None)
    if key is None or str(row.get("label")).strip().lower() not in LIKED | NOT_LIKED:
        return
    if row.keys() & {"prompt", "completion", "chosen", "rejected", "responses"} or len(row[key]) < 2:
        return
    turns = [_spoken(turn) for turn in row.pop(key)]
    row["prompt"], row["completion"] = turns[:-1], turns[-1:]
    say(f"the last of {key!r} read as 'completion'")


def _spoken(turn: Any) -> Any:
    """A turn of ShareGPT as a message."""
    if not isinstance(turn, dict) or "from" not in turn:
        return turn
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    role = {"human": "user", "gpt": "assistant"}.get(str(turn["from"]), turn["from"])
    return {**rest, "role": role, "content": turn.get("value")}


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
    asked_in = next((key for key in ("conversations", "messages") if isinstance(row.get(key), list)), None)
    if asked_in and {"chosen", "rejected"} <= row.keys():
        turns = [_spoken(turn) for turn in row[asked_in]]
        if isinstance(turns[-1], dict) and turns[-1].get("role") == "user":
            rest = {key: value for key, value in row.items() if key != asked_in}
            return {**rest, "prompt": turns}
    if isinstance(row.get("instruction"), str):
        given = row.pop("input", "")
        asked = row.pop("instruction")
        row["prompt"] = f"{asked}\n\n{given}" if isinstance(given, str) and given.strip() else asked
        say("'instruction' (and 'input') read as 'prompt'")
    elif name := next((key for key in _ASKED if isinstance(row.get(key), str) and row[key].strip()), None):
        row["prompt"] = row.pop(name)
        say(f"{name!r} read as 'prompt'")
    elif isinstance(row.get("chosen"), str) and (near := [key for key in row if set(words_of(key)) & _MAY_ASK]):
        raise UserError(
            f"{place}: no field 'prompt', but {near[0]!r} seems to be it: say so with columns prompt={near[0]}"
        )
    return row
