"""Where people come in: to the one project of a server, or to several; and the forms by which they do.

A form is sent before there is a session, so its token is another one: a random value in a cookie of its own, and the
same value signed in the form. Another site can send the form, but not with both.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlencode, urlsplit

from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from itsdangerous import BadSignature, TimestampSigner

from plaudit.label import people
from plaudit.label.db import ledger
from plaudit.label.web.shared.render import page_html
from plaudit.label.web.shared.service import Service
from plaudit.label.web.text.wording import BROWSER, language_of, say

if TYPE_CHECKING:  # needs the extra `oidc`, which only those have who use it
    from plaudit.label.web.entrance.oidc import Provider

LOGIN_COOKIE = "plaudit_login"
FORM_SECONDS = 3600
_NONCE = re.compile(r"[A-Za-z0-9_-]{32}")


@dataclass(frozen=True)
class Front:
    """The projects that one comes in to here, by the names of their paths ("" is that of a server's only one); `url` is
    the whole server's, `provider` who else may say who somebody is; `start`: of the start page of several."""

    services: Mapping[str, Service]
    url: str
    provider: "Provider | None" = None
    start: bool = False

    @property
    def root(self) -> str:
        """The path that browsers see before those of the projects; all cookies are below it."""
        return urlsplit(self.url).path.rstrip("/")

    @property
    def first(self) -> Service:
        """Its secret signs the forms."""
        return next(iter(self.services.values()))

    @property
    def project(self) -> str:
        """What the page calls the project; "" on the start page."""
        return "" if self.start else self.first.read(ledger.project).name

    def language(self, request: Request) -> str:
        """Of the words of the pages."""
        asked = BROWSER if self.start else self.first.read(ledger.project).language
        return language_of(asked, request.headers.get("accept-language", ""))

    def sign_in(self, token: str | None) -> str | None:
        """Where the provider's sign-in begins, to come back to this project, by this invitation."""
        given = {"to": "" if self.start else next(iter(self.services)), "invite": token or ""}
        query = urlencode({name: value for name, value in given.items() if value})
        return None if self.provider is None else f"{self.root}/sign-in" + (f"?{query}" if query else "")

    def set_cookie(
        self, answer: Response, name: str, value: str, seconds: int, samesite: Literal["lax", "strict"] = "strict"
    ) -> None:
        path, secure = self.root or "/", self.url.startswith("https://")
        answer.set_cookie(name, value, max_age=seconds, path=path, httponly=True, samesite=samesite, secure=secure)

    def forget_cookie(self, answer: Response, name: str) -> None:
        answer.delete_cookie(name, path=self.root or "/")

    def begin(self, answer: Response, sessions: Mapping[str, str]) -> None:
        """The cookies of new sessions."""
        for name, session in sessions.items():
            self.set_cookie(answer, self.services[name].cookie, session, people.SESSION_DAYS * 86_400)
        self.forget_cookie(answer, LOGIN_COOKIE)

    def target(self, sessions: Mapping[str, str], wanted: str = "") -> str:
        """Where somebody goes who has come in: to the project that they came for or the only one, else to the list."""
        name = wanted if wanted in sessions else next(iter(sessions)) if len(sessions) == 1 else None
        if name is None:
            return f"{self.root}/"
        service = self.services[name]
        caller = service.read(people.caller_of, sessions[name])
        # An admin looks at the project first; the labelling page would reserve an item for them.
        return service.root + ("/admin" if caller is not None and caller.role == "admin" else "/")


def front_of(request: Request) -> Front:
    front = request.app.state.front
    assert isinstance(front, Front)
    return front


def welcome(front: Front, sessions: Mapping[str, str]) -> Response:
    answer = RedirectResponse(front.target(sessions), 303)
    front.begin(answer, sessions)
    return answer


def form(
    request: Request,
    name: str = "",
    error: str | None = None,
    status: int = 200,
    *,
    token: str | None = None,
    page: str | None = None,
    headers: dict[str, str] | None = None,
    **said: object,
) -> Response:
    """The form of an invite, without `token` that of logging in, or that of `page`; `error` is the key of what went
    wrong, `said` are the {names} in it. A second tab's form shares the cookie of the first."""
    nonce = request.cookies.get(LOGIN_COOKIE, "")
    nonce = nonce if _NONCE.fullmatch(nonce) else secrets.token_urlsafe(24)
    front = front_of(request)
    language = front.language(request)
    said |= {"shortest": people.SHORTEST_PASSWORD, "longest": people.LONGEST_PASSWORD}
    values: dict[str, Any] = {"csrf": _signer(front).sign(nonce).decode(), "language": language}
    values["project"] = front.project
    values["provider"] = None if front.provider is None else front.provider.name
    values["sign_in"] = front.sign_in(token)
    values["error"] = None if error is None else say(language, error, **said)
    values["up"] = "../" * (request.url.path.count("/") - 1) or "./"
    made = page_html(page or ("invite" if token else "login"), **values, token=token, name=name)
    answer = HTMLResponse(made, status, headers)
    front.set_cookie(answer, LOGIN_COOKIE, nonce, FORM_SECONDS)
    return answer


def form_is_ours(request: Request, csrf: str) -> bool:
    nonce = request.cookies.get(LOGIN_COOKIE, "")
    try:
        signed = _signer(front_of(request)).unsign(csrf.encode("utf-8", "replace"), max_age=FORM_SECONDS)
    except BadSignature:
        return False
    return _NONCE.fullmatch(nonce) is not None and hmac.compare_digest(signed, nonce.encode())


def _signer(front: Front) -> TimestampSigner:
    return TimestampSigner(front.first.secret, salt="plaudit.login", digest_method=hashlib.sha256)
