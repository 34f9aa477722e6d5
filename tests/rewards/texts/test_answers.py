"""What a scorer may answer: matched by id, one rule for scores, and every wrong answer stops with what was wrong."""

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from plaudit.errors import RunStopped
from plaudit.rewards.texts.answers import matched

IDS = ["p0#0", "p1#0"]


def test_scores_are_matched_by_id_whatever_their_order() -> None:
    lengths = {f"p{i}#0": float(i) for i in range(5)}
    rows = [{"id": id, "score": score} for id, score in lengths.items()]
    assert matched("r", list(lengths), rows[::-1]) == lengths
    assert matched("r", list(lengths), dict(reversed(lengths.items()))) == lengths


NUMBERS: dict[str, tuple[Any, float]] = {
    "int": (3, 3.0),
    "float": (0.5, 0.5),
    "a small number of NumPy": (np.float32(0.5), 0.5),
    "a whole number of NumPy": (np.int64(3), 3.0),
    "a 0-d array": (np.array(2.5), 2.5),
    "a 0-d tensor": (torch.tensor(2.5), 2.5),
    "a 0-d tensor of bfloat16 that learns": (torch.tensor(1.5, dtype=torch.bfloat16, requires_grad=True), 1.5),
    "a Decimal": (Decimal("0.25"), 0.25),
    "a Fraction": (Fraction(1, 4), 0.25),
    "the largest integers": (2**1023, 2.0**1023),
}


@pytest.mark.parametrize(("value", "score"), NUMBERS.values(), ids=list(NUMBERS))
def test_what_a_score_may_be(value: Any, score: float) -> None:
    found = matched("r", IDS, {"p0#0": value, "p1#0": 0})
    assert found == {"p0#0": score, "p1#0": 0.0}
    assert {type(one) for one in found.values()} == {float}


class Unspeakable:
    """Its text cannot be had, in error messages neither."""

    def __str__(self) -> str:
        raise OSError("no words")

    __repr__ = __str__


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


WRONG: dict[str, tuple[Any, str]] = {
    "a missing id": ({"p0#0": 1.0}, r"gave 1 scores for 2 replies; there is none for id 'p1#0'"),
    "an unknown id": ({"p0#0": 1.0, "p9#0": 1.0}, r"answered for id 'p9#0', which it was not asked about"),
    "an id twice": ([{"id": "p0#0", "score": 1}, {"id": "p0#0", "score": 1}], r"answered twice for id 'p0#0'"),
    "nan": ({"p0#0": 1.0, "p1#0": math.nan}, r"the score of 'p1#0' is nan"),
    "infinity": ({"p0#0": -math.inf, "p1#0": 1.0}, r"the score of 'p0#0' is -inf"),
    "text": ({"p0#0": "0.5", "p1#0": 1.0}, r"the score of 'p0#0' is '0.5', not a number"),
    "a truth value": ({"p0#0": True, "p1#0": 1.0}, r"the score of 'p0#0' is 'True', not a number"),
    "null": ({"p0#0": None, "p1#0": 1.0}, r"not a number"),
    "bare numbers": ([1.0, 2.0], r"'1.0' is no score; write"),
    "rows without a score": ([{"id": "p0#0"}], r"is no score; write"),
    "nothing": (None, r"answered NoneType"),
    "one number": (3.0, r"answered float '3.0'; it must answer"),
    "one text": ("good", r"answered str 'good'"),
    "bytes": (b"good", r"answered bytes"),
    "a generator": ((row for row in [{"id": "p0#0", "score": 1}]), r"answered generator .*it must answer"),
    "a set": ({1.0, 2.0}, r"answered set"),
    "an array of scores": (np.array([1.0, 2.0]), r"answered ndarray .*it must answer"),
    "an array of one number": (
        {"p0#0": np.array([0.5]), "p1#0": 1.0},
        r"the score of 'p0#0' is '\[0.5\]', not a number but ndarray",
    ),
    "a tensor of one number": (
        {"p0#0": torch.tensor([0.5]), "p1#0": 1.0},
        r"is .*, not a number but Tensor",
    ),
    "a list": ({"p0#0": [0.5], "p1#0": 1.0}, r"the score of 'p0#0' is '\[0.5\]', not a number but list"),
    "deep lists": ({"p0#0": nested(100_000), "p1#0": 1.0}, r"something of type list that cannot be shown"),
    "deep rows": ([nested(100_000)], r"something of type list that cannot be shown is no score"),
    "a truth value of NumPy": ({"p0#0": np.bool_(True), "p1#0": 1.0}, r"is 'True', not a number but bool"),
    "a truth value as a tensor": ({"p0#0": torch.tensor(True), "p1#0": 1.0}, r"is 'True', not a number but bool"),
    "a complex number": ({"p0#0": 1j, "p1#0": 1.0}, r"not a number"),
    "an integer beyond float": ({"p0#0": 10**400, "p1#0": 1.0}, r"the score of 'p0#0' is '1000*', beyond what a float"),
    "an integer beyond text": ({"p0#0": 10**5000, "p1#0": 1.0}, r"something of type int .*, beyond what a float"),
    "a fraction beyond float": ({"p0#0": Fraction(10**400), "p1#0": 1.0}, r"beyond what a float holds"),
    "a Decimal beyond float": ({"p0#0": Decimal("1e400"), "p1#0": 1.0}, r"the score of 'p0#0' is inf"),
    "a Decimal that is none": ({"p0#0": Decimal("NaN"), "p1#0": 1.0}, r"the score of 'p0#0' is nan"),
    "a Decimal that signals": ({"p0#0": Decimal("sNaN"), "p1#0": 1.0}, r"'sNaN', beyond what a float holds"),
    "a tensor that is none": ({"p0#0": torch.tensor(math.nan), "p1#0": 1.0}, r"the score of 'p0#0' is nan"),
    "something without text": ({"p0#0": Unspeakable(), "p1#0": 1.0}, r"something of type Unspeakable that cannot be"),
    "a list as id": (
        [{"id": ["p0#0"], "score": 1}],
        r"answered for id .*p0#0.* \(list, not text\), which",
    ),
    "a mapping as id": (
        [{"id": {}, "score": 1}],
        r"answered for id '\{\}' \(dict, not text\), which",
    ),
    "a number as id": ({0: 1.0}, r"answered for id '0' \(int, not text\), which"),
    "a row that is a list": ([["p0#0", 1.0]], r"is no score; write"),
}


@pytest.mark.parametrize(("answer", "message"), WRONG.values(), ids=list(WRONG))
def test_a_wrong_answer_stops_the_run_and_is_named(answer: Any, message: str) -> None:
    with pytest.raises(RunStopped, match=f"^some reward: .*{message}"):
        matched("some reward", IDS, answer)
