"""Thumbs up and down, as deployed chats export them, made rows of format unpaired.

- Open WebUI: Admin Panel, Evaluations, Feedbacks, Export: an array of feedbacks, each with `data.rating` (1, -1) and a
  snapshot of the chat it was given in (backend/open_webui/models/feedbacks.py of open-webui/open-webui).
- LibreChat: the JSON export of a conversation, or its messages as `mongoexport` writes them; a message that was rated
  has `feedback.rating`, thumbsUp or thumbsDown (packages/data-schemas/src/schema/message.ts of danny-avila/LibreChat).
- Dify: the export of an app's feedbacks, JSON or CSV (api/services/feedback_service.py of langgenius/dify). It holds
  question and answer alone, without the turns before, and cuts answers at 500 characters: those are bad rows.

The keys were read in these projects' own sources in November 2026.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from plaudit.data.formats.rows import Row, row_of, shown
from plaudit.errors import UserError

LIBRECHAT = b'"isCreatedByUser"'
"""What a file of LibreChat's has among its first keys, and no other does."""
_DIFY_CUTS = 500
_REASONING = re.compile(r'<details type="reasoning".*?</details>\s*', re.DOTALL)
_DONE = re.compile(r'<details type="[^"]*"')
"""How Open WebUI writes what a model thought, and what it called, into the text of its message."""
_OF_RATING = {"thumbsUp": True, "thumbsDown": False, "1": True, "-1": False, "like": True, "dislike": False}


def thumbed(place: str, row: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """A feedback of Open WebUI or Dify as a row of format unpaired; any other row as it is."""
    if row.get("type") == "rating" and {"data", "meta", "snapshot"} <= row.keys():
        say("feedbacks of Open WebUI")
        return _open_webui(place, row)
    if {"user_query", "ai_response", "feedback_rating_raw"} <= row.keys():
        say("feedbacks of Dify, without the turns before each")
        answer = row["ai_response"]
        if isinstance(answer, str) and len(answer) == _DIFY_CUTS + 3 and answer.endswith("..."):
            raise UserError(
                f"{place}: field 'ai_response' was cut at {_DIFY_CUTS} characters by Dify's export; put the whole "
                "answer there, or set such rows aside (--on-bad-row quarantine)"
            )
        who = row.get("from_end_user_id") or row.get("from_account_name")
        return _row(place, row.get("feedback_id"), row["user_query"], answer, row["feedback_rating_raw"], who)
    return row


def _row(place: str, identity: Any, prompt: Any, completion: Any, rating: Any, who: Any) -> dict[str, Any]:
    if str(rating) not in _OF_RATING:
        raise UserError(f"{place}: the rating must be one of {', '.join(_OF_RATING)}, found {shown(rating)}")
    found = {"prompt": prompt, "completion": completion, "label": _OF_RATING[str(rating)]}
    more = {"id": identity, "annotator": who}
    return {**found, **{key: value for key, value in more.items() if value}}


def _open_webui(place: str, row: dict[str, Any]) -> dict[str, Any]:
    chat: Any = row["snapshot"]
    while isinstance(chat, dict) and "history" not in chat:  # the snapshot holds a chat, and that one its content
        chat = chat.get("chat")
    if not isinstance(chat, dict):
        raise UserError(f"{place}: field 'snapshot' holds no chat, so what was rated is not known")
    meta, data, history, params = map(_mapping, (row["meta"], row["data"], chat["history"], chat.get("params")))
    way = _way(place, _mapping(history.get("messages")), meta.get("message_id"), "parentId")
    system = params.get("system")
    turns = [{"role": turn.get("role"), "content": _said(place, turn)} for turn in way]
    opening = [{"role": "system", "content": system}] if system else []
    return _row(
        place, row.get("id"), [*opening, *turns[:-1]], turns[-1]["content"], data.get("rating"), row.get("user_id")
    )


def _said(place: str, turn: dict[str, Any]) -> Any:
    """The content of a message; of the model's own without its thoughts, which are no part of the reply."""
    text = turn.get("content")
    if turn.get("role") != "assistant" or not isinstance(text, str):
        return text
    text = _REASONING.sub("", text)
    if found := _DONE.search(text):
        raise UserError(f"{place}: a message holds {found.group()}…>, which a text cannot hold; take the row out")
    return text


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _way(place: str, by_id: dict[str, Any], identity: Any, parent: str) -> list[dict[str, Any]]:
    """The messages from the first to the one with this id."""
    found: list[dict[str, Any]] = []
    while isinstance(identity, str) and (turn := _mapping(by_id.get(identity))) and len(found) <= len(by_id):
        if turn.get("files"):
            raise UserError(f"{place}: a message has files, which a text cannot hold; take the row out")
        found.insert(0, turn)
        identity = turn.get(parent)
    if not found:
        raise UserError(f"{place}: the message {shown(identity)} that was rated is not in the file")
    return found


def librechat_rows(path: Path, rows: Iterator[Row]) -> Iterator[Row]:
    """A row for every message that was rated, of conversations or of single messages of any conversation; the file is
    held as a whole."""
    messages: list[tuple[str, dict[str, Any]]] = []
    for row in rows:
        if row.value is None:
            yield row
            continue
        tree = row.value.get("messagesTree", row.value.get("messages"))
        inside = [row.value] if tree is None else tree if isinstance(tree, list) else [tree]
        for message in inside:
            messages += ((row.place, one) for one in _with_children(message))
    by_id = {id: message for _, message in messages if isinstance(id := message.get("messageId"), str)}
    rated = [(place, message) for place, message in messages if message.get("feedback")]
    for number, (place, message) in enumerate(rated, start=1):
        where = f"{place}, rated message {number}"

        def read(where: str = where, message: dict[str, Any] = message) -> dict[str, Any]:
            way = _way(where, by_id, message.get("messageId"), "parentMessageId")
            turns = [
                {"role": "user" if one.get("isCreatedByUser") else "assistant", "content": _text(where, one)}
                for one in way
            ]
            rating, who = _mapping(message["feedback"]).get("rating"), message.get("user")
            return _row(where, message.get("messageId"), turns[:-1], turns[-1]["content"], rating, who)

        yield row_of(where, number, json.dumps(message).encode(), read)
    if not rated:
        first = messages[0][0] if messages else path
        raise UserError(f"{first}: a LibreChat export in which no message was rated (feedback.rating)")


def _with_children(message: Any) -> Iterator[dict[str, Any]]:
    """The message and those that branch off it, as a recursive export has them."""
    waiting = [message]
    while waiting:
        if isinstance(one := waiting.pop(), dict):
            yield one
            inside = one.get("children")
            waiting += reversed(inside) if isinstance(inside, list) else []


def _text(place: str, message: dict[str, Any]) -> Any:
    """Its text, or the text of its parts; thoughts are no part of the reply."""
    parts = message.get("content")
    if not isinstance(parts, list) or not parts:
        return message.get("text")
    found = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "think"):
            raise UserError(f"{place}: a part of the message is no text: {shown(part)}; take the message out")
        if kind == "text":
            text = part.get("text")
            found.append(text.get("value") if isinstance(text, dict) else text)
    return "".join(map(str, found))
