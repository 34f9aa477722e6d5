"""How large a model is and what a pass over it keeps in memory: arithmetic from its configuration, no weight is read.

Per token and layer a training pass keeps, of a model like Llama (D hidden, Q all queries, K all keys, I intermediate):

    4·D          what each norm reads and gives
    2·Q + 2·K    queries, keys, values and what attention gives
    4·I          gate, its activation, up, and their product; 2·I where there is no gate
    r            of every adapted layer, the product with A

numbers of the format it computes in, and a few bytes for sums. Where every weight learns, norms are the library's and
keep 2·D float32 more. Other families (recurrent layers, experts) are taken as if they were of this kind: measure them.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from plaudit.models.config import LoraSettings, Quantise
from plaudit.models.kernels.fused import MLP
from plaudit.models.logprobs import BLOCK_MIB, CHUNK_MIB

NF4, INT8 = 0.5 + 4 / 64, 1.0
"""Bytes of a weight in few bits, with nf4's scales."""
SUMS = 8
"""Bytes a layer and token of the norms' sums; attention keeps 4 more a head."""


SWISH = ("silu", "swish")
"""Two names of one function."""


@dataclass(frozen=True)
class Shape:
    """Counts of a causal language model: numbers, not bytes."""

    layers: int
    hidden: int
    intermediate: int
    queries: int
    keys: int
    heads: int
    vocabulary: int
    gated: bool
    linear: int
    """Weights of the linear layers in the blocks: what can be in few bits, and what a token is multiplied by."""
    rest: int
    """All other weights: embedding, LM head, norms, biases."""
    largest: int
    """Weights of the largest linear layer."""
    sides: tuple[tuple[str, int], ...]
    """Name and inputs + outputs of every linear layer: times r, the weights of an adapter on it."""
    swiglu: bool = False
    """Whether its MLPs are made so that a pass with adapters on them keeps half of their numbers (kernels/fused.py)."""

    @property
    def weights(self) -> int:
        return self.linear + self.rest

    def adapted(self, lora: LoraSettings) -> tuple[int, int]:
        """(weights of the adapter, layers that have one). A pattern of names is taken for all of them."""
        named = [sides for name, sides in self.sides if _adapts(lora, name)]
        return lora.r * sum(named), len(named)

    def base_bytes(self, size: int, quantise: Quantise | None) -> float:
        """Of the weights in a format of `size` bytes, the linear layers perhaps in few bits."""
        bits = {None: float(size), "nf4": NF4, "int8": INT8}[quantise]
        return self.linear * bits + self.rest * size

    def kept(self, size: int, lora: LoraSettings | None, seen: int = 0, *, few_bits: bool = False) -> float:
        """Bytes that a training pass keeps of a token in all layers; `seen` keys a query where attention keeps the
        weights of each (short_attention.py)."""
        halved = self.swiglu and lora is not None and not few_bits and all(_adapts(lora, name) for name in MLP)
        inner = (4 if self.gated and not halved else 2) * self.intermediate
        numbers = 4 * self.hidden + 2 * self.queries + 2 * self.keys + inner
        layer = (numbers + self.heads * seen) * size + SUMS + 4 * self.heads
        if lora is None:
            return self.layers * (layer + 2 * self.hidden * 4)
        return self.layers * layer + self.adapted(lora)[1] * lora.r * size

    def top(self, size: int) -> float:
        """Bytes kept of a token above the layers: the last norm's input and what it gives, and the gradient that is
        taken in the forward pass."""
        return 4 * self.hidden * size

    def checkpointed(self, size: int, lora: LoraSettings | None, seen: int = 0, *, few_bits: bool = False) -> float:
        """The same where activations are recomputed: a state a layer, and one layer's own while it is run again."""
        return self.layers * self.hidden * size + self.kept(size, lora, seen, few_bits=few_bits) / self.layers

    def cache(self, size: int) -> int:
        """Bytes of keys and values of a token."""
        return 2 * self.keys * self.layers * size

    def chunk(self, size: int, states: int, kind: str) -> float:
        """Bytes of the logits of `states` that are there at a time (logprobs.py): a chunk, and the blocks of float32
        that it is worked on with."""
        chunk, block = (budget[kind] * 2**20 for budget in (CHUNK_MIB, BLOCK_MIB))
        whole = states * self.vocabulary
        return min(chunk, whole * size) + 4 * min(block, whole * 4)


def shape_of(folder: str) -> Shape:
    """Of the model whose configuration lies in a folder."""
    config = AutoConfig.from_pretrained(folder)
    text = config.get_text_config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head}
    sizes = [module.weight.numel() for module in layers.values()]
    heads = _number(text, "num_attention_heads")
    size = _number(text, "head_dim") or (text.hidden_size // heads if heads else 0)
    inner = _number(text, "moe_intermediate_size") or _number(text, "intermediate_size") or _number(text, "n_inner")
    return Shape(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=(_number(text, "num_experts_per_tok") or 1) * (inner or 4 * text.hidden_size),
        queries=heads * size,
        keys=(_number(text, "num_key_value_heads") or heads) * size,
        heads=heads,
        vocabulary=text.vocab_size,
        gated=any("gate" in name.rpartition(".")[2] for name in layers),
        linear=sum(sizes),
        rest=sum(parameter.numel() for parameter in model.parameters()) - sum(sizes),
        largest=max(sizes, default=0),
        sides=tuple((name, sum(module.weight.shape)) for name, module in layers.items()),
        swiglu={*MLP} <= {name.rpartition(".")[2] for name in layers} and getattr(text, "hidden_act", None) in SWISH,
    )


def _adapts(lora: LoraSettings, name: str) -> bool:
    """Whether the linear layer of this name gets an adapter; a pattern of names is taken for all of them."""
    asked = lora.target_modules
    return isinstance(asked, str) or any(name == one or name.endswith(f".{one}") for one in asked)


def _number(config: PreTrainedConfig, name: str) -> int:
    """A setting of a model, 0 where it has none; of one that differs from layer to layer the largest."""
    each = getattr(config, "per_layer_config", None) or [config]
    values = [getattr(one, name, None) or 0 for one in (each.values() if isinstance(each, dict) else each)]
    return max(max(value) if isinstance(value, list | tuple) else int(value) for value in values)
