"""The admin's page as a JSON dict: progress, people, pace, quality, alarms in plain words, table of sources.

    dashboard(ledger, now) ->
    {
      "name": "my project",
      "generated": 1764000000.0,                       # seconds since 1970, as every time here
      "progress": {"items": 120, "wanted": 360, "given": 200, "done": 51, "share": 0.5556, "open": 3, "skipped": 2,
                   "days_left": 2.5 or null,
                   "tasks": [{"task": "rank", "items": 100, "wanted": 300, "given": 180, "done": 45}, ...]},
      "days": [{"day": "2026-11-22", "labels": 80, "people": 3}, ...],      # the last 30, oldest first, gaps as 0;
                                                # a label counts on its first day, its corrections do not count
      "people": [{"id": 2, "name": "ann", "role": "annotator", "active": true,
                  "labels": 90, "week": 40, "late": 1, "corrected": 2, "skipped": 1, "last": 1763999000.0 or null,
                  "seconds": {"p10": 8.0, "median": 21.0, "p90": 60.0} or null,
                  "ties": 0.1 or null, "all_bad": 0.0 or null, "cannot_judge": 0.02 or null,
                  "reliability": 0.86 or null,
                  "too_fast": SHARE, "earlier_wins": SHARE, "first_is_best": SHARE, "longer_wins": SHARE,
                  "gold": SHARE, "self": SHARE, "others": SHARE,
                  "others_but_one": SHARE}, ...],                 # most labels first; beside all but who differs most
      "agreement": {"people": 3, "items": 80, "pairs": SHARE, "best_accuracy": 0.9 or null,
                    "alpha": 0.4 or null, "alpha_ranks": 0.5 or null,
                    "between": [{"first": "ann", "second": "bo", "pairs": 300, "agreement": 0.8 or null,
                                 "kappa": 0.5 or null}, ...]},
      "verdicts": {"ranked": 180, "all_bad": 2, "cannot_judge": 4, "written": 14},
      "flags": [{"flag": "unsafe", "replies": 3}, ...],                                        # commonest first
      "alarms": [{"level": "bad" or "warn", "who": "bo" or null, "what": "plain words", "do": "what to do"}, ...],
      "sources": [{"source": "ppo", "strength": 0.4, "low": 0.2, "high": 0.6, "win_rate": 0.6, "win_low": 0.55,
                   "win_high": 0.65, "verdicts": 400}, ...],                                   # best first
      "compare": {"first": "ppo", "second": "sft", "win_rate": 0.6, "low": 0.5, "high": 0.7, "ties": 0.1,
                  "labels": 100, "prompts": 60, "complete": 58, "enough": null or "ppo" or "sft" or "neither",
                  "more": 40 or null, "at_equal_length": {"win_rate": 0.55, "low": 0.45, "high": 0.65}} or null
    }

SHARE is null or {"share": 0.5, "low": 0.4, "high": 0.6, "n": 120, "all_low": 0.35, "all_high": 0.65}: low and high are
the 95 % interval of this look, the others that of all looks at once. That of
"compare" holds after every label at once, "more" is how many labels may be missing to "enough". Every share and rate
is from 0 to 1. Sources stand here for the admin only; annotators never get this dict.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from plaudit.label.db.ledger import ItemRow, Label, Ledger, counting, standing
from plaudit.label.kinds import SAID, said_by
from plaudit.label.quality.agreement import agreement, asked, ranked
from plaudit.label.quality.alarms import alarms
from plaudit.label.quality.annotator import doubtful_gold, person_quality
from plaudit.label.quality.sources import source_table, win_rate

DAYS = 30
_DAY = 86400.0


def dashboard(ledger: Ledger, now: float) -> dict[str, Any]:
    """See the top of this file; `now` is seconds since 1970."""
    ledger = counting(ledger)
    items = {item.id: item for item in ledger.items}
    labels = standing(ledger.labels)
    names = {person.id: person.name for person in ledger.people}
    agreed = agreement(labels)
    for row in agreed["between"]:
        row["first"], row["second"] = names[row["first"]], names[row["second"]]
    begun = _begun(ledger.labels)
    people = _people(ledger, items, labels, begun, now)
    comparing = [label for label in asked(labels) if items[label.item].task == "compare"]
    progress = _progress(ledger, labels, begun, now)
    said = Counter(said_by(label) for label in labels)
    return {
        "name": ledger.name,
        "generated": now,
        "progress": progress,
        "days": _days([label for label in ledger.labels if label.supersedes is None], now),
        "people": people,
        "agreement": agreed,
        "verdicts": {verdict: said[verdict] for verdict in SAID},
        "flags": _flags(labels),
        "alarms": alarms(people, agreed, progress, doubtful_gold(items, labels)),
        "sources": source_table(ledger.items, ranked(labels)),
        "compare": win_rate(
            [item for item in ledger.items if item.task == "compare"], comparing, "ppo", "sft", ledger.overlap
        ),
    }


def _begun(labels: Sequence[Label]) -> dict[int, float]:
    """When each label was given for the first time: a correction of last month's is no work of this week."""
    begun: dict[int | None, float] = {}
    for label in sorted(labels, key=lambda row: row.seq):
        begun[label.seq] = begun.get(label.supersedes, label.created)
    return {seq: at for seq, at in begun.items() if seq is not None}


def _progress(ledger: Ledger, labels: Sequence[Label], begun: Mapping[int, float], now: float) -> dict[str, Any]:
    normal = [label for label in labels if label.purpose == "normal" and not label.late]
    given: dict[str, set[int]] = defaultdict(set)
    for label in normal:
        if label.verdict != "cannot_judge":  # somebody else is asked instead
            given[label.item].add(label.person)
    # task -> (labels that count of an item, labels wanted of it, how many such items)
    counts: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for item in ledger.items:
        if item.gold is None:  # gold items are served besides and are no work to be done
            wanted = item.overlap or ledger.overlap
            counts[item.task].append((min(len(given[item.id]), wanted), wanted, 1))
    for task, overlap, n in ledger.untouched:
        counts[task].append((0, overlap or ledger.overlap, n))
    tasks: list[dict[str, Any]] = [
        {
            "task": task,
            "items": sum(n for _, _, n in own),
            "wanted": sum(wanted * n for _, wanted, n in own),
            "given": sum(had * n for had, _, n in own),
            "done": sum((had == wanted) * n for had, wanted, n in own),
        }
        for task, own in sorted(counts.items())
    ]
    total = {name: sum(row[name] for row in tasks) for name in ("items", "wanted", "given", "done")}
    # The pace is that of what fills places here: imported labels, which took no time, were given elsewhere.
    paced = [begun[label.seq] for label in normal if label.seconds > 0 and label.verdict != "cannot_judge"]
    week, first = sum(now - at < 7 * _DAY for at in paced), min(paced, default=now)
    a_day = week / max(1.0, min(7.0, (now - first) / _DAY))
    left = total["wanted"] - total["given"]
    return {
        **total,
        "share": total["given"] / total["wanted"] if total["wanted"] else 0.0,
        "open": ledger.open_leases,
        "skipped": len(ledger.skipped),
        "days_left": left / a_day if a_day else None,
        "tasks": tasks,
    }


def _days(labels: Sequence[Label], now: float) -> list[dict[str, Any]]:
    who: dict[str, list[int]] = defaultdict(list)
    for label in labels:
        who[datetime.fromtimestamp(label.created, UTC).date().isoformat()].append(label.person)
    last = datetime.fromtimestamp(now, UTC).date()
    days = [(last - timedelta(days=back)).isoformat() for back in range(DAYS - 1, -1, -1)]
    return [{"day": day, "labels": len(who[day]), "people": len(set(who[day]))} for day in days]


def _people(
    ledger: Ledger, items: dict[str, ItemRow], labels: Sequence[Label], begun: Mapping[int, float], now: float
) -> list[dict[str, Any]]:
    measured = person_quality(items, labels, [person.id for person in ledger.people])
    rows = []
    for person in ledger.people:
        own = [label for label in labels if label.person == person.id]
        rows.append(
            {
                "id": person.id,
                "name": person.name,
                "role": person.role,
                "active": person.active,
                "labels": len(own),
                "week": sum(now - begun[label.seq] < 7 * _DAY for label in own),
                "late": sum(label.late for label in own),
                "corrected": sum(label.supersedes is not None for label in own),
                "skipped": sum(who == person.id for _, who in ledger.skipped),
                "last": max((label.created for label in own), default=None),
                **measured[person.id],
            }
        )
    return sorted(rows, key=lambda row: (-row["labels"], row["name"]))


def _flags(labels: Sequence[Label]) -> list[dict[str, Any]]:
    """In how many replies somebody saw what."""
    seen = {(flag, label.item, reply) for label in labels for reply, own in enumerate(label.flags) for flag in own}
    counts = Counter(flag for flag, *_ in seen)
    return [
        {"flag": flag, "replies": count} for flag, count in sorted(counts.items(), key=lambda row: (-row[1], row[0]))
    ]
