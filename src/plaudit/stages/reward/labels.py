"""Labels of single replies as the reward model learns them: a logistic loss beside that of the rankings, or alone.

    loss = −(1/n) [Σ_rankings (...) + λ Σ_labels log σ(±(r_θ(x, y) + b))],   n rankings and labels in the step

b says how ready people are to like anything: one number for all, or one for each annotator. It is learnt and thrown
away; the score is r_θ alone.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plaudit.algo.preferences import logistic_loss
from plaudit.data.chat import ChatFormat
from plaudit.errors import UserError
from plaudit.records import Completion, Labelled

Places = Mapping[str | None, int]
"""Annotator -> place of their bias; None is everybody else."""


@dataclass(frozen=True)
class EncodedLabel:
    """A label in tokens: its one reply, and the place of its annotator's bias."""

    labelled: Labelled
    prompt: list[int]
    replies: list[list[int]]
    place: int


def divided_labels(labels: Sequence[Labelled], where: str) -> tuple[list[Labelled], list[Labelled]]:
    """The labels to learn from and those to test on; UserError, which names their file, where either is all of a
    kind."""
    learnt = [one for one in labels if one.prompt.split == "train"]
    test = [one for one in labels if one.prompt.split != "train"]
    for rows, which in ((learnt, "training"), (test, "held-out")):
        liked = sum(one.label for one in rows)
        if liked in (0, len(rows)):
            raise UserError(
                f"{where}: {liked} of {len(rows)} {which} labels are true; the reward model needs both kinds of both "
                "to learn and to be tested: give each row a field 'split', train for most and validation or test for "
                "some (a row without one is of split train)"
            )
    return learnt, test


Sides = tuple[Sequence[int], Sequence[int]]
"""Of pairs of replies: the numbers of the better ones and of the worse ones."""
PAIRED = 64


def sides_of_labels(test: Sequence[Labelled]) -> Sides:
    """Every liked reply with every one that was not, of the first `PAIRED` of either, on the validation split where it
    has both: of such two the liked one is the first with probability σ(r_1 − r_2) (`logistic_loss`)."""
    for split in (("validation",), ("validation", "test")):
        numbers = [n for n, one in enumerate(test) if one.prompt.split in split]
        liked, not_liked = ([n for n in numbers if test[n].label == kind][:PAIRED] for kind in (True, False))
        if liked and not_liked:
            break
    return [n for n in liked for _ in not_liked], not_liked * len(liked)


def places_of(annotator_bias: bool, learnt: Sequence[Labelled]) -> Places:
    """Everybody shares a bias, or each annotator of the labels `learnt` has one of their own."""
    names = sorted({one.annotator for one in learnt if one.annotator is not None}) if annotator_bias else []
    return {None: 0, **{name: place for place, name in enumerate(names, start=1)}}


def starting_biases(places: Places, learnt: Sequence[Labelled]) -> Tensor:
    """The log-odds (k + ½)/(n − k + ½) of the k of n labels that were liked: the best bias while all scores are 0. That
    of `None` is over all labels."""
    of_place: dict[int, list[bool]] = defaultdict(list)
    for one in learnt:
        of_place[places.get(one.annotator, 0)].append(one.label)
    of_place[0] = [one.label for one in learnt]
    counts = [(sum(of_place[place]), len(of_place[place])) for place in range(len(places))]
    return torch.tensor([(k + 0.5) / (n - k + 0.5) for k, n in counts]).log()


def encode_labels(chat: ChatFormat, places: Places, labels: Sequence[Labelled]) -> list[EncodedLabel]:
    """The labels in tokens."""
    return [
        EncodedLabel(
            one,
            chat.prompt_ids(one.prompt.messages),
            [chat.reply_ids(Completion(one.completion))],
            places.get(one.annotator, 0),
        )
        for one in labels
    ]


def labels_loss(scores_N: Tensor, examples: Sequence[EncodedLabel], biases: Tensor) -> tuple[Tensor, float]:
    """(Σ over the labels of their losses, labels that r + b gets right, ½ at 0); `scores_N` of their replies."""
    labels_N = scores_N.new_tensor([float(example.labelled.label) for example in examples])
    biases_N = biases[[example.place for example in examples]]
    right = (torch.sign((scores_N + biases_N) * (labels_N - 0.5)) / 2 + 0.5).sum().item()
    return logistic_loss(scores_N, labels_N, torch.ones_like(scores_N), biases_N), right
