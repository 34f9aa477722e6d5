"""Random numbers as a function of (seed, stage, step, sample, position).

Nothing here holds a state, so what a sample draws depends neither on how work was batched or spread over ranks nor
on whether the run was resumed. The generator is numpy's Philox, a counter-based one (Salmon et al. 2011, "Parallel
random numbers: as easy as 1, 2, 3"): the key comes from (seed, stage), the counter from (step, sample), and the low
word of the counter runs over the positions.
"""

import hashlib

import numpy as np


def generator(seed: int, stage: str, step: int = 0, sample: int = 0) -> np.random.Generator:
    """A fresh generator whose stream is fixed by its four arguments (all integers non-negative)."""
    digest = hashlib.blake2b(f"{seed}/{stage}".encode(), digest_size=16).digest()
    key = np.frombuffer(digest, dtype=np.uint64)
    counter = np.array([0, 0, sample, step], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def uniforms(seed: int, stage: str, step: int, samples: list[int], positions: int) -> np.ndarray:
    """Uniform float32 numbers in [0, 1), shape [len(samples), positions].

    Row i depends on `samples[i]` alone, and column p on position p alone: asking for more positions or for other
    samples beside it changes nothing.
    """
    rows = [generator(seed, stage, step, sample).random(positions, dtype=np.float32) for sample in samples]
    return np.stack(rows) if rows else np.zeros((0, positions), np.float32)


def permutation(seed: int, stage: str, step: int, size: int) -> list[int]:
    """A seeded order of range(size), for example of an epoch's rows (`step` is then the epoch)."""
    return generator(seed, stage, step).permutation(size).tolist()


def stream(seed: int, stage: str, size: int, start: int, count: int) -> list[int]:
    """Positions start .. start+count of an endless stream over range(size), reshuffled every epoch.

    A function of the position alone, so a resumed run continues exactly where it stopped.
    """
    orders: dict[int, list[int]] = {}
    drawn = []
    for position in range(start, start + count):
        epoch, offset = divmod(position, size)
        if epoch not in orders:
            orders[epoch] = permutation(seed, stage, epoch, size)
        drawn.append(orders[epoch][offset])
    return drawn
