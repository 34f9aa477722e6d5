"""The web application of one project's database. `plaudit label serve` runs it; tests make it in their own process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import to_thread
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from sqlalchemy import Connection, Engine, text

from plaudit.label.web import routes_admin, routes_annotator, routes_pages
from plaudit.label.web.gate import Gate
from plaudit.label.web.render import STATIC
from plaudit.label.web.service import Service, install_errors, service_of

_THREADS = 80  # each waits for the database most of its time


def create_app(engine: Engine, *, url: str, hosts: tuple[str, ...] | None = None) -> FastAPI:
    """The application. `url` is how browsers reach it, for invite links and cookies; `hosts` see gate.py.

    The database is migrated and has its project.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = _THREADS
        yield
        app.state.service.writer.close()
        engine.dispose()

    app = FastAPI(title="Plaudit label", openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.service = Service.open(engine, url)
    install_errors(app)
    for routes in (routes_pages, routes_annotator, routes_admin):
        app.include_router(routes.router)
    app.add_api_route("/healthz", _health, methods=["GET"])
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_middleware(Gate, url=url, hosts=hosts)
    return app


def _health(request: Request) -> JSONResponse:
    """200 when the database answers; what it raises otherwise becomes 503."""
    one = service_of(request).read(Connection.scalar, text("SELECT 1"))
    return JSONResponse({"ok": one == 1})
