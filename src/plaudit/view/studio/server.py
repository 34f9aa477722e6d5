"""The studio's server: a gate, a link that works once, and JSON of what runs have written.

It listens on this machine only. The link that is printed signs one browser in; after that only its cookie opens
anything. The gate, the policy against scripts and the headers are the labelling service's (label/web/shared/gate.py).
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool
from starlette.middleware.gzip import GZipMiddleware

from plaudit.label.web.serve import LOOPBACK
from plaudit.label.web.shared.gate import Gate
from plaudit.label.web.shared.render import STATIC as SHARED
from plaudit.label.web.shared.service import Refused, install_errors
from plaudit.view.inspect.whole import whole_reply
from plaudit.view.names import name_of
from plaudit.view.studio import logs
from plaudit.view.studio.findings import findings, healthy
from plaudit.view.studio.replies import MOST
from plaudit.view.studio.routes_ask import router as asking
from plaudit.view.studio.session import Labels, Studio, same, studio_of

STATIC = Path(__file__).parent / "static"
LOOK_S = 0.5
"""Seconds between two looks at the logs of a run that somebody watches."""
router = APIRouter()


@router.get("/open/{token}")
def open_link(request: Request, token: str) -> Response:
    """The link works once: whoever finds it later in a history or a log finds a closed door."""
    studio = request.app.state.studio
    if studio.token is None or not same(token, studio.token):
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
    studio = studio_of(request)
    return [studio.card_of(name, folder) for name, folder in logs.known_runs(studio.folders).items()]


@router.get("/api/runs/{name}/curves")
def curves(request: Request, name: str) -> Any:
    """Every log of the run by column, and the byte from which `live` goes on."""
    folder = studio_of(request).run(name)
    found: dict[str, dict[str, Any]] = {}
    for log in logs.logs_of(folder):
        rows, end = logs.new_rows(folder, log, 0)
        found[log] = {"columns": logs.columns(rows), "end": end}
    names = {column: name_of(column) for log in found.values() for column in log["columns"]}
    return JSONResponse({"logs": found, "names": names, "healthy": healthy(folder)})


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
        for log, size in await run_in_threadpool(logs.sizes, folder):
            if size < ends.get(log, 0):
                yield "event: again\ndata: {}\n\n"  # cut by a resume, or the stage runs again
                return
            if size == ends.get(log, 0):
                continue
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
    most: Annotated[int, Query(ge=1, le=MOST)] = MOST,
) -> Any:
    return studio_of(request).replies_of(name).table(source, update, search, sort, down, most)


@router.get("/api/runs/{name}/same")
def same_prompt(request: Request, name: str, source: str, update: int, sample: int) -> Any:
    """The replies to one prompt over all updates."""
    return studio_of(request).replies_of(name).same_prompt(source, update, sample)


@router.get("/api/runs/{name}/more")
def more(request: Request, name: str) -> Any:
    """What comes after the curves: the scores of all replies, and the reward model's calibration on held-out pairs."""
    studio = studio_of(request)
    return {"histogram": studio.replies_of(name).histogram(), "calibration": logs.calibration(studio.run(name))}


@router.get("/api/runs/{name}/tokens/{update}/{sample}")
def tokens(request: Request, name: str, update: int, sample: int) -> Any:
    return whole_reply(studio_of(request).run(name), update, sample)


def _page(name: str) -> str:
    """One of the two pages; neither holds anything of a run."""
    return (STATIC / f"{name}.html").read_text(encoding="utf-8")


def create_app(studio: Studio, ends: Callable[[], bool] = lambda: False) -> FastAPI:
    """The application; `ends` says whether the server is being told to stop, so that no stream holds it up."""
    app = FastAPI(title="Plaudit studio", openapi_url=None, docs_url=None, redoc_url=None)
    app.state.studio, app.state.server_ends = studio, ends
    install_errors(app)
    app.include_router(router)
    app.include_router(asking)
    app.mount("/static/shared", StaticFiles(directory=SHARED), name="shared")
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_middleware(GZipMiddleware, minimum_size=2000)
    app.add_middleware(Gate, url=f"http://127.0.0.1:{studio.port}", hosts=LOOPBACK)
    return app


class _Calm(uvicorn.Server):
    """Looks once a second, and not ten times, whether it is told to stop: what it takes is taken from a trainer."""

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            await asyncio.sleep(1)


def serve(
    folders: Sequence[Path], listening: socket.socket, say: Callable[[str], None], labels: Labels | None = None
) -> None:
    """Serve until it is told to stop; `say` hears the link."""
    studio = Studio(folders, listening.getsockname()[1], labels)
    quiet: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False}
    server: uvicorn.Server | None = None
    app = create_app(studio, lambda: server is not None and server.should_exit)
    server = _Calm(uvicorn.Config(app, timeout_graceful_shutdown=5, **quiet))
    say(f"Studio (this link opens one browser, once): http://127.0.0.1:{studio.port}/open/{studio.token}")
    try:
        server.run(sockets=[listening])
    finally:
        studio.models.close()
