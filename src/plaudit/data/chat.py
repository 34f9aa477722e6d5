"""Chat template -> token ids. The one place where text becomes tokens, for every stage.

A sequence is prompt ids + reply ids + end-of-turn id. The prompt is rendered by the tokenizer's own template with its
generation prompt; the reply is tokenised by itself, so the ids of a text are the same in SFT, in the reward stage and
in PPO, whose sampled ids follow the same prompt ids (docs/correctness.md, rows 21 and 22). A template may write more
after the end of the turn (SmolLM2 writes a newline); a sampled reply stops at the end-of-turn token, so that is where
every reply stops here and where the reward model reads its score.

What a template does around a reply is learnt from probes (templates/turn.py), and a template that does anything else is
refused:

- it ends the turn with one special token, which need not be the tokenizer's EOS (Llama 3: <|eot_id|>);
- it may put white space between generation prompt and reply (Mistral: a space), which then belongs to the reply;
- it may strip the reply (Llama 3), which is then done here too;
- it may write a constant text between reply and end (Llama 2: a space), which belongs to the reply;
- it may write more before every reply (Qwen3: an empty thought; gpt-oss: a channel). That becomes the end of the
  generation prompt, in the template's own text, so exports are asked as they were trained;
- it may open a thought in the generation prompt that no finished turn has (R1). That is left out of it, likewise.

A base model's tokenizer without a template gets a default one: ChatML where its two tokens are special tokens of the
tokenizer, else plain text ("User: ...", "Assistant: ..."). No token is added, so no embedding is resized.
"""

import contextlib
import json
import re
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

from plaudit.data.spelling import Spelling
from plaudit.data.templates.bake import (
    EMPTY,
    OWN,
    PARTS,
    TemplateSettings,
    baked,
    chosen,
    names,
    with_opening,
    with_variable,
    without_ending,
)
from plaudit.data.templates.turn import ASKED, REPLIES, WAY_ON, Turn, markers, turn_of
from plaudit.errors import UserError
from plaudit.records import Completion, Message

_TURNS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_PLAIN = (
    "{% for message in messages %}{{ message['role'] | capitalize + ': ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
_BROKEN = "\ufffd"
"""What a decoder writes for bytes that are no character."""
NEVER_TEXT = ("ÿ", "<0xFF>")
"""The token of byte 255 in byte-level vocabularies and in those that fall back to bytes."""


class ChatFormat:
    """Turns prompts and replies into ids with one tokenizer; refuses a template it cannot be exact about."""

    def __init__(
        self,
        tokenizer: Any,
        system: str | None = None,
        template: TemplateSettings = OWN,
        ends: Collection[int] = (),
        rows: int | None = None,
    ):
        """`tokenizer` is a transformers tokenizer, whose template is replaced by the run's; `system` opens every prompt
        that has none; `ends` are the ids at which the model's own settings say that a text ends, of which those of
        control tokens end a reply too; `rows` is how many ids the model knows, where it may be fewer.

        `default_template` names the template that was put in because the tokenizer had none, else it is None. `origin`
        says where it is from, `notes` what was changed in it.
        """
        if tokenizer.eos_token_id is None:
            known = [tokenizer.convert_ids_to_tokens(token) for token in sorted(ends) if token < len(tokenizer)]
            named = (
                f'"eos_token": {json.dumps(known[0], ensure_ascii=False)}, as the settings of the model say'
                if known
                else "its eos_token"
            )
            raise UserError(
                f"{tokenizer.name_or_path}: the tokenizer has no EOS token, so no reply could ever end; write {named}, "
                "into tokenizer_config.json"
            )
        self.tokenizer = tokenizer
        self.system = system
        self.notes: list[str] = []
        self.default_template: str | None = None
        text = chosen(tokenizer, template.chat_template)
        if text is None:
            self.default_template, text = _default_template(tokenizer)
        own = "the tokenizer's own" if template.chat_template is None else "that of data.chat_template"
        self.origin = f"default: {self.default_template}" if self.default_template else own
        tokenizer.chat_template = baked(text, template)
        self.spelling = Spelling(tokenizer)
        self.special = {*self.spelling.special.values()}
        self._make_readable()
        if template.end is not None:
            self._end_turns_with(template.end)
        self._learn_template()
        self.eos_id: int = tokenizer.convert_tokens_to_ids(self.end)
        self.control = self._control_ids(ends)
        self.ends: frozenset[int] = frozenset({self.eos_id, *self.control.intersection(ends)})
        """Where a sampled reply ends: `eos_id`, which the template writes, and what the model ends a text with."""
        inside = frozenset(i for i in self.control if rows is None or i < rows)
        self.pad_id: int = _pad_id(tokenizer, self.ends, inside)

    def _make_readable(self) -> None:
        """Where the template fails on what transformers gives it (no tools, a content that is a text), mend that in its
        own text."""
        text = self.tokenizer.chat_template
        empty = "".join(line for name, line in EMPTY.items() if re.search(rf"\b{name}\b", text))
        probe = (*ASKED, Message("assistant", REPLIES[0]))

        def readable() -> bool:
            try:
                written = self._render(probe, False)
            except UserError:
                return False
            return all(message.content in written for message in probe)

        if readable():
            return
        for lines in (empty, PARTS, empty + PARTS):
            self.tokenizer.chat_template = lines + text
            if lines and readable():
                return
        self.tokenizer.chat_template = text

    def _end_turns_with(self, end: str) -> None:
        """Put another token where the template writes the end of a turn."""
        name, text = self.tokenizer.name_or_path, self.tokenizer.chat_template
        old = turn_of(name, self._render, self.special).end
        if end not in self.special:
            raise UserError(
                f"data.end_of_turn: {end!r} is no special token of {name}; it has {', '.join(sorted(self.special))}"
            )
        by_name = old == self.tokenizer.eos_token and "eos_token" in names(text)
        self.tokenizer.chat_template = with_variable(text, "eos_token", end) if by_name else text.replace(old, end)
        if turn_of(name, self._render, self.special).end != end:
            raise UserError(
                f"data.end_of_turn: the chat template does not write its {old!r} as text, so {end!r} cannot be put "
                "there; give a template that ends turns with it (data.chat_template)"
            )

    def _learn_template(self) -> None:
        """Find `lead`, `strip`, `closing` and `end`: a turn is generation prompt + lead + strip(reply) + closing + end;
        and `behind`: whether a reply is spelt as a text that follows another one.

        What else the template writes around a reply is moved into or out of its generation prompt first.
        """
        name = self.tokenizer.name_or_path
        turn = turn_of(name, self._render, self.special)
        if turn.extra:
            self.tokenizer.chat_template = without_ending(self.tokenizer.chat_template, turn.extra)
            self.notes.append(f"the template's generation prompt ends with {turn.extra!r}, a finished turn does not")
            turn = turn_of(name, self._render, self.special)
        if turn.lead and (turn.lead.strip() or self._splits_after(turn)):
            self.tokenizer.chat_template = with_opening(self.tokenizer.chat_template, turn.lead)
            self.notes.append(
                f"the template writes {turn.lead!r} before every reply: it ends the generation prompt now"
            )
            turn = turn_of(name, self._render, self.special)
        if turn.extra or turn.lead.strip():
            raise UserError(f"{name}: the chat template's generation prompt cannot be found; {WAY_ON}")
        self.lead, self.strip, self.closing, self.end = turn.lead, turn.strip, turn.closing, turn.end
        self._written_lead = turn.lead
        prompt, spelt = self.spelling.ids(self._render(ASKED, True)), self.spelling.ids
        whole = {text: spelt(self._render((*ASKED, Message("assistant", text)), False)) for text in REPLIES}
        # A tokenizer may put a space before every text it is given: the template's own would be a second one, and where
        # it has none there would be one too many.
        ways = [(lead, behind) for behind in (False, True) for lead in (self.lead, "")]

        def exact(way: tuple[str, bool]) -> int:
            lead, behind = way
            found = {text: prompt + spelt(lead + text + self.closing, behind=behind) for text in REPLIES}
            return sum(whole[text][: len(ids)] == ids for text, ids in found.items())

        self.lead, self.behind = max(ways, key=exact)

    def _splits_after(self, turn: Turn) -> bool:
        """Whether white space before a reply can be tokenised with the prompt; a space joins the word that follows."""
        start, ids = self._render(ASKED, True) + turn.lead, self.spelling.ids
        return not turn.lead.endswith(" ") and any(
            all(ids(start + text) == ids(start) + ids(text, behind=behind) for text in REPLIES)
            for behind in (False, True)
        )

    def _control_ids(self, ends: Collection[int]) -> frozenset[int]:
        """The special tokens that no text spells. One that the tokenizer makes of ordinary text, such as a word that
        was named as the pad token, is text; but what the template marks turns with never is."""
        name, spelling = self.tokenizer.name_or_path, self.spelling
        spelling.protect({self.eos_id, self.tokenizer.eos_token_id, *self._marks(), *spelling.special.keys() & {*ends}})
        if spelling.spelt(self.eos_id):
            raise UserError(
                f"{name}: turns end with {self.end!r}, which ordinary text holds too, so a reply would end amid its "
                f"words; end them with a special token: data.end_of_turn: TOKEN, one of {sorted(self.special)}, or "
                "a template that writes another one (data.chat_template)"
            )
        return frozenset(token for token in spelling.special if not spelling.spelt(token))

    def _marks(self) -> set[int]:
        """The tokens, special or not, that the template writes around what a person said, and first of all where the
        assistant begins. Those of a thought are none: a reply may hold them."""
        asked = self._render(ASKED, False)
        opens = self._render(ASKED, True).removeprefix(asked)
        with contextlib.suppress(UserError):
            asked += self._render((Message("system", "Words."), *ASKED), False)
        return {i for i, text in self.spelling.added.items() if text and (text in asked or opens.startswith(text))}

    def _render(self, messages: Sequence[Message], generate: bool) -> str:
        turns = [message.as_json() for message in messages]
        if self.system is not None and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": self.system})
        try:
            return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generate)
        except Exception as error:  # a template is foreign code: what it takes the length or a key of is its business
            roles = ", ".join(turn["role"] for turn in turns)
            kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
            raise UserError(
                f"{self.tokenizer.name_or_path}: the chat template refuses the turns {roles}: {kind}{error}; "
                f"{'leave data.system out, or ' if self.system is not None else ''}{WAY_ON}"
            ) from error

    def check_turns(self, messages: Sequence[Message]) -> None:
        """UserError where the template refuses these roles, leaves a message out, or writes them otherwise once a reply
        follows: what is trained on would not be what a server asks."""
        turns = tuple(Message(message.role, f"Words {number}.") for number, message in enumerate(messages))
        roles = ", ".join(turn.role for turn in turns)
        asked = self._render(turns, True)
        answered = self._render((*turns, Message("assistant", REPLIES[0])), False)
        where = f"{self.tokenizer.name_or_path}: the chat template, given the turns {roles},"
        for turn in turns:
            if turn.content not in asked:
                raise UserError(f"{where} leaves out the {turn.role} message; {WAY_ON}")
            if turn.content not in answered:
                raise UserError(f"{where} leaves out the {turn.role} message once a reply follows; {WAY_ON}")
        if not answered.startswith(asked + self._written_lead + self.strip(REPLIES[0])):
            raise UserError(f"{where} writes them otherwise once a reply follows; {WAY_ON}")

    @cached_property
    def _markers(self) -> list[str]:
        def differs(reply: str) -> bool:
            try:
                written = self._render((*ASKED, Message("assistant", reply)), False)
            except UserError:
                return True
            return not written.startswith(start + reply + self.closing)

        start = self._render(ASKED, True) + self._written_lead
        return markers(self.tokenizer.chat_template, self.special, differs)

    def rewrites(self, replies: Iterable[str]) -> str | None:
        """A text in one of the replies for which the template would write another reply (`</think>`), if there is one:
        tokens that are learnt would not be those of the template."""
        return next((marker for reply in replies for marker in self._markers if marker in reply), None)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the conversation up to and with the generation prompt.

        Special-token strings that a person typed stay plain text: they must not end or fake a turn. So where there
        are any, the template is rendered around place holders, and each content is tokenised by itself.
        """
        return self.spelling.span(self._render(self.spelling.hold(messages), True), messages)

    def asked(self, ids: Sequence[int]) -> str:
        """A prompt of these ids as a reader wants it: without the system message and what the template writes around
        it; all of it where it does not begin and end as a single turn does."""
        before, after = self._frame
        start, end = len(before), len(ids) - len(after)
        framed = start <= end and [*ids[:start]] == before and [*ids[end:]] == after
        return str(self.tokenizer.decode(ids[start:end] if framed else ids, skip_special_tokens=True)).strip()

    @cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        """What stands before and after a single turn: what two of them share."""
        first, second = (self.prompt_ids((Message("user", text),)) for text in ("a", "b"))
        start, end = (_shared(first[::way], second[::way]) for way in (1, -1))
        return first[:start], first[len(first) - end :]

    def conversation_ids(self, messages: Sequence[Message], reply: str) -> tuple[list[int], list[bool]]:
        """Ids of a whole conversation, and which of them an assistant wrote: every turn, end-of-turn tokens included.

        UserError when the template does not write the earlier turns of a conversation as it wrote them when they were
        the last ones (one that moves the system message, or drops thoughts): their tokens could not be masked.
        """
        messages = (*messages, Message("assistant", reply))
        held = self.spelling.hold(messages)
        ids: list[int] = []
        written: list[bool] = []
        done = ""
        for number, message in enumerate(messages):
            if message.role != "assistant":
                continue
            text = self._render(held[:number], True)
            if not text.startswith(done):
                raise UserError(
                    f"{self.tokenizer.name_or_path}: the chat template writes an earlier turn otherwise once the "
                    f"conversation goes on ({done[-40:]!r} is gone), so only the last turn can be masked exactly; "
                    "set sft.learn=last"
                )
            span = self.spelling.span(text[len(done) :], messages, after=done)
            turn = self.reply_ids(Completion(message.content))
            ids += span + turn
            written += [False] * len(span) + [True] * len(turn)
            done = text + self._written_lead + self.strip(held[number].content) + self.closing + self.end
        return ids, written

    def reply_ids(self, reply: Completion) -> list[int]:
        """Ids of a reply, closed by the end-of-turn token unless the length limit cut it; typed special-token
        strings stay plain text here too."""
        text = self.lead + (self.strip(reply.text) + self.closing if reply.finished else reply.text)
        ids = self._plain_ids(text)
        return [*ids, self.eos_id] if reply.finished else ids

    def _plain_ids(self, text: str) -> list[int]:
        return self.spelling.ids(text, plain=True, behind=self.behind)

    def completion(self, ids: Sequence[int]) -> Completion:
        """The reply that sampled `ids` spell; its end-of-turn token, if any, is the last one.

        Control tokens leave no text, and nothing else goes: a pad token may be an ordinary word. Of a character that
        the length limit cut nothing is left.
        """
        finished = bool(ids) and ids[-1] in self.ends
        text = self._spelt(ids)
        if not finished and text.endswith(_BROKEN) and self._plain_ids(text) != list(ids):
            text = text.rstrip(_BROKEN)
        text = text.removesuffix(self.closing) if finished else text
        return Completion(text.removeprefix(self.lead), finished)

    def _spelt(self, ids: Sequence[int]) -> str:
        return self.spelling.text([token for token in ids if token not in self.control], behind=self.behind)

    def changed_share(self, replies: Sequence[Sequence[int]]) -> float:
        """Share of sampled replies whose text becomes other ids: characters that were cut or that are none, control
        tokens amid the text, another way to spell it, another end than the template's."""
        return sum(self.reply_ids(self.completion(ids)) != list(ids) for ids in replies) / len(replies)


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two sequences begin with in common."""
    differ = (place for place, (one, other) in enumerate(zip(first, second, strict=False)) if one != other)
    return next(differ, min(len(first), len(second)))


def _default_template(tokenizer: Any) -> tuple[str, str]:
    """(name, template) for a tokenizer that has none."""
    # Where the tokenizer opens every text with BOS by itself, the model was trained to see it there.
    opens = tokenizer.bos_token is not None and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
    bos = "{{ bos_token }}" if opens else ""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return ("ChatML", bos + _TURNS) if {"<|im_start|>", "<|im_end|>"} <= special else ("plain text", bos + _PLAIN)


def _pad_id(tokenizer: Any, ends: Collection[int], control: frozenset[int]) -> int:
    """An id for padding that does not end a reply and, if there is one, that no ordinary text contains.

    Masks come from lengths, so inside Plaudit any id would do; an exported reward model is read by transformers at
    the rightmost token that is not the pad id, and there pad = EOS would move the score. A byte that UTF-8 never has is
    a token of many vocabularies that have no other (GPT-2's).
    """
    taken = {*ends, tokenizer.eos_token_id, tokenizer.bos_token_id}
    special = sorted(control - taken)
    if tokenizer.pad_token_id in special:
        return tokenizer.pad_token_id
    if special:
        # The unknown token is the last choice: a byte-level tokenizer never emits it, others do.
        return next((i for i in special if i != tokenizer.unk_token_id), special[0])
    vocabulary = tokenizer.get_vocab()
    bytes_ = [vocabulary[name] for name in NEVER_TEXT if name in vocabulary]
    if never := [i for i in bytes_ if tokenizer.decode([i]) == _BROKEN]:
        return never[0]
    if tokenizer.pad_token_id in {None, *taken}:
        raise UserError(
            f"{tokenizer.name_or_path}: no special token but EOS to pad with; add one to the tokenizer, and a row for "
            "it to the model: model.resize_token_embeddings(len(tokenizer))"
        )
    return tokenizer.pad_token_id
