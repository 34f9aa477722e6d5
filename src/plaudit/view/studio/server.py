"""The studio's server: a gate, a link that works once, and JSON of what runs have written.

It listens on this machine only. The link that is printed signs one browser in; after that only its cookie opens
anything. The gate, the policy against scripts and the headers are the labelling service's (label/web/gate.py).
"""

import asyncio
import hmac
import json
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool
from starlette.middleware.gzip import GZipMiddleware

from plaudit.label.web.gate import Gate
from plaudit.label.web.render import STATIC as SHARED
from plaudit.label.web.serve import LOOPBACK
from plaudit.label.web.service import Refused, install_errors
from plaudit.view.studio import logs
from plaudit.view.studio.findings import findings, healthy
from plaudit.view.studio.replies import Replies

STATIC = Path(__file__).parent / "static"
LOOK_S = 0.5
"""Seconds between two looks at the logs of a run that somebody watches."""
router = APIRouter()


@dataclass
class Studio:
    """What the server knows: the folders with runs, the token of the link, and the sessions that it opened."""

    folders: Sequence[Path]
    port: int
    token: str | None = field(default_factory=lambda: secrets.token_urlsafe(32))
    session: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    replies: dict[str, Replies] = field(default_factory=dict)

    @property
    def cookie(self) -> str:
        """Browsers do not tell ports apart: two studios on one machine must not sign each other out."""
        return f"plaudit_studio_{self.port}"

    def run(self, name: str) -> Path:
        """The folder of a run by its name on the overview; no other folder can be named."""
        known = logs.known_runs(self.folders)
        if name not in known:
            raise Refused(404, "there is no such run", "go back to the overview")
        return known[name]

    def replies_of(self, name: str) -> Replies:
        folder = self.run(name)
        if name not in self.replies or self.replies[name].folder != folder:
            self.replies[name] = Replies(folder)
        return self.replies[name]


def studio_of(request: Request) -> Studio:
    """The studio, for a browser that was signed in."""
    studio = request.app.state.studio
    assert isinstance(studio, Studio)
    sent = request.cookies.get(studio.cookie, "")
    if not hmac.compare_digest(sent.encode("utf-8", "surrogateescape"), studio.session.encode()):
        raise Refused(401, "this browser is not signed in", "open the link that `plaudit studio` printed")
    return studio


@router.get("/open/{token}")
def open_link(request: Request, token: str) -> Response:
    """The link works once: whoever finds it later in a history or a log finds a closed door."""
    studio = request.app.state.studio
    if studio.token is None or not hmac.compare_digest(token.encode("utf-8", "surrogateescape"), studio.token.encode()):
        return HTMLResponse(_page("closed"), 403)
    studio.token = None
    answer = RedirectResponse("/", 303)
    answer.set_cookie(studio.cookie, studio.session, httponly=True, samesite="strict")
    return answer


@router.get("/")
def page(request: Request) -> Response:
    try:
        studio_of(request)
    except Refused:
        return HTMLResponse(_page("closed"), 401)
    return HTMLResponse(_page("studio"))


@router.get("/api/runs")
def runs(request: Request) -> Any:
    return [logs.card(name, folder) for name, folder in logs.known_runs(studio_of(request).folders).items()]


@router.get("/api/runs/{name}/curves")
def curves(request: Request, name: str) -> Any:
    """Every log of the run by column, and the byte from which `live` goes on."""
    folder = studio_of(request).run(name)
    found = {}
    for log in logs.logs_of(folder):
        rows, end = logs.new_rows(folder, log, 0)
        found[log] = {"columns": logs.columns(rows), "end": end}
    return JSONResponse({"logs": found, "healthy": healthy(folder)})


@router.get("/api/runs/{name}/findings")
def what_is_wrong(request: Request, name: str) -> Any:
    return findings(studio_of(request).run(name))


@router.get("/api/runs/{name}/live")
async def live(request: Request, name: str, at: str = "{}") -> Response:
    """Server-sent events: the rows that are written from now on; `at` is {log: byte}, as `curves` gave it."""
    folder = studio_of(request).run(name)
    try:
        ends = {str(log): int(end) for log, end in json.loads(at).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise Refused(422, "`at` is no {log: byte}", "load the page again") from error
    return StreamingResponse(_events(request, folder, ends), media_type="text/event-stream")


async def _events(request: Request, folder: Path, ends: dict[str, int]) -> AsyncIterator[str]:
    yield "retry: 1000\n\n"
    while not (await request.is_disconnected() or request.app.state.server_ends()):
        for log in await run_in_threadpool(logs.logs_of, folder):
            if (folder / log).stat().st_size < ends.get(log, 0):
                yield "event: again\ndata: {}\n\n"  # cut by a resume, or the stage runs again
                return
            rows, end = await run_in_threadpool(logs.new_rows, folder, log, ends.get(log, 0))
            if rows:
                ends[log] = end
                yield f"data: {json.dumps({'log': log, 'rows': rows, 'end': end})}\n\n"
        await asyncio.sleep(LOOK_S)


@router.get("/api/runs/{name}/updates")
def updates(request: Request, name: str) -> Any:
    return studio_of(request).replies_of(name).updates()


@router.get("/api/runs/{name}/replies")
def replies(
    request: Request,
    name: str,
    source: str = "rollout",
    update: Annotated[list[int], Query()] = [],  # noqa: B006
    search: Annotated[str, Query(max_length=500)] = "",
    sort: str = "score",
    down: bool = True,
) -> Any:
    return studio_of(request).replies_of(name).table(source, update, search, sort, down)


@router.get("/api/runs/{name}/same")
def same_prompt(request: Request, name: str, update: int, sample: int) -> Any:
    """The replies to one validation prompt, over all looks."""
    found = studio_of(request).replies_of(name)
    rows = found.rows("validation", update)
    if not 1 <= sample <= len(rows):
        raise Refused(404, "there is no such reply", "choose one of the table")
    return found.same_prompt(rows[sample - 1]["prompt"])


@router.get("/api/runs/{name}/histogram")
def histogram(request: Request, name: str) -> Any:
    return studio_of(request).replies_of(name).histogram()


@router.get("/api/runs/{name}/tokens/{update}/{sample}")
def tokens(request: Request, name: str, update: int, sample: int) -> Any:
    return studio_of(request).replies_of(name).tokens(update, sample)


def _page(name: str) -> str:
    """One of the two pages; neither holds anything of a run."""
    return (STATIC / f"{name}.html").read_text(encoding="utf-8")


def create_app(studio: Studio, ends: Callable[[], bool] = lambda: False) -> FastAPI:
    """The application; `ends` says whether the server is being told to stop, so that no stream holds it up."""
    app = FastAPI(title="Plaudit studio", openapi_url=None, docs_url=None, redoc_url=None)
    app.state.studio, app.state.server_ends = studio, ends
    install_errors(app)
    app.include_router(router)
    app.mount("/static/shared", StaticFiles(directory=SHARED), name="shared")
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_middleware(GZipMiddleware, minimum_size=2000)
    app.add_middleware(Gate, url=f"http://127.0.0.1:{studio.port}", hosts=LOOPBACK)
    return app


def serve(folders: Sequence[Path], listening: socket.socket, say: Callable[[str], None]) -> None:
    """Serve until it is told to stop; `say` hears the link."""
    studio = Studio(folders, listening.getsockname()[1])
    quiet: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False}
    server: uvicorn.Server | None = None
    app = create_app(studio, lambda: server is not None and server.should_exit)
    server = uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=5, **quiet))
    say(f"Studio (this link opens one browser, once): http://127.0.0.1:{studio.port}/open/{studio.token}")
    server.run(sockets=[listening])
