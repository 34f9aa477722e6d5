"""The web application: of one project's database, or of several. `plaudit label serve` and `serve-all` run it; tests
make it in their own process."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from anyio import to_thread
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from sqlalchemy import Connection, Engine, text

from plaudit.label.transfer.webhook import Messenger
from plaudit.label.web import routes_admin, routes_annotator, routes_pages
from plaudit.label.web.entrance import routes as entrance
from plaudit.label.web.entrance import several
from plaudit.label.web.entrance.front import Front, front_of
from plaudit.label.web.shared.gate import Gate
from plaudit.label.web.shared.render import STATIC
from plaudit.label.web.shared.service import Service, install_errors

if TYPE_CHECKING:  # needs the extra `oidc`
    from plaudit.label.web.entrance.oidc import Provider

_THREADS = 80  # each waits for the database most of its time


def create_app(
    engine: Engine,
    *,
    url: str,
    hosts: tuple[str, ...] | None = None,
    provider: "Provider | None" = None,
    name: str = "",
) -> FastAPI:
    """The application of one project. `url` is how browsers reach the server, for invite links and cookies; `name` is
    that of the project's path below it, where there are several; `hosts` see gate.py.

    The database is migrated and has its project.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = _THREADS
        messenger = Messenger(engine, app.state.service.write)
        messenger.begin()
        yield
        messenger.end()
        app.state.service.close()

    url = url.rstrip("/")
    own = f"{url}/{name}" if name else url
    app = FastAPI(title="Plaudit label", openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.service = Service.open(engine, own)
    app.state.front = Front({name: app.state.service}, url, provider)
    for routes in (entrance.login_routes, entrance.router, routes_pages.router, routes_annotator.router):
        app.include_router(routes)
    app.include_router(routes_admin.router)
    _finish(app, own, hosts, sign_in=provider is not None and not name)
    return app


def create_several(
    engines: Mapping[str, Engine],
    *,
    url: str,
    hosts: tuple[str, ...] | None = None,
    provider: "Provider | None" = None,
) -> several.Paths:
    """The application of several projects, each below the path of its name, and a start page; see `create_app`."""
    url = url.rstrip("/")
    projects = {
        name: create_app(engine, url=url, hosts=hosts, provider=provider, name=name) for name, engine in engines.items()
    }
    start = FastAPI(title="Plaudit label", openapi_url=None, docs_url=None, redoc_url=None)
    services = {name: app.state.service for name, app in projects.items()}
    start.state.front = Front(services, url, provider, start=True)
    start.include_router(several.router)
    start.include_router(entrance.login_routes)
    _finish(start, url, hosts, sign_in=provider is not None)
    return several.Paths(start, projects, start.state.front.root)


def _finish(app: FastAPI, url: str, hosts: tuple[str, ...] | None, *, sign_in: bool) -> None:
    """What every application has."""
    if sign_in:
        from plaudit.label.web.entrance import sign_in as by_provider

        app.include_router(by_provider.router)
    install_errors(app)
    app.add_api_route("/healthz", _health, methods=["GET"])
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_middleware(Gate, url=url, hosts=hosts)


def _health(request: Request) -> JSONResponse:
    """200 when the databases answer; what they raise otherwise becomes 503."""
    select_one = text("SELECT 1")
    asked = [service.read(Connection.scalar, select_one) for service in front_of(request).services.values()]
    return JSONResponse({"ok": all(one == 1 for one in asked)})
