"""What the admin's page calls: people, invites, settings, numbers, export. Every route asks for the role."""

from base64 import b64decode
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import Field
from sqlalchemy import Connection

from plaudit.errors import UserError
from plaudit.label import people
from plaudit.label.db import ledger
from plaudit.label.invitations import invite_all, read_invitations
from plaudit.label.kinds.shared import Aggregate, Format
from plaudit.label.queue import again
from plaudit.label.queue.allowances import read_fields, set_allowance
from plaudit.label.queue.settings import Outdated, log, note, settle
from plaudit.label.reading import items
from plaudit.label.reading.items import Only, Order
from plaudit.label.reading.search import Words
from plaudit.label.transfer.export import moment
from plaudit.label.web import views
from plaudit.label.web.routes_annotator import BIGGEST, Body, Search
from plaudit.label.web.shared import aside
from plaudit.label.web.shared.service import Refused, authorised, service_of
from plaudit.label.web.text import pictures
from plaudit.label.web.text.wording import known_language, languages

router = APIRouter(prefix="/api/admin")

Rate = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
# No NUL and no half of a surrogate pair: a database's text cannot hold them.
_TEXT = r"^[^\x00\ud800-\udfff]*$"
Short = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\ud800-\udfff]+$")]
Name = Annotated[str, Field(max_length=64, pattern=r"^[^\x00-\x1f/\\<>]+$")]
Flag = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f]+$")]
Kind = Annotated[str, Field(max_length=500, pattern=r"^[^\x00]+$")]
Source = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f]+$")]
_TYPES = {"table": "text/csv; charset=utf-8"}
Moment = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d(T[\d:.+Z-]{4,25})?$")]


Who = Annotated[int, Path(ge=1, le=BIGGEST)]
ItemId = Annotated[str, Path(pattern=r"^[0-9a-f]{1,64}$")]
Number = Annotated[int, Query(ge=1, le=BIGGEST)]


class InviteBody(Body):
    name: str
    role: str = "annotator"


class InvitesBody(Body):
    csv: Annotated[str, Field(max_length=500_000, pattern=_TEXT)]


class PictureBody(Body):
    data: Annotated[str, Field(max_length=1_500_000)]


class PersonBody(Body):
    """What is left out stays as it is. A `quota` of 0 is none; `fields` are as of `plaudit label people --fields`."""

    active: bool | None = None
    name: str | None = None
    role: Literal["admin", "annotator"] | None = None
    paused: bool | None = None
    quota: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    fields: Annotated[str, Field(max_length=5_000, pattern=_TEXT)] | None = None


class MergeBody(Body):
    into: Annotated[int, Field(ge=1, le=BIGGEST)]


class ItemBody(Body):
    do: Literal["withdraw", "put back", "another opinion"]


class AnswerBody(Body):
    do: Literal["ask others"]


class ProjectBody(Body):
    """What is left out stays as it is."""

    name: Short | None = None
    guidelines: Annotated[str, Field(max_length=50_000, pattern=_TEXT)] | None = None
    overlap: Annotated[int, Field(ge=1, le=100)] | None = None
    lease_minutes: Annotated[float, Field(gt=0, le=10_080, allow_inf_nan=False)] | None = None
    consistency_rate: Rate | None = None
    gold_rate: Rate | None = None
    flags: Annotated[list[Short], Field(max_length=20)] | None = None
    plain_text: bool | None = None
    language: Short | None = None
    paused: bool | None = None
    version: Annotated[int, Field(ge=1, le=BIGGEST)] | None = None
    """Of the settings that the change was made from: where they are others by now, nothing is changed."""


@router.post("/picture")
def post_picture(request: Request, body: PictureBody) -> dict[str, str]:
    """Keep a picture for the guidelines: what stands for it there."""
    authorised(request, "admin")
    try:
        data = b64decode(body.data, validate=True)
    except ValueError as error:
        raise UserError("data: no base64; send the picture's bytes in base64") from error
    return {"markdown": f"![](picture:{service_of(request).write(pictures.keep, data)})"}


@router.get("/people")
def get_people(request: Request) -> dict[str, Any]:
    authorised(request, "admin")
    return {"people": [vars(person) for person in service_of(request).read(ledger.people)]}


@router.post("/invite")
def post_invite(request: Request, body: InviteBody) -> dict[str, str]:
    caller = authorised(request, "admin")
    service = service_of(request)

    def make(connection: Connection) -> str:
        token = people.make_invite(connection, body.name, body.role)
        note(connection, caller.id, "invite", name=body.name, role=body.role)
        return token

    token = service.write(make)
    return {"link": f"{service.url}/invite/{token}"}


@router.post("/invites")
def post_invites(request: Request, body: InvitesBody) -> dict[str, str]:
    """Everybody of a CSV file is invited, or nobody; their links, as the text of another one."""
    caller, service = authorised(request, "admin"), service_of(request)
    rows = read_invitations(body.csv, "the file")

    def make(connection: Connection) -> str:
        for row in rows:
            note(connection, caller.id, "invite", name=row.name, role=row.role)
        return invite_all(connection, rows, lambda token: f"{service.url}/invite/{token}")

    return {"links": service.write(make)}


@router.post("/person/{who}")
def post_person(request: Request, who: Who, body: PersonBody) -> dict[str, Any]:
    """Shut somebody out or let them in again, rename them, change their role."""
    caller = authorised(request, "admin")
    given = body.model_dump(exclude_none=True)

    def change(connection: Connection) -> dict[str, Any] | None:
        if body.active is not None and people.set_active(connection, who, body.active, caller.id):
            note(connection, caller.id, "enable" if body.active else "disable", person=who)
        there = next((person for person in ledger.people(connection) if person.id == who), None)
        if there is None:
            return None
        if body.name is not None:
            people.rename(connection, who, body.name)
        if body.role is not None:
            people.set_role(connection, who, body.role, caller.id)
        if allowed := {name for name in given if name in ("paused", "quota", "fields")}:
            fields = None if body.fields is None else read_fields(body.fields)
            set_allowance(connection, who, paused=body.paused, quota=body.quota, fields=fields)
        if more := {name: value for name, value in given.items() if name != "active"}:
            note(connection, caller.id, "allow" if allowed else "person", person=who, **more)
        now = next(person for person in ledger.people(connection) if person.id == who)
        return {name: vars(now)[name] for name in body.model_fields_set}

    changed = service_of(request).write(change)
    if changed is None:
        raise _nobody(who)
    return changed


@router.post("/person/{who}/merge")
def post_merge(request: Request, who: Who, body: MergeBody) -> dict[str, int]:
    """Two accounts of one person become one."""
    caller = authorised(request, "admin")

    def merge(connection: Connection) -> int:
        items = people.merge(connection, who, body.into, caller.id)
        note(connection, caller.id, "merge", person=who, into=body.into, items=items)
        return items

    return {"items": service_of(request).write(merge)}


def _nobody(who: int) -> Refused:
    return Refused(404, f"nobody has the id {who}", "see /api/admin/people")


@router.post("/person/{who}/ask-others")
def post_ask_others(request: Request, who: Who) -> dict[str, int]:
    """Everything this person answered is asked of others; their labels stay, and count no more."""
    return _asked_again(request, who, again.ask_others, "ask others")


@router.post("/person/{who}/offer-again")
def post_offer_again(request: Request, who: Who) -> dict[str, int]:
    """What this person skipped may come to them again."""
    return _asked_again(request, who, again.offer_again, "offer again")


def _asked_again(request: Request, who: int, job: Callable[[Connection, int], int], name: str) -> dict[str, int]:
    """The items of somebody that are asked once more, with a line in the log of admins."""
    caller = authorised(request, "admin")

    def ask(connection: Connection) -> int:
        items = job(connection, who)
        note(connection, caller.id, name, person=who, items=items)
        return items

    return {"items": service_of(request).write(ask)}


@router.get("/items")
def get_items(
    request: Request,
    search: Search = "",
    person: Number | None = None,
    since: Moment | None = None,
    until: Moment | None = None,
    flag: Flag | None = None,
    only: Only | None = None,
    task: Flag | None = None,
    kind: Kind | None = None,
    split: Flag | None = None,
    order: Order = "import",
    after: Number | None = None,
) -> dict[str, Any]:
    """Items with everybody's answers, a page at a time; the first one says what the filters can be set to."""
    authorised(request, "admin")
    times = (None if since is None else moment(since), None if until is None else moment(until, end=True))
    asked = items.Asked(Words.of(search), only, person, *times, flag, task, kind, split)
    return service_of(request).read(views.items_page, asked, order, after)


@router.post("/answer/{seq}")
def post_answer(request: Request, seq: Who, body: AnswerBody) -> dict[str, bool]:
    """Somebody else is asked instead of whoever gave this answer; it stays, and counts no more."""
    caller = authorised(request, "admin")

    def ask(connection: Connection) -> bool:
        done = again.ask_instead(connection, seq)
        if done:
            note(connection, caller.id, "ask others", answer=seq)
        return done

    if not service_of(request).write(ask):
        raise Refused(404, "there is no such answer, or it does not count already", "see /api/admin/items")
    return {"done": True}


@router.post("/item/{which}")
def post_item(request: Request, which: ItemId, body: ItemBody) -> dict[str, bool]:
    """Take an item out or in again, or ask one person more."""
    caller = authorised(request, "admin")

    def change(connection: Connection) -> bool:
        if body.do == "another opinion":
            done = again.another_opinion(connection, which)
        else:
            done = again.withdraw(connection, which, body.do == "withdraw")
        if done:
            note(connection, caller.id, body.do, item=which)
        return done

    if not service_of(request).write(change):
        raise Refused(404, "there is no such item, or it is a gold item or withdrawn", "see /api/admin/items")
    return {"done": True}


@router.get("/log")
def get_log(request: Request) -> dict[str, Any]:
    """What admins did, the newest first."""
    authorised(request, "admin")
    return {"log": service_of(request).read(log)}


@router.get("/dashboard")
def get_dashboard(request: Request, wait: bool = False) -> Response:
    """The numbers. Where they take long it is the last ones; with `wait` they are those of now."""
    authorised(request, "admin")
    return Response(service_of(request).numbers.get(wait=wait), media_type="application/json")


@router.get("/export")
def get_export(
    request: Request,
    format: Format = "rankings",
    annotator: Annotated[list[Name] | None, Query(max_length=100)] = None,
    since: Moment | None = None,
    until: Moment | None = None,
    min_agreement: Rate | None = None,
    without_flag: Annotated[list[Flag] | None, Query(max_length=20)] = None,
    kind: Annotated[list[Name] | None, Query(max_length=100)] = None,
    split: Annotated[list[Name] | None, Query(max_length=100)] = None,
    source: Annotated[list[Source] | None, Query(max_length=100)] = None,
    verdict: Annotated[list[Name] | None, Query(max_length=10)] = None,
    late: bool = False,
    aggregate: Aggregate | None = None,
    wait: Annotated[float, Query(ge=0, le=300)] = 300,
) -> Response:
    """One consistent moment of the ledger, as a file. Its name is ours alone: no part of it comes from the request.
    After `wait` seconds that were not enough it is 202 and how long it has been at work; the same request goes on."""
    caller, service = authorised(request, "admin"), service_of(request)
    # --name=value, so that no value can be taken for an option.
    arguments = ["export", "--to=-", f"--format={format}", *(f"--annotator={name}" for name in annotator or ())]
    lists = {"without-flag": without_flag, "kind": kind, "split": split, "source": source, "verdict": verdict}
    arguments += [f"--{option}={value}" for option, values in lists.items() for value in values or ()]
    options = {"since": since, "until": until, "min-agreement": min_agreement, "aggregate": aggregate}
    arguments += [f"--{option}={value}" for option, value in options.items() if value is not None]
    arguments += ["--late"] if late else []
    made = service.exports.get((caller.id, *arguments), service.database, arguments, wait)
    if isinstance(made, float):
        return JSONResponse({"seconds": made}, 202)
    rows, said = made
    headers = {
        "Content-Disposition": f'attachment; filename="{format}.{"csv" if format == "table" else "jsonl"}"',
        # "20 rows; left out: ...": our own words, ASCII, for the page to say beside the file.
        "X-Plaudit-Export": said.removeprefix("-: ").encode("ascii", "replace").decode(),
    }
    return StreamingResponse(aside.blocks(rows), media_type=_TYPES.get(format, "application/jsonl"), headers=headers)


@router.get("/project")
def get_project(request: Request) -> dict[str, Any]:
    authorised(request, "admin")
    return {**vars(service_of(request).read(ledger.project)), "languages": languages()}


@router.post("/project")
def post_project(request: Request, body: ProjectBody) -> dict[str, Any]:
    caller = authorised(request, "admin")
    if body.language is not None:
        known_language(body.language)

    def change(connection: Connection) -> dict[str, Any]:
        settle(connection, body.model_dump(exclude={"version"}), caller.id, body.version)
        now = ledger.project(connection)
        if now.gold_rate + now.consistency_rate > 1:
            raise Refused(422, "gold_rate and consistency_rate are more than 1 together", "lower one of them")
        return vars(now)

    try:
        return service_of(request).write(change)
    except Outdated as error:
        fix = "load the page again and make your change anew; nothing of it was saved"
        raise Refused(409, "somebody else has changed the settings since this page was loaded", fix) from error
