"""Open the project's database, put the items in, and serve it. The process never loads torch."""

import ipaddress
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import typer
import uvicorn
from sqlalchemy import Connection, Engine, select, update

from plaudit.errors import UserError
from plaudit.label.db import people
from plaudit.label.db.aside import DATABASE
from plaudit.label.db.database import connect, ensure_project, migrate, writing
from plaudit.label.db.schema import item, person, project
from plaudit.label.queue import queue
from plaudit.label.queue.items import rankings_path
from plaudit.label.web.app import create_app
from plaudit.run.folder import RECIPE
from plaudit.run.stopping import Interrupted

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
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

    def check(self) -> None:
        """UserError for an address of the browsers' that is none."""
        if self.url is not None:
            parts = urlsplit(self.url)
            if parts.scheme not in ("http", "https") or not parts.netloc or parts.path.strip("/"):
                raise UserError(f"--url {self.url!r}: write https://HOST or http://HOST:PORT, without a path")

    def warning(self) -> str | None:
        """What to say to somebody who serves passwords in the clear."""
        if self.loopback or (self.url or "").startswith("https://"):
            return None
        return (
            f"Warning: listening on {self.host} without TLS: passwords and labels can be read on the way. Put a proxy "
            "with TLS in front and give --url https://..., see docs/label.md."
        )


def default_database(source: Path | None) -> Path:
    """RUN/label/labels.sqlite of a run; FILE.labels.sqlite beside a file."""
    if source is None:
        raise UserError("which database? Give a run folder, a data file, or --database")
    if (source / RECIPE).is_file():
        return source / "label" / "labels.sqlite"
    return source.with_name(f"{source.name}.labels.sqlite")


def open_project(database: str | Path, name: str = "Plaudit") -> Engine:
    """The engine of a database that is up to date and has its project."""
    if "://" not in str(database):
        Path(database).parent.mkdir(parents=True, exist_ok=True)
        Path(database).touch(mode=0o600)  # password hashes and labels are for nobody else on this machine
    engine = connect(database)
    migrate(engine)
    ensure_project(engine, name)
    return engine


def has_items(engine: Engine) -> bool:
    """Whether there is anything to label."""
    with engine.connect() as connection:
        return connection.execute(select(item.c.id).limit(1)).first() is not None


def is_waiting_run(source: Path) -> bool:
    """A run that has no rankings yet: it puts its replies into the database by itself and waits for labels."""
    return (source / RECIPE).is_file() and not rankings_path(source).is_file()


def add_in_another_process(database: str, arguments: Sequence[str]) -> None:
    """`plaudit label add`: what reads data files may take memory that this process must not keep."""
    command = [sys.executable, "-c", "from plaudit.cli.main import main; main()", "label", "add", *arguments]
    done = subprocess.run(command, check=False, env={**os.environ, DATABASE: database})
    if done.returncode != 0:
        raise typer.Exit(done.returncode)  # it has said why


def settle(engine: Engine, settings: dict[str, Any]) -> None:
    """Change the project's settings that are not None."""
    given = {name: value for name, value in settings.items() if value is not None}
    with writing(engine) as connection:
        if given:
            connection.execute(update(project).values(**given))
        if "overlap" in given:
            queue.set_overlap(connection, given["overlap"])


def first_invite(connection: Connection) -> str | None:
    """The token of the first admin's invite; None once an admin has a password."""
    admins = connection.execute(select(person).where(person.c.role == "admin", person.c.active)).all()
    if any(admin.password_hash is not None for admin in admins):
        return None
    return people.make_invite(connection, admins[0].name if admins else ADMIN, "admin")


def served_at(engine: Engine) -> str | None:
    """How browsers reached the server that was started last on this database; None before the first."""
    with engine.connect() as connection:
        return connection.execute(select(project.c.url)).scalar_one()


@contextmanager
def saying_what_is_kept(engine: Engine) -> Iterator[None]:
    """A signal in this block says where the labels are, and not what it would say of a run."""
    try:
        yield
    except Interrupted as stopped:
        where = engine.url.database if engine.dialect.name == "sqlite" else engine.url.render_as_string()
        kept = f"labels, people and settings are kept in {where}; the same command serves them again"
        raise Interrupted(stopped.signum, kept) from None


def serve(engine: Engine, place: Place, listening: socket.socket, say: Callable[[str], None]) -> None:
    """Serve at a place until it is told to stop. `say` hears the address, the first invite and what to beware of."""
    host, port = listening.getsockname()[:2]
    shown = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    url = (place.url or f"http://{shown}:{port}").rstrip("/")
    hosts = (*_LOOPBACK, place.host, urlsplit(url).hostname or "") if place.loopback else None
    app = create_app(engine, url=url, hosts=hosts)
    with writing(engine) as connection:
        connection.execute(update(project).values(url=url))
        token = first_invite(connection)
    warning = place.warning()
    if warning:
        say(warning)
    say(f"Labelling at {url}")
    if token:
        say(f"First admin, set your password (works once, {people.INVITE_DAYS} days): {url}/invite/{token}")
    behind = place.proxy or ("127.0.0.1" if place.url else None)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=5,
            proxy_headers=behind is not None,
            forwarded_allow_ips=behind,
        )
    )
    server.run(sockets=[listening])


def listen(place: Place) -> socket.socket:
    """A socket that listens there; UserError where that cannot be."""
    try:
        family = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((place.host, place.port))
        listening.listen(512)  # whoever is told the address may knock at once
    except OSError as error:
        raise UserError(
            f"cannot listen on {place.host}:{place.port}: {error.strerror}; choose another --port"
        ) from error
    return listening
