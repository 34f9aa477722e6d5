"""Attention of short sequences equals torch's own, values and gradients, grouped heads and masks included."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from plaudit.models.kernels import short_attention
from plaudit.models.kernels.short_attention import LONGEST, attend


@pytest.fixture(autouse=True)
def fast_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the rest of the tests is run without them."""
    monkeypatch.delenv("PLAUDIT_PLAIN", raising=False)


def inputs(heads: int, groups: int, t: int, s: int, dtype: torch.dtype, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, heads, t, 16), (batch, groups, s, 16), (batch, groups, s, 16)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def band(t: int, s: int, window: int) -> Tensor:
    distance = torch.arange(s - t, s)[:, None] - torch.arange(s)[None, :]
    return ((distance >= 0) & (distance < window))[None, None]


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("case", ["causal", "window", "wide window", "behind a prompt", "both", "one token"])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_values_and_gradients(case: str, heads: int, groups: int, scaling: float | None) -> None:
    t, s = {"behind a prompt": (9, 31), "both": (9, 31), "one token": (1, 1)}.get(case, (23, 23))
    window = {"window": 5, "wide window": 23, "both": 12}.get(case)
    mask = band(t, s, s if window is None else window)
    found = inputs(heads, groups, t, s, torch.float64)
    expected = inputs(heads, groups, t, s, torch.float64)
    module = torch.nn.Module()
    out = attend(module, *found, window, scaling=scaling, dropout=0.0)
    q, k, v = expected
    k, v = (x.repeat_interleave(heads // groups, dim=1) for x in (k, v))
    usual = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
    # The softmax is in float32.
    torch.testing.assert_close(out, usual.transpose(1, 2), rtol=1e-6, atol=1e-6)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (out * weight).sum().backward()
    (usual.transpose(1, 2) * weight).sum().backward()
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-6)


def test_bfloat16_is_as_near_to_the_truth_as_torchs_own() -> None:
    exact = inputs(6, 2, 60, 60, torch.bfloat16)
    truth = [x.detach().double().requires_grad_() for x in exact]
    q, k, v = truth
    F.scaled_dot_product_attention(
        q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1), is_causal=True
    ).sum().backward()
    own = inputs(6, 2, 60, 60, torch.bfloat16)
    attend(torch.nn.Module(), *own, None).sum().backward()
    usual = inputs(6, 2, 60, 60, torch.bfloat16)
    q, k, v = usual
    F.scaled_dot_product_attention(
        q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1), is_causal=True
    ).sum().backward()
    for mine, theirs, right in zip(own, usual, truth, strict=True):
        assert mine.grad is not None and theirs.grad is not None and right.grad is not None
        gap, their_gap = ((x.grad.double() - right.grad).norm() for x in (mine, theirs))
        assert gap < 1.5 * their_gap + 1e-3 * right.grad.norm()


def test_long_sequences_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    usual = short_attention.sdpa_attention_forward
    monkeypatch.setattr(
        short_attention, "sdpa_attention_forward", lambda *a, **k: (called.append(1), usual(*a, **k))[1]
    )
    module = torch.nn.Module()
    module.num_key_value_groups = 1  # type: ignore[assignment]
    module.is_causal = True  # type: ignore[assignment]
    attend(module, *inputs(2, 2, LONGEST, LONGEST, torch.float32), None)
    assert not called
    attend(module, *inputs(2, 2, LONGEST + 1, LONGEST + 1, torch.float32), None)
    assert called


def test_under_autocast_it_is_in_the_low_format() -> None:
    """Full fine-tuning: float32 queries and keys (after rotation), bfloat16 values."""
    q, k, v = inputs(6, 2, 20, 20, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(torch.nn.Module(), q, k, v.bfloat16(), None)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    plain = attend(torch.nn.Module(), *inputs(6, 2, 20, 20, torch.float32), None)
    torch.testing.assert_close(out.float(), plain, rtol=0.05, atol=0.05)
