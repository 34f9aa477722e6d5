"""What an annotator's page calls: who am I, claim, submit, release, history, correct."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from plaudit.label.queue import again, leases
from plaudit.label.queue.leases import Conflict, Stored
from plaudit.label.reading.search import Words
from plaudit.label.web import views
from plaudit.label.web.shared.service import Refused, authorised, service_of

router = APIRouter(prefix="/api")

BIGGEST = 2**53 - 1
"""The largest whole number that JSON carries exactly."""
ClientId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{8,64}$")]
Search = Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")]
At = Annotated[float, Query(ge=0, le=BIGGEST, allow_inf_nan=False)]
LeaseId = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, regex_engine="python-re")


class ClaimBody(Body):
    task: Literal["rank", "write", "compare"] | None = None


class ReleaseBody(Body):
    lease: LeaseId


class SubmitBody(Body):
    client_id: ClientId
    lease: LeaseId
    positions: dict[str, Any]
    active_seconds: Annotated[float, Field(ge=0, le=604_800, allow_inf_nan=False)] | None = None


class CorrectBody(Body):
    client_id: ClientId
    seq: Annotated[int, Field(ge=1, le=BIGGEST)]
    positions: dict[str, Any]


@router.get("/me")
def get_me(request: Request) -> dict[str, Any]:
    caller = authorised(request)
    shown = service_of(request).read(views.me, caller.id)
    return {"name": caller.name, "role": caller.role, "csrf": caller.csrf, **shown}


@router.post("/claim")
def post_claim(request: Request, body: ClaimBody) -> Any:
    caller = authorised(request)
    claimed = service_of(request).write(leases.claim, caller.id, body.task)
    return Response(status_code=204) if claimed is None else views.claimed_view(claimed)


@router.post("/release")
def post_release(request: Request, body: ReleaseBody) -> dict[str, Any]:
    caller = authorised(request)
    service_of(request).write(leases.release, caller.id, body.lease)
    return {"released": True}


@router.post("/submit")
def post_submit(request: Request, body: SubmitBody) -> dict[str, Any]:
    caller = authorised(request)
    sent = (body.lease, body.client_id, body.positions)
    return _stored(service_of(request).write(leases.submit, caller.id, *sent, active=body.active_seconds, first=True))


@router.post("/take-back")
def post_take_back(request: Request, body: ReleaseBody) -> dict[str, bool]:
    """Undo a skip."""
    caller = authorised(request)
    if not service_of(request).write(again.take_back, caller.id, body.lease):
        raise Refused(409, "somebody else has this item now", "go on with another one")
    return {"taken_back": True}


@router.post("/correct")
def post_correct(request: Request, body: CorrectBody) -> dict[str, Any]:
    caller = authorised(request)
    return _stored(service_of(request).write(leases.correct, caller.id, body.seq, body.client_id, body.positions))


def _stored(stored: Stored | Conflict) -> dict[str, Any]:
    if isinstance(stored, Conflict):
        raise Refused(409, "conflict", "this client id has another answer already; both are kept, the first one counts")
    return {"seq": stored.seq, "late": stored.late, "replayed": stored.replayed}


@router.get("/history")
def get_history(
    request: Request,
    before: Annotated[int | None, Query(ge=1, le=BIGGEST)] = None,
    search: Search = "",
    since: At | None = None,
    until: At | None = None,
) -> dict[str, Any]:
    """One's own answers; days are the browser's, so times come as seconds since 1970."""
    caller = authorised(request)
    return service_of(request).read(views.history, caller.id, before, Words.of(search), since, until)
