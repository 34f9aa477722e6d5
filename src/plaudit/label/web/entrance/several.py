"""Several projects of one server: each below a path of its own, with its own people and roles, and one start page."""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from plaudit.errors import UserError
from plaudit.label import people
from plaudit.label.db import ledger
from plaudit.label.web.entrance.front import front_of
from plaudit.label.web.shared.render import page_html

router = APIRouter()
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_TAKEN = ("login", "sign-in", "static", "healthz")
"""Paths of the start page's application."""


def named(projects: Sequence[str]) -> dict[str, str]:
    """Name -> database, of NAME=DATABASE; UserError for what is none."""
    found: dict[str, str] = {}
    for given in projects:
        name, _, database = given.partition("=")
        if not _NAME.fullmatch(name) or name in _TAKEN or not database:
            fix = f"a name is lower-case letters, digits and -, and none of {', '.join(_TAKEN)}"
            raise UserError(f"{given!r}: write NAME=DATABASE; {fix}")
        if name in found:
            raise UserError(f"{given!r}: {name!r} is there already; give the two projects different names")
        found[name] = database
    return found


@router.get("/")
def start_page(request: Request) -> Response:
    """The projects that one may enter; who may enter none is asked to sign in."""
    front = front_of(request)
    entered = []
    for service in front.services.values():
        token = request.cookies.get(service.cookie)
        caller = service.read(people.caller_of, token) if token else None
        if caller is not None:
            entered.append({"name": service.read(ledger.project).name, "path": service.root, "role": caller.role})
    if not entered:
        return RedirectResponse(f"{front.root}/login", 303)
    return HTMLResponse(page_html("start", language=front.language(request), projects=entered))


class Paths:
    """ASGI: a request goes to the project whose name its path begins with, or to the start page's application."""

    def __init__(self, front: FastAPI, projects: Mapping[str, FastAPI], root: str):
        self.front, self.projects, self.root = front, projects, root
        front.router.lifespan_context = self._lifespan

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app: ASGIApp = self.front
        if scope["type"] == "http":
            path = scope["path"]
            if self.root and (path + "/").startswith(self.root + "/"):
                path = path.removeprefix(self.root)
            app = self.projects.get(path.strip("/").partition("/")[0], app)
            scope = {**scope, "path": self.root + path}
        await app(scope, receive, send)

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as begun:
            for app in self.projects.values():
                await begun.enter_async_context(app.router.lifespan_context(app))
            yield
