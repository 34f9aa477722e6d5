"""Skips taken back and offered anew, others asked in somebody's stead, items taken out, settings that change."""

from collections.abc import Callable
from typing import Any

import pytest
from label_kit import draft, free_of
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import DBAPIError

from plaudit.label import people as accounts
from plaudit.label.db import ledger, schema
from plaudit.label.db.database import snapshot, writing
from plaudit.label.kinds.shared import BadAnswer
from plaudit.label.quality.dashboard import dashboard
from plaudit.label.queue import again, leases, settings
from plaudit.label.queue.leases import NotYours
from plaudit.label.transfer.export import export

Add = Callable[..., list[str]]
Make = Callable[[str], int]
RANKS = {"ranks": [1, 2, 3, 4]}


def answer(do: Callable[..., Any], who: int, sent: dict[str, Any] | None = None) -> Any:
    claimed = do(leases.claim, who)
    return do(leases.submit, who, claimed.lease, f"client-{claimed.lease}", sent or RANKS)


def read(engine: Engine) -> ledger.Ledger:
    with snapshot(engine) as connection:
        return ledger.read(connection)


def test_a_skip_can_be_taken_back_until_somebody_else_has_it(
    engine: Engine, add: Add, person: Make, do: Callable[..., Any]
) -> None:
    add(draft(1), draft(2))
    ann, bo = person("ann"), person("bo")
    first = do(leases.claim, ann)
    do(leases.release, ann, first.lease)
    second = do(leases.claim, ann)
    assert second.lease != first.lease
    with pytest.raises(NotYours):
        do(again.take_back, bo, first.lease)
    assert do(again.take_back, ann, first.lease)
    assert do(leases.claim, ann).lease == first.lease
    assert not answer(do, ann).late
    third = do(leases.claim, ann)  # what she held meanwhile comes again
    assert third is not None
    do(leases.release, ann, third.lease)
    assert answer(do, bo) and not do(again.take_back, ann, third.lease)
    assert free_of(engine) == [0, 0]


def test_skips_are_offered_again(engine: Engine, add: Add, person: Make, do: Callable[..., Any]) -> None:
    add(draft(1))
    ann = person("ann")
    do(leases.release, ann, do(leases.claim, ann).lease)
    assert do(leases.claim, ann) is None and len(read(engine).skipped) == 1
    assert do(again.offer_again, ann) == 1
    assert read(engine).skipped == ()
    assert not answer(do, ann).late


def test_others_are_asked_in_a_careless_persons_stead(
    engine: Engine, add: Add, person: Make, do: Callable[..., Any]
) -> None:
    add(draft(1), draft(2))
    ann, bo = person("ann"), person("bo")
    answer(do, ann)
    answer(do, ann, {"ranks": [4, 3, 2, 1]})
    assert dashboard(read(engine), 0.0)["progress"]["given"] == 2
    assert do(again.ask_others, ann) == 2
    book = read(engine)
    assert free_of(engine) == [1, 1] and len(book.labels) == 2  # nothing of hers is lost
    assert dashboard(book, 0.0)["progress"]["given"] == 0
    out = export(book, "rankings")
    assert out.rows == [] and out.left_out["set aside or withdrawn by an admin"] == 2
    assert do(leases.claim, ann) is None
    answer(do, bo)
    assert len(export(read(engine), "rankings").rows) == 1
    assert all(row["aside"] == (row["annotator"] == "ann") for row in export(read(engine), "ledger").rows)


def test_who_is_disabled_holds_nothing_any_more(engine: Engine, add: Add, person: Make, do: Callable[..., Any]) -> None:
    add(draft(1))
    ann, bo = person("ann"), person("bo")
    do(leases.claim, ann)
    do(accounts.set_active, ann, False)
    assert do(leases.claim, bo) is not None


def test_a_third_person_is_asked_where_two_disagree(
    engine: Engine, add: Add, person: Make, do: Callable[..., Any]
) -> None:
    disputed = add(draft(1, overlap=2))[0]
    gold = add(draft(9, gold=(1, 2, 3, 4)))[0]
    answer(do, person("ann"))
    answer(do, person("bo"), {"ranks": [4, 3, 2, 1]})
    cy = person("cy")
    assert do(leases.claim, cy) is None
    add(draft(2, priority=5.0))
    assert do(again.another_opinion, disputed) and not do(again.another_opinion, gold)
    assert not do(again.another_opinion, "0" * 24)
    with engine.connect() as connection:
        claimed = do(leases.claim, cy)  # before all others
        which = select(schema.lease.c.item).where(schema.lease.c.id == claimed.lease)
        assert connection.execute(which).scalar_one() == disputed


def test_an_item_that_is_withdrawn_is_served_no_more_and_does_not_count(
    engine: Engine, add: Add, person: Make, do: Callable[..., Any]
) -> None:
    first, _ = add(draft(1, overlap=2), draft(2))
    ann, bo = person("ann"), person("bo")
    answer(do, ann)
    held = do(leases.claim, bo)
    assert do(again.withdraw, first, True)
    do(settings.settle, {"overlap": 3})
    assert free_of(engine) == [0, 3]
    shown = dashboard(read(engine), 0.0)
    assert (shown["progress"]["items"], shown["progress"]["given"]) == (1, 0)
    assert do(leases.claim, bo).lease != held.lease
    assert do(again.withdraw, first, False)
    assert dashboard(read(engine), 0.0)["progress"]["given"] == 1 and free_of(engine)[0] == 1


# --- settings ---


def test_settings_have_a_version_and_a_log_that_cannot_be_changed(engine: Engine, do: Callable[..., Any]) -> None:
    do(settings.settle, {"flags": ["rude"], "overlap": None}, None, 1)
    with pytest.raises(settings.Outdated):
        do(settings.settle, {"flags": ["harsh"]}, None, 1)
    do(settings.settle, {"flags": ["rude"]}, None, 2)  # the same again is no change
    (only,) = do(settings.log)
    assert (only["what"], only["person"]) == ("settings", None)
    assert only["detail"] == {"flags": [["unsafe", "untrue", "too long"], ["rude"]]}
    for change in ("UPDATE admin_log SET what = 'x'", "DELETE FROM admin_log"):
        with pytest.raises(DBAPIError, match="append-only"), writing(engine) as connection:
            connection.execute(text(change))


def test_a_label_with_a_flag_that_is_gone_can_be_corrected(
    engine: Engine, add: Add, person: Make, do: Callable[..., Any]
) -> None:
    add(draft(1))
    ann = person("ann")
    flagged = [["untrue"], [], [], []]
    stored = answer(do, ann, {**RANKS, "flags": flagged})
    do(settings.settle, {"flags": ["wrong"]})
    do(leases.correct, ann, stored.seq, "client-again", {"ranks": [4, 3, 2, 1], "flags": flagged})
    with pytest.raises(BadAnswer):
        do(leases.correct, ann, stored.seq, "client-never", {**RANKS, "flags": [["never"], [], [], []]})


def test_each_label_knows_the_guidelines_that_held(
    engine: Engine, add: Add, person: Make, do: Callable[..., Any]
) -> None:
    add(draft(1), draft(2))
    ann = person("ann")
    first = answer(do, ann)
    claimed = do(leases.claim, ann)
    do(settings.settle, {"guidelines": "Be kind."})
    do(leases.submit, ann, claimed.lease, "client-2", RANKS)
    do(leases.correct, ann, first.seq, "client-3", {"ranks": [4, 3, 2, 1]})
    assert [row.guidelines for row in read(engine).labels] == [1, 1, 2]
    assert export(read(engine), "ledger").rows[0]["guidelines"] == 1


def test_nobody_is_given_an_item_while_the_project_is_paused(
    engine: Engine, add: Add, person: Make, do: Callable[..., Any]
) -> None:
    add(draft(1), draft(2))
    ann, bo = person("ann"), person("bo")
    held = do(leases.claim, ann)
    do(settings.settle, {"paused": True})
    assert do(leases.claim, bo) is None
    assert not do(leases.submit, ann, held.lease, "client-1", RANKS).late  # what is begun is finished
    do(settings.settle, {"paused": False})
    assert do(leases.claim, bo) is not None
