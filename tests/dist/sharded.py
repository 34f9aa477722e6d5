"""The root module under FSDP2: what one process and two compute of the four roles, and one step of an optimiser."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from plaudit.dist.ranks import ALONE, Ranks
from plaudit.models.config import LoraSettings
from plaudit.models.heads import load_head
from plaudit.models.load import load_model
from plaudit.models.roles import Need, Role, Roles
from plaudit.models.tokens import Tokens, pad_right
from plaudit.train.optimiser import MasterAdamW

CPU = torch.device("cpu")
LENGTHS = ((3, 4), (7, 1), (1, 6), (5, 3))
PASSES: tuple[tuple[Role, frozenset[Need]], ...] = (
    ("reference", frozenset({"logprobs"})),
    ("reward", frozenset({"scores"})),
    ("critic", frozenset({"values", "last_values"})),
    ("policy", frozenset({"logprobs"})),
    ("policy", frozenset({"loss"})),
)


def build(run: Path) -> Roles:
    """Four roles on the SFT model of `run`, critic and reward model from its reward stage, none at its start."""
    adapter = run / "reward/adapter"
    base = load_model(str(run / "sft/model"), torch.float32, CPU)
    roles = Roles(base, trained="policy", lora=LoraSettings(r=4, alpha=8), reward=[adapter], critic=adapter)
    load_head(roles.score_heads[0], run / "reward")
    roles.start_critic(0.5, 2.0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, parameter in sorted(roles.trainable().items()):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return roles


def wrap(roles: Roles) -> None:
    """FSDP2 over all ranks: every layer with its adapters, every head, and the root with what is left.

    The loss divides by a count of the whole batch, so gradients are summed, not averaged. By default FSDP2 does that
    with a scaled sum, which gloo refuses ("Cannot use ReduceOp.PREMUL_SUM with Gloo").
    """
    mesh = init_device_mesh("cpu", (2,))
    layers = roles.peft.get_base_model().get_decoder().layers
    for module in (*layers, *roles.score_heads, roles.value_head, roles):
        fully_shard(module, mesh=mesh)
    for module in roles.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    assert all(isinstance(head, FSDPModule) for head in (*roles.score_heads, roles.value_head))
    assert all(isinstance(parameter, DTensor) for parameter in roles.parameters()), "a weight was left whole"
    held = sum(parameter.to_local().numel() for parameter in roles.parameters())
    assert held < 0.6 * sum(parameter.numel() for parameter in roles.parameters())


def tokens_of(rows: list[int]) -> tuple[Tokens, int]:
    """These rows of a ragged batch, and how many reply tokens the whole batch has."""
    generator = torch.Generator().manual_seed(3)
    prompts, replies = (
        [torch.randint(4, 250, (lengths[i],), generator=generator).tolist() for lengths in LENGTHS] for i in (0, 1)
    )
    return pad_right(prompts, replies, 3, CPU).rows(rows), sum(reply for _, reply in LENGTHS)


def compute(run: Path, to: Path, ranks: Ranks = ALONE) -> None:
    """Every role's outputs, the gradients of policy and critic, and both after one step, saved in `to`."""
    roles = build(run)
    if ranks.count > 1:
        wrap(roles)
    rows = list(ranks.share(range(len(LENGTHS))))
    tokens, count = tokens_of(rows)
    found: dict[str, Tensor] = {}
    for role, need in PASSES:
        with torch.no_grad():
            output = roles(tokens, role, need)
        for name, part in vars(output).items():
            if part is not None:
                # A row of the whole batch each; the loss is a sum over the rows.
                whole = part.new_zeros(len(LENGTHS), *part.shape[1:]) if part.dim() else part
                if part.dim():
                    whole[rows] = part
                found[f"{role}.{name}"] = whole
    found = {name: padded(part) for name, part in found.items()}
    found = ranks.total(found)

    # PPO's eps: with a smaller one the first step is the sign of a gradient, and that of one near zero is rounding's.
    optimiser = MasterAdamW([{"params": list(roles.trainable().values()), "lr": 1e-2}], eps=1e-5)
    policy = roles(tokens, "policy", frozenset({"logprobs"}))
    values_BT = roles(tokens, "critic", frozenset({"values"})).values_BT
    surrogate = (policy.logprobs_BT * (torch.tensor(rows) + 1.0)[:, None]).sum()
    value_loss = (torch.where(tokens.mask_BT, values_BT - 1, 0.0) ** 2).sum()
    ((0.01 * policy.entropy_BT.sum() + value_loss - surrogate) / count).backward()
    found |= {f"gradient.{name}": full(p.grad) for name, p in roles.trainable().items()}
    found["norm"] = torch.tensor(optimiser.gather(1.0))
    optimiser.step()
    found |= {f"after.{name}": full(p.detach()) for name, p in roles.trainable().items()}
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, to / f"sharded-{ranks.rank}.safetensors")


def padded(part: Tensor) -> Tensor:
    """Per-token tensors to one width: a rank's rows may be shorter than the batch's longest."""
    width = max(map(sum, LENGTHS))
    return torch.nn.functional.pad(part, (0, width - part.shape[1])) if part.dim() == 2 and part.shape[1] > 1 else part


def full(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()
