"""Who is given what: pauses, quotas, fields, and items that are for one person."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from label_kit import draft
from sqlalchemy import Engine

from plaudit.errors import UserError
from plaudit.label.db.database import snapshot
from plaudit.label.queue import leases
from plaudit.label.queue.allowances import read_fields, set_allowance, written_fields
from plaudit.label.queue.left import any_open
from plaudit.label.web import views
from plaudit.records import Message, Prompt

Do = Callable[..., Any]
Add = Callable[..., list[str]]
Make = Callable[[str], int]
_ids = itertools.count()


def of_kind(number: int, kind: str, **more: Any) -> Any:
    return draft(number, prompt=Prompt(f"p{number}", (Message("user", f"Question {number}?"),), kind, "train"), **more)


def labelled(do: Do, who: int) -> str | None:
    """The question that this person answered, None when they are given nothing."""
    claimed = do(leases.claim, who)
    if claimed is None:
        return None
    do(leases.submit, who, claimed.lease, f"client-{next(_ids):08}", {"ranks": [1, 2, 3, 4]})
    return str(claimed.prompt[0]["content"])


def available(engine: Engine, who: int) -> int:
    with snapshot(engine) as connection:
        return int(views.me(connection, who)["progress"]["available"])


def open_still(engine: Engine, ids: list[str]) -> bool:
    with snapshot(engine) as connection:
        return any_open(connection, ids)


def test_who_pauses_keeps_what_they_hold_and_is_given_no_more(add: Add, do: Do, person: Make, engine: Engine) -> None:
    add(draft(1), draft(2))
    ann, bo = person("ann"), person("bo")
    held = do(leases.claim, ann)
    do(set_allowance, ann, paused=True)
    assert do(leases.claim, ann).lease == held.lease
    assert labelled(do, ann) == "Question 1?" and labelled(do, ann) is None
    with snapshot(engine) as connection:
        assert views.me(connection, ann)["project"]["paused"] and not views.me(connection, bo)["project"]["paused"]
    do(set_allowance, ann, paused=False)
    assert labelled(do, ann) == "Question 2?"


def test_a_quota_is_the_most_that_somebody_labels(add: Add, do: Do, person: Make, engine: Engine) -> None:
    ids = add(*(draft(n) for n in range(1, 5)))
    ann = person("ann")
    do(set_allowance, ann, quota=2)
    assert available(engine, ann) == 2
    assert [labelled(do, ann) for _ in range(3)] == ["Question 1?", "Question 2?", None]
    assert available(engine, ann) == 0
    assert not open_still(engine, ids)  # nobody else is there to answer them
    do(set_allowance, ann, quota=0)
    assert labelled(do, ann) == "Question 3?" and open_still(engine, ids)


def test_people_are_given_the_fields_that_they_know(add: Add, do: Do, person: Make, engine: Engine) -> None:
    ids = add(of_kind(1, "law"), of_kind(2, "medical"), of_kind(3, "poem"), of_kind(4, "medical", priority=1.0))
    ann = person("ann")
    do(set_allowance, ann, fields={"medical": None, "poem": 1, "chess": None})
    assert available(engine, ann) == 3
    # The first of all kinds together, by priority and then as they were added.
    assert [labelled(do, ann) for _ in range(4)] == ["Question 4?", "Question 2?", "Question 3?", None]
    assert not open_still(engine, ids)
    person("bo")  # who knows everything
    assert open_still(engine, ids)


def test_a_quota_of_a_field_leaves_the_others(add: Add, do: Do, person: Make) -> None:
    add(of_kind(1, "law"), of_kind(2, "law"), of_kind(3, "poem"), draft(9, gold=(1, 2, 3, 4)))
    ann = person("ann")
    do(set_allowance, ann, fields={"law": 1, "poem": None})
    assert [labelled(do, ann) for _ in range(3)] == ["Question 1?", "Question 3?", None]
    do(set_allowance, ann, fields={})
    assert labelled(do, ann) == "Question 2?"


def test_an_item_for_one_person_comes_first_to_them_and_to_nobody_else(
    add: Add, do: Do, person: Make, engine: Engine
) -> None:
    ann, bo = person("ann"), person("bo")
    add(draft(1))
    (own,) = add(draft(2, assigned=ann, overlap=1))
    assert available(engine, bo) == 1 and available(engine, ann) == 2
    assert [labelled(do, bo) for _ in range(2)] == ["Question 1?", None]
    assert open_still(engine, [own])
    claimed = do(leases.claim, ann)
    do(leases.release, ann, claimed.lease)
    assert claimed.prompt[0]["content"] == "Question 2?"
    assert not open_still(engine, [own])  # the one whom it is for has skipped it


def test_fields_are_read_as_people_write_them() -> None:
    told = read_fields(" medical 50; law;open question 3 ;")
    assert told == {"medical": 50, "law": None, "open question": 3}
    assert read_fields(written_fields(told)) == told and read_fields("") == {}
    assert read_fields("2024") == {"2024": None}


@pytest.mark.parametrize("quota", [-1, 2**31])
def test_a_quota_that_is_none_is_refused(quota: int, do: Do, person: Make) -> None:
    with pytest.raises(UserError, match="write a number of labels"):
        do(set_allowance, person("ann"), quota=quota)
