"""A run with people ends: in every combination of skips and verdicts, and not before everybody was asked."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from annotators import join
from hypothesis import given, settings
from hypothesis import strategies as st
from label_kit import draft
from sqlalchemy import Engine, delete, select

from plaudit.errors import UserError
from plaudit.label import people as accounts
from plaudit.label.db import schema
from plaudit.label.db.database import open_project, snapshot, writing
from plaudit.label.db.ledger import read
from plaudit.label.quality.dashboard import dashboard
from plaudit.label.queue import leases
from plaudit.label.queue.items import Draft, add_items
from plaudit.label.queue.left import any_open
from plaudit.stages.preferences import people as stage

Add = Callable[..., list[str]]
Make = Callable[[str], int]
ACTS: dict[str, dict[str, Any] | None] = {
    "rank": {"ranks": [1, 2, 3, 4]},
    "tie": {"ranks": [1, 1, 1, 1]},
    "all bad": {"ranks": None, "verdict": "all_bad"},
    "cannot judge": {"ranks": None, "verdict": "cannot_judge"},
    "skip": None,
}
_ids = itertools.count()


def act(engine: Engine, who: int, what: str) -> bool:
    """One item claimed and dealt with; False when nothing is left."""
    with writing(engine) as connection:
        claimed = leases.claim(connection, who)
        if claimed is None:
            return False
        sent = ACTS[what]
        if sent is None:
            leases.release(connection, who, claimed.lease)
        else:
            leases.submit(connection, who, claimed.lease, f"client-{next(_ids):08}", sent)
        return True


def waited_for(engine: Engine, ids: dict[str, Draft], wanted: int) -> list[Any]:
    """What the stage's wait gives; it may not sleep, since nobody comes any more."""
    return stage._wait(engine, "labels.sqlite", Path("run"), ids, wanted)[1]


@pytest.fixture(scope="module")
def one_database(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return open_project(tmp_path_factory.mktemp("left") / "labels.sqlite", "Kind replies")


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    overlap=st.integers(1, 2),
    more_people=st.integers(0, 1),
    data=st.data(),
)
def test_a_run_with_people_ends_in_every_combination_of_skips_and_verdicts(
    one_database: Engine, overlap: int, more_people: int, data: st.DataObject
) -> None:
    engine = one_database
    with writing(engine) as connection:  # people and items of the example before are gone: each is a project of its own
        connection.exec_driver_sql("DROP TRIGGER IF EXISTS label_no_delete")
        for table in (schema.label, schema.lease, schema.item, schema.person):
            connection.execute(delete(table))
    drafts = [draft(number, overlap=overlap) for number in range(3)]
    add_items(engine, drafts)
    ids = {one.id: one for one in drafts}
    names = [join(engine, name) for name in "abc"[: overlap + more_people]]
    ranked = 0
    while True:
        acts = {who: data.draw(st.sampled_from(list(ACTS))) for who in names}
        went = [(what, act(engine, who, what)) for who, what in acts.items()]
        ranked += sum(done and what in ("rank", "tie") for what, done in went)
        if not any(done for _, done in went):
            break
    with snapshot(engine) as connection:
        assert not any_open(connection, ids)
    if ranked:
        assert len(waited_for(engine, ids, 3 * overlap)) == ranked
    else:
        with pytest.raises(UserError, match="nobody who is there ranked any of the 3 items"):
            waited_for(engine, ids, 3 * overlap)


def test_a_run_does_not_end_before_as_many_people_are_there_as_the_overlap_asks_for(
    engine: Engine, add: Add, person: Make
) -> None:
    ids = set(add(draft(1, overlap=2)))

    def still() -> bool:
        with snapshot(engine) as connection:
            return any_open(connection, ids)

    assert still()  # nobody has come yet
    ann = person("ann")
    act(engine, ann, "rank")
    assert still()  # a second person is expected
    bo = person("bo")
    assert still()
    act(engine, bo, "skip")
    assert not still()
    cy = person("cy")
    assert still()  # and somebody new can fill it
    with writing(engine) as connection:
        accounts.set_active(connection, cy, False)
    assert not still()


def test_an_item_that_somebody_holds_is_open(engine: Engine, add: Add, person: Make) -> None:
    ids = set(add(draft(1)))
    ann = person("ann")
    with writing(engine) as connection:
        claimed = leases.claim(connection, ann)
        assert claimed is not None
        assert any_open(connection, ids) and not any_open(connection, {"another"})
        leases.submit(connection, ann, claimed.lease, "client-held", {"ranks": [1, 2, 3, 4]})
        assert not any_open(connection, ids)


# --- "cannot judge" asks somebody else ---


def free_of(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        return list(connection.execute(select(schema.item.c.free).order_by(schema.item.c.number)).scalars())


def test_cannot_judge_offers_the_slot_to_somebody_else(engine: Engine, add: Add, person: Make) -> None:
    add(draft(1))
    ann, bo = person("ann"), person("bo")
    act(engine, ann, "cannot judge")
    assert free_of(engine) == [1]
    with snapshot(engine) as connection:
        progress = dashboard(read(connection), 0.0)["progress"]
    assert (progress["given"], progress["wanted"], progress["done"]) == (0, 1, 0)
    assert not act(engine, ann, "rank")  # not to her again
    assert act(engine, bo, "rank")
    assert free_of(engine) == [0]


def test_a_correction_gives_the_slot_back_or_takes_it_again(engine: Engine, add: Add, person: Make) -> None:
    add(draft(1))
    ann, bo = person("ann"), person("bo")
    act(engine, ann, "rank")

    def correct(who: int, what: str) -> None:
        with writing(engine) as connection:
            last = select(schema.label.c.seq).where(schema.label.c.person == who).order_by(schema.label.c.seq.desc())
            seq = connection.execute(last.limit(1)).scalar_one()
            leases.correct(connection, who, seq, f"client-{next(_ids):08}", ACTS[what] or {})

    correct(ann, "cannot judge")
    assert free_of(engine) == [1]
    correct(ann, "rank")
    assert free_of(engine) == [0]
    correct(ann, "cannot judge")
    assert act(engine, bo, "rank")
    correct(ann, "rank")  # the slot is bo's now: her answer is kept beside it
    assert free_of(engine) == [0]
    correct(bo, "cannot judge")
    assert free_of(engine) == [1]


def test_skips_are_counted(engine: Engine, add: Add, person: Make) -> None:
    add(draft(1), draft(2))
    ann = person("ann")
    act(engine, ann, "skip")
    act(engine, ann, "rank")
    with snapshot(engine) as connection:
        shown = dashboard(read(connection), 0.0)
    assert shown["progress"]["skipped"] == 1
    assert [row["skipped"] for row in shown["people"]] == [1]


def test_an_item_is_open_to_whoever_had_only_another(tmp_path: Path) -> None:
    engine = open_project(tmp_path / "labels.sqlite")
    drafts = [draft(number, overlap=1) for number in range(2)]
    add_items(engine, drafts)
    who, ids = join(engine, "ann"), {one.id for one in drafts}
    for left in (True, False):
        assert act(engine, who, "rank")
        with snapshot(engine) as connection:
            assert any_open(connection, ids) is left
