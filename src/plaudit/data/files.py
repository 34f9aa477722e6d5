"""JSONL files in and out, strict: a bad line stops with file:line, the field, the value and the fix.

Reads prompts, demonstrations and rankings from JSON lines (plain or .gz); writes atomically. Other formats, and
quarantine of bad rows, are not here yet.
"""

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from plaudit.errors import UserError
from plaudit.records import Completion, Demonstration, Message, Prompt, Ranking

ROLES = ("system", "user", "assistant")
SPLITS = ("train", "validation", "test")


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of every line; place is "file:line". An empty or malformed line is an error."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of a JSONL file")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 JSON lines: {error}") from error
    lines = text.split("\n")
    if lines and lines[-1] == "":
        lines.pop()
    if not lines:
        raise UserError(f"{path}: the file is empty; it needs one JSON object a line")
    for number, line in enumerate(lines, start=1):
        place = f"{path}:{number}"
        if not line.strip():
            raise UserError(f"{place}: the line is empty; delete it or put one JSON object there")
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{place}: not valid JSON at column {error.colno}: {error.msg} in {line[:60]!r}") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: JSON that cannot be held: {error}; shorten it: {line[:60]!r}") from error
        if not isinstance(row, dict):
            raise UserError(f"{place}: expected a JSON object, found {type(row).__name__} {line[:60]!r}")
        yield place, row


def _text(place: str, row: dict[str, Any], field: str, default: str | None = None) -> str:
    value = row.get(field, default)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place}: field {field!r} must be a non-empty string, found {value!r}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise UserError(f"{place}: field {field!r} holds half a surrogate pair, which is not text: {value[:60]!r}")
    return value


def _messages(place: str, value: Any) -> tuple[Message, ...]:
    if isinstance(value, str) and value.strip():
        return (Message("user", _text(place, {"prompt": value}, "prompt")),)
    if not isinstance(value, list) or not value:
        raise UserError(
            f"{place}: field 'prompt' must be a non-empty string or a list of {{role, content}} messages, "
            f"found {value!r}"
        )
    messages = []
    for item in value:
        if not isinstance(item, dict) or item.get("role") not in ROLES:
            raise UserError(
                f"{place}: field 'prompt': a message needs a role out of {', '.join(ROLES)}, found {item!r}"
            )
        messages.append(Message(item["role"], _text(place, item, "content")))
    turns = [message.role for message in messages if message.role != "system"]
    expected = ["user" if i % 2 == 0 else "assistant" for i in range(len(turns))]
    if any(message.role == "system" for message in messages[1:]) or turns != expected or turns[-1:] != ["user"]:
        found = " ".join(message.role for message in messages)
        raise UserError(
            f"{place}: field 'prompt' must be an optional system message, then user and assistant in turn, and end "
            f"with a user message; found {found!r}"
        )
    return tuple(messages)


def _prompt(place: str, row: dict[str, Any]) -> Prompt:
    split = _text(place, row, "split", "train")
    if split not in SPLITS:
        raise UserError(f"{place}: field 'split' must be one of {', '.join(SPLITS)}, found {split!r}")
    identity = _text(place, row, "id", place.rsplit(":", 1)[1])
    return Prompt(identity, _messages(place, row.get("prompt")), _text(place, row, "kind", "instruction"), split)


def read_prompts(path: Path) -> list[Prompt]:
    """Rows `{id, kind, split, prompt}`; ids are unique, and no prompt stands in two splits."""
    prompts: list[Prompt] = []
    place_of_id: dict[str, str] = {}
    first_of: dict[tuple[Message, ...], tuple[str, str]] = {}
    for place, row in read_rows(path):
        prompt = _prompt(place, row)
        if prompt.id in place_of_id:
            raise UserError(
                f"{place}: field 'id' {prompt.id!r} is already used in {place_of_id[prompt.id]}; make it unique"
            )
        place_of_id[prompt.id] = place
        split, first = first_of.setdefault(prompt.messages, (prompt.split, place))
        if split != prompt.split:
            raise UserError(
                f"{place}: the prompt {prompt.text[:60]!r} is in split {prompt.split!r} and, in {first}, in {split!r}: "
                "a held-out prompt must not be trained on; keep one of them"
            )
        prompts.append(prompt)
    return prompts


def read_demonstrations(path: Path) -> list[Demonstration]:
    """Rows `{id, kind, split, prompt, completion}`; split train is trained on, the others measure the held-out loss."""
    return [Demonstration(_prompt(place, row), _text(place, row, "completion")) for place, row in read_rows(path)]


def read_rankings(path: Path) -> list[Ranking]:
    """Rows `{id, kind, split, prompt, responses: [{text, rank, finished}]}`; at least two replies, ranks from 1 up."""
    rankings = []
    for place, row in read_rows(path):
        responses = row.get("responses")
        if not isinstance(responses, list) or len(responses) < 2:
            raise UserError(f"{place}: field 'responses' must list at least two replies, found {responses!r}")
        replies, ranks = [], []
        for item in responses:
            if not isinstance(item, dict) or not isinstance(item.get("text"), str):
                raise UserError(f"{place}: field 'responses': a reply needs a string 'text', found {item!r}")
            rank, finished = item.get("rank"), item.get("finished", True)
            if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
                raise UserError(f"{place}: field 'responses': 'rank' must be a whole number from 1 up, found {rank!r}")
            if not isinstance(finished, bool):
                raise UserError(f"{place}: field 'responses': 'finished' must be true or false, found {finished!r}")
            replies.append(Completion(item["text"], finished))
            ranks.append(rank)
        rankings.append(Ranking(_prompt(place, row), tuple(replies), tuple(ranks)))
    return rankings


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: to a temporary name, flushed to disk, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode("utf-8")
    part = path.with_name(path.name + ".part")
    with part.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    part.replace(path)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def sha256(path: Path) -> str:
    """Hash of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
