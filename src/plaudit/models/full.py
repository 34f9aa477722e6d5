"""Full fine-tuning behind the calls of `Roles`: every weight of a model learns, embeddings and LM head included.

SFT and the reward model hold and update the weights in float32, because a bfloat16 weight rounds a small step away;
where the machine multiplies bfloat16, the products run in it (autocast). Weights, gradients and AdamW's two moments
take 16 bytes a parameter. PPO's policy has to be its reference to the last bit before it has learnt, so both are in the
run's format, and the optimiser keeps float32 masters: docs/models.md has the sum.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from plaudit.models.heads import ScalarHead
from plaudit.models.kernels.trunk import state_size, trunk_name, trunk_of
from plaudit.models.roles import Need, Role, RoleOutput, Roles, judge, last_hidden, on_cpu, plain_loss
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

    @property
    def bases(self) -> list[PreTrainedModel]:
        """The plain models that it runs on."""
        return [self.base]

    def forward(self, tokens: Batch, role: Role, need: frozenset[Need]) -> RoleOutput:
        """See `Roles.forward`; only the policy's loss is here."""
        assert role == "policy" and need == {"loss"}, (role, need)
        with _computing_in(self.compute, self.base):
            return RoleOutput(loss=plain_loss(self.base, tokens))

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of everything an optimiser may change."""
        return dict(self.named_parameters())

    def adapter_state(self) -> dict[str, Tensor]:
        """A copy of the trained weights, on the CPU."""
        return on_cpu(self.trainable())

    def merged_weights(self, adapter: str, rounding: Rounding | None) -> Iterator[tuple[str, Tensor]]:
        """(name in the plain model, its weight in the format of the products) of everything; see
        `Roles.merged_weights`. `adapter` is there for the call's likeness."""
        assert adapter == "policy"
        yield from _rounded(self.base.named_parameters(), self.compute, rounding)


class FullRoles(nn.Module):
    """PPO's roles behind the calls of `Roles` where every weight of the policy learns. A second, frozen copy of the SFT
    model is the reference; on it stand the adapters of the reward model and of a critic of its own, where there are
    some.

    The weights are what the optimiser's float32 masters are rounded to, at random by fixed draws (`MasterAdamW`): so
    small steps are not lost on average, and the sampler can have the very weights that are trained.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        reference: PreTrainedModel,
        others: Roles | None,
        *,
        value_gradient: bool,
        temperature: float,
        away: torch.device | None = None,
    ):
        """`others` are the adapters that stand on `reference`; its norms must be computed as the policy's are. With
        `away` both lie there but while they are asked."""
        super().__init__()
        assert policy.dtype == reference.dtype
        self.policy = policy.requires_grad_(True).eval()
        self.others = others
        self.reference = reference
        if others is None:
            reference.requires_grad_(False).eval()
        own = others is not None and "critic" in others.learning
        self.value_head = others.value_head if own and others else ScalarHead(state_size(policy), bias=True)
        self.value_head.requires_grad_(True).to(policy.device)
        self.value_gradient, self.temperature = value_gradient, temperature
        self.device: torch.device = policy.device
        self.packs = False
        self.away, self.here = away, True
        if others is not None and away is not None:  # the reward model is asked through them, past these roles
            others.register_forward_pre_hook(lambda *_: self._fetch(here=True))
        self.eval()

    def _fetch(self, *, here: bool) -> None:
        """Move the reference, and the adapters on it, where they are to be. All of a batch's micro-batches are asked of
        one role, so that is twice a rollout."""
        if self.away is not None and self.here != here:
            self.here = here
            (self.reference if self.others is None else self.others).to(self.device if here else self.away)

    @property
    def bases(self) -> list[PreTrainedModel]:
        """The plain models that it runs on."""
        return [self.policy, self.reference]

    @property
    def packs(self) -> bool:
        """See `Roles.packs`. The adapters on the reference are asked past these roles too, so they have it at once: a
        reward that packs only once the reference was asked rounds otherwise in the first pass after a resumption."""
        return self._packs

    @packs.setter
    def packs(self, packs: bool) -> None:
        self._packs = packs
        if self.others is not None:
            self.others.packs = packs

    def forward(self, tokens: Tokens | Batch, role: Role, need: frozenset[Need]) -> RoleOutput:
        """See `Roles.forward`; scores are asked of `others`."""
        self._fetch(here=role != "policy")
        if role != "policy" and self.others is not None:
            return self.others(tokens, role, need)
        assert role in ("policy", "reference"), role
        model = self.policy if role == "policy" else self.reference
        return judge(model, self.value_head, tokens, need, self.value_gradient, self.temperature, packs=self.packs)

    def as_policy(self) -> None:
        """The first of `bases` is the policy as it is."""
        self._fetch(here=False)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of everything an optimiser may change."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def adapter_parameters(self, adapter: str) -> list[nn.Parameter]:
        """The parameters of the policy, or of the adapter that is the critic's own."""
        if adapter == "policy":
            return list(self.policy.parameters())
        return [] if self.others is None else self.others.adapter_parameters(adapter)

    def adapter_state(self) -> dict[str, Tensor]:
        """A copy of all that learns, on the CPU."""
        return on_cpu(self.trainable())

    def merged_weights(self, adapter: str, rounding: Rounding | None) -> Iterator[tuple[str, Tensor]]:
        """(name in the plain model, its weight) of everything; nothing is merged and nothing rounded."""
        assert adapter == "policy"
        self._fetch(here=False)
        yield from ((name, parameter.detach()) for name, parameter in self.policy.named_parameters())

    def base_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The reference's own tensors, by name."""
        if self.others is not None:
            return self.others.base_tensors()
        return ((name, parameter.detach()) for name, parameter in self.reference.named_parameters())


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
