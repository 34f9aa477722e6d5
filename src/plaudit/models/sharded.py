"""FSDP2 (Zhao et al. 2023, arXiv:2304.11277): each rank holds a part of every frozen weight, and gathers those of a
layer while that layer computes.

What learns, adapters and heads, stays whole on every rank: it is small beside the base, and so the optimiser, the
checkpoints, the adapters' files and the sum of the gradients are those of ranks that hold everything. The base has no
gradient, so nothing is reduced twice.

Every pass is one for all ranks: one that passes less often leaves the others waiting (`Ranks.passes`).
"""

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from plaudit.dist.ranks import Ranks
from plaudit.errors import UserError


def shard(roles: nn.Module, base: PreTrainedModel, ranks: Ranks) -> None:
    """Leave this rank its part of the `base` that `roles` stand on, a layer at a time, where `ranks` hold it together.
    The last thing that is done to roles before they compute; every pass is one of theirs from now on."""
    mesh = ranks.mesh(base.device.type)
    if mesh is None:
        return
    layers = [module for module in base.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(
            f"distributed.shard={ranks.shard}: {type(base).__name__} has no layers that transformers marks as such, "
            "so nothing that could be gathered one by one; set it to none"
        )
    divided = {one for name, one in base.named_parameters() if ".lora_" not in name}
    ignored = {one for one in roles.parameters() if one not in divided}
    for module in (*layers, roles):
        fully_shard(module, mesh=mesh, ignored_params=ignored)


def whole(tensor: Tensor) -> Tensor:
    """All of a weight, of which every rank that holds a part asks."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def let_go(roles: nn.Module) -> None:
    """Leave nothing gathered: between two passes the root's own weights are, and a tensor is whole on some ranks and a
    part on others after what one of them alone has done."""
    for module in roles.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
