"""The labelling service with many items: adding a file, adding it again, the dashboard, a person's page, the admin's.

    python benchmarks/label_scale.py [--items 100000] [--labels 1200] [--database postgres]

A file of rankings of four replies is added with `plaudit label add`, twice; twenty people give labels; the numbers of
the admin's dashboard are asked for as the server does it, of a process that has to begin and of the same one again, and
what pages ask for is computed: /api/me, the first page of items in both orders, and a search that finds the last one.
The last line is JSON: of each the seconds, and the processor's seconds, which are what it takes on an idle core.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import psutil
from sqlalchemy import insert

from local_postgres import PostgresServer
from plaudit.label.db import schema
from plaudit.label.db.database import open_project, writing
from plaudit.label.quality.process import NumbersProcess
from plaudit.label.queue import leases
from plaudit.label.reading.items import Asked
from plaudit.label.reading.search import Words
from plaudit.label.web import views

PEOPLE, REPLIES, AT_ONCE = 20, 4, 100


def write_file(path: Path, items: int) -> None:
    draw = random.Random(0)
    words = [f"word{n}" for n in range(500)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(items):
            replies = [
                {"text": " ".join(draw.choices(words, k=draw.randint(20, 80))), "rank": rank + 1}
                for rank in range(REPLIES)
            ]
            file.write(json.dumps({"prompt": f"Question {number}?", "responses": replies}) + "\n")


def command(database: str, *arguments: str) -> bytes:
    code = "from plaudit.cli.main import main; main()"
    environment = {**os.environ, "PLAUDIT_LABEL_DATABASE": database}
    call = [sys.executable, "-c", code, "label", *arguments]
    return subprocess.run(call, env=environment, check=True, stdout=subprocess.PIPE).stdout


def label_some(database: str, count: int) -> int:
    """So many labels of twenty people; one of them."""
    engine, draw = open_project(database), random.Random(1)
    people = []
    with writing(engine) as connection:
        for number in range(PEOPLE):
            made = insert(schema.person).values(name=f"p{number}", role="annotator", active=True, created=time.time())
            people.append(connection.execute(made.returning(schema.person.c.id)).scalar_one())
    for start in range(0, count, AT_ONCE):
        with writing(engine) as connection:
            for at in range(start, min(start + AT_ONCE, count)):
                who = people[at % PEOPLE]
                claimed = leases.claim(connection, who)
                assert claimed is not None
                ranks = [draw.randint(1, REPLIES) for _ in claimed.order]
                leases.submit(connection, who, claimed.lease, uuid.uuid4().hex, {"ranks": ranks})
    engine.dispose()
    return people[0]


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--items", type=int, default=100_000)
    asked.add_argument("--labels", type=int, default=1_200)
    asked.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    given = asked.parse_args()
    told: dict[str, float] = {}

    def processor() -> float:
        living = (child.cpu_times() for child in psutil.Process().children())
        return sum(os.times()[:4]) + sum(times.user + times.system for times in living)

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        nonlocal told
        began, used = time.perf_counter(), processor()
        yield
        told |= {f"{name}_s": round(time.perf_counter() - began, 3), f"{name}_cpu_s": round(processor() - used, 3)}
        print(name, told[f"{name}_s"], told[f"{name}_cpu_s"], flush=True)

    with (
        tempfile.TemporaryDirectory() as folder,
        PostgresServer() if given.database == "postgres" else nullcontext() as server,
    ):
        file = Path(folder) / "items.jsonl"
        database = server.create("labels") if server else f"{folder}/labels.sqlite"
        write_file(file, given.items)
        with timed("add"):
            command(database, "add", str(file))
        with timed("again"):
            command(database, "add", str(file))
        with timed("labelling"):
            who = label_some(database, given.labels)
        counting = NumbersProcess(database)
        for name in ("dashboard", "dashboard again"):
            with timed(name):
                counting.ask()
        counting.end()
        engine = open_project(database)
        with engine.connect() as connection, timed("me"):
            views.me(connection, who)
        for name, order in (("items", "import"), ("latest", "latest")):
            with engine.connect() as connection, timed(name):
                views.items_page(connection, Asked(), order, None)
        # As rare as a search can be: it looks through every text, in parts.
        rare = Asked(words=Words.of(f"{given.items - 1}?"))
        with engine.connect() as connection, timed("search"):
            after: int | None = None
            while not (found := views.items_page(connection, rare, "import", after))["items"]:
                after = found["next"]
        engine.dispose()
    print(json.dumps({"items": given.items, "labels": given.labels, **told}))


if __name__ == "__main__":
    main()
