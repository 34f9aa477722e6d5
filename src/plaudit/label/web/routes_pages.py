"""The pages of a session, and its end."""

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from plaudit.label import people
from plaudit.label.web.entrance.front import front_of
from plaudit.label.web.routes_annotator import Body
from plaudit.label.web.shared.render import page_html
from plaudit.label.web.shared.service import Refused, address_of, authorised, caller_of, service_of
from plaudit.label.web.text import pictures
from plaudit.label.web.text.wording import ENGLISH

router = APIRouter()


class PasswordBody(Body):
    old: str
    new: str


@router.get("/")
@router.get("/history")
@router.get("/admin")
def page_of_a_session(request: Request) -> Response:
    caller, page = caller_of(request), request.url.path.strip("/") or "label"
    if caller is None:
        return _to(request, "/login")
    if page == "admin" and caller.role != "admin":
        return _to(request, "/?for=admins")  # the page says why it is another one
    front = front_of(request)
    language = ENGLISH if page == "admin" else front.language(request)
    several = front.root != service_of(request).root
    return HTMLResponse(page_html(page, language=language, several=several))


@router.get("/picture/{identity}")
def get_picture(request: Request, identity: str) -> Response:
    """A picture of the guidelines."""
    authorised(request)
    found = service_of(request).read(pictures.stored, identity)
    if found is None:
        raise Refused(404, "there is no such picture", "see the guidelines")
    return Response(found[1], media_type=found[0])


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
    front_of(request).forget_cookie(answer, service_of(request).cookie)
    return answer


def _to(request: Request, path: str) -> Response:
    return RedirectResponse(service_of(request).root + path, 303)
