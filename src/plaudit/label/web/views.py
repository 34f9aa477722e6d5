"""What an annotator's browser gets to see: no source, no gold answer, no kind, no file, no item's id.

A view is made of the lease's own id, the texts as safe HTML, and the order that was drawn for it.
"""

from functools import lru_cache
from json import loads
from time import time
from typing import Any

from sqlalchemy import Connection, Row, bindparam, exists, func, or_, select

from plaudit.label.db.schema import item, label, lease, project
from plaudit.label.kinds import KINDS
from plaudit.label.queue.leases import HAD, Claimed
from plaudit.label.web.render import reply_html, text_html
from plaudit.label.web.text.markdown import markdown_html

PAGE = 20
_KEPT_LENGTH = 8_000  # characters; longer texts are rendered each time, so that the cache stays small
_AVAILABLE = select(func.count()).select_from(item).where(item.c.free > 0, ~HAD)
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
    row = connection.execute(
        select(*project.c["name", "guidelines", "flags", "plain_text", "paused", "version", "guidelines_version"])
    ).one()
    done, left, holds = (connection.execute(query, {"me": who}).scalar_one() for query in (_DONE, _AVAILABLE, _HOLDS))
    return {
        "progress": {"done": done, "available": left + holds},
        "project": {
            "name": row.name,
            "guidelines_html": markdown_html(row.guidelines),
            "flags": list(row.flags),
            "plain_text": row.plain_text,
            "paused": row.paused,
            "settings": row.version,
            "guidelines_version": row.guidelines_version,
        },
    }


def history(connection: Connection, who: int, before: int | None) -> dict[str, Any]:
    """One page of a person's own answers, newest first: of each serving the one that stands."""
    later = label.alias()
    query = (
        select(label, lease.c.task, item.c.prompt, item.c.replies)
        .join(lease, lease.c.id == label.c.lease)
        .join(item, item.c.id == label.c.item)
        .where(label.c.person == who, ~exists().where(later.c.supersedes == label.c.seq))
        .order_by(label.c.seq.desc())
        .limit(PAGE + 1)
    )
    rows = connection.execute(query if before is None else query.where(label.c.seq < before)).all()
    shown = [
        {
            "seq": row.seq,
            "created": row.created,
            "late": row.late,
            "corrected": row.supersedes is not None,
            "view": view(row),
            "positions": KINDS[row.task].sent(row.order, loads(row.body)),
        }
        for row in rows[:PAGE]
    ]
    return {"labels": shown, "next": shown[-1]["seq"] if len(rows) > PAGE else None}
