"""A linear layer as the fused decoder computes it: over rows that do not depend on each other, and in bfloat16 on a CPU
over a weight in the blocked layout that oneDNN reads fastest, which it would otherwise make anew each time."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from plaudit.models.kernels.fixed_rows import in_pieces, pieces_of

ROWS = 32
"""The batch that weights are laid out for; others are computed too."""


class Product:
    """A linear layer of the copy: its weight as it is, or laid out for oneDNN. On a CPU its rows do not depend on how
    many there are (fixed_rows.py)."""

    def __init__(self, linear: nn.Linear):
        self.linear = linear
        on_cpu = linear.weight.device.type == "cpu"
        self.packs = on_cpu and linear.weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        self.packed: Tensor | None = None
        if self.packs:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)
        self.fixed = on_cpu
        self.pieces: dict[str, tuple[int, ...]] = {}

    def load(self, weight: Tensor) -> None:
        """Take over a new weight."""
        if self.packs:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        else:
            self.linear.weight.data.copy_(weight)

    def _rows(self, what: str, product: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        if not self.fixed:
            return product(*rows)
        if what not in self.pieces:
            self.pieces[what] = pieces_of(
                (what, self.packs, self.linear.bias is None, self.linear.out_features),
                product,
                self.linear.in_features,
                rows[-1],
                outputs=self.linear.out_features if len(rows) == 2 else 0,
            )
        return in_pieces(product, self.pieces[what], *rows)

    def __call__(self, x_ND: Tensor) -> Tensor:
        return self._rows("plain", partial(self._product, "none"), x_ND)

    def _product(self, after: str, x_ND: Tensor) -> Tensor:
        if self.packed is None:
            return nn.functional.linear(x_ND, self.linear.weight, self.linear.bias)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x_ND, self.packed, self.linear.bias, after, [], "")
        return out

    def activated(self, x_ND: Tensor, act: nn.Module) -> Tensor:
        """act(this layer of x)."""
        if self.packed is None or not isinstance(act, nn.SiLU | SiLUActivation):
            activated: Tensor = act(self(x_ND))
            return activated
        return self._rows("activated", partial(self._product, "swish"), x_ND)

    def added_to(self, residual_ND: Tensor, x_NO: Tensor) -> Tensor:
        """residual + this layer of x."""
        return self._rows("added", self._sum, residual_ND, x_NO)

    def _sum(self, residual_ND: Tensor, x_NO: Tensor) -> Tensor:
        if self.packed is not None:
            out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
                x_NO, residual_ND, self.packed, self.linear.bias, "add"
            )
            return out
        if self.linear.bias is not None:
            residual_ND = residual_ND + self.linear.bias
        return torch.addmm(residual_ND, x_NO, self.linear.weight.T)
