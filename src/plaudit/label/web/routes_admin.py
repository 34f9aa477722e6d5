"""What the admin's page calls: people, invites, settings, numbers, export. Every route asks for the role."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import Field
from sqlalchemy import Connection

from plaudit.label import people
from plaudit.label.db import ledger
from plaudit.label.kinds.shared import Aggregate, Format
from plaudit.label.queue import leases
from plaudit.label.web import aside
from plaudit.label.web.routes_annotator import BIGGEST, Body
from plaudit.label.web.service import Refused, authorised, service_of

router = APIRouter(prefix="/api/admin")

Rate = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
# No NUL and no half of a surrogate pair: a database's text cannot hold them.
_TEXT = r"^[^\x00\ud800-\udfff]*$"
Short = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\ud800-\udfff]+$")]
Name = Annotated[str, Field(max_length=64, pattern=r"^[\w.@+ ()-]+$")]
Flag = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f]+$")]
Moment = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d(T[\d:.+Z-]{4,25})?$")]


class InviteBody(Body):
    name: str
    role: str = "annotator"


class PersonBody(Body):
    active: bool


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


@router.get("/people")
def get_people(request: Request) -> dict[str, Any]:
    authorised(request, "admin")
    return {"people": [vars(person) for person in service_of(request).read(ledger.people)]}


@router.post("/invite")
def post_invite(request: Request, body: InviteBody) -> dict[str, str]:
    authorised(request, "admin")
    service = service_of(request)
    token = service.write(people.make_invite, body.name, body.role)
    return {"link": f"{service.url}/invite/{token}"}


@router.post("/person/{who}")
def post_person(request: Request, who: Annotated[int, Path(ge=1, le=BIGGEST)], body: PersonBody) -> dict[str, bool]:
    caller = authorised(request, "admin")
    if not service_of(request).write(people.set_active, who, body.active, caller.id):
        raise Refused(404, f"nobody has the id {who}", "see /api/admin/people")
    return {"active": body.active}


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
    authorised(request, "admin")

    def change(connection: Connection) -> dict[str, Any]:
        leases.settle(connection, body.model_dump())
        now = ledger.project(connection)
        if now.gold_rate + now.consistency_rate > 1:
            raise Refused(422, "gold_rate and consistency_rate are more than 1 together", "lower one of them")
        return vars(now)

    return service_of(request).write(change)
