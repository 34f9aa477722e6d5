"""What is said of labels and of people, by hand; and the dashboard and its alarms on people who do something wrong."""

import io
import json
from typing import Any

import numpy as np
import pytest
from label_rows import item, label, ledger, person
from rich.console import Console

from plaudit.cli.label_transfer import people_tables
from plaudit.label.db.ledger import ItemRow, Label, standing
from plaudit.label.kinds.rank import dense, verdicts_of
from plaudit.label.quality import agreement, annotator
from plaudit.label.quality.dashboard import dashboard

DAY = 86400.0
NOW = 1_764_000_000.0  # 2025-11-24 16:00 UTC


def test_ranks_say_who_is_better_in_every_pair() -> None:
    assert verdicts_of((1, 2, 2)) == {(0, 1): 1, (0, 2): 1, (1, 2): 0}
    assert verdicts_of((3, 1)) == {(0, 1): -1}
    assert dense((2, 5, 2, 9)) == (1, 2, 1, 3)
    assert agreement.middle_ranks((1, 2, 2, 3)) == [1, 2.5, 2.5, 4]


def test_the_last_correction_stands() -> None:
    one = item("i", ["a", "b"])
    first = label(one, (1, 2), seq=1)
    rows = [
        first,
        label(one, (2, 1), seq=4, supersedes=1),
        label(one, (1, 1), seq=9, supersedes=4),
        label(one, (1, 2), seq=5, person=2),
    ]
    assert [row.seq for row in standing(rows)] == [5, 9]


def test_agreement_by_hand() -> None:
    """Item i, three replies, two people: (1, 2, 3) and (1, 3, 2) agree on two of three pairs. Item j: (1, 2) and a tie,
    which is no strict pair. Item k has one label only."""
    i, j, k = item("i", "abc"), item("j", "ab"), item("k", "ab")
    labels = [
        label(i, (1, 2, 3)),
        label(i, (1, 3, 2), person=2),
        label(j, (1, 2)),
        label(j, (1, 1), person=2),
        label(k, (1, 2)),
    ]
    found = agreement.agreement(labels)
    assert (found["people"], found["items"]) == (2, 2)
    assert found["pairs"]["share"] == pytest.approx(2 / 3)
    assert found["pairs"]["n"] == 3
    # Verdicts + + −|+ 0 of four pairs, both ways round: 8 units, 16 values, of which 7 are +, 7 −, 2 tie.
    # Observed disagreement: 2 units of pair (1, 2) of i and 2 of j, so 4/8; expected 1 − (42 + 42 + 2)/240.
    assert found["alpha"] == pytest.approx(1 - 0.5 / (1 - 86 / 240), abs=1e-12)
    # Kappa of the same table: observed 1/2; both ways round the first says + 4, − 4, the second + 3, − 3, tie 2.
    assert found["between"] == [
        {
            "first": 1,
            "second": 2,
            "pairs": 4,
            "kappa": pytest.approx((0.5 - 24 / 64) / (1 - 24 / 64)),
            "agreement": pytest.approx(2 / 3),
        }
    ]
    assert found["alpha_ranks"] is not None
    assert agreement.item_agreement(labels) == {"i": pytest.approx(2 / 3)}


def test_agreement_of_people_who_all_agree_or_never_met() -> None:
    i, j = item("i", "abc"), item("j", "abc")
    alike = agreement.agreement([label(i, (1, 2, 3)), label(i, (1, 2, 3), person=2)])
    assert alike["pairs"]["share"] == alike["alpha"] == alike["alpha_ranks"] == 1.0
    apart = agreement.agreement([label(i, (1, 2, 3)), label(j, (1, 2, 3), person=2)])
    assert (apart["items"], apart["pairs"], apart["alpha"], apart["between"]) == (0, None, None, [])


def test_labels_that_are_late_or_asked_again_or_gold_do_not_count_as_agreement() -> None:
    i = item("i", "ab")
    labels = [
        label(i, (1, 2)),
        label(i, (2, 1), person=2, late=True),
        label(i, (2, 1), purpose="consistency"),
        label(i, (2, 1), person=3, purpose="gold"),
    ]
    assert agreement.agreement(labels)["items"] == 0


def test_position_bias_by_hand() -> None:
    """Shown order 2, 0, 1 of replies ranked (1, 2, 3): positions have ranks 3, 1, 2. Pairs in shown order: (3, 1) and
    (3, 2) go to the later one, (1, 2) to the earlier: 1 of 3; and the first shown is not the best."""
    one = item("i", "abc")
    own = [label(one, (1, 2, 3), order=(2, 0, 1))]
    found = annotator.earlier_wins(own)
    assert found is not None
    assert (found["share"], found["n"]) == (pytest.approx(1 / 3), 3)
    first = annotator.first_is_best(own)
    assert first is not None
    assert first["share"] == 0.0
    tied = annotator.first_is_best([label(one, (1, 1, 2))])
    assert tied is None


def test_length_bias_by_hand() -> None:
    """Lengths 1, 3, 3 ranked (3, 1, 2): the longer wins both pairs whose lengths differ."""
    one = item("i", ["a", "bbb", "ccc"])
    found = annotator.longer_wins({"i": one}, [label(one, (3, 1, 2))])
    assert found is not None
    assert (found["share"], found["n"]) == (1.0, 2)
    assert annotator.longer_wins({"i": one}, [label(one, (1, 1, 1))]) is None


def test_gold_and_consistency_by_hand() -> None:
    """Gold (1, 2, 3), said (1, 1, 2): pairs (0,1) tied: half; (0,2) and (1,2) right: 2.5 of 3. Seen again as (2, 1, 3):
    strict both times are (0,2) and (1,2), alike both times."""
    one = item("i", "abc", gold=(1, 2, 3))
    said = [label(one, (1, 1, 2), seq=1), label(one, (2, 1, 3), seq=2, purpose="consistency")]
    gold = annotator.gold_accuracy({"i": one}, said[:1])
    assert gold is not None
    assert (gold["share"], gold["n"]) == (pytest.approx(2.5 / 3), 3)
    again = annotator.consistency(said)
    assert again is not None
    assert (again["share"], again["n"]) == (1.0, 2)
    assert annotator.consistency(said[:1]) is None


def test_pace_by_hand() -> None:
    """24 words in replies and 2 in the prompt at 12 a second take 2.17 s: 2.1 is too fast, 2.2 is not."""
    one = item("i", ["word " * 12, "word " * 12])
    own = [label(one, (1, 2), seconds=s) for s in (2.1, 2.2, 10.0, 100.0)]
    own.append(label(one, (1, 2), seconds=0.0, order=()))
    found = annotator.pace({"i": one}, own)
    assert found["seconds"]["median"] == pytest.approx(6.1)
    assert found["too_fast"]["share"] == 0.25
    assert annotator.pace({"i": one}, []) == {"seconds": None, "too_fast": None}


# --- the dashboard ---


def crowd(strange: str, seed: int = 0) -> dict[str, Any]:
    """Three sound people and a strange one on 60 items of three replies with a true order; the dashboard of it."""
    rng = np.random.default_rng(seed)
    items, labels = [], []
    for number in range(60):
        texts = [f"reply {'word ' * int(rng.integers(5, 30))}{k}" for k in range(3)]
        true = tuple(int(rank) for rank in rng.permutation(3) + 1)
        gold = true if number % 4 == 0 else None
        items.append(item(f"i{number}", texts, gold=gold, overlap=4))
        for who in range(1, 5):
            labels += said(rng, items[-1], true, who, strange if who == 4 else "sound", number)
    people = [person(who, name) for who, name in enumerate(("ann", "bo", "cy", "dan"), start=1)]
    return dashboard(ledger(items, people, labels), NOW)


def said(
    rng: np.random.Generator, of: ItemRow, true: tuple[int, ...], who: int, habit: str, number: int
) -> list[Label]:
    order = tuple(int(reply) for reply in rng.permutation(3))
    noisy = np.array(true) + rng.normal(0, 0.4, 3)
    seconds = float(rng.uniform(15, 40))
    if habit == "first":
        noisy = np.argsort(order)
    if habit == "long":
        noisy = -np.array([len(reply.text) for reply in of.replies]) + rng.normal(0, 0.1, 3)
    if habit == "contrary":
        noisy = -noisy
    ranks = tuple(1 + sum(bool(other < mine) for other in noisy) for mine in noisy)
    verdict = None
    if habit == "unsure" and number % 2:
        ranks, verdict = None, "cannot_judge"
    if habit == "ties":
        ranks = (1, 1, 1)
    if habit == "hasty":
        seconds = 0.4
    made = label(
        of,
        ranks,
        who,
        order=order,
        seconds=seconds,
        verdict=verdict,
        created=NOW - DAY * (number % 5),
        purpose="gold" if of.gold else "normal",
    )
    if habit != "moody" or of.gold:
        return [made]
    again = tuple(int(rank) for rank in rng.permutation(3) + 1)
    return [made, label(of, again, who, order=order, purpose="consistency")]


@pytest.mark.parametrize(
    ("habit", "words"),
    [
        ("first", ["always first position", "disagrees with gold", "disagrees with the others"]),
        ("contrary", ["disagrees with gold", "disagrees with the others"]),
        ("long", ["length bias"]),
        ("hasty", ["too fast"]),
        ("ties", ["are ties"]),
        ("unsure", ["cannot judge"]),
        ("moody", ["disagrees with themselves"]),
    ],
)
def test_a_strange_annotator_raises_the_alarm_that_says_what_is_strange(habit: str, words: list[str]) -> None:
    found = crowd(habit)["alarms"]
    assert {alarm["who"] for alarm in found} <= {"dan", None}
    mine = [alarm["what"] for alarm in found if alarm["who"] == "dan"]
    for part in words:
        assert any(part in what for what in mine), (part, mine)
    assert [alarm["level"] for alarm in found] == sorted(alarm["level"] for alarm in found)  # bad before warn


@pytest.mark.parametrize("seed", range(5))
def test_sound_people_raise_none(seed: int) -> None:
    assert crowd("sound", seed)["alarms"] == []


def test_a_sound_person_beside_somebody_contrary_is_not_named() -> None:
    """ann shares items with bo alone, who turns every order round; bo shares others with cy, cy with dan."""
    agree, contrary = (1, 2), (2, 1)
    shared = [("ann", 1, agree, 2, contrary, 40), ("bo", 2, contrary, 3, agree, 40), ("cy", 3, agree, 4, agree, 100)]
    items, labels = [], []
    for name, who, ranks, other, theirs, count in shared:
        own = [item(f"{name}-{number}", ("a", "b")) for number in range(count)]
        items += own
        labels += [made for one in own for made in (label(one, ranks, who), label(one, theirs, other))]
    people = [person(number, name) for number, name in enumerate(("ann", "bo", "cy", "dan"), start=1)]
    found = dashboard(ledger(items, people, labels), NOW)["alarms"]
    assert [alarm["who"] for alarm in found if "disagrees with the others" in alarm["what"]] == ["bo"]


def test_the_dashboard_is_json_and_has_the_shape_that_it_documents() -> None:
    found = json.loads(json.dumps(crowd("sound"), allow_nan=False))
    assert set(found) == {
        "name",
        "generated",
        "progress",
        "days",
        "people",
        "agreement",
        "verdicts",
        "flags",
        "alarms",
        "sources",
        "compare",
    }
    ann = next(row for row in found["people"] if row["name"] == "ann")
    assert set(ann) == {
        "id",
        "name",
        "role",
        "active",
        "labels",
        "week",
        "late",
        "corrected",
        "skipped",
        "last",
        "seconds",
        "ties",
        "all_bad",
        "cannot_judge",
        "reliability",
        "too_fast",
        "earlier_wins",
        "first_is_best",
        "longer_wins",
        "gold",
        "self",
        "others",
        "others_but_one",
    }
    assert set(ann["gold"]) == {"share", "low", "high", "n", "all_low", "all_high"}
    assert ann["reliability"] > 0.8
    assert {row["first"] for row in found["agreement"]["between"]} <= {"ann", "bo", "cy", "dan"}
    assert len(found["days"]) == 30
    assert found["days"][-1] == {"day": "2025-11-24", "labels": 48, "people": 4}


def test_an_empty_project_has_a_dashboard() -> None:
    found = dashboard(ledger([], [person(1, "ann")], []), NOW)
    assert found["progress"]["share"] == 0.0
    assert found["people"][0]["seconds"] is None
    assert found["alarms"] == []


def test_progress_by_hand() -> None:
    """Item a wants 2 and has 3 (2 count), b wants 3 and has 1 in time and 1 late; c, a write item, wants 2; gold is no
    work. 3 of 7 are given. All came within the last day, so at 3 a day 4/3 days are left."""
    a, b = item("a", "xy"), item("b", "xy", overlap=3)
    c, g = item("c", "x", task="write"), item("g", "xy", gold=(1, 2))
    labels = [label(a, (1, 2), who, created=NOW - 60) for who in (1, 2)]
    labels += [label(b, (1, 2), 1, created=NOW - 60), label(b, (1, 2), 2, created=NOW - 60, late=True)]
    labels += [label(g, (1, 2), 1, created=NOW - 60, purpose="gold")]
    found = dashboard(ledger([a, b, c, g], [person(1, "ann"), person(2, "bo")], labels, overlap=2), NOW)["progress"]
    assert {key: found[key] for key in ("items", "wanted", "given", "done")} == {
        "items": 3,
        "wanted": 7,
        "given": 3,
        "done": 1,
    }
    assert found["days_left"] == pytest.approx(4 / 3)
    assert [row["task"] for row in found["tasks"]] == ["rank", "write"]


def test_a_correction_is_no_second_label_of_its_day() -> None:
    one = item("i", "ab")
    labels = [label(one, (1, 2), seq=1, created=NOW - 86400), label(one, (2, 1), seq=2, supersedes=1, created=NOW)]
    days = dashboard(ledger([one], [person(1, "ann")], labels), NOW)["days"]
    assert [day["labels"] for day in days[-2:]] == [1, 0]


def test_the_pace_is_that_of_places_filled_here_and_a_correction_is_no_work_of_its_week() -> None:
    """Ann gave four labels in two days, a month ago; yesterday she corrected one, could not judge an item and imported
    what others had said. This week nothing was filled, so nobody knows how many days are left."""
    items = [item(f"i{number}", "ab") for number in range(8)]
    month = NOW - 30 * 86400
    labels = [label(one, (1, 2), seq=1 + at, created=month + at * 43200) for at, one in enumerate(items[:4])]
    labels += [label(items[0], (2, 1), seq=11, supersedes=1, created=NOW - 86400)]
    labels += [label(items[4], None, seq=12, verdict="cannot_judge", created=NOW - 86400)]
    labels += [label(items[5], (1, 2), seq=13, person=2, created=NOW - 86400, seconds=0.0, order=())]
    people = [person(1, "ann"), person(2, "(not named)", active=False)]
    found = dashboard(ledger(items, people, labels), NOW)
    assert (found["progress"]["given"], found["progress"]["days_left"]) == (5, None)
    assert [(row["labels"], row["week"]) for row in found["people"]] == [(5, 1), (1, 1)]  # ann's is "cannot judge"
    # One more, now: 3 are still wanted, at one in a day.
    more = dashboard(ledger(items, people, [*labels, label(items[6], (1, 2), seq=14, created=NOW)]), NOW)
    assert more["progress"]["days_left"] == pytest.approx(2 * 7)


def test_every_answer_is_of_one_sort() -> None:
    """ "All bad" with an order is no second answer "ranked"; the table and the filters call it the same."""
    one, text = item("i", "ab"), item("w", "a", task="write")
    said = [label(one, (1, 2), 1), label(one, (1, 2), 2, verdict="all_bad"), label(one, None, 3, verdict="all_bad")]
    said += [label(one, None, 4, verdict="cannot_judge"), label(text, None, 1, text="Good.")]
    people = [person(number, f"n{number}") for number in range(1, 5)]
    found = dashboard(ledger([one, text], people, said), NOW)["verdicts"]
    assert found == {"ranked": 1, "all_bad": 2, "cannot_judge": 1, "written": 1}


def test_bias_is_measured_on_what_was_asked_as_usual() -> None:
    """Where the gold answers are the longer replies, whoever knows them is not biased to length for it."""
    usual = [item(f"i{number}", ["long one", "short"]) for number in range(4)]
    known = [item(f"g{number}", ["long one", "short"], gold=(1, 2)) for number in range(4)]
    labels = [label(one, (2, 1)) for one in usual] + [label(one, (1, 2), purpose="gold") for one in known]
    labels += [label(usual[0], (1, 2), purpose="consistency"), label(usual[1], (1, 2), 2, late=True)]
    rows = {row["name"]: row for row in dashboard(ledger([*usual, *known], [person(1, "ann")], labels), NOW)["people"]}
    for measure in ("longer_wins", "earlier_wins", "first_is_best"):
        assert (rows["ann"][measure]["share"], rows["ann"][measure]["n"]) == (0.0, 4)
    assert (rows["ann"]["gold"]["share"], rows["ann"]["self"]["share"]) == (1.0, 0.0)


def test_the_alarm_of_no_second_person_says_what_is_still_to_be_done() -> None:
    """80 labels of one person: with an overlap of 2 there is nothing to be set any more."""
    items = [item(f"i{number}", "ab") for number in range(80)]
    labels = [label(one, (1 + number % 2, 2 - number % 2), created=NOW) for number, one in enumerate(items)]
    for overlap, words in ((1, "set the overlap to 2 or 3"), (2, "let a second person label")):
        found = dashboard(ledger(items, [person(1, "ann")], labels, overlap), NOW)["alarms"]
        assert [alarm["do"] for alarm in found if alarm["what"].startswith("no item was")] == [words]


def test_the_terminal_shows_every_measure_of_a_person_in_80_columns() -> None:
    out = io.StringIO()
    for table in people_tables(crowd("sound")["people"]):
        Console(width=80, file=out).print(table)
    shown = out.getvalue()
    for head in (
        "s an item",
        "too fast",
        "ties",
        "all bad",
        "cannot judge",
        "earlier wins",
        "first is best",
        "longer wins",
        "gold",
        "self",
        "others",
        "reliability",
    ):
        assert f" {head} " in shown, shown


def test_flags_are_counted_by_reply_and_not_by_label() -> None:
    one = item("i", "ab")
    flags = (("unsafe",), ())
    labels = [label(one, (1, 2), flags=flags), label(one, (1, 2), 2, flags=(("unsafe", "untrue"), ()))]
    found = dashboard(ledger([one], [person(1, "ann"), person(2, "bo")], labels), NOW)
    assert found["flags"] == [{"flag": "unsafe", "replies": 1}, {"flag": "untrue", "replies": 1}]


def on_gold(right: int, wrong: int, who: int = 1) -> tuple[list[ItemRow], list[Label]]:
    """So many gold pairs of one person ordered right and wrong."""
    items = [item(f"g{who}-{number}", ("a", "b"), gold=(1, 2)) for number in range(right + wrong)]
    said = [(1, 2)] * right + [(2, 1)] * wrong
    return items, [label(one, ranks, who, purpose="gold") for one, ranks in zip(items, said, strict=True)]


@pytest.mark.parametrize(("right", "wrong", "accused"), [(5, 4, False), (7, 3, False), (4, 20, True)])
def test_a_few_unlucky_gold_items_accuse_nobody(right: int, wrong: int, accused: bool) -> None:
    """5 of 9 is below 75 %, and what somebody who is right in 85 % sees in one project of a hundred."""
    items, labels = on_gold(right, wrong)
    found = dashboard(ledger(items, [person(1, "ann")], labels), NOW)["alarms"]
    assert any("disagrees with gold" in alarm["what"] for alarm in found) == accused


def test_where_nearly_everybody_contradicts_the_gold_it_is_the_gold_that_is_in_doubt() -> None:
    one = item("g", ("a", "b"), gold=(1, 2))
    people = [person(who, f"p{who}") for who in range(1, 6)]
    labels = [label(one, (2, 1), who, purpose="gold") for who in range(1, 6)]
    found = dashboard(ledger([one], people, labels), NOW)
    (alarm,) = [alarm for alarm in found["alarms"] if alarm["level"] == "bad"]
    assert alarm["who"] is None and "gold answers that most people contradict: g (0% of 5 people)" in alarm["what"]
    assert all(row["gold"] is None for row in found["people"])  # it counts against nobody
