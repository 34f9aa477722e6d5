"""The card on labels of single replies: its numbers by hand, and what is suspicious."""

import json
from typing import Any

import pytest

from plaudit.records import Labelled, Message, Prompt
from plaudit.view.card.label_card import label_card


def labels(*rows: tuple[bool, int, str | None], split: str = "test") -> list[Labelled]:
    """(liked, characters of the reply, annotator), each of a prompt of its own."""
    return [
        Labelled(Prompt(str(n), (Message("user", f"Question {split} {n}?"),), "x", split), "a" * size, liked, who)
        for n, (liked, size, who) in enumerate(rows)
    ]


def kinds(card: dict[str, Any]) -> set[str]:
    return {alarm["kind"] for alarm in card["alarms"]}


def test_the_numbers_by_hand() -> None:
    """In training the longer reply is liked, so length is judged by "the longer the better": 3 of 4 pairs here. Anna
    likes 2 of 2 in training and Ben 0 of 2, which orders their two labels rightly and ties nothing else."""
    train = labels((True, 9, "anna"), (True, 8, "anna"), (False, 1, "ben"), (False, 2, "ben"), split="train")
    test = labels((True, 4, "anna"), (False, 1, "ben"), (True, 2, None), (False, 3, None))
    card = label_card(test, [2.0, 1.0, 0.0, 0.5], train)
    assert card["counts"] == {
        "labels": 4,
        "liked": 2,
        "prompts": 4,
        "annotators": 2,
        "train_labels": 4,
        "train_liked": 2,
    }
    assert card["auc"] == 0.5, "2 above both, 0 above none"
    assert card["length"]["rule"] == "the longer the better" and card["length"]["auc"] == 0.75
    # Anna 2.5/3, Ben 0.5/3, the others 2/4: (anna > ben, anna > nobody, nobody > ben, nobody = nobody).
    assert card["annotators"]["auc"] == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert card["most_labels"] == {"annotator": "anna", "share": 3 / 8}
    assert json.loads(json.dumps(card)) == card


def test_alarms() -> None:
    people = [f"person {n}" for n in range(20)]
    fair = [(n % 4 < 2, 5 + n % 2, people[n // 4]) for n in range(80)]
    train, test = labels(*fair, split="train"), labels(*fair)
    good = [float(liked) + 0.01 * (n % 7) for n, (liked, *_) in enumerate(fair)]
    assert kinds(label_card(test, good, train)) == set()
    assert kinds(label_card(test, [float(n % 2) for n in range(80)], train)) == {"chance"}
    one = [(liked, size, "anna" if n < 9 else who) for n, (liked, size, who) in enumerate(fair)]
    card = label_card(labels(*one), good, labels(*one, split="train"))
    assert kinds(card) == {"one annotator"} and card["alarms"][0]["level"] == "alarm"
    assert "'anna' gave 1" in card["alarms"][0]["says"]
    unnamed = [(liked, size, None) for liked, size, _ in one]
    card = label_card(labels(*unnamed), good, labels(*unnamed, split="train"))
    assert kinds(card) == set() and card["annotators"] is None and card["most_labels"] is None
    long = [(liked, 9 if liked else 5, None) for liked, *_ in fair]
    assert kinds(label_card(labels(*long), good, labels(*long, split="train"))) == {"length"}
    ready = [(n % 20 < 10, 5, people[n % 20]) for n in range(80)]
    found = label_card(labels(*ready), [float(liked) for liked, *_ in ready], labels(*ready, split="train"))
    assert kinds(found) == {"annotators"}
