"""Threads: as many as the cores, unless the user says otherwise; and devices that a run takes."""

import os
from types import SimpleNamespace

import pytest
import torch

from plaudit.dist import machine
from plaudit.dist.machine import choose_machine


@pytest.mark.parametrize(("told", "threads"), [("3", 3), ("", None), ("0", None), ("many", None), (None, None)])
def test_threads_are_the_cores_or_what_the_user_set(
    told: str | None, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if told is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    expected = threads or len(os.sched_getaffinity(0))
    assert choose_machine("float32").threads == expected and asked == [expected]


def test_an_accelerator_that_nothing_was_tried_on_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate prefers an Apple GPU to the CPU; it has no float64."""
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(machine, "PartialState", lambda: SimpleNamespace(device=torch.device("mps")))
    assert machine.unused_device() == "mps" and machine.choose_machine("auto").device == torch.device("cpu")
    monkeypatch.setattr(machine, "PartialState", lambda: SimpleNamespace(device=torch.device("cuda", 0)))
    assert machine.unused_device() is None and machine.choose_machine("bfloat16").device == torch.device("cuda", 0)
