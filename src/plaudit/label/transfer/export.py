"""Labels out of the database, as records that trainers read: one consistent moment, filtered, in the ledger's order.

| format | rows | of tasks |
| --- | --- | --- |
| rankings | Plaudit's rankings, one a label, with `annotator` and the replies' sources | rank |
| comparisons | the same | compare |
| pairs | every strict pair as prompt/chosen/rejected messages, with `annotator` | rank |
| hh | every strict pair as two texts of "\\n\\nHuman: … \\n\\nAssistant: …" turns | rank |
| demonstrations | prompt and completion, with `annotator` | write |
| table | one label a row, for a spreadsheet: gold items, checks, late ones and those without ranks too | all |
| ledger | every row of the ledger as it is, corrections and late ones too: an archive, not for import | all |

Not exported but by `table` and `ledger`: what came in late (unless asked for), gold items and consistency checks, and
labels without ranks; what a later row corrects, but by `ledger`. A strength is kept where there are two replies, as the
format has it.
What goes in is import_labels.py's business.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, get_args

from plaudit.errors import UserError
from plaudit.label.db.ledger import ItemRow, Label, Ledger, counting, standing
from plaudit.label.kinds import KINDS, SAID, said_by
from plaudit.label.kinds.rank import dense, labelled_ranking, ranking_of, rows_of
from plaudit.label.kinds.shared import Aggregate, Format
from plaudit.label.quality.agreement import item_agreement, judged_pairs, middle_ranks, strict
from plaudit.label.quality.reliability import log_odds, mean_ranks, reliabilities
from plaudit.label.transfer.table import csv_lines, label_rows
from plaudit.records import Demonstration, Ranking

FORMATS: tuple[Format, ...] = get_args(Format)
AGGREGATES: tuple[str, ...] = get_args(Aggregate)
_KIND_OF = {format: kind for kind in KINDS.values() for format in kind.formats}
_NOT_NAMED = "(not named"
_LEDGER_FIELDS = (
    *("seq", "item", "annotator", "created", "seconds", "order", "purpose", "late", "supersedes"),
    *("ranks", "verdict", "strength", "reason", "flags", "text", "active", "guidelines", "aside"),
)


def unnamed(number: int) -> str:
    """The name of the `number`-th person (from 1) whose labels come from a file that names nobody. They are exported
    without a name."""
    return f"{_NOT_NAMED})" if number == 1 else f"{_NOT_NAMED} {number})"


@dataclass(frozen=True)
class Filters:
    """Which labels go out. `since` and `until` are seconds since 1970, `until` itself excluded.

    `min_agreement`: only items whose labels agree at least so far (`quality.item_agreement`); an item that only one
    person labelled has no agreement and stays out. A reply that anybody gave one of `without_flags` is taken out of its
    ranking; two must be left. `kinds` and `splits` are those of prompts; `sources`: one of the item's replies is of
    one of them; `verdicts` are those of `said_by`.
    """

    annotators: tuple[str, ...] = ()
    since: float | None = None
    until: float | None = None
    min_agreement: float | None = None
    without_flags: tuple[str, ...] = ()
    late: bool = False
    kinds: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    verdicts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise UserError(f"min_agreement={self.min_agreement}: a share from 0 to 1 is needed")
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise UserError("since must come before until; exchange them")
        if unknown := [verdict for verdict in self.verdicts if verdict not in SAID]:
            raise UserError(f"verdict {unknown[0]!r}: unknown; it is one of {', '.join(SAID)}")


EVERYTHING = Filters()


@dataclass
class Export:
    """The rows, and how many were left out for which reason; `csv`: they are for a spreadsheet."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    csv: bool = False

    def lines(self) -> Iterator[str]:
        """JSON lines, or those of a CSV file."""
        if self.csv:
            return csv_lines(self.rows)
        return (json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)


def export(ledger: Ledger, format: str, filters: Filters = EVERYTHING, aggregate: str | None = None) -> Export:
    """The rows of one format. `aggregate` makes one ranking an item of all people's (`aggregated`), without annotator.

    UserError for an unknown format, aggregate, annotator or flag.
    """
    known = next((known for known in FORMATS if known == format), None)
    if known is None:
        raise UserError(f"format {format!r}: unknown; the formats are {', '.join(FORMATS)}")
    if aggregate is not None and aggregate not in AGGREGATES:
        raise UserError(f"aggregate {aggregate!r}: unknown; it is one of {', '.join(AGGREGATES)}")
    if aggregate is not None and known in ("demonstrations", "table", "ledger"):
        raise UserError(f"aggregate {aggregate!r}: {format} hold no ranks that could be put together")
    if known == "ledger":
        if filters != EVERYTHING:
            raise UserError("format 'ledger' is everything: leave the filters away")
        return Export(list(_ledger_rows(ledger)))
    out = Export()
    everything, ledger = ledger, counting(ledger)
    if not_counting := len(standing(everything.labels)) - len(standing(ledger.labels)):
        out.left_out["set aside or withdrawn by an admin"] = not_counting
    items = {item.id: item for item in ledger.items}
    # A flag that is neither one of the project's nor on any label would leave nothing out.
    flags = {*ledger.flags, *(flag for label in ledger.labels for own in label.flags for flag in own)}
    if unknown := [flag for flag in filters.without_flags if flag not in flags]:
        raise UserError(f"flag {unknown[0]!r}: not in this database; there are {', '.join(sorted(flags)) or 'none'}")
    names = _names(ledger)
    if known == "table":
        out.rows = label_rows(chosen(ledger, items, filters, None, out.left_out), items, names)
        out.csv = True
        return out
    labels = chosen(ledger, items, filters, _KIND_OF[known].name, out.left_out)
    if known == "demonstrations":
        written = [(items[label.item].prompt, label) for label in labels]
        rows = [Demonstration(prompt, label.text or "", names[label.person]).as_json() for prompt, label in written]
    else:
        if aggregate is None:
            rankings = _rankings(ledger, items, labels)
        else:
            rankings = aggregated(ledger, items, labels, weighted=aggregate == "reliability")
        rankings = _without_flagged(rankings, ledger, items, filters, out.left_out)
        rows = rows_of(rankings, known, out.left_out)
    out.rows = _distinct(rows, out.left_out)
    return out


def rankings_of(ledger: Ledger, *, only: Collection[str]) -> list[Ranking]:
    """The rankings of the items `only` that `export` writes as `rankings`, as records."""
    ledger = counting(ledger)
    items = {item.id: item for item in ledger.items}
    labels = chosen(ledger, items, EVERYTHING, "rank", Counter())
    return _rankings(ledger, items, [label for label in labels if label.item in only])


def _rankings(ledger: Ledger, items: dict[str, ItemRow], labels: Sequence[Label]) -> list[Ranking]:
    names = _names(ledger)
    return [labelled_ranking(items[label.item], label, names[label.person]) for label in labels]


def _names(ledger: Ledger) -> dict[int, str | None]:
    return {person.id: None if person.name.startswith(_NOT_NAMED) else person.name for person in ledger.people}


# --- which labels ---


def chosen(
    ledger: Ledger, items: dict[str, ItemRow], filters: Filters, task: str | None, left_out: Counter[str]
) -> list[Label]:
    """The standing labels of a task that can be trained on and that the filters let through, by `seq`; without a task
    those that the filters let through."""
    known = {person.name: person.id for person in ledger.people}
    unknown = [name for name in filters.annotators if name not in known]
    if unknown:
        raise UserError(f"annotator {unknown[0]!r}: not in this database; there are {', '.join(sorted(known))}")
    wanted = {known[name] for name in filters.annotators}
    of_task = [label for label in ledger.labels if task in (None, items[label.item].task)]
    labels = standing(of_task)
    if len(of_task) > len(labels):
        left_out["corrected since"] = len(of_task) - len(labels)
    for label in standing(ledger.labels):
        other = items[label.item].task
        if task not in (None, other):
            *others, last = KINDS[other].formats
            formats = f"{', '.join(others)} or {last}" if others else last
            left_out[f"of the task {other} (--format {formats})"] += 1
    agreed = item_agreement(labels) if filters.min_agreement is not None else {}
    reasons = [
        (
            label,
            (_no_training(label, filters) if task else None)
            or _why_not(label, items[label.item], filters, wanted, agreed),
        )
        for label in labels
    ]
    left_out.update(reason for _, reason in reasons if reason is not None)
    return [label for label, reason in reasons if reason is None]


def _no_training(label: Label, filters: Filters) -> str | None:
    if label.purpose != "normal":
        return "gold items and consistency checks"
    if label.late and not filters.late:
        return "came in late"
    if label.ranks is None and label.text is None:
        return "without ranks"
    return None


def _why_not(label: Label, item: ItemRow, filters: Filters, wanted: set[int], agreed: dict[str, float]) -> str | None:
    if wanted and label.person not in wanted:
        return "of other annotators"
    before = filters.since is not None and label.created < filters.since
    if before or (filters.until is not None and label.created >= filters.until):
        return "of other dates"
    if filters.min_agreement is not None and agreed.get(label.item, -1.0) < filters.min_agreement:
        return "agreement too low or unknown"
    of = (
        ("kinds", filters.kinds, {item.kind}),
        ("splits", filters.splits, {item.split}),
        ("sources", filters.sources, {reply.source for reply in item.replies}),
        ("verdicts", filters.verdicts, {said_by(label)}),
    )
    return next((f"of other {what}" for what, asked, own in of if asked and not own & set(asked)), None)


def moment(text: str, *, end: bool = False) -> float:
    """Seconds since 1970 of a date (its beginning in UTC, with `end` that of the next day) or of a date with a time;
    UserError otherwise."""
    try:
        if len(text) == len("2026-11-23"):
            day = date.fromisoformat(text) + timedelta(days=1 if end else 0)
            return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()
        at = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{text!r}: not a date; write 2026-11-23 or 2026-11-23T14:30:00") from error
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


# --- rows ---


def aggregated(ledger: Ledger, items: dict[str, ItemRow], labels: Sequence[Label], *, weighted: bool) -> list[Ranking]:
    """One ranking an item: replies by the mean of people's middle ranks; equal means are ties.

    With `weighted` a person counts by the log odds of their reliability (Dawid-Skene over the whole database), which
    for two replies is the best majority vote that independent people allow; where no reliability is known of one of
    them, all people of the item count alike. Items are in the order of their first label.
    """
    reliable = reliabilities(strict(judged_pairs(standing(ledger.labels)))) if weighted else {}
    by_item: dict[str, list[Label]] = defaultdict(list)
    for label in labels:
        by_item[label.item].append(label)
    rankings = []
    for identity, own in by_item.items():
        weights = [log_odds(reliable[label.person]) for label in own if label.person in reliable]
        ranks = [middle_ranks(label.ranks) for label in own if label.ranks is not None]
        means = mean_ranks(ranks, weights if len(weights) == len(own) else [1.0] * len(own))
        rankings.append(ranking_of(items[identity], dense(means)))
    return rankings


def _without_flagged(
    rankings: list[Ranking], ledger: Ledger, items: dict[str, ItemRow], filters: Filters, left_out: Counter[str]
) -> list[Ranking]:
    # (conversation, text) of the replies that somebody gave a flag that is filtered.
    flagged = {
        (items[label.item].messages, items[label.item].replies[number].text)
        for label in standing(ledger.labels)
        for number, own in enumerate(label.flags)
        if set(own) & set(filters.without_flags)
    }
    remaining = []
    for ranking in rankings:
        kept = [i for i, reply in enumerate(ranking.replies) if (ranking.prompt.messages, reply.text) not in flagged]
        if len(kept) == len(ranking.replies):
            remaining.append(ranking)
        elif len(kept) >= 2:
            left_out["replies with such a flag"] += len(ranking.replies) - len(kept)
            remaining.append(
                replace(
                    ranking,
                    replies=tuple(ranking.replies[i] for i in kept),
                    ranks=dense([ranking.ranks[i] for i in kept]),
                    sources=None if ranking.sources is None else tuple(ranking.sources[i] for i in kept),
                )
            )
        else:
            left_out["rankings with fewer than two replies without such a flag"] += 1
    return remaining


def _distinct(rows: list[dict[str, Any]], left_out: Counter[str]) -> list[dict[str, Any]]:
    """One row for each annotator and content, the newest, where it first stood; the same content under one id.

    Two items may say the same (a prompt under two ids, two replies with one text). As rows they could not be told
    apart when they are read again, so they are one here already. What nobody is named for stays as it is: it may come
    from different people.
    """
    newest: dict[str, dict[str, Any]] = {}
    heads: dict[str, dict[str, Any]] = {}
    for row in rows:
        said = {key: row.get(key) for key in ("prompt", "chosen", "rejected", "completion")}
        said["responses"] = [{k: v for k, v in own.items() if k != "rank"} for own in row.get("responses", ())]
        content = json.dumps(said, sort_keys=True)
        head = heads.setdefault(content, {key: row[key] for key in ("id", "kind", "split")})
        who = row.get("annotator")
        newest[f"{len(newest) if who is None else json.dumps(who)} {content}"] = {**row, **head}
    if len(newest) < len(rows):
        left_out["rows that a newer one of the same person and content replaces"] = len(rows) - len(newest)
    return list(newest.values())


def _ledger_rows(ledger: Ledger) -> Iterator[dict[str, Any]]:
    items = {item.id: item for item in ledger.items}
    names = {person.id: person.name for person in ledger.people}
    for label in sorted(ledger.labels, key=lambda row: row.seq):
        item = items[label.item]
        replies = [{"text": reply.text, "finished": reply.ended, "source": reply.source} for reply in item.replies]
        head = {**item.prompt.as_json(), "task": item.task, "replies": replies, "gold": item.gold}
        row = {**vars(label), "annotator": names[label.person]}
        yield head | {name: row[name] for name in _LEDGER_FIELDS}
