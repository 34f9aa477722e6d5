"""Linear layers as the fused decoder computes them: those of one input as one product, over rows that do not depend on
each other, and in bfloat16 on a CPU over a weight in the blocked layout that oneDNN reads fastest, which it would
otherwise make anew each time."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from plaudit.models.kernels.fixed_rows import in_pieces, pieces_of

ROWS = 32
"""The batch that weights are laid out for; others are computed too."""


class Product:
    """Linear layers of the copy that read one input, their outputs side by side: one weight as it is, or laid out for
    oneDNN. On a CPU its rows do not depend on how many there are (fixed_rows.py)."""

    def __init__(self, linears: Sequence[nn.Linear]):
        """`linears` have biases, all of them or none. Their weights are parts of the product's from now on."""
        first, self.linears = linears[0].weight, linears
        on_cpu = first.device.type == "cpu"
        self.packs = on_cpu and first.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        self.sizes = [linear.out_features for linear in linears]
        self.weight: Tensor | None = first.detach()
        if len(linears) > 1:
            self.weight = torch.cat([linear.weight.detach() for linear in linears])
            for linear, part in zip(linears, self.weight.split(self.sizes), strict=True):
                linear.weight.data = part
        self.packed: Tensor | None = None
        self.came: dict[int, Tensor] = {}
        self.fixed = on_cpu
        self.pieces: dict[str, tuple[int, ...]] = {}
        self.settle()

    def load(self, part: int, weight: Tensor) -> None:
        """Take over the new weight of one of the layers; `settle` comes after the last of them."""
        if self.weight is not None:
            self.weight.split(self.sizes)[part].copy_(weight)
        else:
            self.came[part] = weight
            if len(self.came) == len(self.sizes):
                self._lay_out()

    def settle(self) -> None:
        """All that came is there: what was changed in the layers themselves, their biases, too."""
        self._lay_out()
        biases = [linear.bias.detach() for linear in self.linears if linear.bias is not None]
        self.bias = torch.cat(biases) if len(biases) > 1 else next(iter(biases), None)

    def free(self) -> None:
        """Let go of the plain weight where there is one that is laid out: one copy is enough."""
        if self.packs:
            self.weight = None
            for linear in self.linears:
                linear.weight.data = linear.weight.new_empty(0)

    def _lay_out(self) -> None:
        weight, parts = self.weight, range(len(self.sizes))
        if weight is None and self.came:
            assert self.packed is not None
            old = {} if len(self.came) == len(parts) else dict(enumerate(self.packed.to_dense().split(self.sizes)))
            weight = torch.cat([{**old, **self.came}[part] for part in parts])
        if self.packs and weight is not None:
            self.packed, self.came = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS), {}

    def _rows(self, what: str, product: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        if not self.fixed:
            return product(*rows)
        if what not in self.pieces:
            self.pieces[what] = pieces_of(
                (what, self.packs, self.bias is None, sum(self.sizes)),
                product,
                self.linears[0].in_features,
                rows[-1],
                outputs=sum(self.sizes) if len(rows) == 2 else 0,
            )
        return in_pieces(product, self.pieces[what], *rows)

    def __call__(self, x_ND: Tensor) -> Tensor:
        return self._rows("plain", partial(self._product, "none"), x_ND)

    def _product(self, after: str, x_ND: Tensor) -> Tensor:
        if self.packed is None:
            assert self.weight is not None
            return nn.functional.linear(x_ND, self.weight, self.bias)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x_ND, self.packed, self.bias, after, [], "")
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
            out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x_NO, residual_ND, self.packed, self.bias, "add")
            return out
        assert self.weight is not None
        if self.bias is not None:
            residual_ND = residual_ND + self.bias
        return torch.addmm(residual_ND, x_NO, self.weight.T)
