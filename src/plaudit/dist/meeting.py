"""How the ranks of a run find each other, also after torchrun has started them anew, and notice one that is gone.

The store of torchrun's agent outlives the ranks, and with it the addresses of those that died: ranks that meet there a
second time would call on the dead. So the first rank opens a store of its own, and leaves its address with the agent;
an old address has nobody behind it. How often the agent has restarted is no key for that: with several agents each
counts for itself.

A machine that lost its power closes no connection. So every rank shows a sign of life in the store, from a thread of
its own, and ends when another one has shown none for `SILENCE`.
"""

import atexit
import os
import socket
import sys
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import FileStore, Store, TCPStore, rendezvous  # type: ignore[attr-defined]

TIMEOUT = timedelta(minutes=30)
"""How long a rank whose process lives may keep the others waiting in work that is divided."""
PATIENCE = timedelta(days=30)
"""The same while the first rank does what is not divided."""
BEAT, SILENCE = 5.0, 120.0
"""Seconds between two signs of life, and without one after which a rank is lost."""
LOST = 4
"""Exit code of a rank that has lost another."""
LAUNCH = "PLAUDIT_LAUNCH"
"""Environment variable of ranks whom Ray has brought together: a file that outlives them, on a file system that all
machines see."""
GLOO, NCCL = "gloo", "cpu:gloo,cuda:nccl"
"""What a group speaks: gloo everywhere, or NCCL between GPUs and gloo for what lies on the CPU."""
ADDRESS, NAME, BEGUN = "plaudit/address", "plaudit/name", "plaudit/begun"
CONNECT = timedelta(seconds=5)


@dataclass(frozen=True)
class Meeting:
    """What is left of it: the agent's store, which outlives the ranks, where there is one."""

    agent: Store | None

    @property
    def begun(self) -> bool:
        """Whether ranks of this launch have begun a stage."""
        return self.agent is not None and self.agent.check([BEGUN])

    def begin(self) -> None:
        if self.agent is not None:
            self.agent.set(BEGUN, "1")


def met() -> Meeting | None:
    """Of ranks whom another engine has brought together, which watches their lives itself."""
    file = os.environ.get(LAUNCH)
    return Meeting(FileStore(file, -1)) if file else None


def meet() -> Meeting:
    """Join the ranks that the environment names into one group."""
    store, rank, count = next(iter(rendezvous("env://", timeout=TIMEOUT)))
    agent = store if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True) else None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if agent is not None:
        store = _own_store(agent, host, rank)
        port = store.port
    speaks = _spoken(store, rank, count)
    dist.init_process_group(speaks, store=store, rank=rank, world_size=count, timeout=TIMEOUT)
    atexit.register(_leave)
    threading.Thread(target=_show_life, args=(host, port, rank, count), daemon=True).start()
    return Meeting(agent)


def _leave() -> None:
    """Left to the end of the process, the group's threads abort it half of the times that another rank is gone: exit
    code -6, in place of what the rank had to say."""
    if dist.is_initialized():
        with suppress(RuntimeError):  # the others may be gone
            dist.destroy_process_group()


def _spoken(store: Store, rank: int, count: int) -> str:
    """What all ranks speak, each of which says in the store what it has. NCCL wants a GPU for every rank."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    own = torch.cuda.is_available() and dist.is_nccl_available() and torch.cuda.device_count() >= local
    store.set(f"plaudit/speaks/{rank}", NCCL if own else GLOO)
    said = {store.get(f"plaudit/speaks/{other}").decode() for other in range(count)}
    return NCCL if said == {NCCL} else GLOO


def _own_store(agent: Store, host: str, rank: int) -> TCPStore:
    """A store of these ranks alone, in the first one's process, which is on the machine of the agent's store."""
    if rank == 0:
        store, name = TCPStore(host, 0, is_master=True, timeout=TIMEOUT, wait_for_workers=False), uuid.uuid4().hex
        store.set(NAME, name)
        agent.set(ADDRESS, f"{store.port} {name}")
        return store
    until = time.monotonic() + TIMEOUT.total_seconds()
    while True:
        port, name = agent.get(ADDRESS).decode().split()
        try:
            # Nobody is there, or a stranger, where it is the address of a first rank that died: the new one is to come.
            socket.create_connection((host, int(port)), CONNECT.total_seconds()).close()
            store = TCPStore(host, int(port), is_master=False, timeout=CONNECT, wait_for_workers=False)
            if store.get(NAME).decode() == name:
                store.set_timeout(TIMEOUT)
                return store
        except (OSError, RuntimeError):
            if time.monotonic() > until:
                raise
        time.sleep(0.1)


def _show_life(host: str, port: int, rank: int, count: int) -> None:
    """The thread that says that this rank lives, and ends the process when another one has been silent."""
    store = TCPStore(host, port, is_master=False, timeout=CONNECT, wait_for_workers=False)
    others = [other for other in range(count) if other != rank]
    heard = dict.fromkeys(others, (b"", time.monotonic()))
    beats = 0
    while True:
        beats += 1
        try:
            store.set(f"beat/{rank}", str(beats))
            for other in others:
                if store.check([f"beat/{other}"]) and (beat := store.get(f"beat/{other}")) != heard[other][0]:
                    heard[other] = beat, time.monotonic()
        except RuntimeError:
            pass  # the first rank, where the store is, has ended or is lost: it stays silent
        silent = [other for other, (_, when) in heard.items() if time.monotonic() - when > SILENCE]
        if silent:
            text = f"Rank {rank}: Stopped: rank {silent[0]} was not heard of for {SILENCE:.0f} s\n"
            sys.stderr.write(text)
            sys.stderr.flush()
            os._exit(LOST)  # the main thread may hang in a call that nothing interrupts
        time.sleep(BEAT)
