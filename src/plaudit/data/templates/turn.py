"""How a template writes an assistant turn, learnt from a few renderings; nothing about any template is known before.

    generation prompt + lead + strip(reply) + closing + end

`lead` and `closing` are the same for every reply; `end` is one special token. `extra` is what the generation prompt
ends with and a finished turn does not have (a thought that it opens).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jinja2 import Environment

from plaudit.errors import UserError
from plaudit.records import Message

Render = Callable[[Sequence[Message], bool], str]
"""(messages, whether the generation prompt follows) -> text."""
ASKED = (Message("user", "Hello there."),)
REPLIES = ("Hi.", 'Zebras & <i>gnus</i>, 7 of "9": ' + "and so on, " * 40 + "so it's done")
"""A short one, and one that is long and has what a template may escape, cut or put in other words."""
_SPACED = "\n \nHi.\n\n  Yo.\n \n"
_STRIPS: tuple[Callable[[str], str], ...] = (
    lambda text: text,
    str.strip,
    str.lstrip,
    str.rstrip,
    lambda text: text.strip("\n"),
    lambda text: text.lstrip("\n"),
    lambda text: text.rstrip("\n"),
)
WAY_ON = "set its variables with data.template_kwargs, or give a template that can be followed with data.chat_template"


@dataclass(frozen=True)
class Turn:
    """The parts of an assistant turn around its reply."""

    extra: str
    lead: str
    strip: Callable[[str], str]
    closing: str
    end: str


def turn_of(name: str, render: Render, special: set[str]) -> Turn:
    """UserError, which says which part of the template is in the way and how to go on, where there is no such split."""
    prompt = render(ASKED, True)
    written = {text: render((*ASKED, Message("assistant", text)), False) for text in (*REPLIES, _SPACED)}
    start = _shared(prompt, *(written[text] for text in REPLIES))
    extra = prompt[len(start) :]
    if extra and not start.startswith(_shared(render(ASKED, False), prompt)):
        raise _refused(name, f"it writes the prompt otherwise once a reply follows it ({extra[:60]!r} is gone)")
    parts = [written[text][len(start) :].partition(text) for text in REPLIES]
    leads = {lead for lead, _, _ in parts}
    if changed := [text for text, (_, found, _) in zip(REPLIES, parts, strict=True) if not found]:
        became = written[changed[0]][len(start) :]
        raise _refused(name, f"it changes the reply: {changed[0][:60]!r} became {became[:60]!r}")
    if len(leads) > 1:
        raise _refused(name, f"what it writes before a reply differs from reply to reply: {sorted(leads)}")
    lead = leads.pop()
    ends = {_end_of(after, special) for _, _, after in parts}
    if ends == {None}:
        # GLM ends a turn with the token that opens the next one.
        goes_on = Message("user", "And?")
        written = {text: render((*ASKED, Message("assistant", text), goes_on), False) for text in written}
        ends = {_end_of(written[text].removeprefix(start + lead + text), special) for text in REPLIES}
        ends = {found for found in ends if found and not found[0]} or {None}
    found = ends.pop()
    if found is None or ends:
        after = parts[0][2]
        raise _refused(
            name, f"no special token ends the turn ({after[:60]!r} follows the reply): write {{{{ eos_token }}}} there"
        )
    closing, end = found
    head = start + lead
    strip = next((f for f in _STRIPS if written[_SPACED].startswith(head + f(_SPACED) + closing + end)), None)
    if strip is None:
        raise _refused(name, f"it changes white space in a reply: {written[_SPACED][len(start) :]!r}")
    return Turn(extra, lead, strip, closing, end)


def _shared(*texts: str) -> str:
    """What all of them begin with."""
    length = next((at for at, letters in enumerate(zip(*texts, strict=False)) if len(set(letters)) > 1), None)
    return min(texts, key=len)[:length]


def _end_of(after: str, special: set[str]) -> tuple[str, str] | None:
    """(what stands before it, the token) of the first special token in a text."""
    found = [(after.index(token), -len(token), token) for token in special if token and token in after]
    if not found:
        return None
    at, _, token = min(found)
    return after[:at], token


def _refused(name: str, why: str) -> UserError:
    return UserError(
        f"{name}: the chat template does not write an assistant turn as generation prompt + reply + a special token "
        f"that ends it, so its completion tokens cannot be masked exactly: {why}; {WAY_ON}"
    )


def markers(template: str, special: set[str], differs: Callable[[str], bool]) -> list[str]:
    """The texts at which a template cuts or changes a reply that holds them (</think>), out of its own literals."""
    literals = dict.fromkeys(value[1:-1] for _, kind, value in Environment().lex(template) if kind == "string")
    short = [text for text in literals if 3 <= len(text) <= 40 and text.strip() and "\\" not in text]
    plain = [text for text in short if not any(token in text for token in special if token)]
    return [text for text in plain if differs(f"Hi.{text}Yo.")]
