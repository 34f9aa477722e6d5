"""Listen, say where, and serve. The process never loads torch."""

import ipaddress
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import uvicorn
from sqlalchemy import Engine, select, update
from starlette.types import ASGIApp

from plaudit.errors import UserError
from plaudit.label import people
from plaudit.label.db import ledger
from plaudit.label.db.database import writing
from plaudit.label.db.schema import project
from plaudit.label.web.app import create_app, create_several
from plaudit.run.stopping import Interrupted

if TYPE_CHECKING:  # needs the extra `oidc`
    from plaudit.label.web.entrance.oidc import Provider

LOOPBACK = ("localhost", "127.0.0.1", "::1")
ADMIN = "admin"


@dataclass(frozen=True)
class Place:
    """Where the server listens, how browsers reach it, and the proxy whose forwarded headers are believed."""

    host: str = "127.0.0.1"
    port: int = 8080
    url: str | None = None
    proxy: str | None = None

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def warning(self) -> str | None:
        """What to say to somebody who serves passwords in the clear."""
        if self.loopback or (self.url or "").startswith("https://"):
            return None
        return (
            f"Warning: listening on {self.host} without TLS: passwords and labels can be read on the way. Put a proxy "
            "with TLS in front and give --url https://..., see docs/label.md."
        )


def served_at(engine: Engine) -> str | None:
    """How browsers reached the server that was started last on this database; None before the first."""
    with engine.connect() as connection:
        return connection.execute(select(project.c.url)).scalar_one()


@contextmanager
def saying_what_is_kept(engines: Iterable[Engine]) -> Iterator[None]:
    """A signal in this block says where the labels are, and not what it would say of a run."""
    try:
        yield
    except Interrupted as stopped:
        places = [
            str(engine.url.database) if engine.dialect.name == "sqlite" else engine.url.render_as_string()
            for engine in engines
        ]
        kept = f"labels, people and settings are kept in {', '.join(places)}; the same command serves them again"
        raise Interrupted(stopped.signum, kept) from None


def serve(
    projects: Mapping[str, Engine],
    place: Place,
    listening: socket.socket,
    say: Callable[[str], None],
    provider: "Provider | None" = None,
) -> None:
    """Serve projects, by the names of their paths, at a place until it is told to stop; the name of the only one may be
    "". `say` hears the address, the first invites and what to beware of."""
    host, port = listening.getsockname()[:2]
    shown = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    url = (place.url or f"http://{shown}:{port}").rstrip("/")
    hosts = (*LOOPBACK, place.host, urlsplit(url).hostname or "") if place.loopback else None
    app: ASGIApp
    if "" in projects:
        app = create_app(projects[""], url=url, hosts=hosts, provider=provider)
    else:
        app = create_several(projects, url=url, hosts=hosts, provider=provider)
    if warning := place.warning():
        say(warning)
    say(f"Labelling at {url}")
    for name, engine in projects.items():
        own = f"{url}/{name}".rstrip("/")
        if token := _first_invite(engine, own):
            whose = f" of {name}" if name else ""
            say(f"First admin{whose}, set your password (works once, {people.INVITE_DAYS} days): {own}/invite/{token}")
    behind = place.proxy or ("127.0.0.1" if place.url else None)
    quiet: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False}
    proxied: dict[str, Any] = {"proxy_headers": behind is not None, "forwarded_allow_ips": behind}
    config = uvicorn.Config(app, timeout_graceful_shutdown=5, **quiet, **proxied)
    uvicorn.Server(config).run(sockets=[listening])


def _first_invite(engine: Engine, url: str) -> str | None:
    """Keep where the project is served; the token of an invitation, until an admin can sign in."""
    with writing(engine) as connection:
        connection.execute(update(project).values(url=url))
        admins = [one for one in ledger.people(connection) if one.role == "admin" and one.active]
        waits = all(admin.invited for admin in admins)
        return people.make_invite(connection, admins[0].name if admins else ADMIN, "admin") if waits else None


def listen(place: Place) -> socket.socket:
    """A socket that listens there; UserError where that cannot be, and for an address of the browsers' that is none."""
    if place.url is not None:
        parts = urlsplit(place.url)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
            raise UserError(f"--url {place.url!r}: write https://HOST, http://HOST:PORT or https://HOST/PATH")
    try:
        family = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((place.host, place.port))
        listening.listen(512)  # whoever is told the address may knock at once
    except OSError as error:
        said = f"cannot listen on {place.host}:{place.port}: {error.strerror}; choose another --port"
        raise UserError(said) from error
    return listening
