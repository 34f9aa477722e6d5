"""A row of each format as a record, field by field: what is missing or wrong is named with its place, value and fix.

Which format a file has is formats/reader.py's business.
"""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from plaudit.data.formats.cells import HH_TURN, MARKED
from plaudit.data.formats.duels import compared, refuse_blank_winner
from plaudit.data.formats.message_keys import content_of
from plaudit.data.formats.rows import SPLITS, shown
from plaudit.data.formats.shapes import LIKED, NOT_LIKED
from plaudit.errors import UserError
from plaudit.records import Completion, Demonstration, Labelled, Message, Prompt, Ranking, Record

T = TypeVar("T")
ROLES = ("system", "user", "assistant")
_SHAREGPT = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_ROLE_FIX = {
    "developer": "; write 'system' for a developer's message",
    **dict.fromkeys(
        ("tool", "function"), "; what tools said is not learned: write it into a message, or delete the row"
    ),
}
_NOT_TEXT = re.compile("[\ud800-\udfff]")


# --- fields ---


def text_of(place: str, row: dict[str, Any], field: str, default: str | None = None) -> str:
    """A string that is not blank and that UTF-8 can hold."""
    value = row.get(field, default)
    if not isinstance(value, str) or not value.strip():
        raise UserError(
            f"{place}: field {field!r} must be a non-empty string, found {shown(value)}; write one or delete the row"
        )
    return _clean(place, field, value)


def _clean(place: str, field: str, value: str) -> str:
    """A control character is text, which a model may have written; half a surrogate pair is not."""
    if not value.isascii() and _NOT_TEXT.search(value):
        raise UserError(f"{place}: field {field!r} holds half a surrogate pair, which is not text: {shown(value)}")
    return value


def conversation(place: str, field: str, value: Any, ends: str) -> tuple[Message, ...]:
    """Messages in order: an optional system message, user and assistant in turn, the last one from `ends`.

    A string is one user message.
    """
    if isinstance(value, str) and value.strip():
        value = [{"role": "user", "content": _clean(place, field, value)}]
    if not isinstance(value, list) or not value:
        name = "; say which column it is with columns prompt=THEIRS" if value is None and field == "prompt" else ""
        raise UserError(
            f"{place}: field {field!r} must be a non-empty string or a list of {{role, content}} messages, "
            f"found {shown(value)}{name}"
        )
    messages = []
    for item in value:
        if not isinstance(item, dict) or item.get("role") not in ROLES:
            raise UserError(
                f"{place}: field {field!r}: a message needs a role out of {', '.join(ROLES)}, found {shown(item)}"
                + (_ROLE_FIX.get(str(item.get("role")), "") if isinstance(item, dict) else "")
            )
        messages.append(Message(item["role"], text_of(place, content_of(place, item), "content")))
    return _in_turn(place, field, messages, ends)


def _in_turn(place: str, field: str, messages: list[Message], ends: str) -> tuple[Message, ...]:
    turns = [message.role for message in messages if message.role != "system"]
    expected = ["user" if i % 2 == 0 else "assistant" for i in range(len(turns))]
    roles = ", ".join(repr(message.role) for message in messages)
    roles = roles if len(roles) <= 160 else f"{roles[:160]}…"
    if turns[-1:] != [ends]:
        who = "a user" if ends == "user" else "an assistant"
        fix = "delete what stands after it" if ends in turns else "write one, or delete the row"
        fix += (
            f" (prompts alone are named: columns prompt={field})" if ends == "assistant" and turns == ["user"] else ""
        )
        raise UserError(f"{place}: field {field!r} must end with {who} message; found {roles}; {fix}")
    if any(message.role == "system" for message in messages[1:]) or turns != expected:
        raise UserError(
            f"{place}: field {field!r} must be an optional system message, then user and assistant in turn; found "
            f"{roles}; join or remove the turn that is out of order"
        )
    return tuple(messages)


def _prompt(place: str, number: int, row: dict[str, Any], messages: tuple[Message, ...]) -> Prompt:
    split = text_of(place, row, "split", "train")
    if split not in SPLITS:
        raise UserError(f"{place}: field 'split' must be one of {', '.join(SPLITS)}, found {shown(split)}")
    identity = text_of(place, row, "id", str(number))
    messages = tuple(_with_system(place, row, list(messages)))
    return Prompt(identity, messages, text_of(place, row, "kind", "instruction"), split)


def _asked(place: str, number: int, row: dict[str, Any]) -> Prompt:
    return _prompt(place, number, row, conversation(place, "prompt", row.get("prompt"), "user"))


def _with_system(place: str, row: dict[str, Any], messages: list[Message]) -> list[Message]:
    """The messages, opened by the row's own system message where it has one."""
    if row.get("system") in (None, ""):
        return messages
    system = Message("system", text_of(place, row, "system"))
    if messages and messages[0].role == "system":
        if messages[0] != system:
            raise UserError(f"{place}: field 'system' is not the system message that the conversation has; keep one")
        return messages
    return [system, *messages]


def _demonstration(place: str, number: int, row: dict[str, Any], messages: tuple[Message, ...]) -> Demonstration:
    """A conversation that ends with the reply."""
    return Demonstration(_prompt(place, number, row, messages[:-1]), messages[-1].content)


# --- the formats ---


def _prompt_completion(place: str, number: int, row: dict[str, Any]) -> Demonstration:
    completion, source, field = row.get("completion"), row, "completion"
    # TRL's conversational form: the completion is a list of one assistant message.
    if isinstance(completion, list) and len(completion) == 1 and isinstance(completion[0], dict):
        source, field = content_of(place, completion[0]), "content"
        if source.get("role") != "assistant":
            raise UserError(f"{place}: field 'completion' must be an assistant message, found {shown(completion)}")
    return Demonstration(_asked(place, number, row), text_of(place, source, field))


def _messages(place: str, number: int, row: dict[str, Any]) -> Demonstration:
    if isinstance(row.get("messages"), str):
        raise UserError(f"{place}: field 'messages' must be a list of messages, found {shown(row['messages'])}")
    return _demonstration(place, number, row, conversation(place, "messages", row.get("messages"), "assistant"))


def _alpaca(place: str, number: int, row: dict[str, Any]) -> Demonstration:
    asked, given = text_of(place, row, "instruction"), row.get("input", "")
    if not isinstance(given, str):
        raise UserError(f"{place}: field 'input' must be a string, empty for none, found {shown(given)}")
    if given.strip():
        asked = f"{asked}\n\n{_clean(place, 'input', given)}"
    return Demonstration(_prompt(place, number, row, (Message("user", asked),)), text_of(place, row, "output"))


def _sharegpt(place: str, number: int, row: dict[str, Any]) -> Demonstration:
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise UserError(f"{place}: field 'conversations' must be a list of {{from, value}} turns, found {shown(turns)}")
    messages = []
    for turn in turns:
        speaker = turn.get("from") if isinstance(turn, dict) else None
        if not isinstance(speaker, str) or speaker not in _SHAREGPT:
            raise UserError(
                f"{place}: field 'conversations': 'from' must be one of {', '.join(_SHAREGPT)}, found {shown(turn)}"
            )
        messages.append(Message(_SHAREGPT[speaker], text_of(place, turn, "value")))
    return _demonstration(place, number, row, _in_turn(place, "conversations", messages, "assistant"))


def _reply(place: str, field: str, value: Any) -> str:
    """The text of a reply; unlike a prompt it may be empty, which `plaudit data check` reports."""
    if not isinstance(value, str):
        raise UserError(f"{place}: field {field!r} must be a string, found {shown(value)}")
    return _clean(place, field, value)


def _pair(place: str, number: int, row: dict[str, Any]) -> Ranking:
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if isinstance(chosen, list) and isinstance(rejected, list):
        heads, replies = zip(*(_spoken(place, name, row) for name in ("chosen", "rejected")), strict=True)
        if heads[0] != heads[1]:
            raise UserError(
                f"{place}: fields 'chosen' and 'rejected' continue different prompts; they may differ in their last "
                "assistant message only"
            )
        prompt = _prompt(place, number, row, heads[0])
    else:
        replies = (_reply(place, "chosen", chosen), _reply(place, "rejected", rejected))
        if "prompt" in row:
            prompt = _asked(place, number, row)
        else:
            shared = _shared_start(place, *replies)
            prompt = _prompt(place, number, row, conversation(place, "chosen", shared.strip(), "user"))
            replies = (replies[0][len(shared) :].strip(), replies[1][len(shared) :].strip())
        refuse_blank_winner(place, "chosen", [*replies], 0)
    return Ranking(prompt, (Completion(replies[0]), Completion(replies[1])), (1, 2))


def _spoken(place: str, field: str, row: dict[str, Any]) -> tuple[tuple[Message, ...], str]:
    """(prompt, reply) of a list of messages: the reply alone with an explicit prompt, or the whole conversation."""
    items = row[field]
    last = items[-1] if items else None
    if not isinstance(last, dict) or last.get("role") != "assistant":
        raise UserError(f"{place}: field {field!r} must end with an assistant message, found {shown(last)}")
    reply = _reply(place, field, content_of(place, last).get("content"))
    if "prompt" not in row:
        return conversation(place, field, items[:-1], "user"), reply
    asked = conversation(place, "prompt", row["prompt"], "user")
    whole = conversation(place, field, items[:-1], "user") if len(items) > 1 else asked
    if whole[-len(asked) :] != asked:
        raise UserError(f"{place}: field {field!r} does not continue the field 'prompt': {shown(items)}")
    return whole, reply


def _shared_start(place: str, chosen: str, rejected: str) -> str:
    """TRL's implicit prompt of two strings: what they share; here it ends before a word that only half agrees."""
    parts = (at for at, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b)
    shared = chosen[: next(parts, min(len(chosen), len(rejected)))]
    rests = (chosen[len(shared) :], rejected[len(shared) :])
    if any(rest and not rest[0].isspace() for rest in rests):
        shared = shared[: len(shared) - len(re.split(r"\s", shared)[-1])]
    if chosen == rejected or not shared.strip():
        raise UserError(
            f"{place}: fields 'chosen' and 'rejected' have no prompt in common to take out: {shown(chosen)} and "
            f"{shown(rejected)}; add a field 'prompt'"
        )
    if MARKED.match(shared):
        raise UserError(
            f"{place}: fields 'chosen' and 'rejected' begin with a mark of who speaks, which would be a part of the "
            f"prompt: {shown(shared)}; write messages with roles, or a field 'prompt' and the two replies alone"
        )
    return shared


def _hh(place: str, number: int, row: dict[str, Any]) -> Ranking:
    sides = []
    for field in ("chosen", "rejected"):
        parts = HH_TURN.split(_reply(place, field, row.get(field)))
        if parts[0].strip() or len(parts) < 5:
            raise UserError(
                f'{place}: field {field!r} must be text of "\\n\\nHuman: …" and "\\n\\nAssistant: …" turns, '
                f"found {shown(row[field])}"
            )
        roles = ["user" if name == "Human" else "assistant" for name in parts[1::2]]
        turns = [Message(role, text.strip()) for role, text in zip(roles, parts[2::2], strict=True)]
        _in_turn(place, field, turns, "assistant")
        blank = next((turn.role for turn in turns[:-1] if not turn.content), None)
        if blank:
            raise UserError(f"{place}: field {field!r} has an empty {blank} turn; write it out or delete the row")
        sides.append(turns)
    if sides[0][:-1] != sides[1][:-1]:
        raise UserError(f"{place}: fields 'chosen' and 'rejected' differ before their last Assistant turn")
    texts = [turns[-1].content for turns in sides]
    refuse_blank_winner(place, "chosen", texts, 0)
    return Ranking(_prompt(place, number, row, tuple(sides[0][:-1])), tuple(map(Completion, texts)), (1, 2))


def _responses(place: str, row: dict[str, Any]) -> list[dict[str, Any]]:
    responses = row.get("responses")
    if not isinstance(responses, list) or len(responses) < 2:
        raise UserError(f"{place}: field 'responses' must list at least two replies, found {shown(responses)}")
    for item in responses:
        if not isinstance(item, dict) or not isinstance(item.get("text"), str):
            raise UserError(f"{place}: field 'responses': a reply needs a string 'text', found {shown(item)}")
        if not isinstance(item.get("finished", True), bool):
            raise UserError(
                f"{place}: field 'responses': 'finished' must be true or false, found {shown(item['finished'])}"
            )
    return responses


def _whole(place: str, item: dict[str, Any], field: str, least: int) -> int:
    value = item.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(
            f"{place}: field 'responses': {field!r} must be a whole number from {least} up, found {shown(value)}"
        )
    return value


def _ranked(place: str, number: int, row: dict[str, Any], responses: list[dict[str, Any]], ranks: list[int]) -> Ranking:
    replies = tuple(
        Completion(_reply(place, "responses", item["text"]), item.get("finished", True)) for item in responses
    )
    return Ranking(
        _asked(place, number, row),
        replies,
        tuple(ranks),
        votes=_of_every_reply(place, responses, "votes", lambda item: _whole(place, item, "votes", 0)),
        judge_scores=_of_every_reply(place, responses, "score", lambda item: _number(place, item, "score")),
        sources=_of_every_reply(place, responses, "source", lambda item: text_of(place, item, "source")),
    )


def _of_every_reply(
    place: str, responses: list[dict[str, Any]], field: str, read: Callable[[dict[str, Any]], T]
) -> tuple[T, ...] | None:
    """What the replies' `field` holds, None where none of them has it."""
    given = sum(item.get(field) is not None for item in responses)
    if 0 < given < len(responses):
        raise UserError(f"{place}: field 'responses': {given} of {len(responses)} replies have {field!r}")
    return tuple(read(item) for item in responses) if given else None


def _number(place: str, item: dict[str, Any], field: str) -> float:
    value = item.get(field)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise UserError(f"{place}: field {field!r} must be a number, found {shown(value)}")
    return float(value)


def _rankings(place: str, number: int, row: dict[str, Any]) -> Ranking:
    responses = _responses(place, row)
    return _ranked(place, number, row, responses, [_whole(place, item, "rank", 1) for item in responses])


def _votes(place: str, number: int, row: dict[str, Any]) -> Ranking:
    responses = _responses(place, row)
    votes = [_whole(place, item, "votes", 0) for item in responses]
    return _ranked(place, number, row, responses, [1 + sum(other > mine for other in votes) for mine in votes])


def _strength(place: str, number: int, row: dict[str, Any]) -> Ranking:
    strength = _number(place, row, "preference_strength")
    ranks = (1, 1) if strength == 0 else (1, 2) if strength < 0 else (2, 1)
    texts, won = [_reply(place, f"response_{at}", row.get(f"response_{at}")) for at in (1, 2)], int(strength > 0)
    refuse_blank_winner(place, f"response_{1 + won}", texts, won if strength else None)
    return Ranking(_asked(place, number, row), tuple(map(Completion, texts)), ranks, strength=abs(strength) or None)


def _winner(place: str, number: int, row: dict[str, Any]) -> Ranking:
    return _rankings(place, number, compared(place, row))


def _unpaired(place: str, number: int, row: dict[str, Any]) -> Labelled:
    said = str(row.get("label")).strip().lower()
    if said not in LIKED | NOT_LIKED:
        raise UserError(
            f"{place}: field 'label' must be true or false (or 1 and 0, yes and no, 👍 and 👎), found "
            f"{shown(row.get('label'))}; where it is no judgement, name the format (prompt-completion) to ignore it"
        )
    made = _prompt_completion(place, number, row)
    return Labelled(made.prompt, made.completion, said in LIKED)


def _earlier(place: str, history: Any) -> tuple[Message, ...]:
    """The earlier turns of a conversation, as LLaMA-Factory's [[question, answer], ...] has them."""
    turns: list[Message] = []
    for pair in history if isinstance(history, list) else [history]:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(t, str) and t.strip() for t in pair):
            raise UserError(f"{place}: field 'history' must be a list of [question, answer], found {shown(history)}")
        turns += [
            Message("user", _clean(place, "history", pair[0])),
            Message("assistant", _clean(place, "history", pair[1])),
        ]
    return tuple(turns)


def _after_history(place: str, record: Record, history: Any) -> Record:
    """The record with the earlier turns before its own one."""
    prompt = record if isinstance(record, Prompt) else record.prompt
    opening = prompt.messages[: len(prompt.messages) - 1]
    if any(message.role != "system" for message in opening):
        raise UserError(f"{place}: fields 'history' and the prompt both have earlier turns; keep one")
    prompt = replace(prompt, messages=(*opening, *_earlier(place, history), prompt.messages[-1]))
    return prompt if isinstance(record, Prompt) else replace(record, prompt=prompt)


PARSERS: dict[str, Callable[[str, int, dict[str, Any]], Record]] = {
    "prompts": _asked,
    "prompt-completion": _prompt_completion,
    "messages": _messages,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "pairs": _pair,
    "hh": _hh,
    "rankings": _rankings,
    "votes": _votes,
    "strength": _strength,
    "winner": _winner,
    "unpaired": _unpaired,
}


def record_of(format: str, place: str, number: int, row: dict[str, Any]) -> Record:
    """The record of row `number`; of any format a judgement may say whose it is, a ranking by how much the better is
    better."""
    record = PARSERS[format](place, number, row)
    if row.get("history"):
        record = _after_history(place, record, row["history"])
    if isinstance(record, Prompt):
        return record
    if row.get("annotator") is not None:
        record = replace(record, annotator=text_of(place, row, "annotator"))
    if not isinstance(record, Ranking):
        return record
    if row.get("strength") is not None:
        record = replace(record, strength=_number(place, row, "strength"))
        if len(record.replies) != 2 or record.strength is None or record.strength <= 0:
            raise UserError(f"{place}: field 'strength' must be above 0 and belongs to a row of two replies")
    return record
