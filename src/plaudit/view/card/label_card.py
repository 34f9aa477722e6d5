"""A reward model's card on labels of single replies: does it score what people liked above what they did not?

`label_card` takes labels and a score for each, like `report_card` of rankings. The AUC is the share of pairs of a liked
reply and another one, of whatever prompts, that the scores order rightly; beside it stand what the reply's length and
what knowing the annotator alone reach, both learnt on the training labels.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from plaudit.algo.statistics import auc, correlation
from plaudit.records import Labelled
from plaudit.rewards.contract import RewardContract
from plaudit.view.card.alarms import label_alarms
from plaudit.view.card.reward_report import card_scores

LABELS_SHOWN = ("labels_train", "labels_test", "auc", "auc_ci", "length_baseline_auc", "annotator_baseline_auc")


def label_card(labels: Sequence[Labelled], scores_N: ArrayLike, train: Sequence[Labelled]) -> dict[str, Any]:
    """The card, as JSON can hold it, of the scores [N] of the held-out `labels`; `train` are those learnt from. Labels
    of both kinds are needed on either side."""
    scores = np.asarray(scores_N, dtype=np.float64)
    liked, number_of = [one.label for one in labels], dict[Any, int]()
    prompts = [number_of.setdefault(one.prompt.messages, len(number_of)) for one in labels]
    everyone = Counter(one.annotator for one in (*train, *labels) if one.annotator is not None)
    most = everyone.most_common(1)[0] if everyone else None
    of_train, of_labels = ([len(one.completion) for one in rows] for rows in (train, labels))
    longer = auc(of_train, [one.label for one in train], range(len(train)))[0] >= 0.5

    def measured(values: ArrayLike) -> dict[str, Any]:
        value, interval = auc(values, liked, prompts)
        return {"auc": value, "auc_ci": interval}

    card = {
        "counts": {
            "labels": len(labels),
            "liked": sum(liked),
            "prompts": len(number_of),
            "annotators": len(everyone),
            "train_labels": len(train),
            "train_liked": sum(one.label for one in train),
        },
        **measured(scores),
        "length": {
            "rule": "the longer the better" if longer else "the shorter the better",
            **measured(of_labels if longer else [-characters for characters in of_labels]),
            "score_correlation": correlation(scores, of_labels),
        },
        "annotators": measured(_readiness(train, labels)) if everyone else None,
        "most_labels": {"annotator": most[0], "share": most[1] / (len(train) + len(labels))} if most else None,
        "scores": {"mean": float(scores.mean()), "std": float(scores.std())},
    }
    return {**card, "alarms": label_alarms(card)}


def _readiness(train: Sequence[Labelled], labels: Sequence[Labelled]) -> list[float]:
    """Of each label: the share of training labels that its annotator gave and that are true, (k + ½)/(n + 1); of
    annotators who gave none, that of all."""
    given, liked = (Counter(one.annotator for one in train if one.label or every) for every in (True, False))
    overall = sum(one.label for one in train) / len(train)
    shares = {name: (liked[name] + 0.5) / (given[name] + 1) for name in given if name is not None}
    return [overall if one.annotator is None else shares.get(one.annotator, overall) for one in labels]


def held_out_labels(
    raw_BM: Tensor, contract: RewardContract, train: Sequence[Labelled], test: Sequence[Labelled]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the reward stage's summary, the card) of the members' raw scores of the replies of `test`."""
    card = label_card(test, card_scores(raw_BM, contract), train)
    people, counts, length = card["annotators"], card["counts"], card["length"]
    summary = {
        "labels_train": counts["train_labels"],
        "labels_test": counts["labels"],
        "auc": card["auc"],
        "auc_ci": card["auc_ci"],
        "length_baseline_auc": length["auc"],
        "length_baseline_auc_ci": length["auc_ci"],
        "annotator_baseline_auc": people and people["auc"],
        "length_score_correlation": length["score_correlation"],
        "score_mean": contract.mean[0],
        "score_std": contract.std[0],
    }
    return summary, card
