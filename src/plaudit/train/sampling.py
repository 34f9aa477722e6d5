"""Sampling many replies in batches, each written down when it is there, so that a killed stage samples on."""

import json
from collections.abc import Sequence

import numpy as np

from plaudit.data.packing import by_length
from plaudit.dist.ranks import Ranks
from plaudit.rollout.engine import Engine, Sampled
from plaudit.run.display import Step
from plaudit.run.metrics import Metrics, read_metrics
from plaudit.train.saving import Saver, State


def sample_in_batches(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    uniforms: np.ndarray,
    size: int,
    *,
    ranks: Ranks,
    saver: Saver,
    log: Metrics,
    done: int,
    state: State,
    advance: Step,
) -> list[list[int]]:
    """The ids of one reply a prompt, in order; `size` of like length at a time, and those that `log` has are taken. Of
    several `ranks` each samples every so manieth batch. Where replies do not depend on each other, a waiting prompt
    takes the place of one that is done, and a batch is as many replies as it would have been.

    `uniforms` as for `Engine.generate`. A checkpoint counts the batches, after `done` steps of the stage; with
    `log`, `state` is all that the stage has then.
    """
    size = ranks.rows(size, len(prompts))
    if engine.joins is not None and ranks.count == 1:
        return _sample_on(
            engine, prompts, uniforms, size, saver=saver, log=log, done=done, state=state, advance=advance
        )
    batches = by_length([len(prompt) for prompt in prompts], size)
    known = json.loads(ranks.from_first(json.dumps([[row["row"], row["ids"]] for row in read_metrics(log.path)])))
    replies: dict[int, list[int]] = dict(known)
    advance(count=len(replies))
    for start in range(0, len(batches), ranks.count):
        turn = [batch for batch in batches[start : start + ranks.count] if batch[0] not in replies]
        if not turn:
            continue
        # One at most: there are no more batches in a turn than ranks.
        mine = [row for batch in ranks.share(turn) for row in batch]
        sampled = engine.generate([prompts[i] for i in mine], uniforms[mine]) if mine else []
        found = json.dumps([[row, reply.ids] for row, reply in zip(mine, sampled, strict=True)])
        for row, ids in (pair for text in ranks.gathered(found) for pair in json.loads(text)):
            replies[row] = ids
            log.log(row=row, ids=ids)
        advance(count=sum(map(len, turn)))
        number = start + len(batches[start : start + ranks.count])
        saver.checkpoint(done + number, lambda: state, last=number == len(batches))
    return [replies[i] for i in range(len(prompts))]


def _sample_on(
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
    """All that `log` does not have, without a batch's end: each reply is logged when it is finished."""
    replies: dict[int, list[int]] = {row["row"]: row["ids"] for row in read_metrics(log.path)}
    advance(count=len(replies))
    missing = [row for row in range(len(prompts)) if row not in replies]

    def finished(number: int, reply: Sampled) -> None:
        replies[missing[number]] = reply.ids
        log.log(row=missing[number], ids=reply.ids)
        advance()
        last = len(replies) == len(prompts)
        if last or len(replies) % size == 0:
            saver.checkpoint(done + -(-len(replies) // size), lambda: state, last=last)

    engine.generate([prompts[i] for i in missing], uniforms[missing], finished)
    return [replies[i] for i in range(len(prompts))]
