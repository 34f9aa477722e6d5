"""What all routes share: the service, who is calling, and what is refused.

Refusals are JSON: {"error": plain words, "fix": what to do}, and {"field"} where a field is to blame.
"""

import hmac
import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy import Connection, Engine, select
from sqlalchemy.exc import DataError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from plaudit.data.hashes import sha256_text
from plaudit.errors import UserError
from plaudit.label import people
from plaudit.label.db.database import Raced, snapshot
from plaudit.label.db.schema import project
from plaudit.label.db.writer import Busy, Writer
from plaudit.label.kinds.shared import BadAnswer
from plaudit.label.people import Caller
from plaudit.label.quality.process import NumbersProcess
from plaudit.label.queue.leases import Answered, NotYours
from plaudit.label.web.shared.aside import Jobs, Remembered

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Service:
    """The database of one project, and how it is reached from outside. `secure`: browsers reach it by https only;
    `database` is its address, for a process of its own."""

    engine: Engine
    writer: Writer
    secure: bool
    url: str
    secret: str
    database: str
    counting: NumbersProcess
    numbers: Remembered
    exports: Jobs = field(default_factory=Jobs)

    @property
    def root(self) -> str:
        """The path that browsers see before ours: "/label" of https://host/label, "" of most."""
        return urlsplit(self.url).path

    @property
    def cookie(self) -> str:
        return session_cookie(self.secret)

    @classmethod
    def open(cls, engine: Engine, url: str) -> "Service":
        with snapshot(engine) as connection:
            secret = connection.execute(select(project.c.secret)).scalar_one()
        where = engine.url
        sqlite = where.get_backend_name() == "sqlite"
        database = str(where.database) if sqlite else where.render_as_string(hide_password=False)
        counting = NumbersProcess(database)
        numbers = Remembered(counting.ask, seconds=5)
        return cls(
            engine, Writer(engine), url.startswith("https://"), url.rstrip("/"), secret, database, counting, numbers
        )

    def close(self) -> None:
        """Finish what waits to be written, and stop."""
        self.counting.end()
        self.writer.close()
        self.engine.dispose()

    def read(self, job: Callable[Concatenate[Connection, P], T], *args: P.args, **more: P.kwargs) -> T:
        """The result of a job that does not write."""
        # One statement needs no transaction, and PostgreSQL asks two more round trips for one.
        options = {"isolation_level": "AUTOCOMMIT"} if self.engine.dialect.name == "postgresql" else {}
        with self.engine.connect().execution_options(**options) as connection:
            return job(connection, *args, **more)

    def write(self, job: Callable[Concatenate[Connection, P], T], *args: P.args, **more: P.kwargs) -> T:
        """The job's result, after its commit."""
        return self.writer.run(lambda connection: job(connection, *args, **more))


class Refused(Exception):
    """An answer that is not 200: see the top of this file."""

    def __init__(self, status: int, error: str, fix: str):
        super().__init__(error)
        self.status, self.body = status, {"error": error, "fix": fix}


def session_cookie(secret: str) -> str:
    """The session cookie's name: of a project, by its secret, since cookies do not know the ports of a host."""
    return f"plaudit_session_{sha256_text(secret)[:8]}"


def service_of(request: Request) -> Service:
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def caller_of(request: Request) -> Caller | None:
    """Who calls, by the session cookie; None for nobody."""
    token = request.cookies.get(service_of(request).cookie)
    return service_of(request).read(people.caller_of, token) if token else None


def authorised(request: Request, role: str | None = None) -> Caller:
    """Who calls. Refused: 401 nobody, 403 the wrong role, or a POST without this session's token."""
    caller = caller_of(request)
    if caller is None:
        raise Refused(401, "you are not signed in", "sign in at /login")
    if request.method != "GET":
        sent = request.headers.get("X-CSRF-Token", "")
        if not hmac.compare_digest(sent.encode("utf-8", "surrogateescape"), caller.csrf.encode()):
            raise Refused(403, "the request does not carry this session's token", "load the page again")
    if role is not None and caller.role != role:
        raise Refused(403, f"only the role {role} may do this", "ask an admin of the project")
    return caller


def address_of(request: Request) -> str:
    """Whose failures are counted together: an IPv4 address, or the /64 network that one IPv6 household has."""
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "unknown"
    return str(ipaddress.ip_network(f"{address}/64", strict=False) if address.version == 6 else address)


# --- errors as answers ---

_API = "see docs/label-api.md"


def install_errors(app: FastAPI) -> None:
    """Every exception that a caller or the database can cause becomes an answer in JSON."""
    for kind, answer in _ANSWERS.items():
        app.add_exception_handler(kind, partial(_refuse, answer))


Answer = tuple[int, dict[str, Any], Mapping[str, str] | None]
"""Status, body, headers."""


def _refuse(answer: Callable[[Any], Answer], _: Request, error: Exception) -> JSONResponse:
    status, body, headers = answer(error)
    return JSONResponse(body, status, headers)


def _user_error(error: UserError) -> Answer:
    words, fix = str(error).rpartition("; ")[::2]  # of "what is wrong; what to do"
    return 422, {"error": words or fix, "fix": fix if words else "change it and send it again"}, None


def _invalid(error: RequestValidationError) -> Answer:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    return 422, {"error": first["msg"], "field": field, "fix": _API}, None


def _http(error: HTTPException) -> Answer:
    words = {404: "there is no such page", 405: "this address does not take that method"}
    return error.status_code, {"error": words.get(error.status_code, error.detail), "fix": _API}, error.headers


_AWAY = {"error": "the database is busy or away", "fix": "try again; nothing was lost"}
_ANSWERED = {"error": "this item has another answer of yours", "fix": "correct that one, or leave it"}
_NOT_YOURS = {"error": "this is not yours", "fix": "ask for your own item with /api/claim"}
_ANSWERS: dict[type[Exception], Callable[[Any], Answer]] = {
    Refused: lambda error: (error.status, error.body, None),
    Answered: lambda error: (409, _ANSWERED | {"seq": error.seq}, None),
    NotYours: lambda _: (403, _NOT_YOURS, None),
    BadAnswer: lambda error: (422, {"error": error.error, "field": error.field, "fix": error.fix}, None),
    UserError: _user_error,
    RequestValidationError: _invalid,
    HTTPException: _http,
    **dict.fromkeys(
        (Busy, Raced, OperationalError, InterfaceError, PoolTimeout), lambda _: (503, _AWAY, {"Retry-After": "1"})
    ),
    DataError: lambda _: (422, {"error": "a value that the database cannot hold", "fix": _API}, None),
}
