"""What float32 sums become in bfloat16: rounded at random, so that small ones are kept on average.

A bfloat16 has 8 significant bits. Rounded to the nearest one, a weight plus a change below half its last place is the
weight again, so most of a small adapter is lost: the copy with which replies are sampled is then nearly the reference.
Rounded up with a probability equal to how far the sum is on its way up, every sum is right in expectation (stochastic
rounding: Gupta et al. 2015, "Deep Learning with Limited Numerical Precision", arXiv:1502.02551, section 3.1); sums that
need no rounding stay what they are. docs/models.md has what both keep of an adapter.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plaudit import rng


@dataclass(frozen=True)
class Rounding:
    """Random rounding whose draws are fixed by (seed, stage, step) and a tensor's name."""

    seed: int
    stage: str
    step: int = 0

    def __call__(self, name: str, sums: Tensor, dtype: torch.dtype) -> Tensor:
        """Float32 `sums` in `dtype`; unchanged where that is float32. The tensor may be overwritten."""
        assert sums.dtype == torch.float32, sums.dtype
        if dtype == torch.float32:
            return sums
        assert dtype == torch.bfloat16, dtype
        # A bfloat16 is the upper half of a float32. A uniform 16-bit number added to the lower half carries into the
        # upper one with the probability that is wanted, whatever the sign; an infinity stays one. Other draws on
        # another kind of device: they are made where they are used.
        stage = f"{self.stage}/rounding/{name}"
        if sums.device.type == "cpu":  # by NumPy: a third of the time that torch takes
            words = rng.generator(self.seed, stage, self.step).bit_generator.random_raw(-(-sums.numel() // 4))
            raised = sums.numpy().view(np.uint32) + words.view(np.uint16)[: sums.numel()].reshape(sums.shape)
            return torch.from_numpy((raised >> 16).astype(np.uint16).view(np.int16)).view(dtype)
        key = hashlib.blake2b(f"{self.seed}/{stage}/{self.step}".encode(), digest_size=7).digest()
        source = torch.Generator(sums.device).manual_seed(int.from_bytes(key, "little"))
        bits = torch.randint(0, 2**16, sums.shape, dtype=torch.int32, device=sums.device, generator=source)
        sums.view(torch.int32).add_(bits).bitwise_and_(-(2**16))
        return sums.to(dtype)
