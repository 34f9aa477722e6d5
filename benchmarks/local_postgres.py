"""A PostgreSQL server of our own in a temporary folder, from the system's binaries: for tests and benchmarks.

It listens on a Unix socket in that folder alone. As root it runs as the user `postgres`, because it refuses root.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psutil


def binaries() -> Path | None:
    """The folder of the newest installed server's programs; None where none is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


class PostgresServer:
    """Started when entered, gone with its data when left; may be killed and started again in between.

    Without `durable` it does not wait for the disk: faster, for tests that kill nothing.
    """

    def __init__(self, *, durable: bool = True) -> None:
        self.durable = durable
        programs = binaries()
        assert programs is not None, "PostgreSQL is not installed"
        self.programs = programs
        self.user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] if os.getuid() == 0 else []

    def __enter__(self) -> "PostgresServer":
        self.folder = Path(tempfile.mkdtemp(prefix="pg"))  # short: a socket's path has 107 characters at most
        if self.user:
            shutil.chown(self.folder, "postgres", "postgres")
        command = [self.programs / "initdb", "-D", self.folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8"]
        subprocess.run([*self.user, *map(str, command), "--no-sync"], check=True, capture_output=True, cwd=self.folder)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.folder)

    def start(self) -> None:
        settings = [
            "listen_addresses=",
            f"unix_socket_directories={self.folder}",
            f"fsync={'on' if self.durable else 'off'}",
        ]
        command = [str(self.programs / "postgres"), "-D", str(self.folder / "data")]
        command += [part for setting in settings for part in ("-c", setting)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([*self.user, *command], stdout=log, stderr=log, cwd=self.folder)
        deadline = time.monotonic() + 30
        while not self.answers():
            if self.process.poll() is not None and time.monotonic() < deadline:
                return self.start()  # what is left of the killed one still holds its shared memory
            assert time.monotonic() < deadline, (self.folder / "log").read_text(errors="replace")[-2000:]
            time.sleep(0.05)
        return None

    def answers(self) -> bool:
        ready = [str(self.programs / "pg_isready"), "-q", "-h", str(self.folder), "-U", "postgres"]
        return subprocess.run(ready, check=False).returncode == 0

    def kill(self) -> None:
        """SIGKILL to all of its processes: what a power cut leaves in memory is lost."""
        process = psutil.Process(self.process.pid)
        for one in [process, *process.children(recursive=True)]:
            try:
                one.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        self.process.wait()

    def create_schema(self, name: str) -> str:
        """The URL of an empty schema in the database `postgres`: like a database of its own, but made in no time."""
        command = [str(self.programs / "psql"), "-q", "-h", str(self.folder), "-U", "postgres", "-c"]
        subprocess.run([*command, f"CREATE SCHEMA {name}"], check=True, cwd=self.folder)
        return f"postgresql+psycopg://postgres@/postgres?host={self.folder}&options=-csearch_path%3D{name}"

    def create(self, name: str) -> str:
        """A new database's URL."""
        command = [str(self.programs / "createdb"), "-h", str(self.folder), "-U", "postgres", name]
        subprocess.run(command, check=True, cwd=self.folder)
        return f"postgresql+psycopg://postgres@/{name}?host={self.folder}"
