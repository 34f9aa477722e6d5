"""How a tokenizer spells a stretch of text that stands amid others.

Two things that it does to a text given to it alone it does not do to the same text in a conversation:

- SentencePiece's and RoBERTa's kinds put a space before it. Behind a prompt that ends in a line break the template's
  own text has none, so it is tokenised behind an anchor, whose ids are taken off again (`behind`);
- a vocabulary may have a special token among its words (Unigram's `</s>`), and then plain text spells it, whatever is
  asked. `protect` names those that no text may spell: they are broken in two, `<` and `/s>`.
"""

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

from plaudit.records import Message

ANCHOR = "\ue000"
"""A letter of the private use area: no word of any language begins or goes on with it."""
_HOLDER = re.compile("\ue000(\\d+)\ue001")
_NAME = re.compile(r"\w[^\w\s]|[^\w\s]\w")
"""Letters and marks side by side."""


class Spelling:
    """Ids of texts, and back, of one transformers tokenizer."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        self.special = {i: token.content for i, token in added if token.special}
        self.special |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        self.added = {i: token.content for i, token in added} | self.special
        """Id -> text of all tokens that are found in a text before it is split into words."""
        self._broken: frozenset[int] = frozenset()
        self._breaks: re.Pattern[str] | None = None

    def ids(self, text: str, *, plain: bool = False, behind: bool = False) -> list[int]:
        """Ids of a text. `plain`: what reads like a special token in it stays text. `behind`: it follows another text,
        which ends in no special token, so no space is put before it."""
        found = self._raw(text, plain, behind)
        if not plain or self._breaks is None or self._broken.isdisjoint(found):
            return found
        cuts = [0, *(token.start() + 1 for token in self._breaks.finditer(text)), len(text)]
        pieces = (self._raw(text[start:end], plain, behind or start > 0) for start, end in pairwise(cuts))
        return [token for piece in pieces for token in piece]

    def _raw(self, text: str, plain: bool, behind: bool) -> list[int]:
        behind = behind and self.spaces
        whole = ANCHOR + text if behind else text
        found: list[int] = self.tokenizer(whole, add_special_tokens=False, split_special_tokens=plain)["input_ids"]
        return found[len(self._anchor) :] if behind else found

    def text(self, ids: Sequence[int], *, behind: bool = False) -> str:
        """The text that ids spell; a space that a decoder takes off the first word is kept where they stand `behind`
        another text."""
        if behind and self.spaces:
            before, whole = self._decoded(self._anchor), self._decoded([*self._anchor, *ids])
            if whole.startswith(before):
                return whole.removeprefix(before)
        return self._decoded(ids)

    def _decoded(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    @cached_property
    def _anchor(self) -> list[int]:
        return self.ids(ANCHOR)

    @cached_property
    def spaces(self) -> bool:
        """Whether the tokenizer puts a space before a text that it is given."""
        bare, spaced = (self.ids(ANCHOR + text)[len(self._anchor) :] for text in ("Hi.", " Hi."))
        return bare != spaced == self.ids("Hi.") and self._decoded([*self._anchor, *bare]).endswith("Hi.")

    @cached_property
    def _spaces_behind_special(self) -> bool:
        """Whether it does so behind a special token too."""
        end = self.tokenizer.eos_token
        return bool(end) and self.ids(end + "Hi.") == [*self.ids(end), *self.ids("Hi.")]

    def spelt(self, token: int) -> bool:
        """Whether plain text that reads like a token of `added` becomes that very token."""
        alone, amid = (self.ids(self.added[token], plain=True, behind=behind) for behind in (False, True))
        return token != self.tokenizer.unk_token_id and token in {*alone, *amid}

    def protect(self, tokens: Iterable[int]) -> None:
        """From here on no plain text spells these tokens of `added`, nor special ones whose text is no word (`<pad>`);
        but for those of a single letter."""
        asked = {*tokens, *(token for token, text in self.special.items() if _NAME.search(text))}
        broken = {token: self.added[token] for token in asked if len(self.added[token]) > 1 and self.spelt(token)}
        if broken:
            longest = sorted(broken.values(), key=len, reverse=True)
            self._broken, self._breaks = frozenset(broken), re.compile("|".join(map(re.escape, longest)))

    def hold(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """`messages` themselves, or with place holders as contents where one holds the text of a token that only the
        template may write."""
        texts = {*self.special.values(), *(self.added[token] for token in self._broken)}
        contents = [message.content for message in messages]
        if not any(_HOLDER.search(text) or any(token in text for token in texts) for text in contents):
            return tuple(messages)
        return tuple(Message(message.role, f"\ue000{i}\ue001") for i, message in enumerate(messages))

    def span(self, text: str, messages: Sequence[Message], after: str = "") -> list[int]:
        """Ids of a stretch of a rendering that follows the text `after`; contents behind place holders are tokenised by
        themselves, as plain text."""
        ids: list[int] = []
        for i, part in enumerate(_HOLDER.split(text)):
            words = messages[int(part)].content if i % 2 else part
            if not words:
                continue
            special = next((token for token in self.added.values() if token and after.endswith(token)), None)
            if special is not None and i % 2 == 0:  # the token may take white space that follows it (Phi-3's)
                ids += self.ids(special + words)[len(self.ids(special)) :]
            else:
                opens = not after or (special is not None and self._spaces_behind_special)
                ids += self.ids(words, plain=bool(i % 2), behind=not opens)
            after = ANCHOR if i % 2 else words
        return ids
