"""What float32 sums become in bfloat16: rounded at random, so that small ones are kept on average.

A bfloat16 has 8 significant bits. Rounded to the nearest one, a weight plus a change below half its last place is the
weight again, so most of a small adapter is lost: the copy with which replies are sampled is then nearly the reference.
Rounded up with a probability equal to how far the sum is on its way up, every sum is right in expectation (stochastic
rounding: Gupta et al. 2015, "Deep Learning with Limited Numerical Precision", arXiv:1502.02551, section 3.1); sums that
need no rounding stay what they are. docs/models.md has what both keep of an adapter.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from plaudit import rng

ROWS = 2**18
"""Numbers rounded at a time: what lies between float32 and bfloat16 then stays in the processor's cache."""


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
        # upper one with the probability that is wanted, whatever the sign; an infinity stays one.
        halves, bits = sums.view(torch.int32).flatten(), self._bits(name, sums.numel(), sums.device)
        for start in range(0, halves.numel(), ROWS):
            part = halves[start : start + ROWS]
            part.add_(bits[start : start + ROWS].to(torch.int32) & 0xFFFF).bitwise_and_(-0x10000)
        return sums.to(dtype)

    def _bits(self, name: str, count: int, device: torch.device) -> Tensor:
        """`count` uniform 16-bit numbers, drawn where they are used; other ones on another kind of device."""
        stage = f"{self.stage}/rounding/{name}"
        if device.type == "cpu":
            words = rng.generator(self.seed, stage, self.step).bit_generator.random_raw(-(-count // 4))
            return torch.from_numpy(words.view("int16")[:count])
        key = hashlib.blake2b(f"{self.seed}/{stage}/{self.step}".encode(), digest_size=7).digest()
        source = torch.Generator(device).manual_seed(int.from_bytes(key, "little"))
        return torch.randint(-0x8000, 0x8000, (count,), dtype=torch.int16, device=device, generator=source)
