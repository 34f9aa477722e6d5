"""What a text stands for that is none: messages written as JSON, a dialogue with its marks, a cell without a value.

A cell of a table cannot hold a list, so programs write messages into it as JSON, or as Python prints them; a broken
formula and a missing number leave a word. Read as texts all of them would be learnt.
"""

import ast
import json
import re
from collections.abc import Callable
from typing import Any

from plaudit.data.formats.rows import shown
from plaudit.errors import UserError

HH_TURN = re.compile(r"(?:\A\s*|\r?\n\r?\n)(Human|Assistant):")
# How a conversation begins that somebody has put through a chat template, or written with marks of their own.
MARKED = re.compile(
    r"\s*(<\|im_start\|>|<\|start_header_id\|>|<\|begin_of_text\|>|<s>|\[INST\]|<start_of_turn>|"
    r"<\|(user|system|prompter)\|>|#{2,3} ?(Human|User|Instruction)|(USER|User|Human):)"
)
_SPOKEN = ("prompt", "chosen", "rejected", "completion")
_TEXTS = (*_SPOKEN, "instruction", "output", "input", "response_1", "response_2", "system")
_MAY_HOLD = (*_SPOKEN, "messages", "conversations", "output", "response_1", "response_2")
_MAY_BE_NONE = ("system", "input")
_NOTHING = {"nan", "<na>"}
"""What pandas writes for nothing."""
_SHORT = 32  # a longer text is not copied to be compared
_FAILED = re.compile(r"#(?:[¡¿]?[A-ZÀ-Þ0-9/_]+[!?]|N/A|N/D|NV)")
"""What Excel writes for a formula that failed, in its languages: #NAME?, #BEZUG!, #¡REF!, #N/A."""
_PRINTED = re.compile(r"(?:array\()?\[?\{'(?:role|content|from|value)'")
Say = Callable[[str], None]


def read_cells(place: str, row: dict[str, Any], say: Say) -> dict[str, Any]:
    """The row with messages where a text spells them; UserError for a text that stands for none. A row whose prompt is
    messages already, as in what we write, is from no table: its texts are what they are."""
    if isinstance(row.get("prompt"), list):
        return row
    for key in _TEXTS:
        if key in _MAY_BE_NONE and _is_nothing(row.get(key)):
            say(f"{key!r} {shown(row[key])} read as none")
            row = {name: value for name, value in row.items() if name != key}
        refuse_missing(place, key, row.get(key))
    row = {**row, **{key: messages_in(place, key, row[key], say) for key in _MAY_HOLD if key in row}}
    if (asked := _dialogue(place, row.get("prompt"))) is None:
        return row
    both = [row[key] for key in ("chosen", "rejected") if isinstance(row.get(key), str)]
    if len(both) == 2 and all(one.strip().startswith(str(row["prompt"]).strip()) for one in both):
        say("'prompt' is what 'chosen' and 'rejected' begin with")
        return {key: value for key, value in row.items() if key != "prompt"}
    say("'prompt' read as a dialogue of Human and Assistant")
    stripped = {key: row[key].strip() for key in _SPOKEN[1:] if isinstance(row.get(key), str)}
    if isinstance(row.get("responses"), list):
        stripped["responses"] = [_stripped(one) for one in row["responses"]]
    return {**row, **stripped, "prompt": asked}


def _is_nothing(value: Any) -> bool:
    return isinstance(value, str) and len(value) < _SHORT and value.strip().lower() in _NOTHING


def refuse_missing(place: str, key: str, value: Any) -> None:
    """UserError for what a program writes where it has no text."""
    if _is_nothing(value) or (
        isinstance(value, str) and value.lstrip()[:1] == "#" and _FAILED.fullmatch(value.strip())
    ):
        raise UserError(f"{place}: field {key!r} {shown(value)} stands for no text; write one or delete the row")


def is_printed_list(value: Any) -> bool:
    """Whether a text is a list of one text, as Python prints it into the cell of a table, or as JSON."""
    if not isinstance(value, str) or not (text := value.strip()).startswith(("['", '["')) or not text.endswith("]"):
        return False
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False
    return isinstance(found, list) and len(found) == 1 and isinstance(found[0], str)


def _stripped(reply: Any) -> Any:
    text = reply.get("text") if isinstance(reply, dict) else None
    return {**reply, "text": text.strip()} if isinstance(text, str) else reply


def messages_in(place: str, key: str, value: Any, say: Say = lambda text: None) -> Any:
    """The messages that a text spells as JSON, anything else as it is; UserError where Python printed them."""
    if not isinstance(value, str) or not (text := value.strip()).startswith(("[", "{", "array(")):
        return value
    if _PRINTED.match(text):
        raise UserError(
            f"{place}: field {key!r} holds messages as Python prints them, found {shown(text)}; write them with "
            "json.dumps, or save the table as JSON lines or Parquet"
        )
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return value
    if is_message(found):
        found = [found]
    if not isinstance(found, list) or not found or not all(is_message(one) for one in found):
        return value
    say(f"{key!r} holds messages as JSON")
    return found


def is_message(value: Any) -> bool:
    """Whether a value is a turn of OpenAI's or ShareGPT's keys."""
    return isinstance(value, dict) and ({"role", "content"} <= value.keys() or {"from", "value"} <= value.keys())


def _dialogue(place: str, asked: Any) -> list[dict[str, str]] | None:
    r"""The turns of "\n\nHuman: … \n\nAssistant:", where a text is one that waits for the Assistant."""
    if not isinstance(asked, str) or not asked.lstrip().startswith("Human:"):
        return None
    if not asked.startswith("\n\n") and not asked.rstrip().endswith("Assistant:"):
        return None
    parts = HH_TURN.split(asked)
    if asked.rstrip().endswith("Assistant:") and parts[-1].strip():
        raise UserError(
            f"{place}: field 'prompt' is a dialogue without an empty line before each turn, found {shown(asked)}; put "
            "one there, or write messages with roles"
        )
    turns = [
        {"role": "user" if who == "Human" else "assistant", "content": text.strip()}
        for who, text in zip(parts[1::2], parts[2::2], strict=True)
    ]
    return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns
