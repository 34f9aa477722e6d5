"""Chat template -> token ids. The one place where text becomes tokens, for every stage.

A sequence is prompt ids + reply ids + end-of-turn id. The prompt is rendered by the tokenizer's own template with its
generation prompt; the reply is tokenised by itself, so the ids of a text are the same in SFT, in the reward stage and
in PPO, whose sampled ids follow the very same prompt ids (correctness.md rows 21 and 22). A template may write more
after the end of the turn (SmolLM2 writes a newline); a sampled reply stops at the end-of-turn token, so that is where
every reply stops here and where the reward model reads its score.
"""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from plaudit.errors import UserError
from plaudit.records import Completion, Message


class ChatFormat:
    """Turns prompts and replies into ids with one tokenizer; refuses a template it cannot be exact about."""

    def __init__(self, tokenizer: Any, system: str | None = None):
        """`tokenizer` is a transformers tokenizer with a chat template; `system` opens every prompt that has none."""
        if not tokenizer.chat_template:
            raise UserError(
                f"{tokenizer.name_or_path}: the tokenizer has no chat template; use an instruction-tuned model"
            )
        if tokenizer.eos_token_id is None:
            raise UserError(f"{tokenizer.name_or_path}: the tokenizer has no EOS token, so no reply could ever end")
        self.tokenizer = tokenizer
        self.system = system
        self.eos_id: int = tokenizer.eos_token_id
        self.pad_id: int = _pad_id(tokenizer)
        self._check_template()

    def _check_template(self) -> None:
        probe = (Message("user", "Hello there."),)
        prompt = self._render(probe, generate=True)
        full = self._render((*probe, Message("assistant", "Hi.")), generate=False)
        if not full.startswith(prompt + "Hi." + self.tokenizer.eos_token):
            raise UserError(
                f"{self.tokenizer.name_or_path}: the chat template does not write an assistant turn as generation "
                f"prompt + reply + {self.tokenizer.eos_token!r}; it gave {full!r}, so its completion tokens "
                "cannot be masked exactly"
            )

    def _render(self, messages: Sequence[Message], *, generate: bool) -> str:
        turns = [message.as_json() for message in messages]
        if self.system is not None and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": self.system})
        try:
            return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generate)
        except TemplateError as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise UserError(
                f"{self.tokenizer.name_or_path}: the chat template refuses the turns {roles}: {error}"
                + ("; leave data.system out" if self.system is not None else "")
            ) from error

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the conversation up to and with the generation prompt.

        Special-token strings that a person typed stay plain text: they must not end or fake a turn. So where there
        are any, the template is rendered around place holders, and each content is tokenised by itself.
        """
        if not any(token in message.content for message in messages for token in self.tokenizer.all_special_tokens):
            return self._ids(self._render(messages, generate=True))
        holders = [f"\ue000{number}\ue001" for number in range(len(messages))]
        held = [Message(message.role, holder) for message, holder in zip(messages, holders, strict=True)]
        rest, ids = self._render(held, generate=True), []
        for message, holder in zip(messages, holders, strict=True):
            before, rest = rest.split(holder)
            ids += self._ids(before) + self._ids(message.content, split_special_tokens=True)
        return ids + self._ids(rest)

    def _ids(self, text: str, *, split_special_tokens: bool = False) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=split_special_tokens)["input_ids"]

    def reply_ids(self, reply: Completion) -> list[int]:
        """Ids of a reply, closed by the end-of-turn token unless the length limit cut it; typed special-token
        strings stay plain text here too."""
        ids = self._ids(reply.text, split_special_tokens=True)
        return [*ids, self.eos_id] if reply.finished else ids

    def completion(self, ids: Sequence[int]) -> Completion:
        """The reply that sampled `ids` spell; its end-of-turn token, if any, is the last one."""
        finished = bool(ids) and ids[-1] == self.eos_id
        return Completion(self.tokenizer.decode(ids[:-1] if finished else ids, skip_special_tokens=True), finished)


def _pad_id(tokenizer: Any) -> int:
    """An id for padding that is not the end-of-turn token and that no ordinary text contains.

    Masks come from lengths, so inside Plaudit any id would do; an exported reward model is read by transformers at
    the rightmost token that is not the pad id, and there pad = EOS would move the score.
    """
    taken = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in taken:
        return tokenizer.pad_token_id
    special = sorted(i for i, token in tokenizer.added_tokens_decoder.items() if token.special and i not in taken)
    if special:
        # The unknown token is the last choice: a byte-level tokenizer never emits it, others do.
        return next((i for i in special if i != tokenizer.unk_token_id), special[0])
    raise UserError(f"{tokenizer.name_or_path}: no special token but EOS to pad with; add a pad token to the tokenizer")
