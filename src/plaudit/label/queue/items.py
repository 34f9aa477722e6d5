"""Items into the database: from data files of any format, from a run, or made by others (`Draft`).

| file of | becomes | what the annotator does |
| --- | --- | --- |
| rankings (pairs, HH, votes, ...) | `rank` | ranks its replies; the ranks in the file are not shown and not kept |
| the same, as gold | `rank`, with known ranks | ranks them; the answer tells how well annotators do |
| two replies a row, as `compare` | `compare` | says which of two is better; their sources are what is compared |
| demonstrations | `write` | improves the given reply |
| prompts | `write` | writes the reply |

An item's id is a hash of what it says, so importing a file twice changes nothing.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, bindparam, func, insert, select, update

from plaudit.data.files import read_rows, undecided
from plaudit.data.formats.reader import Reader, prompt_of, replies_of
from plaudit.data.hashes import sha256, sha256_json
from plaudit.errors import UserError
from plaudit.label.db import schema
from plaudit.label.db.database import writing
from plaudit.records import Completion, Prompt, Ranking, Record, messages_as_json

MOST_REPLIES = 16
_AT_ONCE = 200


@dataclass(frozen=True)
class Draft:
    """An item that is not in the database yet. `sources[k]` says who wrote reply k; `gold` are known ranks, 1 is best.

    A `write` item has one reply, the text to start from, or none. `overlap` None is the project's. `assigned` is the
    one person whom it is for, 0 for anybody.
    """

    task: str
    prompt: Prompt
    replies: tuple[Completion, ...]
    sources: tuple[str | None, ...]
    gold: tuple[int, ...] | None = None
    priority: float = 0.0
    overlap: int | None = None
    source_file: str = ""
    assigned: int = 0

    def __post_init__(self) -> None:
        assert self.task in schema.TASKS and len(self.replies) == len(self.sources)
        assert self.gold is None or len(self.gold) == len(self.replies)

    @cached_property
    def id(self) -> str:
        """24 hex digits of the hash of task, prompt, replies, sources and gold."""
        said = [self.task, messages_as_json(self.prompt.messages), self._replies(), self.gold]
        return sha256_json(said)[:24]

    def _replies(self) -> list[dict[str, Any]]:
        pairs = zip(self.replies, self.sources, strict=True)
        return [{"text": reply.text, "ended": reply.finished, "source": source} for reply, source in pairs]

    def row(self, number: int, overlap: int, now: float) -> dict[str, Any]:
        """The row of the table `item`; gold items have no slots, since everybody gets them."""
        prompt = self.prompt.as_json()
        return {
            "id": self.id,
            "number": number,
            "task": self.task,
            "prompt_id": prompt.pop("id"),
            **prompt,
            "replies": self._replies(),
            "gold": list(self.gold) if self.gold is not None else None,
            "priority": self.priority,
            "overlap": self.overlap,
            "free": 0 if self.gold is not None else self.overlap or overlap,
            "source_file": self.source_file,
            "created": now,
            "assigned": self.assigned,
        }


def drafts(
    source: str | Path, *, task: str | None = None, gold: bool = False, alike: list[str] | None = None
) -> Iterator[Draft]:
    """The rows of a data file as items. `task` None is the file's own: rank for rankings, else write. Rows whose
    replies all say the same need nobody: their places go into `alike`.

    UserError with the place for a row that cannot be read or cannot be that task.
    """
    for row, record in Reader(source):
        assert record is not None  # without quarantine a bad row is raised
        if isinstance(record, Ranking) and not gold:
            record = _distinct(record)
            if len(record.replies) == 1:
                if alike is not None:
                    alike.append(row.place)
                continue
        yield draft_of(row.place, record, task, gold, Path(str(source)).name)


def _distinct(ranking: Ranking) -> Ranking:
    """The ranking without replies that say what an earlier one says: nobody could order them, and whoever ranks them
    apart gives a label that no training takes."""
    texts = [reply.text for reply in ranking.replies]
    kept = [at for at, text in enumerate(texts) if text not in texts[:at]]
    sources = ranking.sources
    return Ranking(
        ranking.prompt,
        tuple(ranking.replies[at] for at in kept),
        tuple(ranking.ranks[at] for at in kept),
        sources=None if sources is None else tuple(sources[at] for at in kept),
    )


def draft_of(place: str, record: Record, task: str | None, gold: bool, file: str) -> Draft:
    """A row as an item: see `drafts`."""
    if isinstance(record, Ranking):
        task = task or "rank"
        if gold and (problem := undecided(place, record)):
            raise UserError(problem)
        if task == "compare" and len(record.replies) != 2:
            raise UserError(f"{place}: {len(record.replies)} replies; a comparison needs two")
        if not 2 <= len(record.replies) <= MOST_REPLIES:
            raise UserError(f"{place}: {len(record.replies)} replies; a person can rank 2 to {MOST_REPLIES}")
        replies, sources = record.replies, record.sources or (None,) * len(record.replies)
        prompt, known = record.prompt, record.ranks if gold else None
    else:
        prompt, replies, known, task = prompt_of(record), replies_of(record), None, task or "write"
        sources = (None,) * len(replies)
        if gold:
            raise UserError(f"{place}: a gold item needs ranked replies, and this row has none")
    if (task == "write") == isinstance(record, Ranking):
        able = "prompts or demonstrations" if task == "write" else "rows with replies to rank"
        raise UserError(f"{place}: cannot become task {task!r}, which needs {able}")
    return Draft(task, prompt, replies, sources, gold=known, source_file=file)


def add_items(engine: Engine, drafts: Iterable[Draft]) -> tuple[int, int]:
    """Put items in, a block at a time so that annotators never wait. (new items, items that were there already)."""
    added = known = 0
    stream = iter(drafts)
    while block := list(islice(stream, _AT_ONCE)):
        with writing(engine) as connection:
            new = _insert(connection, block)
        added, known = added + new, known + len(block) - new
    return added, known


def add_file(
    engine: Engine,
    file: Path,
    *,
    task: str | None = None,
    gold: bool = False,
    assigned: int = 0,
    alike: list[str] | None = None,
) -> tuple[int, int]:
    """Put a file's items in, all of them or, where a row is bad, none: see `add_items`. A file whose very bytes were
    added as the same task before is not read again. With `assigned` they are for this person and nobody else."""
    batch, digest = schema.batch, sha256(file) if file.is_file() else None
    same = (batch.c.digest == digest, batch.c.gold == gold, batch.c.task.is_not_distinct_from(task))
    with engine.connect() as connection:
        known = connection.execute(select(batch.c["items"]).where(*same)).scalar()
    if known is not None:
        return 0, known
    for _ in drafts(file, task=task, gold=gold, alike=alike):
        continue  # a bad row stops here, before anything is in the database
    made = drafts(file, task=task, gold=gold)
    if assigned:
        made = (replace(draft, assigned=assigned, overlap=1) for draft in made)
    added, there = add_items(engine, made)
    row = {"name": file.name, "digest": digest, "task": task, "gold": gold, "items": added + there}
    with writing(engine) as connection:
        connection.execute(insert(batch).values(**row, created=time.time()))
    return added, there


def _insert(connection: Connection, block: list[Draft]) -> int:
    table = schema.item
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("LOCK TABLE item IN SHARE ROW EXCLUSIVE MODE")  # two imports would number alike
    overlap = connection.execute(select(schema.project.c.overlap)).scalar_one()
    last = connection.execute(select(func.coalesce(func.max(table.c.number), 0))).scalar_one()
    new = {draft.id: draft for draft in block}
    for identity in connection.execute(select(table.c.id).where(table.c.id.in_(new))).scalars().all():
        del new[identity]
    if new:
        rows = [draft.row(last + at, overlap, time.time()) for at, draft in enumerate(new.values(), start=1)]
        connection.execute(insert(table), rows)
    return len(new)


def set_priorities(engine: Engine, priorities: Mapping[str, float]) -> None:
    """Which items come first: higher ones. Items that are not named keep theirs."""
    table = schema.item
    change = update(table).where(table.c.id == bindparam("which")).values(priority=bindparam("value"))
    rows = [{"which": identity, "value": value} for identity, value in priorities.items()]
    if rows:
        with writing(engine) as connection:
            connection.execute(change, rows)


def has_items(engine: Engine) -> bool:
    """Whether there is anything to label."""
    with engine.connect() as connection:
        return connection.execute(select(schema.item.c.id).limit(1)).first() is not None


def rankings_path(folder: Path) -> Path:
    """Where a run keeps its rankings."""
    return folder / "preferences" / "rankings.jsonl"


def run_rankings(folder: Path) -> Path:
    """The rankings of a run folder, whose replies its SFT model wrote."""
    path = rankings_path(folder)
    if not path.is_file():
        raise UserError(
            f"{folder}: {path.name} of stage 'preferences' is missing, so there are no replies to label; run "
            "`plaudit preferences` first, or give a data file"
        )
    return path


def rank_draft(
    prompt: Prompt,
    replies: Sequence[tuple[Completion, str]],
    origin: str,
    *,
    priority: float = 0.0,
    overlap: int | None = None,
) -> list[Draft]:
    """The item of a prompt's replies and their sources, or none when they all say the same; of replies with one text
    the first is kept, since people cannot order them."""
    distinct: dict[str, tuple[Completion, str]] = {}
    for reply, source in replies:
        distinct.setdefault(reply.text, (reply, source))
    if len(distinct) < 2:
        return []
    kept, sources = zip(*distinct.values(), strict=True)
    return [Draft("rank", prompt, kept, sources, priority=priority, overlap=overlap, source_file=origin)]


def compared(folder: Path, prompts: Sequence[Prompt], overlap: int | None = None) -> tuple[list[Draft], int]:
    """SFT against PPO on the held-out prompts: an item of the task `compare` for each pair of replies that the
    evaluation sampled, and how many pairs say the same and need nobody. `prompts` are the run's."""
    path = folder / "evaluate" / "replies.jsonl"
    if not path.is_file():
        raise UserError(f"{path} is missing: stage 'evaluate' makes it; run `plaudit evaluate` on this recipe first")
    rows = list(read_rows(path))
    by_id = {prompt.id: prompt for prompt in prompts}
    sources = ("sft", "ppo")
    drafts = []
    for place, row in rows:
        if row["id"] not in by_id:
            raise UserError(f"{place}: prompt {row['id']!r} is not in the run's prompts any more; evaluate again")
        replies = tuple(Completion(row[name]["text"], row[name]["finished"]) for name in sources)
        if replies[0].text != replies[1].text:
            drafts.append(Draft("compare", by_id[row["id"]], replies, sources, overlap=overlap, source_file="evaluate"))
    return drafts, len(rows) - len(drafts)
