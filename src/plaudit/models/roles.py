"""One base, four roles: policy, reference, critic and reward model share one frozen copy of the weights.

    role        adapter     head        gives
    policy      policy      LM head     log-probabilities, entropies, and the critic's values (a head on the policy)
    critic      critic      scalar      values, where the critic has an adapter of its own
    reference   none        LM head     log-probabilities
    reward      reward      scalar      scores

The reward model may be an ensemble: M members, each an adapter (`reward`, `reward_1`, ...) and a head on the one base.

Everything is reached through `Roles.forward(tokens, role, need)`; nobody touches the trunk or a head from outside.
`requires_grad` is set once, when the roles are built. PEFT owns the adapters' format, initialisation and execution.
Adapters are in the base's format: float32 ones would make each of their products a float32 product. The optimiser
keeps their float32 masters. Full fine-tuning is `models.full`'s.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from plaudit.data.files import whole_folder
from plaudit.models.adapted import add_adapter, config_of, load_adapter
from plaudit.models.config import LoraSettings
from plaudit.models.heads import ScalarHead
from plaudit.models.kernels.attention import hidden_states
from plaudit.models.kernels.fused import fuse
from plaudit.models.kernels.logits import PLAIN, shape_of, size_of
from plaudit.models.kernels.trunk import state_size
from plaudit.models.logprobs import completion_loss, token_logprobs
from plaudit.models.quantised import QuantisedLinear, plain_weight
from plaudit.models.rounding import Rounding
from plaudit.models.sharded import let_go, whole
from plaudit.models.tokens import Batch, ReplyRow, Tokens, pack_tokens

PACKED_BELOW = 0.8
"""Share of a batch's cells, padding included, that a packed row must stay below to be worth its attention, which goes
one sequence at a time (docs/benchmarks.md)."""

UNDER = "sft"
"""Name of the adapter of SFT, where it is not in the base's weights."""
Role = Literal["policy", "critic", "reference", "reward"]
Need = Literal["logprobs", "values", "last_values", "scores", "loss"]
ALLOWED: dict[Role, frozenset[Need]] = {
    "policy": frozenset({"logprobs", "values", "last_values", "loss"}),
    "critic": frozenset({"values", "last_values"}),
    "reference": frozenset({"logprobs"}),
    "reward": frozenset({"scores"}),
}


@dataclass(frozen=True)
class RoleOutput:
    """What was asked for; the rest is None. Per-token tensors are zero where the mask is False.

    `scores_BM` are raw scores of the M members of the reward model, 1 where it is no ensemble.
    """

    logprobs_BT: Tensor | None = None
    entropy_BT: Tensor | None = None
    values_BT: Tensor | None = None
    last_values_B: Tensor | None = None
    scores_BM: Tensor | None = None
    loss: Tensor | None = None


def reward_adapter(member: int) -> str:
    """Name of the adapter of a member of the reward model."""
    return "reward" if member == 0 else f"reward_{member}"


class Roles(nn.Module):
    """The root module. `base` is frozen; the adapter named `trained` and its heads learn."""

    def __init__(
        self,
        base: PreTrainedModel,
        *,
        trained: Literal["policy", "reward"] | None = None,
        lora: LoraSettings | None = None,
        seed: int = 0,
        members: int = 1,
        reward: Sequence[Path] = (),
        critic: Path | LoraSettings | None = None,
        value_gradient: bool = False,
        temperature: float = 1.0,
        plain_base: bool = False,
        base_first: bool = False,
        under: Path | None = None,
    ):
        """A fresh adapter `trained` is made from `lora` and `seed`; of a reward model `members` of them, each with a
        start of its own. With `reward`, the folders of a trained reward model's adapters, those are loaded, frozen;
        their heads are loaded by `heads.load_head`. At least one of the two is given.
        `critic` is the folder of the adapter that a critic of its own starts from, or the settings of a fresh one: it
        learns beside the policy, which may be a model of its own (`full.FullRoles`).
        `value_gradient` lets the value loss reach the policy's trunk; otherwise it trains the value head alone.
        `under` is the folder of an adapter that every role stands on: SFT's, where the base is quantised and could not
        take it in. With `plain_base` the reference computes as a policy without adapters does, with `base_first`
        adapters are added as vLLM adds them (`fused.fuse`)."""
        super().__init__()
        assert not (trained == "reward" and reward) and members >= 1
        assert critic is None or (trained != "reward" and not value_gradient)
        self.members = members if trained == "reward" else len(reward)
        self.learning: tuple[str, ...] = () if trained is None else (trained,)
        if trained == "reward":
            self.learning = tuple(reward_adapter(member) for member in range(members))
        peft: PreTrainedModel | PeftModel = base
        # Which layers, asked of the plain model: with adapters on them its linear layers are others.
        fresh = dict.fromkeys(self.learning, lora) | ({"critic": critic} if isinstance(critic, LoraSettings) else {})
        configs = {name: config_of(base, one) for name, one in fresh.items() if one is not None}
        self.under = () if under is None else (UNDER,)
        if under is not None:
            peft = load_adapter(peft, UNDER, under)
        for name in self.learning:
            peft = add_adapter(peft, name, configs[name], seed)
        for member, path in enumerate(reward):
            peft = load_adapter(peft, reward_adapter(member), path)
        if critic is not None:
            if isinstance(critic, LoraSettings):
                peft = add_adapter(peft, "critic", configs["critic"], seed)
            else:
                peft = load_adapter(peft, "critic", critic)
            self.learning = (*self.learning, "critic")
        assert isinstance(peft, PeftModel)
        self.peft = peft
        size, to_load = state_size(base), trained != "reward"
        self.score_heads = nn.ModuleList(ScalarHead(size, bias=False, to_load=to_load) for _ in range(self.members))
        self.value_head = ScalarHead(size, bias=True)
        self.device: torch.device = base.device
        self.trained = trained
        self.value_gradient = value_gradient
        self.temperature = temperature
        self.packs = False
        """Whether padded tokens are computed in one row where that saves enough, what prompts share once
        (`tokens.pack_tokens`). For a model that `kernels.attention` has proven to obey the segments of a row."""
        self._lora_layers = [module for module in self.peft.modules() if isinstance(module, LoraLayer)]
        for layer in self._lora_layers:  # PEFT makes those on a quantised layer in float32
            layer.lora_A.to(base.dtype), layer.lora_B.to(base.dtype)
        # Only the trained adapter and its head learn; set here once and never flipped again.
        head = "score_heads." if trained == "reward" else "value_head."
        for name, parameter in self.named_parameters():
            own = name.startswith(head) or any(f".{adapter}." in name for adapter in self.learning)
            parameter.requires_grad_(bool(self.learning) and own)
        self.to(base.device)
        self.eval()
        fuse(self.peft, plain_base=plain_base, base_first=base_first)

    @property
    def bases(self) -> list[PreTrainedModel]:
        """The plain models that it runs on."""
        return [self.peft.get_base_model()]

    def as_policy(self) -> None:
        """Make the plain model compute as the policy, until the next pass."""
        self._activate("policy")

    def _activate(self, adapter: str | None) -> None:
        # PEFT's own set_adapter flips requires_grad on every call; the two attributes it keeps are set directly.
        # tests/models/test_roles.py proves the result equal to PEFT's public calls.
        active = [*self.under, *([] if adapter is None else [adapter])]
        for layer in self._lora_layers:
            layer._disable_adapters = not active
            if active:
                layer._active_adapter = active

    def forward(
        self, tokens: Tokens | Batch | ReplyRow, role: Role, need: frozenset[Need], member: int | None = None
    ) -> RoleOutput:
        """One pass of `role` over `tokens`, giving what `need` names.

        logprobs: log π(a_t) and the entropy of π(·|s_t), [B, T], at the reply's actions, at the sampling temperature.
        values: V(s_t), [B, T], at the same columns, and last_values: V(s_T), [B], the state after the last token
        (role policy, or critic where it has its own adapter). scores: the raw scores at the last real token, [B, M]
        (reward role only), with `member` those of that one alone, [B, 1]. loss: −Σ log π(a_t) over the mask at
        temperature 1, as text that was not sampled is judged (policy role only). All float32. `tokens` may be a
        `Batch` for logprobs and loss, a `ReplyRow` for scores.
        """
        assert need and need <= ALLOWED[role], (role, need)
        model = self.peft.get_base_model()
        if role == "reward":
            assert not isinstance(tokens, Batch)
            scores = []
            for m in range(self.members) if member is None else (member,):
                self._activate(reward_adapter(m))
                scores.append(self.score_heads[m](last_hidden(model, tokens, packs=self.packs)))
            return RoleOutput(scores_BM=torch.stack(scores, dim=1))
        assert not isinstance(tokens, ReplyRow)
        self._activate(None if role == "reference" else role)
        reaches = self.value_gradient or role == "critic"
        return judge(model, self.value_head, tokens, need, reaches, self.temperature, packs=self.packs)

    @torch.no_grad()
    def start_critic(self, mean: float, std: float) -> None:
        """A critic of its own begins as the reward model: V = (r_θ − mean)/std, the normalised score of its first
        member, at every state (docs/correctness.md, row 30). Call it once the reward model's head is loaded."""
        assert "critic" in self.learning
        head = self.score_heads[0].get_parameter("weight")
        assert self.value_head.bias is not None
        self.value_head.weight.copy_(head / std)
        self.value_head.bias.fill_(-mean / std)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of everything an optimiser may change."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def adapter_parameters(self, adapter: str) -> list[nn.Parameter]:
        """The parameters of one adapter that learns; none where there is no such adapter."""
        return [parameter for name, parameter in self.trainable().items() if f".{adapter}." in name]

    def adapter_state(self) -> dict[str, Tensor]:
        """A copy of the trained adapter and heads, on the CPU."""
        return on_cpu(self.trainable())

    @torch.no_grad()
    def merged_weights(self, adapter: str, rounding: Rounding | None) -> Iterator[tuple[str, Tensor]]:
        """(name in the plain model, W + ΔW) of every adapted layer, and of every quantised one, whose W is what its
        bits stand for; added in float32 and rounded once, by `rounding`; by None to the nearest, which is exact for a
        float32 base and loses much of a small adapter on another."""
        for plain_name, module in self._merged_layers(adapter):
            if not isinstance(module, LoraLayer):
                yield plain_name, plain_weight(module)
                continue
            weight = plain_weight(module.get_base_layer())
            merged = weight.float()
            for one in (name for name in (*self.under, adapter) if name in module.lora_A):
                # PEFT's own get_delta_weight would round ΔW to the adapter's format before it is added.
                left, right = module.lora_B[one].weight.float(), module.lora_A[one].weight.float()
                if module.fan_in_fan_out:
                    left, right = right.T, left.T
                merged = torch.addmm(merged, left, right, alpha=module.scaling[one])
            kept = merged.to(weight.dtype) if rounding is None else rounding(plain_name, merged, weight.dtype)
            yield plain_name, kept

    def merged_names(self, adapter: str) -> list[str]:
        """The names that `merged_weights` gives, without a product."""
        return [name for name, _ in self._merged_layers(adapter)]

    def _merged_layers(self, adapter: str) -> Iterator[tuple[str, nn.Module]]:
        for name, module in self.peft.named_modules():
            plain_name = f"{name.removeprefix('base_model.model.').removesuffix('.base_layer')}.weight"
            if isinstance(module, LoraLayer):
                adapts = any(one in module.lora_A for one in (*self.under, adapter))
                if adapts or isinstance(module.get_base_layer(), QuantisedLinear):
                    yield plain_name, module
            elif isinstance(module, QuantisedLinear) and not name.endswith(".base_layer"):
                yield plain_name, module

    def save_adapter(self, folder: Path, member: int = 0) -> None:
        """A trained adapter in PEFT's own format, whole or not at all: entry `member` of `learning`, so of an ensemble
        that member's, and 1 for a critic beside the policy."""
        name = self.learning[member]
        config = self.peft.peft_config[name]
        if isinstance(config.target_modules, set):
            # A set of texts has another order in every process, and the file would have it too.
            config.target_modules = sorted(config.target_modules)
        with whole_folder(folder) as part:
            # PEFT puts a named adapter into a folder of that name, beside a model card.
            self.peft.save_pretrained(str(part / "peft"), selected_adapters=[name])
            for file in sorted((part / "peft" / name).iterdir()):
                file.replace(part / file.name)
            shutil.rmtree(part / "peft")

    def base_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What every role stands on, by name: the frozen base's tensors, and the adapter `under` it; no heads."""
        let_go(self)
        for name, parameter in self.peft.named_parameters():
            if ".lora_" not in name or f".{UNDER}." in name:
                yield name, whole(parameter.detach())


def on_cpu(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """A copy of named parameters where memory is cheap."""
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in parameters.items()}


def judge(
    model: PreTrainedModel,
    value_head: nn.Module,
    tokens: Tokens | Batch,
    need: frozenset[Need],
    reaches: bool,
    temperature: float,
    *,
    packs: bool,
) -> RoleOutput:
    """One pass of `model`, with the adapter that is active: see `Roles.forward`. The value loss `reaches` the trunk, or
    ends at the head."""
    read = tokens.acted_on if isinstance(tokens, Tokens) and "last_values" not in need else tokens
    hidden_BTD = _hidden(model, read, packs=packs)
    mask_BT = tokens.mask_BT
    hidden_ND = hidden_BTD[mask_BT[:, : hidden_BTD.shape[1]]]
    logprobs_BT = entropy_BT = values_BT = last_values_B = loss = None
    if "values" in need:
        values_BT = _scatter(value_head(hidden_ND if reaches else hidden_ND.detach()), mask_BT)
    if "last_values" in need:
        assert isinstance(tokens, Tokens)
        hidden_BD = hidden_BTD[tokens.last_B]
        last_values_B = value_head(hidden_BD if reaches else hidden_BD.detach())
    if "logprobs" in need:
        logprobs_BT, entropy_BT = _reply_logprobs(model, hidden_ND, tokens, temperature)
    if "loss" in need:
        loss = _batch_loss(model, hidden_ND, tokens)
    return RoleOutput(logprobs_BT, entropy_BT, values_BT, last_values_B, None, loss)


def _hidden(model: PreTrainedModel, tokens: Tokens | Batch | ReplyRow, *, packs: bool = False) -> Tensor:
    if not isinstance(tokens, Tokens):
        return hidden_states(model, tokens.tokens_BT, tokens.segments)
    if packs:
        row, places_BT = pack_tokens(tokens)
        if row.tokens_BT.numel() < PACKED_BELOW * places_BT.numel():
            return _hidden(model, row)[0, places_BT]
    return hidden_states(model, tokens.tokens_BT)


def last_hidden(model: PreTrainedModel, tokens: Tokens | ReplyRow, *, packs: bool = False) -> Tensor:
    """The state [B, D] at the last token of every sequence; by the roles' own code."""
    return _hidden(model, tokens, packs=packs)[tokens.last_B]


def _targets(tokens: Tokens | Batch) -> Tensor:
    """The next token [N] at the mask."""
    return tokens.tokens_BT.roll(-1, dims=1)[tokens.mask_BT]


def _head(model: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
    """The LM head's weight and bias."""
    head = model.get_output_embeddings()
    return head.weight, getattr(head, "bias", None)


def _batch_loss(model: PreTrainedModel, hidden_ND: Tensor, tokens: Tokens | Batch) -> Tensor:
    """Over all ids that the model has, as everybody's cross-entropy: it teaches that those without a token are not to
    be had."""
    weight_VD, bias_V = _head(model)
    whole = replace(shape_of(model), holes=())
    shape = PLAIN if whole == PLAIN else whole
    return completion_loss(hidden_ND, weight_VD, _targets(tokens), bias_V=bias_V, shape=shape)


def plain_loss(model: PreTrainedModel, tokens: Tokens | Batch) -> Tensor:
    """−Σ log π(a_t) over the mask, of a plain model without adapters; by the roles' own code."""
    return _batch_loss(model, _hidden(model, tokens)[tokens.mask_BT], tokens)


def _reply_logprobs(
    model: PreTrainedModel, hidden_ND: Tensor, tokens: Tokens | Batch, temperature: float
) -> tuple[Tensor, Tensor]:
    """`hidden_ND` are the states at the mask. Of the policy: an id without a token has no share of it."""
    weight_VD, bias_V = _head(model)
    if (size := size_of(model)) is not None:
        weight_VD, bias_V = weight_VD[:size], None if bias_V is None else bias_V[:size]
    logprobs_N, entropy_N = token_logprobs(
        hidden_ND, weight_VD, _targets(tokens), temperature, bias_V=bias_V, shape=shape_of(model)
    )
    return _scatter(logprobs_N, tokens.mask_BT), _scatter(entropy_N, tokens.mask_BT)


@torch.no_grad()
def plain_logprobs(model: PreTrainedModel, tokens: Tokens, temperature: float) -> Tensor:
    """log π(a_t) [B, T] of a plain model without adapters, an exported policy for example; by the roles' own code."""
    return plain_logprobs_at(model, tokens, [temperature])[0]


@torch.no_grad()
def plain_logprobs_at(model: PreTrainedModel, tokens: Tokens, temperatures: Sequence[float]) -> list[Tensor]:
    """`plain_logprobs` at each of some temperatures, in one pass."""
    hidden_ND = _hidden(model, tokens.acted_on)[tokens.mask_BT[:, :-1]]
    return [_reply_logprobs(model, hidden_ND, tokens, temperature)[0] for temperature in temperatures]


def _scatter(values_N: Tensor, mask_BT: Tensor) -> Tensor:
    out_BT = torch.zeros(mask_BT.shape, dtype=values_N.dtype, device=values_N.device)
    return out_BT.masked_scatter(mask_BT, values_N)
