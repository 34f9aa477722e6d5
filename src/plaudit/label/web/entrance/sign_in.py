"""Sign in by the organisation's provider: to it, and back."""

import hashlib
import hmac
import sys

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from itsdangerous import BadSignature, URLSafeTimedSerializer

from plaudit.label import identities
from plaudit.label.web.entrance.front import Front, form, front_of
from plaudit.label.web.entrance.oidc import NotSignedIn, Provider
from plaudit.label.web.shared.render import page_html

router = APIRouter()

_COOKIE = "plaudit_sign_in"
_SECONDS = 600


@router.get("/sign-in")
def begin(request: Request, to: str = "", invite: str = "") -> Response:
    """To the provider; what must fit when the browser comes back is in a cookie of it."""
    front, provider = _provider(request)
    try:
        begun = provider.begin(_back(front))
    except NotSignedIn as error:
        return _away(request, error)
    kept = {"state": begun.state, "nonce": begun.nonce, "code_verifier": begun.code_verifier, "to": to[:64]}
    answer = RedirectResponse(begun.url, 303)
    value = _serializer(front).dumps(kept | {"invite": invite[:64]})
    # Not "strict": the way back begins at the provider's site.
    front.set_cookie(answer, _COOKIE, str(value), _SECONDS, "lax")
    return answer


@router.get("/sign-in/back")
def back(request: Request, code: str = "", state: str = "", error: str = "") -> Response:
    """From the provider: into every project that this identity may enter."""
    front, provider = _provider(request)
    try:
        kept = _serializer(front).loads(request.cookies.get(_COOKIE, ""), max_age=_SECONDS)
    except BadSignature:
        return form(request, "", "oidc.stale", 403)
    if not hmac.compare_digest(kept["state"].encode(), state.encode("utf-8", "replace")):
        return form(request, "", "oidc.stale", 403)
    if error or not code:
        return form(request, "", "oidc.refused", 403)
    try:
        who = provider.finish(code, _back(front), kept["nonce"], kept["code_verifier"])
    except NotSignedIn as failed:
        return _away(request, failed)
    sessions: dict[str, str] = {}
    for project, service in front.services.items():
        # An account is made in the project that they came for alone.
        domains = provider.domains if project == kept["to"] else ()
        old = request.cookies.get(service.cookie)
        session = service.write(identities.enter, who, token=kept["invite"], domains=domains, old=old)
        if session is not None:
            sessions[project] = session
    if not sessions:
        return form(request, "", "oidc.unknown", 403, who=who.email or provider.name)
    # A page and no redirect: browsers send "strict" cookies only where the last step began at this site.
    to, language = front.target(sessions, kept["to"]), front.language(request)
    answer = HTMLResponse(page_html("entered", up="../", language=language, to=to))
    front.begin(answer, sessions)
    front.forget_cookie(answer, _COOKIE)
    return answer


def _provider(request: Request) -> tuple[Front, Provider]:
    front = front_of(request)
    assert front.provider is not None  # these routes are there with one alone
    return front, front.provider


def _back(front: Front) -> str:
    return f"{front.url}/sign-in/back"


def _away(request: Request, error: NotSignedIn) -> Response:
    """What went wrong is for whoever runs the server."""
    print(f"Sign-in failed: {error}", file=sys.stderr, flush=True)
    return form(request, "", "oidc.away", 502)


def _serializer(front: Front) -> URLSafeTimedSerializer:
    signed = {"digest_method": hashlib.sha256}
    return URLSafeTimedSerializer(front.first.secret, salt="plaudit.sign-in", signer_kwargs=signed)
