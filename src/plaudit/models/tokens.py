"""Token sequences as tensors: prompts and replies padded on the right, with their lengths.

Attention is causal, so padding on the right cannot reach a real token: no attention mask is needed and position ids
are simply 0, 1, 2, ... (docs/correctness.md, row 1). Masks come from the lengths (row 2).

SFT learns from conversations, where several stretches of a sequence may count: its batches (`Batch`) carry their mask,
and their sequences may also lie end to end in one row. So may the replies whose scores are read (`ReplyRow`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from plaudit.data.packing import Example
from plaudit.models.kernels.segments import Segment

SHARED_FROM = 0.1
"""Share of a row's tokens that a common start must save to be worth its more complicated attention; drawn by judgement,
not by a measurement."""


@dataclass(frozen=True)
class Tokens:
    """B sequences of prompt + reply, right-padded to T columns."""

    tokens_BT: Tensor
    prompt_lengths_B: Tensor
    lengths_B: Tensor

    @property
    def mask_BT(self) -> Tensor:
        """True where column t's action, token t+1, is a reply token: prompt_length − 1 ≤ t < length − 1."""
        t = torch.arange(self.tokens_BT.shape[1], device=self.tokens_BT.device)
        return (t >= self.prompt_lengths_B[:, None] - 1) & (t < self.lengths_B[:, None] - 1)

    @property
    def last_B(self) -> tuple[Tensor, Tensor]:
        """(row, column) of the last token of every sequence, where its score is read."""
        return torch.arange(len(self.lengths_B), device=self.tokens_BT.device), self.lengths_B - 1

    @property
    def acted_on(self) -> "Tokens":
        """All but the last token of every sequence: no action follows that one, so its state is only worth a value."""
        shorter_B = self.lengths_B - 1
        return Tokens(self.tokens_BT[:, :-1], torch.minimum(self.prompt_lengths_B, shorter_B), shorter_B)

    @property
    def reply_lengths_B(self) -> Tensor:
        return self.lengths_B - self.prompt_lengths_B

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        """The ids of every sequence's prompt."""
        starts = self.prompt_lengths_B.tolist()
        return [tuple(ids[:start]) for ids, start in zip(self.tokens_BT.tolist(), starts, strict=True)]

    @property
    def replies(self) -> list[list[int]]:
        """The ids of every sequence's reply."""
        starts, ends = self.prompt_lengths_B.tolist(), self.lengths_B.tolist()
        return [ids[start:end] for ids, start, end in zip(self.tokens_BT.tolist(), starts, ends, strict=True)]

    def rows(self, index: Sequence[int]) -> "Tokens":
        """The given rows, as wide as the longest of them: columns that only pad are dropped."""
        rows = torch.as_tensor(index, device=self.tokens_BT.device)
        lengths_b = self.lengths_B[rows]
        return Tokens(self.tokens_BT[rows, : int(lengths_b.max())], self.prompt_lengths_B[rows], lengths_b)


def pad_right(
    prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> Tokens:
    """Join each prompt with its reply and pad to the longest; no prompt is empty."""
    assert len(prompts) == len(replies) and all(len(prompt) > 0 for prompt in prompts)
    sequences = [torch.tensor([*prompt, *reply]) for prompt, reply in zip(prompts, replies, strict=True)]
    return Tokens(
        pad_sequence(sequences, batch_first=True, padding_value=pad_id).to(device),
        torch.tensor([len(prompt) for prompt in prompts], device=device),
        torch.tensor([len(sequence) for sequence in sequences], device=device),
    )


@dataclass(frozen=True)
class Batch:
    """Examples with their own mask: one a row and right-padded, or all in one row of `segments`."""

    tokens_BT: Tensor
    mask_BT: Tensor
    segments: tuple[Segment, ...] | None = None


@dataclass(frozen=True)
class ReplyRow:
    """Prompts and replies in one row without padding; `columns_B` are the last tokens of B sequences prompt + reply."""

    tokens_BT: Tensor
    columns_B: Tensor
    segments: tuple[Segment, ...]

    @property
    def last_B(self) -> tuple[Tensor, Tensor]:
        """(row, column) of the last token of every sequence, where its score is read."""
        return torch.zeros_like(self.columns_B), self.columns_B


def _one_row(
    groups: Iterable[tuple[Sequence[int], Sequence[Sequence[int]]]],
) -> tuple[list[int], tuple[Segment, ...], list[list[int]]]:
    """Groups of a start and what follows it in one row, the start once a group; without a start a group is one
    sequence. The row, its segments, and where it has the tokens of each sequence, in order."""
    ids: list[int] = []
    segments: list[Segment] = []
    places: list[list[int]] = []
    for start, ends in groups:
        segments.append((len(start), *map(len, ends)) if start else len(ends[0]))
        shared = range(len(ids), len(ids) + len(start))
        ids += start
        for end in ends:
            places.append([*shared, *range(len(ids), len(ids) + len(end))])
            ids += end
    return ids, tuple(segments), places


def pack_tokens(tokens: Tokens) -> tuple[ReplyRow, Tensor]:
    """The sequences in one row without padding, what they share there once; and where the row holds every token,
    [B, T]: place 0 for padding, whose states nobody reads.

    Shared is the prompt of several replies or, where that saves more, the start that all prompts have: a system
    message.
    """
    device, whole, lengths = tokens.tokens_BT.device, tokens.tokens_BT.tolist(), tokens.lengths_B.tolist()
    groups = _shared(tokens.prompts)
    ids, segments, places = _one_row(
        (whole[rows[0]][:shared], [whole[row][shared : lengths[row]] for row in rows]) for shared, rows in groups
    )
    places_BT = torch.zeros(tokens.tokens_BT.shape, dtype=torch.int64)  # on the CPU: it is written row by row
    for row, where in zip((row for _, rows in groups for row in rows), places, strict=True):
        places_BT[row, : len(where)] = torch.tensor(where)
    places_BT = places_BT.to(device)
    return ReplyRow(torch.tensor([ids], device=device), places_BT[tokens.last_B], segments), places_BT


def _shared(prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, list[int]]]:
    """(Leading tokens that they share, rows) of groups of rows; a row by itself shares none."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        alike.setdefault(prompt, []).append(row)
    start = _common_start(list(alike))
    if start * (len(prompts) - 1) > sum(len(prompt) * (len(rows) - 1) for prompt, rows in alike.items()):
        return [(start, list(range(len(prompts))))]
    return [(len(prompt) if len(rows) > 1 else 0, rows) for prompt, rows in alike.items()]


def _common_start(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows start with: those that the first and the last of them in order have in common."""
    ordered = sorted(map(tuple, rows))
    low, high = ordered[0], ordered[-1]
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))


def pad_examples(examples: Sequence[Example], pad_id: int, device: torch.device) -> Batch:
    """One example a row."""
    ids = [torch.tensor([*example.ids]) for example in examples]
    learnt = [torch.tensor([*example.learnt[1:], False], dtype=torch.bool) for example in examples]
    ids_BT = pad_sequence(ids, batch_first=True, padding_value=pad_id)
    return Batch(ids_BT.to(device), pad_sequence(learnt, batch_first=True).to(device))


def pack_examples(examples: Sequence[Example], device: torch.device, *, share: bool = False) -> Batch:
    """All examples in one row; the last column of each is masked: its next token belongs to another example.

    With `share` the tokens that all of them start with and none of them learns, a system message, are there once.
    """
    shared = 0
    if share:
        # What follows the shared part is another token in every example, so none of those may be learnt.
        unlearnt = [[*map(bool, example.learnt), True].index(True) - 1 for example in examples]
        shared = min(_common_start([example.ids for example in examples]), *unlearnt)
        if shared * (len(examples) - 1) < SHARED_FROM * sum(len(example.ids) for example in examples):
            shared = 0
    whole = [example.ids for example in examples]
    groups = [(whole[0][:shared], [one[shared:] for one in whole])] if shared else [((), [one]) for one in whole]
    ids, segments, _ = _one_row(groups)
    learnt = [False] * shared + [counts for e in examples for counts in (*e.learnt[shared + 1 :], False)]
    return Batch(torch.tensor([ids], device=device), torch.tensor([learnt], dtype=torch.bool, device=device), segments)


def pack_replies(
    groups: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]], device: torch.device, *, share: bool
) -> ReplyRow:
    """Groups of a prompt and its replies in one row; with `share` the prompt's tokens are there once a group.

    Sequences stand in the order of the groups and of the replies in them; no prompt is empty.
    """
    assert all(prompt and replies for prompt, replies in groups)
    if not share:
        groups = [((), [[*prompt, *reply]]) for prompt, replies in groups for reply in replies]
    ids, segments, places = _one_row(groups)
    columns = [where[-1] for where in places]
    return ReplyRow(torch.tensor([ids], device=device), torch.tensor(columns, device=device), segments)
