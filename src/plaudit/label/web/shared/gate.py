"""What every request passes, before any route: its size, where it comes from, and the headers of what goes back."""

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plaudit.label.web.shared.render import HEADERS

MOST_BYTES = 2 << 20
_ELSEWHERE = "use the pages of this server; behind a proxy, serve with --url and the address that browsers use"
_MORE = {
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


class Gate:
    """ASGI middleware. `url` is how browsers reach the server; `hosts`: the names it answers to, None for any."""

    def __init__(self, app: ASGIApp, *, url: str, hosts: tuple[str, ...] | None):
        self.app, self.hosts = app, hosts
        self.secure, self.place = url.startswith("https://"), urlsplit(url).netloc
        self.root = urlsplit(url).path.rstrip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self.root and (scope["path"] + "/").startswith(self.root + "/"):
            # A proxy may hand the path on with what stands before ours, or without.
            scope = {**scope, "path": scope["path"].removeprefix(self.root)}
            if not scope["path"]:  # relative addresses need the slash
                await RedirectResponse(self.root + "/", 307)(scope, receive, send)
                return
        taken = 0

        async def limited() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            # As if the connection had ended: the application stops reading, and whatever it says is not sent.
            return message if taken <= MOST_BYTES else {"type": "http.disconnect"}

        async def guarded(message: Message) -> None:
            if taken > MOST_BYTES:
                return
            if message["type"] == "http.response.start":
                self._add_headers(MutableHeaders(scope=message), str(scope["path"]))
            await send(message)

        refusal = self._refusal(scope["method"], headers)
        if refusal is not None:
            await refusal(scope, receive, guarded)
            return
        await self.app(scope, limited, guarded)
        if taken > MOST_BYTES:
            taken = 0
            await _too_large()(scope, receive, guarded)

    def _refusal(self, method: str, headers: Headers) -> JSONResponse | None:
        host = headers.get("host", "")
        if self.hosts is not None and _name(host) not in self.hosts:
            # A page of another site whose name was turned to this address (DNS rebinding) is refused here.
            return _no(400, "this server is not known by that name", "see --url of `plaudit label serve`")
        if not headers.get("content-length", "0").isdecimal() or int(headers.get("content-length", "0")) > MOST_BYTES:
            return _too_large()
        if method not in ("GET", "HEAD"):
            origin = headers.get("origin")
            elsewhere = origin is not None and _place(origin) not in (host, self.place)
            if elsewhere or headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                return _no(403, "the request comes from another site", _ELSEWHERE)
        return None

    def _add_headers(self, headers: MutableHeaders, path: str) -> None:
        headers.update(HEADERS | _MORE)
        if path.startswith("/static/"):
            headers["Cache-Control"] = "no-cache"  # kept, but asked for again: a new version must not meet old scripts
        if self.secure:
            headers["Strict-Transport-Security"] = "max-age=31536000"


def _no(status: int, error: str, fix: str) -> JSONResponse:
    return JSONResponse({"error": error, "fix": fix}, status)


def _too_large() -> JSONResponse:
    return _no(413, "the request is too large", f"send at most {MOST_BYTES:,} bytes")


def _place(origin: str) -> str | None:
    """The host and port of an Origin header; None for one that is none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _name(host: str) -> str:
    """example.org:8080 -> example.org; [::1]:8080 -> ::1."""
    return host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0].lower()
