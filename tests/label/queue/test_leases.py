"""Who gets what: overlap, leases, order, replays, on SQLite and on PostgreSQL."""

import json
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from typing import Any

import pytest
from label_kit import draft, free_of, written
from scipy.stats import chisquare
from sqlalchemy import Engine, select, update

from plaudit.label.db import ledger, schema
from plaudit.label.db.database import snapshot, writing
from plaudit.label.db.writer import Writer
from plaudit.label.queue import leases
from plaudit.label.queue.items import set_priorities
from plaudit.label.queue.leases import Claimed, Conflict, NotYours, Stored
from plaudit.label.queue.settings import settle

Add = Callable[..., list[str]]
Make = Callable[[str], int]
ANSWER = {"ranks": [1, 2, 3, 4]}


def item_of(engine: Engine, claimed: Claimed) -> str:
    with engine.connect() as connection:
        return connection.execute(select(schema.lease.c.item).where(schema.lease.c.id == claimed.lease)).scalar_one()


def answer(do: Callable[..., Any], who: int, claimed: Claimed, client: str = "", **more: Any) -> Stored:
    return do(leases.submit, who, claimed.lease, client or f"client-{claimed.lease}", ANSWER, **more)


# --- claiming ---


def test_an_item_goes_to_as_many_as_asked_and_never_twice_to_one(
    engine: Engine, add: Add, person: Make, do: Callable[..., Any]
) -> None:
    first, second = add(draft(1, overlap=2), draft(2))
    ann, bo, cy = person("ann"), person("bo"), person("cy")
    got = []
    for who in (ann, bo, cy):
        claimed = do(leases.claim, who)
        got.append(item_of(engine, claimed))
        answer(do, who, claimed)
    assert got == [first, first, second]
    assert [do(leases.claim, who) for who in (ann, bo, cy)] == [None, None, None]


def test_two_tabs_have_one_item_in_one_order(add: Add, person: Make, do: Callable[..., Any]) -> None:
    add(*(draft(n, count=9) for n in range(5)))
    ann = person("ann")
    first, second = do(leases.claim, ann), do(leases.claim, ann)
    assert first == second


def test_the_first_in_priority_and_then_in_the_file(
    engine: Engine, add: Add, person: Make, do: Callable[..., Any]
) -> None:
    a, b, c, d = add(draft(1), draft(2, priority=1.0), draft(3), draft(4, priority=1.0))
    set_priorities(engine, {c: 7.5})
    ann, got = person("ann"), []
    while (claimed := do(leases.claim, ann)) is not None:
        got.append(item_of(engine, claimed))
        answer(do, ann, claimed)
    assert got == [c, b, d, a]


def test_a_task_can_be_asked_for(add: Add, person: Make, do: Callable[..., Any]) -> None:
    add(draft(1), written(2), draft(3, count=2, task="compare"))
    ann = person("ann")
    assert [do(leases.claim, ann, task).task for task in ("write", "compare", "rank")] == ["write", "compare", "rank"]
    assert do(leases.claim, ann, "write").order == [0]


def test_a_lease_that_ran_out_goes_to_somebody_else_and_a_late_answer_is_kept_apart(
    engine: Engine, add: Add, person: Make, do: Callable[..., Any]
) -> None:
    add(draft(1))
    ann, bo, cy = person("ann"), person("bo"), person("cy")
    hers = do(leases.claim, ann, now=1000.0)
    assert do(leases.claim, bo, now=1000.0 + 29 * 60) is None
    his = do(leases.claim, bo, now=1000.0 + 31 * 60)
    assert item_of(engine, his) == item_of(engine, hers)
    late = answer(do, ann, hers, now=1000.0 + 40 * 60)
    in_time = answer(do, bo, his, now=1000.0 + 45 * 60)
    assert (late.late, in_time.late) == (True, False)
    with snapshot(engine) as connection:
        rows = {row.person: row for row in ledger.labels(connection)}
    assert (rows[ann].late, rows[bo].late, rows[ann].seconds) == (True, False, 2400.0)
    assert do(leases.claim, cy, now=9000.0) is None and do(leases.claim, ann, now=9000.0) is None


def test_who_left_an_item_open_last_week_is_not_at_work_on_it(
    engine: Engine, add: Add, person: Make, do: Callable[..., Any]
) -> None:
    add(draft(1), draft(2))
    assert do(leases.claim, person("ann"), now=1000.0) and do(leases.claim, person("bo"), now=1060.0)
    with snapshot(engine) as connection:
        assert ledger.read(connection).open_leases == 0
    do(leases.claim, person("cy"))
    with snapshot(engine) as connection:
        assert ledger.read(connection).open_leases == 1


def test_late_is_late_though_nobody_took_the_slot_which_then_is_free(
    engine: Engine, add: Add, person: Make, do: Callable[..., Any]
) -> None:
    add(draft(1))
    ann, bo = person("ann"), person("bo")
    hers = do(leases.claim, ann, now=1000.0)
    assert answer(do, ann, hers, now=1000.0 + 1801).late
    assert free_of(engine) == [1]
    assert do(leases.claim, ann, now=4000.0) is None
    assert do(leases.claim, bo, now=4000.0) is not None


def test_whoever_comes_back_before_somebody_else_has_the_item_again(
    add: Add, person: Make, do: Callable[..., Any]
) -> None:
    add(draft(1))
    ann = person("ann")
    before = do(leases.claim, ann, now=1000.0)
    again = do(leases.claim, ann, now=9000.0)
    assert (again.lease, again.order, again.expires_at) == (before.lease, before.order, 9000.0 + 1800)
    assert not answer(do, ann, again, now=9100.0).late


def test_a_skipped_item_goes_to_others_and_not_back(
    engine: Engine, add: Add, person: Make, do: Callable[..., Any]
) -> None:
    first, second = add(draft(1), draft(2))
    ann, bo = person("ann"), person("bo")
    claimed = do(leases.claim, ann)
    do(leases.release, ann, claimed.lease)
    assert item_of(engine, do(leases.claim, ann)) == second
    assert item_of(engine, do(leases.claim, bo)) == first
    assert answer(do, ann, claimed).late  # said after all: kept, but the slot is another's


def test_gold_items_go_to_everybody_outside_the_overlap(
    engine: Engine, add: Add, person: Make, do: Callable[..., Any]
) -> None:
    gold = add(draft(1, gold=(1, 2, 3, 4)))[0]
    add(draft(2))
    do(settle, {"gold_rate": 1.0})
    for name in ("ann", "bo", "cy"):
        who = person(name)
        claimed = do(leases.claim, who)
        assert item_of(engine, claimed) == gold
        answer(do, who, claimed)
        after = do(leases.claim, who)  # never twice: the other item, once, is what is left
        assert after is None or item_of(engine, after) != gold
    with snapshot(engine) as connection:
        assert [row.purpose for row in ledger.labels(connection)] == ["gold"] * 3
        gold_slots = select(schema.lease.c.slot).where(schema.lease.c.purpose == "gold")
        assert connection.execute(gold_slots).scalars().all() == [None] * 3


def test_gold_items_are_not_served_at_rate_0(add: Add, person: Make, do: Callable[..., Any]) -> None:
    add(draft(1, gold=(1, 2, 3, 4)))
    assert do(leases.claim, person("ann")) is None


def test_a_consistency_check_is_an_old_item_once_and_takes_no_slot(
    engine: Engine, add: Add, person: Make, do: Callable[..., Any]
) -> None:
    ids = add(*(draft(n) for n in range(8)))
    ann = person("ann")
    for _ in range(6):
        answer(do, ann, do(leases.claim, ann))
    do(settle, {"consistency_rate": 1.0})
    check = do(leases.claim, ann)
    assert item_of(engine, check) == ids[0]
    answer(do, ann, check)
    assert item_of(engine, do(leases.claim, ann)) == ids[1]
    with snapshot(engine) as connection:
        assert [row.purpose for row in ledger.labels(connection)] == ["normal"] * 6 + ["consistency"]
    assert free_of(engine) == [0] * 6 + [1] * 2


def test_a_lower_overlap_counts_what_is_taken_and_a_higher_one_opens_items(
    engine: Engine, add: Add, person: Make, do: Callable[..., Any]
) -> None:
    do(settle, {"overlap": 3})
    add(draft(1), draft(2, overlap=5))
    people = [person(name) for name in ("ann", "bo", "cy")]
    first, second = (do(leases.claim, who) for who in people[:2])
    answer(do, people[0], first)
    do(settle, {"overlap": 1})
    assert free_of(engine) == [0, 5]
    do(leases.release, people[1], second.lease)
    assert free_of(engine) == [0, 5]  # one label is there, as many as are wanted now
    do(settle, {"overlap": 2})
    assert free_of(engine) == [1, 5]


@pytest.mark.parametrize("overlap", [1, 3])
def test_the_overlap_holds_when_all_claim_at_once(engine: Engine, add: Add, person: Make, overlap: int) -> None:
    """Twelve people race for six items, each from a thread of their own, through two writers as of two servers."""
    add(*(draft(n, overlap=overlap) for n in range(6)))
    people = [person(f"p{n}") for n in range(12)]
    writers = [Writer(engine), Writer(engine)]
    start = threading.Barrier(len(people))

    def label_all(number: int) -> int:
        who, writer = people[number], writers[number % 2]
        start.wait()
        done = 0
        while (claimed := writer.run(lambda c: leases.claim(c, who))) is not None:
            writer.run(lambda c, got=claimed: leases.submit(c, who, got.lease, f"{who}-{got.lease}", ANSWER))
            done += 1
        return done

    with ThreadPoolExecutor(len(people)) as pool:
        done = sum(pool.map(label_all, range(len(people))))
    for writer in writers:
        writer.close()
    assert done == 6 * overlap
    with snapshot(engine) as connection:
        rows = list(ledger.labels(connection))
    assert set(Counter(row.item for row in rows).values()) == {overlap}
    assert len({(row.item, row.person) for row in rows}) == len(rows)


def test_one_person_claiming_from_many_tabs_at_once_has_one_item(engine: Engine, add: Add, person: Make) -> None:
    add(*(draft(n) for n in range(20)))
    ann, writer = person("ann"), Writer(engine)
    with ThreadPoolExecutor(12) as pool:
        got = list(pool.map(lambda _: writer.run(lambda c: leases.claim(c, ann)), range(24)))
    writer.close()
    assert len({claimed.lease for claimed in got}) == 1


# --- submitting ---


def test_a_replay_returns_the_stored_row_and_another_body_is_a_conflict(
    engine: Engine, add: Add, person: Make, do: Callable[..., Any]
) -> None:
    add(draft(1))
    ann = person("ann")
    claimed = do(leases.claim, ann)
    first = answer(do, ann, claimed, "the-client-id")
    again = answer(do, ann, claimed, "the-client-id")
    assert (first.replayed, again.replayed, first.seq) == (False, True, again.seq)
    other = do(leases.submit, ann, claimed.lease, "the-client-id", {"ranks": [4, 3, 2, 1]})
    assert isinstance(other, Conflict)
    with snapshot(engine) as connection:
        (kept,) = ledger.labels(connection)
        (second,) = connection.execute(select(schema.conflict)).all()
    assert kept.ranks is not None
    shown = [kept.ranks[reply] for reply in kept.order]
    assert shown == [1, 2, 3, 4] and (second.client_id, second.person) == ("the-client-id", ann)
    assert json.loads(second.body)["ranks"] not in (None, list(kept.ranks))


def test_the_same_submit_twenty_times_at_once_is_one_row(engine: Engine, add: Add, person: Make) -> None:
    add(draft(1))
    ann, writer = person("ann"), Writer(engine)
    claimed = writer.run(lambda c: leases.claim(c, ann))
    with ThreadPoolExecutor(20) as pool:
        jobs = pool.map(
            lambda _: writer.run(lambda c: leases.submit(c, ann, claimed.lease, "client-id", ANSWER)), range(20)
        )
        got = list(jobs)
    writer.close()
    assert len({stored.seq for stored in got}) == 1 and sum(not stored.replayed for stored in got) == 1


def test_a_second_answer_from_another_tab_supersedes_and_both_are_kept(
    engine: Engine, add: Add, person: Make, do: Callable[..., Any]
) -> None:
    add(draft(1))
    ann = person("ann")
    claimed = do(leases.claim, ann, now=100.0)
    first = answer(do, ann, claimed, "client-id-1", now=105.0)
    second = do(leases.submit, ann, claimed.lease, "client-id-2", {"ranks": [2, 1, 1, 1]}, now=500.0)
    third = do(leases.correct, ann, first.seq, "client-id-3", {"verdict": "cannot_judge"})
    with snapshot(engine) as connection:
        rows = list(ledger.labels(connection))
    (newest,) = ledger.standing(rows)
    assert [row.supersedes for row in rows] == [None, first.seq, second.seq]
    assert newest.seq == third.seq and newest.verdict == "cannot_judge"
    assert [row.seconds for row in rows] == [5.0, 5.0, 5.0] and not any(row.late for row in rows)


def test_others_leases_and_labels_are_not_ones_own(add: Add, person: Make, do: Callable[..., Any]) -> None:
    add(draft(1))
    ann, bo = person("ann"), person("bo")
    claimed = do(leases.claim, ann)
    for attempt in (
        lambda: answer(do, bo, claimed),
        lambda: do(leases.release, bo, claimed.lease),
        lambda: do(leases.submit, bo, "no-such-lease", "client-id", ANSWER),
        lambda: do(leases.correct, bo, 1, "client-id", ANSWER),
    ):
        with pytest.raises(NotYours):
            attempt()
    stored = answer(do, ann, claimed)
    with pytest.raises(NotYours):
        do(leases.correct, bo, stored.seq, "client-id", ANSWER)
    assert do(leases.claim, bo) is None


def test_disabling_a_person_keeps_their_labels(engine: Engine, add: Add, person: Make, do: Callable[..., Any]) -> None:
    add(draft(1))
    ann = person("ann")
    answer(do, ann, do(leases.claim, ann))
    with writing(engine) as connection:
        connection.execute(update(schema.person).where(schema.person.c.id == ann).values(active=False))
    with snapshot(engine) as connection:
        assert [row.person for row in ledger.labels(connection)] == [ann]


# --- the order of the replies ---


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)  # the order is drawn before the database is asked
def test_every_order_is_served_equally_often(engine: Engine, add: Add, person: Make) -> None:
    """2,000 views of three replies: the six orders by chi-square, and each reply in each position."""
    add(*(draft(n, count=3) for n in range(2000)))
    ann, orders = person("ann"), []
    with writing(engine) as connection:
        while (claimed := leases.claim(connection, ann)) is not None:
            orders.append(tuple(claimed.order))
            leases.submit(connection, ann, claimed.lease, f"client-{claimed.lease}", {"ranks": [1, 2, 3]})
    assert len(orders) == 2000
    counts = Counter(orders)
    assert set(counts) == set(permutations(range(3)))
    assert chisquare([counts[order] for order in permutations(range(3))]).pvalue > 1e-4
    for position in range(3):
        shown = Counter(order[position] for order in orders)
        assert chisquare([shown[reply] for reply in range(3)]).pvalue > 1e-4
    with snapshot(engine) as connection:
        assert [row.order for row in ledger.labels(connection)] == orders
