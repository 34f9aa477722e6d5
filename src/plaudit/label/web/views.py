"""What browsers get to see. An annotator's: no source, no gold answer, no kind, no file, no item's id.

A view is made of the lease's own id, the texts as safe HTML, and the order that was drawn for it.
"""

from functools import lru_cache
from json import loads
from time import time
from typing import Any

from sqlalchemy import Connection, Row, and_, bindparam, exists, func, or_, select

from plaudit.label.crowd import completion_code
from plaudit.label.db.schema import WAITING, item, label, lease, person, project
from plaudit.label.kinds import KINDS
from plaudit.label.queue.allowances import Allowance, allowances
from plaudit.label.queue.leases import BACK, Claimed
from plaudit.label.reading import items
from plaudit.label.reading.search import NO_WORDS, Words, chunks, page
from plaudit.label.web.shared.render import reply_html, text_html
from plaudit.label.web.text.pictures import guidelines_html

PAGE = 20
_KEPT_LENGTH = 8_000  # characters; longer texts are rendered each time, so that the cache stays small
_DONE = select(func.count()).where(lease.c.person == bindparam("me"), or_(lease.c.state == "done", lease.c.late))
_HOLDS = select(func.count()).where(lease.c.person == bindparam("me"), lease.c.state == "open")


_kept_reply = lru_cache(maxsize=1024)(reply_html)
_kept_text = lru_cache(maxsize=512)(text_html)


def _reply(text: str, ended: bool) -> str:
    return (_kept_reply if len(text) <= _KEPT_LENGTH else reply_html)(text, ended)


def _turn(text: str) -> str:
    return (_kept_text if len(text) <= _KEPT_LENGTH else text_html)(text)


def _look_alike(shown: list[dict[str, Any]], htmls: list[str]) -> bool:
    """Whether two replies differ, and nobody could see it of the formatted texts."""
    rendered = [html.partition('<pre class="plain"')[0] for html in htmls]
    return len(set(rendered)) < len({reply["text"] for reply in shown})


def view(leased: Claimed | Row[Any]) -> dict[str, Any]:
    """The item as its lease shows it: position p holds reply order[p]. A `write` item's reply is the text to edit."""
    shown, start = KINDS[leased.task].shown(leased.order, leased.replies)
    htmls = [_reply(reply["text"], reply["ended"]) for reply in shown]
    return {
        "id": leased.lease,
        "task": leased.task,
        "prompt": [{"role": turn["role"], "html": _turn(turn["content"])} for turn in leased.prompt],
        "replies": [{"position": at, "html": html} for at, html in enumerate(htmls)],
        "look_alike": _look_alike(shown, htmls),
        "draft_key": leased.lease,
        "write_text": start,
    }


def claimed_view(claimed: Claimed) -> dict[str, Any]:
    """The answer to a claim."""
    left = {"expires_at": claimed.expires_at, "seconds_left": max(0.0, claimed.expires_at - time())}
    return {"lease": claimed.lease, **left, "settings": claimed.settings, "item": view(claimed)}


def me(connection: Connection, who: int) -> dict[str, Any]:
    """The person's progress, and what the page needs to know of the project."""
    row = connection.execute(select(project)).one()
    done, holds = (connection.execute(query, {"me": who}).scalar_one() for query in (_DONE, _HOLDS))
    own = connection.execute(select(*person.c["name", "paused", "crowd"]).where(person.c.id == who)).one()
    left = _available(connection, who) + holds
    return {
        "progress": {"done": done, "available": left},
        "completion": completion_code(row, own.name) if own.crowd and done and not left else None,
        "project": {
            "name": row.name,
            "guidelines_html": guidelines_html(row.guidelines),
            "flags": list(row.flags),
            "plain_text": row.plain_text,
            "paused": row.paused or own.paused,
            "settings": row.version,
            "guidelines_version": row.guidelines_version,
        },
    }


def _available(connection: Connection, who: int) -> int:
    """How many of the items that wait this person may be given."""
    allowed = allowances(connection, who).get(who, Allowance())
    own, others = item.c.assigned == who, [item.c.assigned == 0]
    if allowed.kinds is not None:
        others.append(item.c.kind.in_(allowed.kinds))
    # What waits, less what of it they had: asking each of many items who had it would take too long.
    had = select(func.count(lease.c.item.distinct())).join(item, item.c.id == lease.c.item)
    had = had.where(lease.c.person == who, ~BACK, WAITING, or_(own, and_(*others)))
    waiting = [select(func.count()).select_from(item).where(WAITING, *part) for part in ([own], others)]
    left = sum(connection.execute(query).scalar_one() for query in waiting) - connection.execute(had).scalar_one()
    return left if allowed.left is None else min(left, allowed.left)


def history(
    connection: Connection,
    who: int,
    before: int | None = None,
    words: Words = NO_WORDS,
    since: float | None = None,
    until: float | None = None,
) -> dict[str, Any]:
    """One page of a person's own answers, newest first: of each serving the one that stands. Words are looked for in
    what this person was shown and said, and nowhere else."""
    later = label.alias()
    query = (
        select(label, lease.c.task, item.c.prompt, item.c.replies, label.c.seq.label("key"))
        .join(lease, lease.c.id == label.c.lease)
        .join(item, item.c.id == label.c.item)
        .where(lease.c.person == who, ~exists().where(later.c.supersedes == label.c.seq))
        .where(words.maybe(lambda has: or_(has(item.c.prompt), has(item.c.replies), has(label.c.body))))
    )
    if since is not None:
        query = query.where(label.c.created >= since)
    if until is not None:
        query = query.where(label.c.created < until)
    rows, more = page(
        chunks(connection, query, label.c.seq, before, newest=True),
        lambda chunk: [row for row in chunk if words.among(_own_texts(row))],
        PAGE,
    )
    shown = [
        {
            "seq": row.seq,
            "created": row.created,
            "late": row.late,
            "corrected": row.supersedes is not None,
            "view": view(row),
            "positions": KINDS[row.task].sent(row.order, loads(row.body)),
        }
        for row in rows
    ]
    return {"labels": shown, "next": more}


def _own_texts(row: Row[Any]) -> list[str]:
    body = loads(row.body)
    shown = [*(turn["content"] for turn in row.prompt), *(reply["text"] for reply in row.replies)]
    return [*shown, body["reason"], body.get("text") or ""]


# --- for admins ---


def items_page(connection: Connection, asked: items.Asked, order: items.Order, after: int | None) -> dict[str, Any]:
    """Items with everybody's answers, their texts as safe HTML; replies in the item's order, which nobody was shown."""
    found = items.found(connection, asked, order, after)
    for row in found["items"]:
        row["prompt"] = [{"role": turn["role"], "html": _turn(turn["content"])} for turn in row["prompt"]]
        row["replies"] = [
            {"html": _reply(reply["text"], reply["ended"]), "source": reply["source"]} for reply in row["replies"]
        ]
        for answer in row["answers"]:
            answer["text"] = None if answer["text"] is None else text_html(answer["text"])
    return found if after is not None else found | {"offers": items.offers(connection)}
