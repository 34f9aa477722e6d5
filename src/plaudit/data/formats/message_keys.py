"""What a message says beside its role and its text: nothing of it is lost without a word.

Tool calls, reasoning, weights and names change what a conversation means or how it is learnt. A record holds texts, so
such a key is refused, or counted where the reader was told to ignore it.
"""

from collections.abc import Collection
from typing import Any

from plaudit.data.formats.rows import shown
from plaudit.errors import UserError

_TURN = frozenset(("role", "content"))
_EITHER = _TURN | {"from", "value"}
_READ = {
    "prompts": ("prompt",),
    "prompt-completion": ("prompt", "completion"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "pairs": ("prompt", "chosen", "rejected"),
    "unpaired": ("prompt", "completion"),
    **dict.fromkeys(("rankings", "votes", "strength", "winner"), ("prompt",)),
}
"""The fields that hold messages, by format."""
TOOLS = (
    *("tools", "functions", "documents", "chat_template_kwargs"),
    *("images", "image", "videos", "video", "audios", "audio"),
)
"""Keys of a row that change what a template writes: what the model may call, what it may quote, variables, and what it
sees or hears."""
_WAYS = "take it out, set data.on_bad_row=quarantine, or name it in data.ignore_message_keys"


def ignored_keys(
    place: str, format: str, row: dict[str, Any], ignored: Collection[str], more: Collection[str] = ()
) -> list[str]:
    """The keys of `ignored` that the row's messages have, one entry for each time; UserError for another one. A null
    or empty value says nothing. `more` are fields that hold messages beside those of the format."""
    found = [("", key, row[key]) for key in TOOLS if row.get(key) and says(row[key])]
    for field in (*_READ.get(format, ()), *more):
        turns = row.get(field)
        known = {"from", "value"} if field == "conversations" else _EITHER if field in more else _TURN
        for turn in turns if isinstance(turns, list) else ():
            if isinstance(turn, dict):
                found += [(field, key, turn[key]) for key in turn.keys() - known if says(turn[key])]
    for field, key, value in sorted(found, key=lambda one: one[:2]):
        if key not in ignored:
            what = f"field {field!r}: a message has the key {key!r}" if field else f"the row has the key {key!r}"
            raise UserError(f"{place}: {what}, which a text cannot hold: {shown(value)}; {_WAYS}")
    return [key for _, key, _ in found]


def says(value: object) -> bool:
    """Whether a value is more than nothing, which a cell may spell as JSON; a weight of 0 is."""
    return value is not None and value not in ("", "[]", "{}", [], {})


def content_of(place: str, message: dict[str, Any]) -> dict[str, Any]:
    """The message with its content as one text where it is a list of text parts; UserError for a part that is none."""
    parts = message.get("content")
    if not isinstance(parts, list) or not parts:
        return message
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise UserError(f"{place}: field 'content': a part is no text: {shown(part)}; only texts are trained on")
    return {**message, "content": "".join(part["text"] for part in parts)}
