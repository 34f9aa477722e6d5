"""How ranks find each other a second time, and notice one that is gone: with stores, and threads for ranks."""

import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.distributed import TCPStore

from plaudit.dist import meeting
from plaudit.dist.ranks import Ranks
from plaudit.errors import UserError
from plaudit.stages import pipeline
from plaudit.stages.prepare import check_alike

HOST = "127.0.0.1"


def store() -> TCPStore:
    return TCPStore(HOST, 0, is_master=True, timeout=timedelta(seconds=20), wait_for_workers=False)


def waits(until: Callable[[], bool]) -> bool:
    """Whether it comes true within ten seconds."""
    end = time.monotonic() + 10
    while not until() and time.monotonic() < end:
        time.sleep(0.01)
    return until()


def test_ranks_that_start_anew_do_not_call_on_the_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's store still has the address of the first rank that died. Whether nobody listens there or a stranger
    does, the second rank goes on asking until the new first rank has come."""
    monkeypatch.setattr(meeting, "CONNECT", timedelta(seconds=0.3))
    agent, stranger = store(), store()
    found: list[TCPStore] = []
    agent.set(meeting.ADDRESS, f"{stranger.port} the-dead-one")
    second = threading.Thread(target=lambda: found.append(meeting._own_store(agent, HOST, 1)), daemon=True)
    second.start()
    time.sleep(0.5)
    assert not found
    first = meeting._own_store(agent, HOST, 0)
    assert waits(lambda: bool(found))
    assert found[0].port == first.port
    first.set("x", "1")
    assert found[0].get("x") == b"1"


@pytest.mark.parametrize(
    ("gpus", "other", "asked"),
    [
        (2, "cpu:gloo,cuda:nccl", "cpu:gloo,cuda:nccl"),
        (1, "cpu:gloo,cuda:nccl", "gloo"),  # two ranks on one GPU: NCCL refuses them
        (2, "gloo", "gloo"),  # the other one's machine has none
        (0, "gloo", "gloo"),
    ],
)
def test_gpus_speak_by_nccl_where_each_rank_has_one(
    gpus: int, other: str, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the group is asked for: gloo stays there for what lies on the CPU."""
    shared, groups = store(), list[tuple[object, ...]]()
    shared.set("plaudit/speaks/1", other)
    for name, value in {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": HOST, "MASTER_PORT": str(shared.port)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    monkeypatch.setattr(meeting, "rendezvous", lambda *_, **__: iter([(shared, 0, 2)]))
    monkeypatch.setattr(meeting, "_show_life", lambda *_: None)
    monkeypatch.setattr(dist, "init_process_group", lambda *names, **_: groups.append(names))
    meeting.meet()
    assert groups == [(asked,)]
    assert shared.get("plaudit/speaks/0") == (b"cpu:gloo,cuda:nccl" if gpus == 2 else b"gloo")


def test_what_has_begun_is_known_to_those_that_come_after() -> None:
    agent = store()
    before = meeting.Meeting(agent)
    assert not Ranks(0, 2, _meeting=before).came_back
    Ranks(0, 2, _meeting=before).begin()
    assert Ranks(1, 2, _meeting=meeting.Meeting(agent)).came_back
    assert not Ranks(0, 2, _meeting=meeting.Meeting(None)).came_back


def test_a_rank_without_a_sign_of_life_ends_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the other one shows some nothing happens; then it stops, and this one ends with exit code 4."""
    shared, codes = store(), list[int]()

    class Ended(BaseException):
        """In place of the end of the process."""

    def ends(code: int) -> None:
        codes.append(code)
        raise Ended

    def lives() -> None:
        with pytest.raises(Ended):
            meeting._show_life(HOST, shared.port, 0, 2)

    monkeypatch.setattr(meeting, "BEAT", 0.02)
    monkeypatch.setattr(meeting, "SILENCE", 0.6)
    monkeypatch.setattr(os, "_exit", ends)
    thread = threading.Thread(target=lives, daemon=True)
    thread.start()
    for beat in range(10):
        shared.set("beat/1", str(beat))
        time.sleep(0.1)
    assert not codes
    assert waits(lambda: codes == [4])
    assert "Rank 0: Stopped: rank 1 was not heard of" in capsys.readouterr().err
    thread.join(5)


@pytest.mark.parametrize(
    ("rank", "local_rank", "expected"),
    [(0, 0, ["work", "wait", "wait"]), (2, 0, ["wait", "work", "wait"]), (3, 1, ["wait", "wait", "work"])],
)
def test_one_process_of_each_machine_fetches_before_the_rest(
    rank: int, local_rank: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four ranks on two machines: the first, then the first of the second machine, then all others."""
    done: list[str] = []
    monkeypatch.setattr(Ranks, "wait", lambda self: done.append("wait"))
    with Ranks(rank, 4, 2, local_rank).first_alone():
        done.append("work")
    assert done == expected


def test_a_rank_with_other_files_is_refused() -> None:
    first = {"recipe": {"seed": 0}, "data": {"prompts": "a"}, "code": "c", "machine": {"device": "cpu"}}
    check_alike([first, {**first, "machine": {"device": "another"}}])
    with pytest.raises(UserError, match=r"rank 2 has not what rank 0 has: data.prompts: 'a' -> 'b'"):
        check_alike([first, first, {**first, "data": {"prompts": "b"}}])


def test_no_rank_is_idle_where_there_is_enough_to_do() -> None:
    ranks = Ranks(1, 4)
    assert ranks.rows(8, 64) == 8
    assert ranks.rows(8, 10) == 3
    assert ranks.rows(8, 2) == 1
    assert Ranks().rows(8, 64) == 8


def test_only_the_first_round_of_a_process_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A later one begins after stages that this very process has begun, so what has begun says nothing."""
    asked: list[bool] = []

    def decide(*_: object, came_back: bool) -> str:
        asked.append(came_back)
        raise UserError("enough")

    agent = store()
    meeting.Meeting(agent).begin()
    ranks = Ranks(_meeting=meeting.Meeting(agent))
    monkeypatch.setattr(pipeline, "_decide", decide)
    monkeypatch.setattr(pipeline, "read_data", lambda recipe: None)
    own = pipeline._run_round
    for later in (False, True):
        with pytest.raises(UserError, match="enough"):
            own(None, pipeline.NOTHING_ASKED, ranks, later=later)
    assert asked == [True, False]

    rounds: list[bool] = []
    recipe = [SimpleNamespace(rounds=SimpleNamespace(number=n, count=3), run_folder=tmp_path) for n in (1, 2, 3)]
    monkeypatch.setattr(pipeline, "next_round", lambda folder, number: recipe[number])
    monkeypatch.setattr(pipeline, "_run_round", lambda *_, later=False: rounds.append(later) or tmp_path)
    pipeline.run_pipeline(recipe[0])
    assert rounds == [False, True, True]
