"""The decoding step of Llama-like models in few operations, over a cache that is written in place.

transformers' step costs several times what its products need (docs/benchmarks.md): it grows the cache by copying it at
every token and builds a mask for every layer. Here a step is about thirty operations a layer, and on a CPU in bfloat16
the weights lie in the blocked layout that oneDNN's products read fastest, which it would otherwise make anew each time.
On a GPU, where hundreds of small launches take longer than what they start, a step is recorded and replayed as one.

Which models are Llama-like is not a list of names: `FusedDecoder.of` looks for the parts it knows and compares itself
with transformers on a probe. Every other model is decoded by transformers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

from plaudit.models.kernels.attention import has_torchs_attention, hidden_states
from plaudit.models.kernels.decoder import LibraryDecoder, left_padded
from plaudit.models.kernels.fused import fuse
from plaudit.models.kernels.logits import shaped
from plaudit.models.kernels.merge import merge_into
from plaudit.models.kernels.probe import libraries_only, relative_error
from plaudit.models.kernels.trunk import trunk_of

ROWS = 32
"""The batch that weights are laid out for; others are computed too."""
ROOM = {"cpu": 16, "cuda": 128}
"""Columns by which the cache grows at least: empty ones cost a CPU time, and a GPU nothing beside a new recording."""


class _Product:
    """A linear layer of the copy: its weight as it is, or laid out for oneDNN."""

    def __init__(self, linear: nn.Linear):
        self.linear = linear
        self.packs = linear.weight.device.type == "cpu" and linear.weight.dtype == torch.bfloat16
        self.packs = self.packs and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        self.packed: Tensor | None = None
        if self.packs:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)

    def load(self, weight: Tensor) -> None:
        """Take over a new weight."""
        if self.packs:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        else:
            self.linear.weight.data.copy_(weight)

    def __call__(self, x_ND: Tensor) -> Tensor:
        if self.packed is None:
            return nn.functional.linear(x_ND, self.linear.weight, self.linear.bias)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x_ND, self.packed, self.linear.bias, "none", [], "")
        return out

    def activated(self, x_ND: Tensor, act: nn.Module) -> Tensor:
        """act(this layer of x)."""
        if self.packed is None or not isinstance(act, nn.SiLU | SiLUActivation):
            activated: Tensor = act(self(x_ND))
            return activated
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x_ND, self.packed, self.linear.bias, "swish", [], "")
        return out

    def added_to(self, residual_ND: Tensor, x_NO: Tensor) -> Tensor:
        """residual + this layer of x."""
        if self.packed is not None:
            out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
                x_NO, residual_ND, self.packed, self.linear.bias, "add"
            )
            return out
        if self.linear.bias is not None:
            residual_ND = residual_ND + self.linear.bias
        return torch.addmm(residual_ND, x_NO, self.linear.weight.T)


@dataclass
class _Layer:
    """The parts of one layer and its cache, [B, key heads, columns, D] each."""

    norm: nn.Module
    q: _Product
    k: _Product
    v: _Product
    q_norm: nn.Module | None
    k_norm: nn.Module | None
    out: _Product
    mlp_norm: nn.Module
    gate: _Product
    up: _Product
    down: _Product
    act: nn.Module
    keys: Tensor = field(default_factory=lambda: torch.empty(0))
    values: Tensor = field(default_factory=lambda: torch.empty(0))


class _Recorded:
    """A step as a CUDA graph: it reads and writes the very tensors it was recorded with."""

    def __init__(self, step: Callable[[Tensor], Tensor], tokens_B: Tensor):
        """RuntimeError where the step does what a graph cannot hold, such as waiting for a number."""
        self.tokens_B = tokens_B.clone()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.hidden_BD = step(self.tokens_B)

    def __call__(self, tokens_B: Tensor) -> Tensor:
        self.tokens_B.copy_(tokens_B)
        self.graph.replay()
        return self.hidden_BD.clone()


class FusedDecoder:
    """See `Decoder`. `of` makes one, or none where the model is of another make."""

    def __init__(self, model: PreTrainedModel):
        """AttributeError where a part is missing."""
        config = model.config.get_text_config()
        self.model = model
        self.trunk = trunk_of(model)
        self.products: dict[str, _Product] = {}
        names = {module: name for name, module in model.named_modules()}

        def product(linear: nn.Linear) -> _Product:
            if type(linear) is not nn.Linear:
                raise AttributeError(f"{names[linear]} is no plain linear layer")
            return self.products.setdefault(f"{names[linear]}.weight", _Product(linear))

        self.layers = [_take_over(layer, product) for layer in self.trunk.layers]
        attention = self.trunk.layers[0].self_attn
        self.head_dim: int = attention.head_dim
        self.scale: float = attention.scaling
        self.heads: int = config.num_attention_heads
        self.key_heads: int = config.num_key_value_heads
        self.embed: nn.Module = self.trunk.embed_tokens
        self.rotary: nn.Module = self.trunk.rotary_emb
        self.norm: nn.Module = self.trunk.norm
        # Its weight is often the embedding's too, so it stays as it is beside the one that is laid out.
        self.head = _Product(model.get_output_embeddings())
        self.freed = False
        self.room = ROOM.get(model.device.type, ROOM["cpu"])
        self.records = model.device.type == "cuda"
        self.recorded: _Recorded | None = None
        fuse(self.trunk)

    @classmethod
    def of(cls, model: PreTrainedModel) -> "FusedDecoder | None":
        """A decoder of `model`; None where a part is missing or a probe comes out otherwise."""
        config = model.config.get_text_config()
        windows = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
        if (
            libraries_only()
            or not has_torchs_attention(model)
            or windows
            or getattr(config, "attention_chunk_size", None) is not None
            or {*(getattr(config, "layer_types", None) or ())} - {"full_attention"}
        ):
            return None  # a window is longer than a probe
        far = 2 * max(getattr(config, "max_position_embeddings", None) or 0, 2**14)
        try:
            expected = _probe(LibraryDecoder(model), far)
            bound = 1e-4 if model.dtype == torch.float32 else _rounding(model)
            decoder = cls(model)
            found = _probe(decoder, far)
        except (AttributeError, TypeError, RuntimeError, ValueError, IndexError):
            return None
        same = all(
            ours.shape == theirs.shape and relative_error(ours, theirs) < bound
            for ours, theirs in zip(found, expected, strict=True)
        )
        return decoder if same else None

    def load(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """See `Decoder.load`. Where weights are laid out anew the model's own go: one copy is enough."""
        others = []
        for name, weight in weights:
            if name in self.products:
                self.products[name].load(weight)
            else:
                others.append((name, weight))
        merge_into(self.model, iter(others))
        if others and self.head.packed is not None:  # the head, or the embedding that is one with it, may be among them
            self.head.load(self.head.linear.weight)
        for product in self.products.values():
            if product.packed is not None:
                product.linear.weight.data = product.linear.weight.new_empty(0)
        if not self.freed and self.head.packed is not None:
            # What is left is a view of the file it was read from, which stays mapped as long as one view is there.
            for parameter in self.model.parameters():
                parameter.data = parameter.data.clone()
            self.freed = True

    @torch.no_grad()
    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        tokens_BT, real_BT = left_padded(prompts, self.model.device)
        rows, width = tokens_BT.shape
        self.columns, self.capacity = 0, 0
        self.column_1 = torch.tensor([width], device=tokens_BT.device)  # where the next token goes
        self.positions_B1 = real_BT.sum(dim=1, keepdim=True) - 1
        # What a row may see of the cache, in the softmax's format: 0, or −inf before its prompt and behind its end.
        self.mask_BS = torch.empty(rows, 0, device=tokens_BT.device)
        self._reserve(rows, width)
        self.mask_BS[:, :width].masked_fill_(real_BT, 0.0)
        places = torch.arange(self.capacity, device=tokens_BT.device)
        seen_BTS = (self.mask_BS == 0)[:, None] & (places <= places[:width, None])
        # Padding sees itself: a row of the softmax must not be empty, and nobody reads what comes of it.
        seen_BTS[:, places[:width], places[:width]] = True
        self.columns = width
        return self._forward(tokens_BT, (real_BT.cumsum(dim=1) - 1).clamp(min=0), seen_BTS, places[:width])

    @torch.no_grad()
    def keep(self, rows: Tensor) -> None:
        self.recorded = None
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        self.mask_BS, self.positions_B1 = self.mask_BS[rows], self.positions_B1[rows]

    @torch.no_grad()
    def step(self, tokens_B: Tensor) -> Tensor:
        self._reserve(len(tokens_B), 1)
        self.columns += 1
        if self.recorded is not None:
            return self.recorded(tokens_B)
        hidden_BD = self._next(tokens_B)
        if self.records:
            try:
                self.recorded = _Recorded(self._next, tokens_B)
            except RuntimeError:  # a rotation that looks at its positions, for example
                self.records = False
        return hidden_BD

    def _next(self, tokens_B: Tensor) -> Tensor:
        """A step whose every change is made in place, on the device: what a recording can repeat."""
        self.mask_BS.index_fill_(1, self.column_1, 0.0)
        self.positions_B1 += 1
        hidden_BD = self._forward(tokens_B[:, None], self.positions_B1, self.mask_BS[:, None], self.column_1)
        self.column_1 += 1
        return hidden_BD

    def logits(self, hidden_BD: Tensor) -> Tensor:
        return shaped(self.model, self.head(hidden_BD))

    def forget(self) -> None:
        self.recorded = None
        for layer in self.layers:
            layer.keys = layer.values = self.mask_BS = torch.empty(0)

    def _reserve(self, rows: int, columns: int) -> None:
        """Room for that many more columns, and some: attention runs over all of them, those that are empty masked."""
        if self.columns + columns <= self.capacity:
            return
        self.recorded = None
        # Products want the cache in one piece, so it is copied as it grows: by more, the longer it is.
        step = max(self.room, self.columns // 8)
        more = -(-(self.columns + columns - self.capacity) // step) * step
        self.mask_BS = torch.cat([self.mask_BS, self.mask_BS.new_full((rows, more), -torch.inf)], dim=1)
        for layer in self.layers:
            # Zeros, not whatever the memory holds: a masked weight is 0, and 0 · NaN would be NaN.
            empty = self.norm.get_parameter("weight").new_zeros(rows, self.key_heads, more, self.head_dim)
            held = self.capacity > 0
            layer.keys = torch.cat([layer.keys, empty], dim=2) if held else empty
            layer.values = torch.cat([layer.values, empty], dim=2) if held else empty.clone()
        self.capacity += more

    def _forward(self, tokens_BT: Tensor, positions_BT: Tensor, mask_BTS: Tensor, columns_T: Tensor) -> Tensor:
        """`mask_BTS`: what a prompt's tokens see, boolean; or what is added to the scores of one token, float32."""
        x_ND = self.embed(tokens_BT).flatten(0, 1)
        cos, sin = self.rotary(x_ND, positions_BT)
        # Each half turns with the other one, the first against the sign.
        sign = torch.ones_like(sin[0, 0])
        sign[: len(sign) // 2] = -1
        rotation = cos.flatten(0, 1)[:, None], (sin * sign).flatten(0, 1)[:, None]
        mask_B1TS = mask_BTS[:, None]
        for layer in self.layers:
            x_ND = layer.out.added_to(x_ND, self._attend(layer, layer.norm(x_ND), rotation, mask_B1TS, columns_T))
            h_ND = layer.mlp_norm(x_ND)
            x_ND = layer.down.added_to(x_ND, layer.gate.activated(h_ND, layer.act).mul_(layer.up(h_ND)))
        last_BD: Tensor = self.norm(x_ND.unflatten(0, tokens_BT.shape)[:, -1].contiguous())
        return last_BD

    def _attend(
        self, layer: _Layer, x_ND: Tensor, rotation: tuple[Tensor, Tensor], mask_B1TS: Tensor, columns_T: Tensor
    ) -> Tensor:
        """Write the new columns' keys and values; the heads' outputs side by side, [N, O], before the projection."""
        rows = len(mask_B1TS)
        q_NHD, k_NKD, v_NKD = (part(x_ND).unflatten(1, (-1, self.head_dim)) for part in (layer.q, layer.k, layer.v))
        if layer.q_norm is not None and layer.k_norm is not None:
            q_NHD, k_NKD = layer.q_norm(q_NHD), layer.k_norm(k_NKD)
        turned = _rotate(torch.cat([q_NHD, k_NKD], dim=1), *rotation)
        q_NHD, k_NKD = turned.split([self.heads, self.key_heads], dim=1)
        width = len(x_ND) // rows
        q_BHTD, k_BKTD, v_BKTD = (x.unflatten(0, (rows, width)).transpose(1, 2) for x in (q_NHD, k_NKD, v_NKD))
        layer.keys.index_copy_(2, columns_T, k_BKTD)
        layer.values.index_copy_(2, columns_T, v_BKTD)
        if mask_B1TS.dtype == torch.bool:
            # A prompt: the kernel that never holds its [T, S] weights. For a single token it is slower than products.
            out_BHTD = nn.functional.scaled_dot_product_attention(
                q_BHTD, layer.keys, layer.values, attn_mask=mask_B1TS, scale=self.scale, enable_gqa=True
            )
            return out_BHTD.transpose(1, 2).reshape(len(x_ND), -1)
        # The heads that share a key are rows of one product.
        q = q_BHTD.reshape(rows * self.key_heads, -1, self.head_dim)
        keys, values = layer.keys.flatten(0, 1), layer.values.flatten(0, 1)
        scores = torch.bmm(q, keys.transpose(1, 2)).unflatten(0, (rows, self.key_heads))
        weights = torch.add(mask_B1TS, scores, alpha=self.scale).softmax(dim=-1).to(values.dtype)
        return torch.bmm(weights.flatten(0, 1), values).view(rows, -1)


def _take_over(layer: Any, product: Callable[[nn.Linear], _Product]) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    known = {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"}
    if not {name for name, _ in attention.named_children()} <= known:
        raise AttributeError("a part of the attention is not known")
    q, k, v, out = (
        product(linear) for linear in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    )
    gate, up, down = (product(linear) for linear in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    return _Layer(
        layer.input_layernorm, q, k, v, q_norm, k_norm, out, layer.post_attention_layernorm, gate, up, down, mlp.act_fn
    )


def _rotate(x_NHD: Tensor, cos_N1D: Tensor, signed_sin_N1D: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864) of the halves, as transformers' Llama has them."""
    other_half = x_NHD.roll(x_NHD.shape[-1] // 2, dims=-1)
    return torch.addcmul(x_NHD * cos_N1D, other_half, signed_sin_N1D)


PROMPTS = tuple([3 + (7 * t + 11 * row) % 25 for t in range(length)] for row, length in enumerate((40, 3)))


@torch.no_grad()
def _probe(decoder: "FusedDecoder | LibraryDecoder", far: int) -> list[Tensor]:
    """Hidden states of two rows of other lengths: behind a prompt, two steps (the second is replayed where steps are
    recorded), a change of rows, and a step `far` positions on, where what a model does by position shows: scales that
    grow, layers without rotation."""
    device = decoder.model.device
    found = [decoder.start(PROMPTS)]
    found += [decoder.step(torch.tensor(tokens, device=device)) for tokens in ([12, 7], [6, 22])]
    decoder.keep(torch.tensor([1, 0, 1], device=device))
    found.append(decoder.step(torch.tensor([25, 4, 19], device=device)))
    decoder.positions_B1 += far
    found.append(decoder.step(torch.tensor([9, 30, 8], device=device)))
    return found


@torch.no_grad()
def _rounding(model: PreTrainedModel) -> float:
    """The relative error that another order of sums may have in a 16-bit format: four times what transformers' own ways
    differ by, a prompt with another one beside it and by itself, and a step and a whole pass; 0.1 at most."""
    decoder = LibraryDecoder(model)
    both_BD, (long, short) = decoder.start(PROMPTS), PROMPTS
    stepped_BD = decoder.step(torch.tensor([12, 7], device=model.device))
    gaps = []
    for row, prompt, token in ((0, long, 12), (1, short, 7)):
        alone_TD = hidden_states(model, torch.tensor([[*prompt, token]], device=model.device))[0]
        gaps += [relative_error(both_BD[row], alone_TD[-2]), relative_error(stepped_BD[row], alone_TD[-1])]
    return min(4 * max(gaps), 1e-1)
