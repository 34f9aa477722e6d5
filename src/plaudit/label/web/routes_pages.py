"""Pages, and the way in and out: log in, take an invite, log out.

The two forms are sent before there is a session, so their token is another one: a random value in a cookie of its own,
and the same value signed in the form. Another site can send the form, but not with both.
"""

import hashlib
import hmac
import re
import secrets
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from itsdangerous import BadSignature, TimestampSigner

from plaudit.errors import UserError
from plaudit.label import people
from plaudit.label.db import ledger
from plaudit.label.web.render import page_html
from plaudit.label.web.routes_annotator import Body
from plaudit.label.web.service import LOGIN_COOKIE, Refused, Service, address_of, authorised, caller_of, service_of

router = APIRouter()
FORM_SECONDS = 3600
_NONCE = re.compile(r"[A-Za-z0-9_-]{32}")
_WRONG = "Name or password is wrong."
_STALE = "This form was open for too long, or cookies are off. Please try again."
_WAIT = "Too many failed attempts. Please wait a quarter of an hour."
_GONE = "This link was used, has run out, or never was. Please ask for another one."

Text = Annotated[str, Form()]


class PasswordBody(Body):
    old: str
    new: str


@router.get("/")
@router.get("/history")
@router.get("/admin")
def page_of_a_session(request: Request) -> Response:
    caller, page = caller_of(request), request.url.path.strip("/") or "label"
    if caller is None:
        return RedirectResponse("/login", 303)
    if page == "admin" and caller.role != "admin":
        return RedirectResponse("/?for=admins", 303)  # the page says why it is another one
    return HTMLResponse(page_html(page))


@router.get("/login")
def login_page(request: Request) -> Response:
    if caller_of(request) is not None:
        return RedirectResponse("/", 303)
    return _form(request)


@router.post("/login")
def login(request: Request, name: Text = "", password: Text = "", csrf: Text = "") -> Response:
    service, name = service_of(request), people.tidy_name(name)
    known = people.is_name(name)
    name = name if known else ""
    if not _form_is_ours(request, csrf):
        return _form(request, name, _STALE, 403)
    attempt = service.write(people.begin_attempt, name.casefold(), address_of(request))
    if attempt is None:
        return _form(request, name, _WAIT, 429, headers={"Retry-After": str(people.WINDOW_SECONDS)})
    stored = service.read(people.stored_password, name) if known else None
    # Checked for an unknown name too, so that the time does not tell which names there are.
    if not people.password_fits(stored[1] if stored else None, password) or stored is None:
        return _form(request, name, _WRONG, 401)
    who, old = stored[0], request.cookies.get(service.cookie)
    return _welcome(service, service.write(people.log_in, name.casefold(), attempt, who, old))


@router.get("/invite/{token}")
def invite_page(request: Request, token: str) -> Response:
    name = service_of(request).read(people.invited, token)
    return _form(request, "", _GONE, 404) if name is None else _form(request, name, token=token)


@router.post("/invite/{token}")
def take_invite(request: Request, token: str, password: Text = "", csrf: Text = "") -> Response:
    service = service_of(request)
    name = service.read(people.invited, token)
    if name is None:
        return _form(request, "", _GONE, 404)
    if not _form_is_ours(request, csrf):
        return _form(request, name, _STALE, 403, token=token)
    try:
        chosen = people.hash_password(password)
    except UserError as error:
        return _form(request, name, str(error).capitalize() + ".", 422, token=token)
    session = service.write(people.take_invite, token, chosen)
    return _form(request, "", _GONE, 404) if session is None else _welcome(service, session)


@router.post("/api/password")
def change_password(request: Request, body: PasswordBody) -> dict[str, bool]:
    """One's own password, for another one."""
    caller, service = authorised(request), service_of(request)
    attempt = service.write(people.begin_attempt, caller.name.casefold(), address_of(request))
    if attempt is None:
        raise Refused(429, "too many failed attempts", "wait a quarter of an hour")
    stored = service.read(people.stored_password, caller.name)
    if stored is None or not people.password_fits(stored[1], body.old):
        raise Refused(422, "the old password is wrong", "type it again, or ask an admin for a new link")
    service.write(people.change_password, caller.id, people.hash_password(body.new), request.cookies[service.cookie])
    return {"changed": True}


@router.post("/logout")
def logout(request: Request) -> Response:
    authorised(request)
    token = request.cookies[service_of(request).cookie]
    service_of(request).write(people.end_session, token)
    answer = Response(status_code=204)
    answer.delete_cookie(service_of(request).cookie, path="/")
    return answer


# --- forms ---


def _form(
    request: Request,
    name: str = "",
    error: str | None = None,
    status: int = 200,
    *,
    token: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """The form of an invite, without `token` that of logging in. A second tab's form shares the cookie of the first."""
    nonce = request.cookies.get(LOGIN_COOKIE, "")
    nonce = nonce if _NONCE.fullmatch(nonce) else secrets.token_urlsafe(24)
    service = service_of(request)
    csrf, project = _signer(service).sign(nonce).decode(), service.read(ledger.project).name
    page = page_html("invite" if token else "login", project=project, csrf=csrf, token=token, name=name, error=error)
    answer = HTMLResponse(page, status, headers)
    _set_cookie(service, answer, LOGIN_COOKIE, nonce, FORM_SECONDS)
    return answer


def _form_is_ours(request: Request, csrf: str) -> bool:
    nonce = request.cookies.get(LOGIN_COOKIE, "")
    try:
        signed = _signer(service_of(request)).unsign(csrf.encode("utf-8", "replace"), max_age=FORM_SECONDS)
    except BadSignature:
        return False
    return _NONCE.fullmatch(nonce) is not None and hmac.compare_digest(signed, nonce.encode())


def _signer(service: Service) -> TimestampSigner:
    return TimestampSigner(service.secret, salt="plaudit.login", digest_method=hashlib.sha256)


def _welcome(service: Service, session: str) -> Response:
    caller = service.read(people.caller_of, session)
    # An admin looks at the project first; the labelling page would reserve an item for them.
    answer = RedirectResponse("/admin" if caller is not None and caller.role == "admin" else "/", 303)
    _set_cookie(service, answer, service.cookie, session, people.SESSION_DAYS * 86_400)
    answer.delete_cookie(LOGIN_COOKIE, path="/")
    return answer


def _set_cookie(service: Service, answer: Response, name: str, value: str, seconds: int) -> None:
    answer.set_cookie(name, value, max_age=seconds, path="/", httponly=True, samesite="strict", secure=service.secure)
