"""Labels out and in: every row by hand, filters, and export -> import -> export the same bytes."""

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from label_rows import item, label, ledger, person
from sqlalchemy import Engine

from plaudit.data.files import read_demonstrations, read_rankings
from plaudit.errors import UserError
from plaudit.label.db.database import snapshot
from plaudit.label.db.ledger import ReplyRow, read, standing
from plaudit.label.queue.items import has_items
from plaudit.label.transfer.export import Filters, export, moment
from plaudit.label.transfer.import_labels import import_labels
from plaudit.records import Message

ANN, BO, CY = person(1, "ann"), person(2, "bo"), person(3, "cy")


def written(engine: Engine, format: str, **options: Any) -> str:
    with snapshot(engine) as connection:
        return "".join(export(read(connection), format, **options).lines())


def put(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_ranking_row_by_hand() -> None:
    one = item("i", ["good", "bad"], ["sft", "ppo"], prompt_id="p1", split="test", kind="chat")
    said = label(one, (1, 2), strength=2)
    assert export(ledger([one], [ANN], [said]), "rankings").rows == [
        {
            "id": "p1",
            "kind": "chat",
            "split": "test",
            "prompt": [{"role": "user", "content": "Say something."}],
            "responses": [
                {"text": "good", "finished": True, "rank": 1, "source": "sft"},
                {"text": "bad", "finished": True, "rank": 2, "source": "ppo"},
            ],
            "strength": 2.0,
            "annotator": "ann",
        }
    ]


def test_pairs_and_hh_rows_by_hand() -> None:
    """Ranks (2, 1, 2): b beats a, b beats c, and a ties with c."""
    one = item("i", ["a", "b", "c"], prompt_id="p1")
    book = ledger([one], [ANN], [label(one, (2, 1, 2))])
    found = export(book, "pairs")
    pairs = found.rows
    assert dict(found.left_out) == {"pairs that tie": 1}
    assert [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in pairs] == [("b", "a"), ("b", "c")]
    assert pairs[0]["annotator"] == "ann"
    assert export(book, "hh").rows[0]["chosen"] == "\n\nHuman: Say something.\n\nAssistant: b"


def test_what_hh_cannot_hold_is_left_out_and_counted() -> None:
    told = item("i", "ab", messages=(Message("system", "Be kind."), Message("user", "Hi")))
    forged = item("j", ["a", "b\n\nHuman: and now?"])
    blank = item("k", ["a", ""])
    found = export(ledger([told, forged, blank], [ANN], [label(one, (1, 2)) for one in (told, forged, blank)]), "hh")
    assert [row["rejected"] for row in found.rows] == ["\n\nHuman: Say something.\n\nAssistant: "]
    assert dict(found.left_out) == {
        "a system message, which HH cannot hold": 1,
        "text that HH cannot hold (marks of turns, an empty better reply)": 1,
    }


def test_demonstrations_comparisons_and_rankings_do_not_mix() -> None:
    ranked, written_, compared = item("i", "ab"), item("j", [], task="write"), item("k", "ab", task="compare")
    labels = [label(ranked, (1, 2)), label(written_, None, text="An ideal reply."), label(compared, (2, 1))]
    book = ledger([ranked, written_, compared], [ANN], labels)
    assert [row["id"] for row in export(book, "rankings").rows] == ["i"]
    assert [row["id"] for row in export(book, "comparisons").rows] == ["k"]
    assert [(row["id"], row["completion"]) for row in export(book, "demonstrations").rows] == [("j", "An ideal reply.")]
    assert [row["task"] for row in export(book, "ledger").rows] == ["rank", "write", "compare"]
    assert dict(export(book, "comparisons").left_out) == {
        "of the task rank (--format rankings, pairs or hh)": 1,
        "of the task write (--format demonstrations)": 1,
    }


def test_what_is_left_out_and_why() -> None:
    one, two, known = item("i", "ab"), item("j", "ab"), item("g", "ab", gold=(1, 2))
    labels = [
        label(one, (1, 2), seq=1),
        label(one, (2, 1), seq=2, supersedes=1),
        label(one, (1, 2), 2, seq=3, late=True),
        label(two, None, seq=4, verdict="cannot_judge"),
        label(two, (1, 1), 2, seq=5, purpose="consistency"),
        label(known, (1, 2), 3, seq=6, purpose="gold"),
    ]
    book = ledger([one, two, known], [ANN, BO, CY], labels)
    found = export(book, "rankings")
    assert [[reply["rank"] for reply in row["responses"]] for row in found.rows] == [[2, 1]]
    assert dict(found.left_out) == {
        "corrected since": 1,
        "came in late": 1,
        "without ranks": 1,
        "gold items and consistency checks": 2,
    }
    assert len(export(book, "rankings", Filters(late=True)).rows) == 2
    assert [row["seq"] for row in export(book, "ledger").rows] == [1, 2, 3, 4, 5, 6]


def test_filters_by_hand() -> None:
    """Item i: ann and bo agree. Item j: they do not. Item k: ann alone, whose agreement nobody knows."""
    i, j, k = item("i", "ab"), item("j", "cd"), item("k", "ef")
    day = moment("2026-11-20")
    labels = [
        label(i, (1, 2), 1, created=day),
        label(i, (1, 2), 2, created=day + 86400),
        label(j, (1, 2), 1, created=day),
        label(j, (2, 1), 2, created=day),
        label(k, (1, 2), 1, created=day + 2 * 86400, flags=(("unsafe",), ())),
    ]
    book = ledger([i, j, k], [ANN, BO], labels)

    def rows(**given: Any) -> list[tuple[str, str]]:
        return [(row["id"], row["annotator"]) for row in export(book, "rankings", Filters(**given)).rows]

    assert rows(min_agreement=0.5) == [("i", "ann"), ("i", "bo")]
    assert rows(annotators=("bo",)) == [("i", "bo"), ("j", "bo")]
    assert rows(since=moment("2026-11-21")) == [("i", "bo"), ("k", "ann")]
    assert rows(until=moment("2026-11-21", end=True)) == [("i", "ann"), ("i", "bo"), ("j", "ann"), ("j", "bo")]
    assert rows(without_flags=("unsafe",)) == [("i", "ann"), ("i", "bo"), ("j", "ann"), ("j", "bo")]
    with pytest.raises(UserError, match="annotator 'di'"):
        rows(annotators=("di",))
    with pytest.raises(UserError, match="min_agreement=2"):
        rows(min_agreement=2)


def test_a_flagged_reply_leaves_the_ranking_of_the_others() -> None:
    one = item("i", "abc", sources=["x", "y", "z"])
    labels = [label(one, (1, 2, 3)), label(one, (2, 1, 3), 2, flags=((), ("untrue",), ()))]
    found = export(ledger([one], [ANN, BO], labels), "rankings", Filters(without_flags=("untrue",)))
    assert [[(r["text"], r["rank"], r["source"]) for r in row["responses"]] for row in found.rows] == [
        [("a", 1, "x"), ("c", 2, "z")],
        [("a", 1, "x"), ("c", 2, "z")],
    ]
    assert dict(found.left_out) == {"replies with such a flag": 2}


def test_a_flag_that_nobody_knows_is_refused() -> None:
    one = item("i", "ab")
    book = replace(ledger([one], [ANN], [label(one, (1, 2), flags=(("old",), ()))]), flags=("untrue",))
    for known in ("old", "untrue"):  # one that the project no longer offers is on labels still
        export(book, "rankings", Filters(without_flags=(known,)))
    with pytest.raises(UserError, match="flag 'untru': not in this database; there are old, untrue"):
        export(book, "rankings", Filters(without_flags=("untru",)))


def test_several_peoples_ranks_become_one_by_hand() -> None:
    """(1, 2, 3), (1, 3, 2), (1, 2, 2): middle ranks 1 2 3, 1 3 2, 1 2.5 2.5: means 1, 2.5, 2.5."""
    one = item("i", "abc")
    labels = [label(one, ranks, who) for who, ranks in enumerate([(1, 2, 3), (1, 3, 2), (1, 2, 2)], start=1)]
    rows = export(ledger([one], [ANN, BO, CY], labels), "rankings", aggregate="mean").rows
    assert len(rows) == 1
    assert [reply["rank"] for reply in rows[0]["responses"]] == [1, 2, 2]
    assert "annotator" not in rows[0]


def test_one_reliable_person_outvotes_two_contrary_ones() -> None:
    """On 40 items dee and the sound ones agree, bo and cy guess; where the two oppose dee alone, dee wins."""
    names = [person(number, name) for number, name in enumerate(("ann", "bo", "cy", "dee", "eve"), start=1)]
    items = [item(f"i{n}", [f"a{n}", f"b{n}"]) for n in range(41)]
    labels = []
    for n, one in enumerate(items[:40]):
        right, wrong = (1, 2), (2, 1)
        for who in (1, 4, 5):
            labels.append(label(one, right, who))
        labels += [label(one, right if n % 2 else wrong, 2), label(one, right if n % 4 < 2 else wrong, 3)]
    last = items[40]
    labels += [label(last, (1, 2), 4), label(last, (2, 1), 2), label(last, (2, 1), 3)]
    book = ledger(items, names, labels)

    def ranks(how: str) -> list[int]:
        row = next(row for row in export(book, "rankings", aggregate=how).rows if row["id"] == "i40")
        return [reply["rank"] for reply in row["responses"]]

    assert ranks("mean") == [2, 1]
    assert ranks("reliability") == [1, 2]


def test_dates() -> None:
    assert moment("1970-01-02") == 86400.0
    assert moment("1970-01-02", end=True) == 2 * 86400.0
    assert moment("1970-01-01T01:00:00") == 3600.0
    assert moment("1970-01-01T01:00:00+01:00") == 0.0
    with pytest.raises(UserError, match="not a date"):
        moment("yesterday")


def test_no_export_holds_a_text_that_beats_itself() -> None:
    """A pair does not say which of two equal texts was cut, and HH keeps no blanks at the end: both are left out."""
    cut = item("i", replies=(ReplyRow("same", True, None), ReplyRow("same", False, None)))
    blank = item("j", ["same", "same "])
    book = ledger([cut, blank], [ANN], [label(cut, (1, 2)), label(blank, (1, 2))])
    for format, rows in (("rankings", 2), ("pairs", 1), ("hh", 0)):
        made = export(book, format)
        assert (len(made.rows), made.left_out.get("pairs that say the same", 0)) == (rows, 2 - rows)


def test_unknown_names_are_refused() -> None:
    book = ledger([], [], [])
    with pytest.raises(UserError, match="formats are"):
        export(book, "csv")
    with pytest.raises(UserError, match="aggregate 'vote'"):
        export(book, "rankings", aggregate="vote")
    with pytest.raises(UserError, match="no ranks"):
        export(book, "demonstrations", aggregate="mean")
    with pytest.raises(UserError, match="filters"):
        export(book, "ledger", Filters(late=True))


# --- in, and round ---

# A completion "nan" beside a prompt that is a text is a missing number, and refused; Hypothesis likes to draw it.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12).filter(
    lambda text: text.strip().lower() not in ("", "nan")
)
NAME = st.sampled_from(["ann", "bo", 'Ünïcode "x"', None])


@st.composite
def rankings_file(draw: st.DrawFn) -> list[dict[str, Any]]:
    rows = []
    for number in range(draw(st.integers(1, 5))):
        count = draw(st.integers(2, 4))
        sourced = draw(st.booleans())
        replies: list[dict[str, Any]] = []
        for _ in range(count):
            reply = {
                "text": draw(st.one_of(TEXT, st.sampled_from(["same", ""]))),
                "rank": draw(st.integers(1, count)),
                "finished": draw(st.booleans()),
            }
            for other in replies:  # one text cannot beat itself
                if (other["text"], other["finished"]) == (reply["text"], reply["finished"]):
                    reply["rank"] = other["rank"]
            if sourced:
                reply["source"] = draw(st.sampled_from(["sft", "ppo t=0.7"]))
            replies.append(reply)
        row = {
            "id": f"p{draw(st.integers(0, 3))}",
            "kind": "k",
            "split": draw(st.sampled_from(["train", "test"])),
            "prompt": draw(st.sampled_from(["Why?", "How?"])),
            "responses": replies,
        }
        name = draw(NAME)
        rows.append(row if name is None else {**row, "annotator": name})
        if count == 2 and draw(st.booleans()):
            rows[-1]["strength"] = draw(st.integers(1, 3))
        if draw(st.booleans()):
            rows.append(dict(rows[draw(st.integers(0, len(rows) - 1))], id=f"copy{number}"))
    return rows


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=rankings_file(), format=st.sampled_from(["rankings", "pairs", "hh"]))
def test_export_import_export_gives_the_same_bytes(
    database: Callable[[], Engine], tmp_path: Path, rows: list[dict[str, Any]], format: str
) -> None:
    first, second = database(), database()
    import_labels(first, put(tmp_path / "in.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))
    out = written(first, format)
    if out:
        import_labels(second, put(tmp_path / "out.jsonl", out))
        assert written(second, format) == out
        # And a file that was imported is known afterwards.
        again = import_labels(second, tmp_path / "out.jsonl")
        assert (again.items, again.labels) == (0, 0)
        assert written(second, format) == out


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(st.sampled_from(["Why?", "How?"]), TEXT), min_size=1, max_size=6))
def test_demonstrations_go_round_too(
    database: Callable[[], Engine], tmp_path: Path, rows: list[tuple[str, str]]
) -> None:
    first, second = database(), database()
    lines = [json.dumps({"id": f"d{n}", "prompt": p, "completion": c}) for n, (p, c) in enumerate(rows)]
    import_labels(first, put(tmp_path / "in.jsonl", "\n".join(lines) + "\n"))
    out = written(first, "demonstrations")
    assert out.count('"completion"') == len(rows)
    import_labels(second, put(tmp_path / "out.jsonl", out))
    assert written(second, "demonstrations") == out


def rows_of(count: int, **changes: Any) -> list[dict[str, Any]]:
    return [
        {
            "id": f"p{n}",
            "prompt": f"Question {n}?",
            "annotator": "ann",
            **changes,
            "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}, {"text": "c", "rank": 2}],
        }
        for n in range(count)
    ]


def lines_of(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_the_other_readers_read_what_is_written(database: Callable[[], Engine], tmp_path: Path) -> None:
    """The run's own readers, by the file's format alone."""
    engine = database()
    import_labels(engine, put(tmp_path / "in.jsonl", lines_of(rows_of(3))))
    for format, count in (("rankings", 3), ("pairs", 6), ("hh", 6)):
        found = read_rankings(put(tmp_path / f"{format}.jsonl", written(engine, format)))
        assert len(found) == count
        assert {ranking.annotator for ranking in found} == {"ann"}
        assert found[0].prompt.id == "p0"
    for name in ("table.csv", "ledger.jsonl"):  # to be looked at; a ledger has golds and corrections, too
        with pytest.raises(
            UserError, match=rf"--format {name.partition('.')[0]}` writes.*export them with --format ran"
        ):
            read_rankings(put(tmp_path / name, written(engine, name.partition(".")[0])))
    import_labels(engine, put(tmp_path / "d.jsonl", '{"prompt": "Why?", "completion": "So."}\n'))
    table = read_demonstrations(put(tmp_path / "out.jsonl", written(engine, "demonstrations")))
    assert [row.completion for row in table] == ["So."]


def test_a_changed_mind_is_a_correction_and_the_old_row_stays(database: Callable[[], Engine], tmp_path: Path) -> None:
    engine = database()
    rows = rows_of(1)
    import_labels(engine, put(tmp_path / "a.jsonl", lines_of(rows)))
    rows[0]["responses"][0]["rank"] = 3
    found = import_labels(engine, put(tmp_path / "b.jsonl", lines_of(rows)))
    assert (found.items, found.labels, found.known) == (0, 1, 0)
    with snapshot(engine) as connection:
        labels = read(connection).labels
    assert [row.ranks for row in labels] == [(1, 2, 2), (2, 1, 1)]
    assert [row.ranks for row in standing(labels)] == [(2, 1, 1)]


def test_each_annotator_of_a_label_studio_task_gives_a_label(database: Callable[[], Engine], tmp_path: Path) -> None:
    """Ann by her address, 7 by the number, one by nothing; who changed their mind, and who said nothing."""

    def annotation(side: str | None, who: Any) -> dict[str, Any]:
        result = [{"from_name": "better", "value": {"selected": side}}] if side else []
        return {"completed_by": who, "was_cancelled": False, "result": result}

    ann = {"id": 3, "email": "ann@example.org"}
    said = [annotation("left", ann), annotation("right", 7), annotation("left", None), annotation(None, 8)]
    tasks = [
        {"id": 1, "data": {"prompt": "A tree?", "answer1": "Oak.", "answer2": "Ivy."}, "annotations": said},
        {
            "id": 2,
            "data": {"prompt": "A bird?", "answer1": "Owl.", "answer2": "Bat."},
            "annotations": [annotation("right", ann), annotation("left", ann)],
        },
    ]
    path = put(tmp_path / "export.json", json.dumps(tasks))
    engine = database()
    found = import_labels(engine, path)
    assert (found.items, found.labels) == (2, 5)
    rows = [json.loads(row) for row in written(engine, "rankings").splitlines()]
    given = [(row["responses"][0]["text"], row["responses"][0]["rank"], row.get("annotator")) for row in rows]
    assert given == [
        ("Oak.", 1, "ann@example.org"),
        ("Oak.", 2, "7"),
        ("Oak.", 1, None),
        ("Owl.", 1, "ann@example.org"),
    ]
    assert import_labels(engine, path).labels == 0


def test_a_name_in_capitals_is_the_same_person(database: Callable[[], Engine], tmp_path: Path) -> None:
    """As where they sign in: otherwise Ann had two voices, and agreed with herself."""
    engine = database()

    def row(name: str, ranks: tuple[int, int]) -> str:
        replies = [{"text": text, "rank": rank} for text, rank in zip("ab", ranks, strict=True)]
        return json.dumps({"prompt": "A tree?", "responses": replies, "annotator": name}) + "\n"

    import_labels(engine, put(tmp_path / "one.jsonl", row("ann", (1, 2))))
    again = import_labels(engine, put(tmp_path / "two.jsonl", row("Ann", (1, 2)) + row(" ANN", (2, 1))))
    assert (again.labels, again.known) == (1, 1)  # said before, and a correction
    (kept,) = [json.loads(line) for line in written(engine, "rankings").splitlines()]
    assert (kept["annotator"], [reply["rank"] for reply in kept["responses"]]) == ("ann", [2, 1])


def test_imported_labels_take_slots_but_never_more_than_there_are(
    database: Callable[[], Engine], tmp_path: Path
) -> None:
    engine = database()
    rows = [row for name in ("ann", "bo", "cy") for row in rows_of(1, annotator=name)]
    import_labels(engine, put(tmp_path / "a.jsonl", lines_of(rows)))
    with engine.connect() as connection:
        slots = connection.exec_driver_sql("SELECT slot FROM lease ORDER BY slot").scalars().all()
        assert connection.exec_driver_sql("SELECT free FROM item").scalar() == 0
    assert sorted(slots, key=str) == [1, None, None]
    assert len(written(engine, "rankings").splitlines()) == 3


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "Why?"}, "no label"),
        ({"prompt": "Why?", "chosen": "a", "rejected": "b", "strength": 0.5}, "1, 2 or 3"),
        ({"prompt": "Why?", "completion": "x" * 200_001}, "200,001 characters"),
        ({"prompt": "Why?", "responses": [{"text": str(n), "rank": 1} for n in range(17)]}, "2 to 16"),
        ({"prompt": "Why?", "completion": "So.", "label": True}, "liked or not is no answer.*preferences.unpaired"),
        ({"prompt": "Why?", "chosen": "So.", "rejected": "So."}, "one text cannot beat itself"),
    ],
)
def test_a_row_that_is_no_label_stops_before_anything_is_written(
    database: Callable[[], Engine], tmp_path: Path, row: dict[str, Any], words: str
) -> None:
    engine = database()
    with pytest.raises(UserError, match=words) as stopped:
        import_labels(engine, put(tmp_path / "a.jsonl", lines_of([row])))
    assert "a.jsonl:1" in str(stopped.value)
    assert written(engine, "ledger") == "" and not has_items(engine)


def test_an_export_sees_one_moment_while_people_label(database: Callable[[], Engine], tmp_path: Path) -> None:
    """A thread adds labels all the time; in one snapshot every read gives the same ledger, and later ones more."""
    engine = database()
    import_labels(engine, put(tmp_path / "a.jsonl", lines_of(rows_of(5))))
    stop = threading.Event()

    def keep_labelling() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            path = put(tmp_path / "more.jsonl", lines_of(rows_of(5, annotator=f"person {number}")))
            import_labels(engine, path)

    thread = threading.Thread(target=keep_labelling)
    thread.start()
    try:
        grew = []
        for _ in range(5):
            with snapshot(engine) as connection:
                first = "".join(export(read(connection), "rankings").lines())
                stop.wait(0.1)
                assert "".join(export(read(connection), "rankings").lines()) == first
            grew.append(first.count("\n"))
    finally:
        stop.set()
        thread.join()
    assert grew[0] < grew[-1]
    assert all(count % 5 == 0 for count in grew)
