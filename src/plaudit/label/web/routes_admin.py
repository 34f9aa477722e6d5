"""What the admin's page calls: people, invites, settings, numbers, export. Every route asks for the role."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import Field
from sqlalchemy import Connection

from plaudit.label import people
from plaudit.label.db import ledger
from plaudit.label.kinds.shared import Aggregate, Format
from plaudit.label.queue import again
from plaudit.label.queue.settings import Outdated, log, note, settle
from plaudit.label.web import aside
from plaudit.label.web.routes_annotator import BIGGEST, Body
from plaudit.label.web.service import Refused, authorised, service_of

router = APIRouter(prefix="/api/admin")

Rate = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
# No NUL and no half of a surrogate pair: a database's text cannot hold them.
_TEXT = r"^[^\x00\ud800-\udfff]*$"
Short = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\ud800-\udfff]+$")]
Name = Annotated[str, Field(max_length=64, pattern=r"^[^\x00-\x1f/\\<>]+$")]
Flag = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f]+$")]
Moment = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d(T[\d:.+Z-]{4,25})?$")]


Who = Annotated[int, Path(ge=1, le=BIGGEST)]
ItemId = Annotated[str, Path(pattern=r"^[0-9a-f]{1,64}$")]


class InviteBody(Body):
    name: str
    role: str = "annotator"


class PersonBody(Body):
    active: bool


class ItemBody(Body):
    do: Literal["withdraw", "put back", "another opinion"]


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
    paused: bool | None = None
    version: Annotated[int, Field(ge=1, le=BIGGEST)] | None = None
    """Of the settings that the change was made from: where they are others by now, nothing is changed."""


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


@router.post("/person/{who}")
def post_person(request: Request, who: Who, body: PersonBody) -> dict[str, bool]:
    caller = authorised(request, "admin")

    def change(connection: Connection) -> bool:
        changed = people.set_active(connection, who, body.active, caller.id)
        if changed:
            note(connection, caller.id, "enable" if body.active else "disable", person=who)
        return changed

    if not service_of(request).write(change):
        raise _nobody(who)
    return {"active": body.active}


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
def get_dashboard(request: Request) -> Response:
    authorised(request, "admin")
    service = service_of(request)
    return Response(service.numbers.get(service.database, ["stats", "--json"]), media_type="application/json")


@router.get("/export")
def get_export(
    request: Request,
    format: Format = "rankings",
    annotator: Annotated[list[Name] | None, Query(max_length=100)] = None,
    since: Moment | None = None,
    until: Moment | None = None,
    min_agreement: Rate | None = None,
    without_flag: Annotated[list[Flag] | None, Query(max_length=20)] = None,
    late: bool = False,
    aggregate: Aggregate | None = None,
) -> Response:
    """One consistent moment of the ledger, as a file. Its name is ours alone: no part of it comes from the request."""
    authorised(request, "admin")
    # --name=value, so that no value can be taken for an option.
    arguments = ["export", "--to=-", f"--format={format}", *(f"--annotator={name}" for name in annotator or ())]
    arguments += [f"--without-flag={flag}" for flag in without_flag or ()]
    options = {"since": since, "until": until, "min-agreement": min_agreement, "aggregate": aggregate}
    arguments += [f"--{option}={value}" for option, value in options.items() if value is not None]
    rows, said = aside.run(service_of(request).database, [*arguments, *(["--late"] if late else [])])
    headers = {
        "Content-Disposition": f'attachment; filename="{format}.jsonl"',
        # "20 rows; left out: ...": our own words, ASCII, for the page to say beside the file.
        "X-Plaudit-Export": said.removeprefix("-: ").encode("ascii", "replace").decode(),
    }
    return StreamingResponse(aside.blocks(rows), media_type="application/jsonl", headers=headers)


@router.get("/project")
def get_project(request: Request) -> dict[str, Any]:
    authorised(request, "admin")
    return vars(service_of(request).read(ledger.project))


@router.post("/project")
def post_project(request: Request, body: ProjectBody) -> dict[str, Any]:
    caller = authorised(request, "admin")

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
