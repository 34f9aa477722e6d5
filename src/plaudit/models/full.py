"""Full fine-tuning behind the calls of `Roles`: every weight of a model learns, embeddings and LM head included.

The weights are held and updated in float32, because a bfloat16 weight rounds a small step away; where the machine
multiplies bfloat16, the products run in it (autocast). Weights, gradients and AdamW's two moments take 16 bytes a
parameter.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from plaudit.models.heads import ScalarHead
from plaudit.models.kernels.trunk import state_size, trunk_name, trunk_of
from plaudit.models.roles import Need, Role, RoleOutput, Roles, last_hidden, plain_loss
from plaudit.models.rounding import Rounding
from plaudit.models.tokens import Batch, ReplyRow, Tokens


def _computing_in(dtype: torch.dtype, base: PreTrainedModel) -> torch.autocast:
    low = dtype != base.dtype
    return torch.autocast(base.device.type, dtype if low else torch.bfloat16, enabled=low)


def _rounded(
    parameters: Iterable[tuple[str, nn.Parameter]], dtype: torch.dtype, rounding: Rounding | None
) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in parameters:
        weight = parameter.detach()
        yield name, weight if rounding is None or weight.dtype == dtype else rounding(name, weight.clone(), dtype)


class FullPolicy(nn.Module):
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
        with _computing_in(self.compute, self.base):
            return RoleOutput(loss=plain_loss(self.base, tokens))

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of everything an optimiser may change."""
        return dict(self.named_parameters())

    def adapter_state(self) -> dict[str, Tensor]:
        """A copy of the trained weights."""
        return {name: parameter.detach().clone() for name, parameter in self.named_parameters()}

    def merged_weights(self, adapter: str, rounding: Rounding | None) -> Iterator[tuple[str, Tensor]]:
        """(name in the plain model, its weight in the format of the products) of everything; see
        `Roles.merged_weights`. `adapter` is there for the call's likeness."""
        assert adapter == "policy"
        yield from _rounded(self.base.named_parameters(), self.compute, rounding)


class FullReward(nn.Module):
    """The reward model of full fine-tuning, behind the calls of `Roles`: a trunk of its own and a scalar head."""

    members = 1

    def __init__(self, base: PreTrainedModel, compute: torch.dtype, *, learns: bool):
        """With `learns`, `base` is float32 and its trunk learns, the head starts as a LoRA reward model's would, and
        products are in `compute`; otherwise everything is frozen and the head is still to be loaded."""
        super().__init__()
        assert not learns or base.dtype == torch.float32
        self.base = base.requires_grad_(False).eval()
        self.prefix = trunk_name(base)
        size = state_size(base)
        self.score_heads = nn.ModuleList([ScalarHead(size, bias=False, to_load=not learns)])
        self.compute = compute
        self.device: torch.device = base.device
        if learns:
            trunk_of(base).requires_grad_(True)
        self.score_heads.requires_grad_(learns).to(base.device)

    def forward(
        self, tokens: Tokens | ReplyRow, role: Role, need: frozenset[Need], member: int | None = None
    ) -> RoleOutput:
        """See `Roles.forward`; only the reward model's scores are here."""
        assert role == "reward" and need == {"scores"} and member in (None, 0), (role, need, member)
        with _computing_in(self.compute, self.base):
            hidden_BD = last_hidden(self.base, tokens)
        return RoleOutput(scores_BM=self.score_heads[0](hidden_BD)[:, None])

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of everything an optimiser may change."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def merged_weights(self, adapter: str, rounding: Rounding | None) -> Iterator[tuple[str, Tensor]]:
        """(name in the plain model, its weight in the format of the products) of the trunk; see
        `Roles.merged_weights`. `adapter` is there for the call's likeness."""
        assert adapter == "reward"
        trunk = ((name, p) for name, p in self.base.named_parameters() if name.startswith(f"{self.prefix}."))
        yield from _rounded(trunk, self.compute, rounding)


def raw_scores(model: Roles | FullReward, tokens: Tokens | ReplyRow, member: int | None = None) -> Tensor:
    """Scores [B, M] of a reward model, as `Roles.forward` gives them; of one `member` [B, 1]."""
    scores_BM = model(tokens, "reward", frozenset({"scores"}), member=member).scores_BM
    assert isinstance(scores_BM, Tensor)
    return scores_BM
