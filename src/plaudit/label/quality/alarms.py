"""What of the numbers an admin should act on, in plain words.

An alarm about a person needs some evidence: as many labels as stated here, and an interval that lies wholly on the
wrong side, so that a few unlucky items raise none.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

LEAST = 8
"""Labels (or pairs) below which nothing is said of a person."""
TOO_FAST = 0.2
POSITION_GAP = 0.1
ALWAYS_FIRST = 0.9
GOLD = 0.75
SELF = 0.7
LENGTH_GAP = 0.15
TOO_MANY_TIES = 0.6
LOW_ALPHA = 0.2
CANNOT_JUDGE = 0.3

Row = Mapping[str, Any]


def alarms(people: Sequence[Row], agreed: Row, progress: Row) -> list[dict[str, Any]]:
    """Alarms, the bad ones first. `people`, `agreed` and `progress` are the parts of the dashboard."""
    found = [alarm for row in people for alarm in _of_person(row, people, agreed)]
    alpha, compared = agreed["alpha"], agreed["pairs"]
    if alpha is not None and compared is not None and compared["n"] >= 5 * LEAST and alpha < LOW_ALPHA:
        found.append(
            _alarm(
                "warn",
                None,
                f"people hardly agree: Krippendorff's alpha is {alpha:.2f}, 0 is chance",
                "make the guidelines clearer with examples of hard cases; talk through items people ordered "
                "differently; a reward model cannot be better than this",
            )
        )
    if progress["wanted"] and not agreed["items"] and progress["given"] >= 10 * LEAST:
        wait = progress["wanted"] > progress["items"]  # some items are for more than one person already
        do = "let a second person label" if wait else "set the overlap to 2 or 3"
        found.append(_alarm("warn", None, "no item was labelled by two people, so agreement cannot be measured", do))
    return sorted(found, key=lambda alarm: alarm["level"] != "bad")


def _alarm(level: str, who: str | None, what: str, do: str) -> dict[str, Any]:
    return {"level": level, "who": who, "what": what, "do": do}


def _of_person(row: Row, people: Sequence[Row], agreed: Row) -> list[dict[str, Any]]:
    name, found = row["name"], []
    fast, first, earlier = row["too_fast"], row["first_is_best"], row["earlier_wins"]
    if _many(fast) and fast["low"] > TOO_FAST / 2 and fast["share"] > TOO_FAST:
        what = f"too fast: {fast['share']:.0%} of {fast['n']} labels came before the texts can have been read"
        do = "look at some of these labels; leave this person out of the export if they are careless"
        found.append(_alarm("bad", name, what, do))
    if _many(first) and first["share"] >= ALWAYS_FIRST:
        what = (
            f"always first position: in {first['share']:.0%} of {first['n']} labels the reply shown first is the best"
        )
        do = "this is not reading: talk to them, and leave their labels out of the export"
        found.append(_alarm("bad", name, what, do))
    elif _many(earlier) and max(earlier["low"] - 0.5, 0.5 - earlier["high"]) > 0 and _gap(earlier) > POSITION_GAP:
        where, most = ("further up", earlier["share"]) if earlier["share"] > 0.5 else ("below", 1 - earlier["share"])
        what = f"position bias: replies shown {where} win {most:.0%} of the pairs, 50 % would be fair"
        do = "ask them to read every reply before ranking; the order is drawn anew for each view, so it averages out"
        found.append(_alarm("warn", name, what, do))
    gold, again = row["gold"], row["self"]
    if _many(gold) and gold["share"] < GOLD:
        what = f"disagrees with gold: {gold['share']:.0%} of {gold['n']} known pairs are ordered right"
        do = "check that the gold answers are beyond doubt, then the guidelines, then the person"
        found.append(_alarm("bad", name, what, do))
    if _many(again) and again["share"] < SELF:
        what = f"disagrees with themselves: of {again['n']} pairs seen twice {again['share']:.0%} are ordered alike"
        do = "shorter sessions, clearer guidelines; ties for replies that are nearly equal"
        found.append(_alarm("warn", name, what, do))
    found += _beside_others(row, people, agreed)
    if row["labels"] >= LEAST and (row["cannot_judge"] or 0) > CANNOT_JUDGE:
        what = f"cannot judge {row['cannot_judge']:.0%} of their items"
        found.append(_alarm("warn", name, what, "give them items of a field they know, or guidelines for such prompts"))
    if row["labels"] >= LEAST and (row["ties"] or 0) > TOO_MANY_TIES:
        what = f"{row['ties']:.0%} of their pairs are ties, which teach a reward model little"
        found.append(
            _alarm("warn", name, what, "say in the guidelines when a tie is right; sample replies that differ")
        )
    return found


def _beside_others(row: Row, people: Sequence[Row], agreed: Row) -> list[dict[str, Any]]:
    """What shows only against everybody else's labels."""
    found = []
    others, pool = row["others"], agreed["pairs"]
    if _many(others) and pool and others["high"] < pool["share"] and others["share"] < pool["share"] - POSITION_GAP:
        found.append(
            _alarm(
                "warn",
                row["name"],
                f"disagrees with the others: {others['share']:.0%} of shared pairs alike, {pool['share']:.0%} among all",
                "read some of these items together: they may have seen what the others did not, or not read the guidelines",
            )
        )
    own = row["longer_wins"]
    rest = [other["longer_wins"] for other in people if other is not row and other["longer_wins"]]
    if _many(own) and len(rest) >= 2:
        usual = median(share["share"] for share in rest)  # so that one person's bias is not everybody else's alarm
        if (own["low"] > usual or own["high"] < usual) and abs(own["share"] - usual) > LENGTH_GAP:
            said = "longer" if own["share"] > usual else "shorter"
            found.append(
                _alarm(
                    "warn",
                    row["name"],
                    f"length bias: the longer reply wins {own['share']:.0%} of their pairs, {usual:.0%} with the others",
                    f"remind them that a {said} reply is not better for it; say in the guidelines how long is right",
                )
            )
    return found


def _many(share: Row | None) -> bool:
    return share is not None and share["n"] >= LEAST


def _gap(share: Row) -> float:
    return abs(float(share["share"]) - 0.5)
