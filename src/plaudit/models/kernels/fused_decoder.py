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
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from plaudit.models.kernels.attention import has_torchs_attention
from plaudit.models.kernels.decoder import PROMPTS, LibraryDecoder, rounding
from plaudit.models.kernels.fixed_rows import (
    ROOM,
    attends_alike,
    attention,
    whole_rooms,
    whole_units,
)
from plaudit.models.kernels.fused import fuse
from plaudit.models.kernels.logits import shaped
from plaudit.models.kernels.merge import merge_into
from plaudit.models.kernels.probe import libraries_only, relative_error
from plaudit.models.kernels.products import Product
from plaudit.models.kernels.trunk import trunk_of


@dataclass
class _Layer:
    """The parts of one layer and its cache, [B, key heads, columns, D] each."""

    norm: nn.Module
    qkv: tuple[Product, ...]
    """Queries, keys and values side by side: one product, or three where the layers are not alike."""
    q_norm: nn.Module | None
    k_norm: nn.Module | None
    out: Product
    mlp_norm: nn.Module
    gate: Product
    up: Product
    down: Product
    act: nn.Module
    keys: Tensor = field(default_factory=lambda: torch.empty(0))
    values: Tensor = field(default_factory=lambda: torch.empty(0))
    """A row's tokens stand in its first columns, whatever its neighbours hold."""


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
        self.products: dict[str, tuple[Product, int]] = {}
        """Of each weight, by its name, the product and its place in it."""
        names = {module: name for name, module in model.named_modules()}

        def product(*linears: nn.Linear) -> Product:
            for linear in linears:
                if type(linear) is not nn.Linear:
                    raise AttributeError(f"{names[linear]} is no plain linear layer")
            made = Product(linears)
            self.products |= {f"{names[linear]}.weight": (made, part) for part, linear in enumerate(linears)}
            return made

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
        self.head = Product([model.get_output_embeddings()])
        self.freed = False
        self.fixed = self.joins = model.device.type == "cpu"
        """Whether a row's bits are its own, so that replies may take each other's place."""
        self.room = ROOM if self.fixed else 2 * ROOM
        self.used = 0
        """Columns of the longest row."""
        self.alike: bool | None = None
        """Whether rows may attend together; None as long as nobody has looked."""
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
            bound = 1e-4 if model.dtype == torch.float32 else rounding(model)
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
                product, part = self.products[name]
                product.load(part, weight)
            else:
                others.append((name, weight))
        merge_into(self.model, iter(others))
        for product in {product for product, _ in self.products.values()}:
            product.settle()
            product.free()
        if others:  # the head, or the embedding that is one with it, may be among them
            self.head.settle()
        if not self.freed and self.head.packed is not None:
            # What is left is a view of the file it was read from, which stays mapped as long as one view is there.
            for parameter in self.model.parameters():
                parameter.data = parameter.data.clone()
            self.head.weight = self.model.get_output_embeddings().weight.detach()
            self.freed = True

    @torch.no_grad()
    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        device, rows = self.model.device, len(prompts)
        self.forget()
        self.columns_B = torch.zeros(rows, dtype=torch.int64, device=device)
        self.positions_B1 = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self.mask_BS = torch.empty(rows, 0, device=device)
        return self.join(torch.arange(rows, device=device), prompts)

    @torch.no_grad()
    def join(self, rows: Tensor, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read prompts into these rows, whose own replies are done; a prompt that is there several times is read once.
        Their last hidden states."""
        self.recorded = None
        different = list(dict.fromkeys(map(tuple, prompts)))
        place = {prompt: number for number, prompt in enumerate(different)}
        which = torch.tensor([place[tuple(prompt)] for prompt in prompts], device=rows.device)
        first = torch.tensor([next(i for i, w in enumerate(which.tolist()) if w == n) for n in range(len(different))])
        lengths_B = torch.tensor([len(prompt) for prompt in different], device=rows.device)
        width = int(lengths_B.max())
        others = self.columns_B.clone()
        others[rows] = 0
        self.used = int(others.max())
        self._reserve(max(width - self.used, 0))
        self.used = max(self.used, width)
        hidden_bD = self._read(rows[first.to(rows.device)], different, lengths_B)
        self.columns_B[rows], self.positions_B1[rows, 0] = lengths_B[which], lengths_B[which] - 1
        seen = torch.arange(self.mask_BS.shape[1], device=rows.device) < self.columns_B[rows, None]
        self.mask_BS[rows] = torch.zeros(seen.shape, device=rows.device).masked_fill_(~seen, -torch.inf)
        if len(different) < len(prompts):
            source = rows[first.to(rows.device)][which]
            for layer in self.layers:
                layer.keys[rows, :, :width] = layer.keys[source, :, :width]
                layer.values[rows, :, :width] = layer.values[source, :, :width]
        return hidden_bD[which]

    def _read(self, rows: Tensor, prompts: list[tuple[int, ...]], lengths_B: Tensor) -> Tensor:
        """The prompts' keys and values into the rows' first columns; the hidden states of their last tokens.

        On a CPU the prompts lie end to end and each attends by itself, so that nothing about one hangs on the others;
        on a GPU, where each launch counts, all are as wide as the longest. What they are filled up with comes behind
        them, where they do not see it.
        """
        widths = lengths_B.tolist()
        if not self.fixed:
            widths = [max(widths)] * len(widths)
        ids = [
            token for prompt, width in zip(prompts, widths, strict=True) for token in (*prompt, *[0] * width)[:width]
        ]
        positions_N = torch.cat([torch.arange(width, device=rows.device) for width in widths])
        starts = [0, *accumulate(widths)]
        # Neighbours of one width attend as one batch, in which they do not see each other.
        alike = [len(list(same)) for _, same in groupby(widths)]
        firsts = [0, *accumulate(alike)][:-1]
        spans = [(part, starts[at], widths[at]) for part, at in zip(rows.split(alike), firsts, strict=True)]

        def attend(layer: _Layer, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
            out_NHD = torch.zeros_like(q_NHD)
            for part, start, width in spans:
                place = slice(start, start + len(part) * width)
                q, k, v = (x[place].unflatten(0, (-1, width)).transpose(1, 2) for x in (q_NHD, k_NKD, v_NKD))
                layer.keys[part, :, :width], layer.values[part, :, :width] = k, v
                out_BHTD = nn.functional.scaled_dot_product_attention(
                    q, k, v, is_causal=True, scale=self.scale, enable_gqa=True
                )
                out_NHD[place] = out_BHTD.transpose(1, 2).flatten(0, 1)
            return out_NHD.flatten(1)

        x_ND = self._forward(torch.tensor(ids, device=rows.device), positions_N, attend)
        ends = torch.tensor(starts[:-1], device=rows.device) + lengths_B - 1
        last_BD: Tensor = self.norm(x_ND[ends])
        return last_BD

    @torch.no_grad()
    def keep(self, rows: Tensor) -> None:
        self.recorded = None
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        self.mask_BS, self.positions_B1 = self.mask_BS[rows], self.positions_B1[rows]
        self.columns_B = self.columns_B[rows]
        self.used = int(self.columns_B.max())

    @torch.no_grad()
    def step(self, tokens_B: Tensor) -> Tensor:
        self._reserve(1)
        self.used += 1
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
        rows = len(tokens_B)
        self.mask_BS.scatter_(1, self.columns_B[:, None], 0.0)
        self.positions_B1 += 1
        widths = self._widths()
        heads_bk = torch.arange(rows * self.key_heads, device=tokens_B.device).view(rows, -1)
        place_b = (heads_bk * self.mask_BS.shape[1] + self.columns_B[:, None]).flatten()

        def attend(layer: _Layer, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
            for cache, new in ((layer.keys, k_NKD), (layer.values, v_NKD)):
                cache.view(-1, self.head_dim).index_copy_(0, place_b, new[:rows].reshape(-1, self.head_dim))
            q = q_NHD[:rows].unflatten(1, (self.key_heads, -1))
            parts = [
                attention(
                    q[at], layer.keys[at, :, :width], layer.values[at, :, :width], self.mask_BS[at, :width], self.scale
                )
                for at, width in widths
            ]
            out_BO = parts[0] if len(parts) == 1 else torch.cat(parts)
            return _filled_up(out_BO, len(q_NHD))

        x_ND = self._forward(tokens_B, self.positions_B1[:, 0], attend)
        self.columns_B += 1
        last_BD: Tensor = self.norm(x_ND)[:rows]
        return last_BD

    def _widths(self) -> list[tuple[slice, int]]:
        """Rows that attend together, and over how many columns: all, or where that would change a row's bits each by
        itself, over as many as it needs."""
        if not self.fixed:
            return [(slice(None), self.mask_BS.shape[1])]
        if self.alike is None:
            keys = self.layers[0].keys
            self.alike = attends_alike(self.heads // self.key_heads, self.key_heads, self.head_dim, keys.dtype)
        if self.alike:
            return [(slice(None), whole_rooms(self.used))]
        return [(slice(n, n + 1), whole_rooms(column + 1)) for n, column in enumerate(self.columns_B.tolist())]

    def logits(self, hidden_BD: Tensor) -> Tensor:
        rows = len(hidden_BD)
        return shaped(self.model, self.head(_filled_up(hidden_BD, whole_units(rows) if self.fixed else rows))[:rows])

    def forget(self) -> None:
        self.recorded, self.used = None, 0
        for layer in self.layers:
            layer.keys = layer.values = torch.empty(0)
        self.mask_BS = torch.empty(0)

    def _reserve(self, columns: int) -> None:
        """Room for that many more columns, and some: attention runs over all of them, those that are empty masked."""
        rows, capacity = self.mask_BS.shape
        if self.used + columns <= capacity:
            return
        self.recorded = None
        # Products want the cache in one piece, so it is copied as it grows: by more, the longer it is.
        step = self.room * max(1, self.used // 8 // self.room)
        more = -(-(self.used + columns - capacity) // step) * step
        self.mask_BS = torch.cat([self.mask_BS, self.mask_BS.new_full((rows, more), -torch.inf)], dim=1)
        for layer in self.layers:
            # Zeros, not whatever the memory holds: a masked weight is 0, and 0 · NaN would be NaN.
            empty = self.norm.get_parameter("weight").new_zeros(rows, self.key_heads, more, self.head_dim)
            layer.keys = torch.cat([layer.keys, empty], dim=2) if capacity else empty
            layer.values = torch.cat([layer.values, empty], dim=2) if capacity else empty.clone()

    def _forward(self, tokens_N: Tensor, positions_N: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        """The states of N tokens above the last layer, before its norm; on a CPU filled up to whole units, by token 0
        at position 0. `attend` writes the layer's keys and values and gives the heads' outputs side by side, [N, O]."""
        if self.fixed:
            tokens_N, positions_N = (_filled_up(x_N, whole_units(len(x_N))) for x_N in (tokens_N, positions_N))
        x_ND = self.embed(tokens_N)
        cos, sin = self.rotary(x_ND, positions_N[None])
        # Each half turns with the other one, the first against the sign.
        sign = torch.ones_like(sin[0, 0])
        sign[: len(sign) // 2] = -1
        rotation = cos[0][:, None], (sin * sign)[0][:, None]
        for layer in self.layers:
            q_NHD, k_NKD, v_NKD = self._turned(layer, layer.norm(x_ND), rotation)
            x_ND = layer.out.added_to(x_ND, attend(layer, q_NHD, k_NKD, v_NKD))
            h_ND = layer.mlp_norm(x_ND)
            x_ND = layer.down.added_to(x_ND, layer.gate.activated(h_ND, layer.act).mul_(layer.up(h_ND)))
        return x_ND

    def _turned(self, layer: _Layer, x_ND: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, the first two at their positions."""
        parts = [part(x_ND) for part in layer.qkv]
        all_NHD = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).unflatten(1, (-1, self.head_dim))
        sizes = [self.heads, self.key_heads]
        qk_NHD, v_NKD = all_NHD.split([sum(sizes), self.key_heads], dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q_NHD, k_NKD = qk_NHD.split(sizes, dim=1)
            qk_NHD = torch.cat([layer.q_norm(q_NHD), layer.k_norm(k_NKD)], dim=1)
        return *_rotate(qk_NHD, *rotation).split(sizes, dim=1), v_NKD


def _take_over(layer: Any, product: Callable[..., Product]) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    known = {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"}
    if not {name for name, _ in attention.named_children()} <= known:
        raise AttributeError("a part of the attention is not known")
    read = attention.q_proj, attention.k_proj, attention.v_proj
    alike = len({(linear.bias is None, linear.weight.dtype, linear.weight.device) for linear in read}) == 1
    qkv = (product(*read),) if alike else tuple(map(product, read))
    out = product(attention.o_proj)
    gate, up, down = (product(linear) for linear in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    return _Layer(
        layer.input_layernorm, qkv, q_norm, k_norm, out, layer.post_attention_layernorm, gate, up, down, mlp.act_fn
    )


def _filled_up(x_N: Tensor, rows: int) -> Tensor:
    """With zeros to so many rows."""
    return x_N if len(x_N) == rows else nn.functional.pad(x_N, (*[0, 0] * (x_N.dim() - 1), 0, rows - len(x_N)))


def _rotate(x_NHD: Tensor, cos_N1D: Tensor, signed_sin_N1D: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864) of the halves, as transformers' Llama has them."""
    other_half = x_NHD.roll(x_NHD.shape[-1] // 2, dims=-1)
    return torch.addcmul(x_NHD * cos_N1D, other_half, signed_sin_N1D)


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
