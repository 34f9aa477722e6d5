"""What of the numbers an admin should act on, in plain words.

An alarm about a person needs evidence: as many labels as stated here, and an interval that lies wholly on the wrong
side. That interval is a confidence sequence (`all_low` to `all_high`): the numbers are looked at every day, and by the
interval of one look somebody sound would be accused sooner or later.
"""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

LEAST = 8
"""Labels (or pairs) below which nothing is said of a person."""
TOO_FAST = 0.2
POSITION_GAP = 0.1
ALWAYS_FIRST = 0.9
FIRST_AT_LEAST = 0.6
"""What the interval of "always first" must lie above: of two replies ½ is fair."""
GOLD = 0.75
SELF = 0.7
LENGTH_GAP = 0.15
TOO_MANY_TIES = 0.6
LOW_ALPHA = 0.2
CANNOT_JUDGE = 0.3

Row = Mapping[str, Any]
Alarm = tuple[str, str, str]
"""Level (bad or warn), what is wrong, what to do."""


def alarms(people: Sequence[Row], agreed: Row, progress: Row, doubtful: Sequence[Row] = ()) -> list[dict[str, Any]]:
    """Alarms, the bad ones first. `people`, `agreed` and `progress` are the parts of the dashboard, `doubtful` the gold
    items that most people answer otherwise."""
    raised: list[tuple[str | None, Alarm]] = [
        (row["name"], alarm)
        for row in people
        for alarm in (*_of_one(row), *_beside_others(row, people, agreed), *_of_answers(row))
    ]
    raised += [(None, alarm) for alarm in (*_of_gold(doubtful), *_of_all(agreed, progress))]
    rows = [{"level": level, "who": who, "what": what, "do": do} for who, (level, what, do) in raised]
    return sorted(rows, key=lambda row: row["level"] != "bad")


def _of_one(row: Row) -> Iterator[Alarm]:
    """Pace, position, gold items and consistency of one person."""
    fast, first, earlier = row["too_fast"], row["first_is_best"], row["earlier_wins"]
    if _many(fast) and fast["all_low"] > TOO_FAST / 2 and fast["share"] > TOO_FAST:
        what = f"too fast: {fast['share']:.0%} of {fast['n']} labels came before the texts can have been read"
        do = "look at some of these labels; leave this person out of the export if they are careless"
        yield "bad", what, do
    if _many(first) and first["share"] >= ALWAYS_FIRST and first["all_low"] > FIRST_AT_LEAST:
        often = f"in {first['share']:.0%} of {first['n']} labels"
        do = "this is not reading: talk to them, and leave their labels out of the export"
        yield "bad", f"always first position: {often} the reply shown first is the best", do
    elif (
        _many(earlier)
        and not earlier["all_low"] <= 0.5 <= earlier["all_high"]
        and abs(earlier["share"] - 0.5) > POSITION_GAP
    ):
        where, most = ("further up", earlier["share"]) if earlier["share"] > 0.5 else ("below", 1 - earlier["share"])
        what = f"position bias: replies shown {where} win {most:.0%} of the pairs, 50 % would be fair"
        do = "ask them to read every reply before ranking; the order is drawn anew for each view, so it averages out"
        yield "warn", what, do
    gold, again = row["gold"], row["self"]
    if _many(gold) and gold["all_high"] < GOLD:
        what = f"disagrees with gold: {gold['share']:.0%} of {gold['n']} known pairs are ordered right"
        yield "bad", what, "check that the gold answers are beyond doubt, then the guidelines, then the person"
    if _many(again) and again["all_high"] < SELF:
        what = f"disagrees with themselves: of {again['n']} pairs seen twice {again['share']:.0%} are ordered alike"
        yield "warn", what, "shorter sessions, clearer guidelines; ties for replies that are nearly equal"


def _beside_others(row: Row, people: Sequence[Row], agreed: Row) -> Iterator[Alarm]:
    """What shows only against everybody else's labels."""
    # Beside somebody bad a sound person agrees with nobody either: it has to show without that one partner, too.
    others, rest_of, pool = row["others"], row["others_but_one"], agreed["pairs"]
    if pool and all(
        _many(own) and own["all_high"] < pool["share"] and own["share"] < pool["share"] - POSITION_GAP
        for own in (others, rest_of)
    ):
        own, usual = f"{others['share']:.0%} of shared pairs alike", f"{pool['share']:.0%} among all"
        do = "read some of these items together: they may have seen what the others did not, or not read the guidelines"
        yield "warn", f"disagrees with the others: {own}, {usual}", do
    longer = row["longer_wins"]
    rest = [other["longer_wins"]["share"] for other in people if other is not row and other["longer_wins"]]
    if _many(longer) and len(rest) >= 2:
        middle = median(rest)  # so that one person's bias is not everybody else's alarm
        if not longer["all_low"] <= middle <= longer["all_high"] and abs(longer["share"] - middle) > LENGTH_GAP:
            own, usual = f"{longer['share']:.0%} of their pairs", f"{middle:.0%} with the others"
            said = "longer" if longer["share"] > middle else "shorter"
            do = f"remind them that a {said} reply is not better for it; say in the guidelines how long is right"
            yield "warn", f"length bias: the longer reply wins {own}, {usual}", do


def _of_answers(row: Row) -> Iterator[Alarm]:
    """Answers that say little."""
    if row["labels"] < LEAST:
        return
    if (row["cannot_judge"] or 0) > CANNOT_JUDGE:
        do = "give them items of a field they know, or guidelines for such prompts"
        yield "warn", f"cannot judge {row['cannot_judge']:.0%} of their items", do
    if (row["ties"] or 0) > TOO_MANY_TIES:
        do = "say in the guidelines when a tie is right; sample replies that differ"
        yield "warn", f"{row['ties']:.0%} of their pairs are ties, which teach a reward model little", do


def _of_all(agreed: Row, progress: Row) -> Iterator[Alarm]:
    alpha, compared = agreed["alpha"], agreed["pairs"]
    if alpha is not None and compared is not None and compared["n"] >= 5 * LEAST and alpha < LOW_ALPHA:
        do = (
            "make the guidelines clearer with examples of hard cases; talk through items people ordered differently; "
            "a reward model cannot be better than this"
        )
        yield "warn", f"people hardly agree: Krippendorff's alpha is {alpha:.2f}, 0 is chance", do
    if progress["wanted"] and not agreed["items"] and progress["given"] >= 10 * LEAST:
        wait = progress["wanted"] > progress["items"]  # some items are for more than one person already
        do = "let a second person label" if wait else "set the overlap to 2 or 3"
        yield "warn", "no item was labelled by two people, so agreement cannot be measured", do


def _of_gold(doubtful: Sequence[Row]) -> Iterator[Alarm]:
    if doubtful:
        some = ", ".join(f"{row['item']} ({row['share']:.0%} of {row['people']} people)" for row in doubtful[:5])
        do = (
            "read them: where everybody errs alike the answer is wrong or the prompt unclear; they count against nobody"
        )
        yield "bad", f"gold answers that most people contradict: {some}", do


def _many(share: Row | None) -> bool:
    return share is not None and share["n"] >= LEAST
