"""Sampling many replies in batches, each written down when it is there, so that a killed stage samples on."""

from collections.abc import Sequence

import numpy as np

from plaudit.rollout.engine import Engine
from plaudit.run.display import Step
from plaudit.run.metrics import Metrics, read_metrics
from plaudit.train.saving import Saver, State


def sample_in_batches(
    engine: Engine,
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

    `uniforms` as for `Engine.generate`. A checkpoint counts the batches, after `done` steps of the stage; with `log`,
    `state` is all that the stage has then.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    batches = [order[start : start + size] for start in range(0, len(order), size)]
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
