"""Layers through torch.compile: what lies between their products becomes a few loops, written to disk once.

Worth it for a run of more than a few updates: the first passes compile, later runs find the compiled code in Plaudit's
cache folder. Only for rows that are padded: packed ones have other segments at every step.
"""

import os
import shutil

import torch
import torch._dynamo
import torch.fx.experimental._config
from transformers import PreTrainedModel

from plaudit.data.cache import cache_folder
from plaudit.errors import UserError

GRAPHS = 32
"""Adapters, with and without gradient, on and off: each is a graph of its own, and torch gives up at eight."""


def compile_layers(model: PreTrainedModel) -> None:
    """Compile the repeated blocks of `model` in place, for every number of rows and columns at once.

    UserError where there is no C++ compiler, or no block.
    """
    if model.device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise UserError("ppo.torch_compile=true needs a C++ compiler (g++ or clang++) and finds none; leave it false")
    blocks = [module for module in model.modules() if type(module).__name__ in (model._no_split_modules or ())]
    if not blocks:
        raise UserError(f"ppo.torch_compile=true knows no repeated block in {type(model).__name__}; leave it false")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    # Otherwise a length that happens to equal the head's size is taken to be the same number in all later passes, and
    # what is compiled depends on which length came first: a resumed run would round otherwise than an unbroken one.
    torch.fx.experimental._config.use_duck_shape = False
    for block in blocks:
        # Rounded where plain torch rounds: else a pass with gradient, one without and the reference's, each a graph of
        # its own, differ in bf16, the first ratio of an update is not 1 and a fresh policy not its reference.
        block.compile(dynamic=True, options={"emulate_precision_casts": True})
