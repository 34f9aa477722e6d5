"""What an audit asks of a text: its hash, whether it was cut, how varied many of them are."""

import hashlib
import re
from collections.abc import Sequence

from plaudit.records import Message

_WORD = re.compile(r"[\w']+")
# A reply whose last line is long, no item of a list, and stops on a plain word or a comma was probably cut.
_CUT = re.compile(r"(?:\A|\n)(?![ \t]*(?:[-*•#|]|\d+[.)]))[^\n]{60,}[ \t](?:[^\W\d_]+,?|\()\Z")

# What chat templates write around turns; typed into a text it is text.
_MARK = re.compile(
    r"<\|(?:im_start|im_end|endoftext|end_of_text|begin_of_text|eot_id|start_header_id|end_header_id|end|user|"
    r"assistant|system)\|>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|\A\s*<s>|</s>\s*\Z|"
    r"(?<![^\n])(?:#{2,3} ?(?:Response|Assistant|Answer)|Assistant|ASSISTANT):\s*\Z"
)


def hash_of(*parts: str) -> int:
    """64 bits; two different texts are taken for one with probability 1e-7 at a million rows."""
    made = hashlib.blake2b(digest_size=8)
    for part in parts:
        made.update(part.encode() + b"\x1f")
    return int.from_bytes(made.digest(), "little")


def words_alone(text: str) -> str:
    """A text without capitals, punctuation and spacing: what a near-copy of a prompt shares."""
    return " ".join(_WORD.findall(text.lower())) or text.strip()


def joined(messages: tuple[Message, ...]) -> str:
    """A conversation as one text."""
    return messages[0].content if len(messages) == 1 else "\n".join(f"{m.role}: {m.content}" for m in messages)


def seems_cut(text: str) -> bool:
    """Whether a text, without white space at its end, seems to stop in the middle."""
    return text[-1] not in ".!?" and bool(_CUT.search(text[text.rfind("\n") + 1 :][-4000:]))


def template_mark(text: str) -> str | None:
    """The first mark of a chat template that a text holds."""
    found = _MARK.search(text) if "<" in text or "[" in text or text.rstrip().endswith(":") else None
    return found.group().strip() if found else None


def diversity(replies: Sequence[str]) -> dict[str, float | int]:
    """distinct-n (Li et al. 2016): different n-grams over all n-grams of words; it falls with the number of replies."""
    measured: dict[str, float | int] = {"replies": len(replies)}
    words = [reply.lower().split() for reply in replies]
    for n in (1, 2, 3):
        grams: set[tuple[str, ...]] = set()
        for text in words:
            grams.update(zip(*(text[i:] for i in range(n)), strict=False))
        count = sum(max(0, len(text) - n + 1) for text in words)
        measured[f"distinct_{n}"] = len(grams) / count if count else 0.0
    openings = [tuple(text[:3]) for text in words if text]
    measured["distinct_openings"] = len(set(openings)) / len(openings) if openings else 0.0
    return measured
