"""Who is accused, and who is found: simulated teams of twenty with one careless, one adversarial and one who always
takes the first reply.

Twenty annotators of known accuracy give 1,200 labels of four replies, two people an item, a tenth of them on gold
items; the dashboard's alarms are looked at again and again, every twelve labels a person. Told are the share of
projects in which anybody sound is ever accused, and after how many of their own labels the three are found.

    python benchmarks/label_team.py --projects 200 --json out.json
"""

import argparse
import json
from typing import Any

import numpy as np

from plaudit.label.db.ledger import ItemRow, Label, PersonRow, ReplyRow
from plaudit.label.quality.agreement import agreement
from plaudit.label.quality.alarms import alarms
from plaudit.label.quality.annotator import doubtful_gold, person_quality
from plaudit.records import Message

PEOPLE, LABELS, REPLIES, GOLD, OVERLAP, LOOK = 20, 1_200, 4, 0.1, 2, 240
STRANGE = {1: "careless", 2: "adversarial", 3: "always first"}
PERSONAL = (
    "too fast",
    "always first",
    "position bias",
    "disagrees with gold",
    "disagrees with the others",
    "length bias",
)


def team(seed: int) -> tuple[list[ItemRow], list[PersonRow], list[Label]]:
    """The items, the people and their labels, in the order in which they came."""
    rng = np.random.default_rng(seed)
    people = [PersonRow(who, f"p{who:02}", "annotator", True, False, 0.0) for who in range(1, PEOPLE + 1)]
    noise = {who: rng.uniform(0.5, 1.2) for who in range(1, PEOPLE + 1)}  # pairs ordered right: about 90 to 75 %
    items: list[ItemRow] = []
    truth: list[np.ndarray] = []
    waiting: list[int] = []

    def new(gold: bool) -> int:
        worth = rng.normal(size=REPLIES) * 1.5
        replies = tuple(ReplyRow("word " * int(rng.integers(20, 80)), True, None) for _ in range(REPLIES))
        known = tuple(int(rank) + 1 for rank in np.argsort(np.argsort(-worth))) if gold else None
        number = len(items)
        message = (Message("user", "Question?"),)
        items.append(
            ItemRow(f"i{number}", number, "rank", message, replies, f"p{number}", "", "train", known, 0.0, 2, "")
        )
        truth.append(worth)
        return number

    golden = [new(True) for _ in range(12)]
    seen: dict[int, set[int]] = {who: set() for who in noise}
    labels: list[Label] = []
    for at in range(LABELS):
        who = at % PEOPLE + 1
        left = [number for number in golden if number not in seen[who]]
        if left and rng.random() < GOLD:
            number, purpose = left[0], "gold"
        else:
            number = next((one for one in waiting if one not in seen[who]), -1)
            if number < 0:
                number = new(False)
                waiting.extend([number] * OVERLAP)
            waiting.remove(number)
            purpose = "normal"
        seen[who].add(number)
        order = rng.permutation(REPLIES)
        seconds = float(rng.uniform(30, 120))
        felt = truth[number] + rng.normal(size=REPLIES) * noise[who]
        match STRANGE.get(who):
            case "careless":
                felt, seconds = rng.normal(size=REPLIES), float(rng.uniform(4, 40))
            case "adversarial":
                felt = -felt
            case "always first":
                felt = -np.argsort(order).astype(float)
        ranks = tuple(int(rank) + 1 for rank in np.argsort(np.argsort(-felt)))
        shown = tuple(int(reply) for reply in order)
        labels.append(Label(at + 1, f"i{number}", who, 60.0 * at, seconds, shown, ranks, purpose=purpose))
    return items, people, labels


def looked_at(seed: int) -> dict[str, Any]:
    """Who was accused first after how many of their own labels, and of what, over all looks."""
    items, people, labels = team(seed)
    first: dict[str, dict[str, Any]] = {}
    by_id = {item.id: item for item in items}
    for count in range(LOOK, LABELS + 1, LOOK):
        now = labels[:count]
        measured = person_quality(by_id, now, [person.id for person in people])
        rows = [{"name": person.name, "labels": count // PEOPLE, **measured[person.id]} for person in people]
        progress = {"wanted": 0, "items": 0, "given": count}
        for alarm in alarms(rows, agreement(now), progress, doubtful_gold(by_id, now)):
            if alarm["who"] is not None:
                kind = next((kind for kind in PERSONAL if alarm["what"].startswith(kind)), alarm["what"])
                first.setdefault(alarm["who"], {"own_labels": count // PEOPLE, "kind": kind})
    return first


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--projects", type=int, default=200)
    asked.add_argument("--json", help="Where to write the numbers.")
    given = asked.parse_args()
    found = [looked_at(seed) for seed in range(given.projects)]
    names = {f"p{who:02}": habit for who, habit in STRANGE.items()}
    accused = [{who: told for who, told in one.items() if who not in names} for one in found]
    sound = PEOPLE - len(STRANGE)
    told: dict[str, Any] = {
        "projects": given.projects,
        "projects_with_a_false_accusation": sum(map(bool, accused)) / given.projects,
        "sound_people_accused": sum(map(len, accused)) / (given.projects * sound),
        "false_kinds": sorted({row["kind"] for one in accused for row in one.values()}),
    }
    for who, habit in names.items():
        after = [one[who]["own_labels"] for one in found if who in one]
        kinds = sorted({one[who]["kind"] for one in found if who in one})
        median = float(np.median(after)) if after else None
        told[habit] = {"found": len(after) / given.projects, "own_labels_median": median, "first_alarms": kinds}
    print(json.dumps(told, indent=2))
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump(told, file, indent=2)


if __name__ == "__main__":
    main()
