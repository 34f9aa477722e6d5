"""Full fine-tuning behind the calls of `Roles`: every weight of a model learns, embeddings and LM head included.

The weights are held and updated in float32, because a bfloat16 weight rounds a small step away; where the machine
multiplies bfloat16, the products run in it (autocast). Weights, gradients and AdamW's two moments take 16 bytes a
parameter.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from plaudit.models.roles import Need, Role, RoleOutput, plain_loss
from plaudit.models.tokens import Batch


class FullModel(nn.Module):
    """The policy of full fine-tuning: the base itself."""

    def __init__(self, base: PreTrainedModel, compute: torch.dtype):
        """`base` is float32 and learns from now on; `compute` is the format of its products."""
        super().__init__()
        assert base.dtype == torch.float32
        self.base = base.requires_grad_(True).eval()
        self.compute = compute

    def forward(self, tokens: Batch, role: Role, need: frozenset[Need]) -> RoleOutput:
        """See `Roles.forward`; only the policy's loss is here."""
        assert role == "policy" and need == {"loss"}, (role, need)
        low = self.compute != torch.float32
        with torch.autocast(self.base.device.type, self.compute if low else torch.bfloat16, enabled=low):
            return RoleOutput(loss=plain_loss(self.base, tokens))

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of everything an optimiser may change."""
        return dict(self.named_parameters())

    def adapter_state(self) -> dict[str, Tensor]:
        """A copy of the trained weights."""
        return {name: parameter.detach().clone() for name, parameter in self.named_parameters()}

    def load_adapter_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `adapter_state` gave."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(state[name])

    def merged_weights(self, adapter: str) -> Iterator[tuple[str, Tensor]]:
        """(name in the plain model, its weight) of everything; `adapter` is there for the call's likeness."""
        assert adapter == "policy"
        yield from ((name, parameter.detach()) for name, parameter in self.base.named_parameters())
