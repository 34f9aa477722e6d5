"""How many labels the labelling service takes: 50 clients that do not wait for each other, on SQLite and PostgreSQL.

    python benchmarks/label.py [--database sqlite|postgres|both] [--seconds 60] [--clients 50] [--rate R] [--items N]

The load is an open loop: claim+submit cycles begin at fixed times, R of them a second, spread over the clients, whether
or not earlier ones have come back; a cycle that has to wait for its client counts that wait in its time. The server is
a process of its own, as `plaudit label serve` starts it; the clients are one more process that speaks plain HTTP. The
last line is JSON: cycles a second that were answered, and percentiles of their times in milliseconds.
"""

import argparse
import asyncio
import json
import os
import platform
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from label_load import Client, prepare, start_server
from local_postgres import PostgresServer

OVERLAP = 3
RATES = {"sqlite": 75, "postgres": 120}
"""Cycles offered a second: above what is to be reached, so that the queue is never the client's."""


async def load(port: int, sessions: list[tuple[str, str]], rate: float, seconds: float) -> dict[str, Any]:
    clients = [Client(port, *session) for session in sessions]
    for client in clients:
        await client.open()
    times: dict[str, list[float]] = {"claim": [], "submit": [], "cycle": []}
    began = time.perf_counter()
    going = []
    for number in range(int(rate * seconds)):
        due = began + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        going.append(asyncio.create_task(clients[number % len(clients)].cycle(due, times)))
    done = await asyncio.gather(*going, return_exceptions=True)
    spent = time.perf_counter() - began
    failures = [str(error) for error in done if isinstance(error, BaseException)]
    return {
        "offered_per_s": rate,
        "answered": len(times["cycle"]),
        "failed": len(failures),
        "first_failure": failures[0] if failures else None,
        "cycles_per_s": round(len(times["cycle"]) / spent, 1),
        **{f"{name}_ms": _percentiles(values) for name, values in times.items()},
    }


def _percentiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {
        name: round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1) for name, share in at.items()
    }


def cpu_seconds(process: int) -> float:
    """User and system time that a process has taken."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(kind: str, database: str, options: argparse.Namespace) -> dict[str, Any]:
    rate = options.rate or RATES[kind]
    items = max(options.items, int(rate * options.seconds / OVERLAP) + 200)
    sessions = prepare(database, options.clients, items, OVERLAP)
    server, port = start_server(database)
    before = cpu_seconds(server.pid)
    found = asyncio.run(load(port, sessions, rate, options.seconds))
    found["server_cpu_ms_per_cycle"] = round(1000 * (cpu_seconds(server.pid) - before) / max(1, found["answered"]), 2)
    peak = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{server.pid}/status").read_text(encoding="ascii"))
    assert peak is not None
    found["server_peak_mb"] = round(int(peak[1]) / 1024)
    server.terminate()
    server.wait()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=("sqlite", "postgres", "both"), default="both")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--items", type=int, default=0, help="items in the database, if more than the clients need")
    parser.add_argument("--rate", type=float, help="cycles offered a second; by default by database")
    options = parser.parse_args()
    results: dict[str, Any] = {
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}",
        "clients": options.clients,
        "seconds": options.seconds,
    }
    if options.database != "postgres":
        with tempfile.TemporaryDirectory() as folder:
            results["sqlite"] = measure("sqlite", f"{folder}/labels.sqlite", options)
    if options.database != "sqlite":
        with PostgresServer() as server:
            results["postgres"] = measure("postgres", server.create("labels"), options)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
