"""Sampling many replies in batches, each written down when it is there, so that a killed stage samples on."""

from collections.abc import Sequence

import numpy as np

from plaudit.data.packing import by_length
from plaudit.rollout.inprocess import InProcessEngine
from plaudit.run.display import Step
from plaudit.run.metrics import Metrics, read_metrics
from plaudit.train.saving import Saver, State


def sample_in_batches(
    engine: InProcessEngine,
    prompts: Sequence[Sequence[int]],
    uniforms: np.ndarray,
    size: int,
    *,
    saver: Saver,
    log: Metrics,
    done: int,
    state: State,
    advance: Step,
) -> list[list[int]]:
    """The ids of one reply a prompt, in order; `size` of like length at a time, and those that `log` has are taken.

    `uniforms` as for `InProcessEngine.generate`. A checkpoint counts the batches, after `done` steps of the stage; with
    `log`, `state` is all that the stage has then.
    """
    batches = by_length([len(prompt) for prompt in prompts], size)
    replies: dict[int, list[int]] = {row["row"]: row["ids"] for row in read_metrics(log.path)}
    advance(count=len(replies))
    for number, rows in enumerate(batches, start=done + 1):
        if rows[0] in replies:
            continue
        sampled = engine.generate([prompts[i] for i in rows], uniforms[rows])
        for row, reply in zip(rows, sampled, strict=True):
            replies[row] = reply.ids
            log.log(row=row, ids=reply.ids)
        advance(count=len(rows))
        saver.checkpoint(number, lambda: state, last=rows is batches[-1])
    return [replies[i] for i in range(len(prompts))]
