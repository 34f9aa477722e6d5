"""Log in, take an invite, come in as one of a crowd."""

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response

from plaudit.errors import UserError
from plaudit.label import crowd, people
from plaudit.label.db.names import tidy_name
from plaudit.label.web.entrance.front import form, form_is_ours, front_of, welcome
from plaudit.label.web.shared.service import address_of, caller_of, service_of

login_routes = APIRouter()
"""Of a project, and of the start page of several."""
router = APIRouter()

Text = Annotated[str, Form()]


@login_routes.get("/login")
def login_page(request: Request) -> Response:
    if not front_of(request).start and caller_of(request) is not None:
        return RedirectResponse(service_of(request).root + "/", 303)
    return form(request)


@login_routes.post("/login")
def login(request: Request, name: Text = "", password: Text = "", csrf: Text = "") -> Response:
    front, name = front_of(request), tidy_name(name)
    known = people.is_name(name)
    name = name if known else ""
    if not form_is_ours(request, csrf):
        return form(request, name, "login.stale", 403)
    sessions: dict[str, str] = {}
    attempts: dict[str, int] = {}
    for project, service in front.services.items():
        attempt = service.write(people.begin_attempt, name.casefold(), address_of(request))
        if attempt is None:
            continue
        attempts[project] = attempt
        stored = service.read(people.stored_password, name) if known else None
        # Checked for an unknown name too, so that the time does not tell which names there are.
        if people.password_fits(stored[1] if stored else None, password) and stored is not None:
            old = request.cookies.get(service.cookie)
            sessions[project] = service.write(people.log_in, name.casefold(), attempt, stored[0], old)
    if not attempts:
        return form(request, name, "login.wait", 429, headers={"Retry-After": str(people.WINDOW_SECONDS)})
    if not sessions:
        return form(request, name, "login.wrong", 401)
    for project in attempts.keys() - sessions.keys():
        # Somebody else there may have this name; whose password fits another project was not guessing theirs.
        front.services[project].write(people.forget_attempt, attempts[project])
    return welcome(front, sessions)


@router.get("/invite/{token}")
def invite_page(request: Request, token: str) -> Response:
    name = service_of(request).read(people.invited, token)
    return form(request, "", "invite.gone", 404) if name is None else form(request, name, token=token)


@router.post("/invite/{token}")
def take_invite(request: Request, token: str, password: Text = "", csrf: Text = "") -> Response:
    service = service_of(request)
    name = service.read(people.invited, token)
    if name is None:
        return form(request, "", "invite.gone", 404)
    if not form_is_ours(request, csrf):
        return form(request, name, "login.stale", 403, token=token)
    try:
        chosen = people.hash_password(password)
    except UserError:
        return form(request, name, "invite.length", 422, token=token)
    session = service.write(people.take_invite, token, chosen)
    return form(request, "", "invite.gone", 404) if session is None else _welcome(request, session)


@router.get("/join/{token}")
def join_page(request: Request, token: str) -> Response:
    """Where a platform sends the people of a crowd, with the worker's id in the address."""
    if not service_of(request).read(crowd.is_open, token):
        return form(request, "", "crowd.closed", 404, page="join", token=token)
    worker = next((request.query_params[name] for name in crowd.WORKER if name in request.query_params), "")
    name = tidy_name(worker)
    if not people.is_name(name):
        return form(request, "", "crowd.no_worker", 422, page="join", token=token)
    return form(request, name, page="join", token=token)


@router.post("/join/{token}")
def join(request: Request, token: str, worker: Text = "", csrf: Text = "") -> Response:
    service = service_of(request)
    if not form_is_ours(request, csrf):
        return form(request, "", "login.stale", 403, page="join", token=token)
    # Counted as a try to log in, so that one address cannot make people without end.
    if service.write(people.begin_attempt, "", address_of(request)) is None:
        return form(request, "", "login.wait", 429, page="join", token=token)
    try:
        session = service.write(crowd.enter, token, worker, request.cookies.get(service.cookie))
    except UserError:
        wrong = "crowd.no_worker" if service.read(crowd.is_open, token) else "crowd.closed"
        return form(request, "", wrong, 422, page="join", token=token)
    if session is None:
        return form(request, "", "crowd.elsewhere", 409, page="join", token=token)
    return _welcome(request, session)


def _welcome(request: Request, session: str) -> Response:
    """Into the one project of this application."""
    front = front_of(request)
    return welcome(front, {next(iter(front.services)): session})
