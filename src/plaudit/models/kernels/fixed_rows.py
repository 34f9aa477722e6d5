"""Products whose every row comes out alike, however many rows are beside it: what a reply must not depend on.

A library picks its kernel by the number of rows, and another kernel adds up in another order: in bfloat16 that tips
every other reply, in float32 now and then one. So a product is computed over `UNIT` rows or over a larger number that
gave the same bits on this very machine: rows are filled up to a multiple of `UNIT`, and cut into such pieces. Which
numbers these are is found by computing the same rows both ways, once for each shape of weight in a process.

The attention of a step is such a product too, over rows that have other lengths: each sees its own tokens, in the first
columns, and the empty ones behind them up to a multiple of `ROOM`.

Not here: a GPU, whose products take the rows as they come.
"""

from collections.abc import Callable, Hashable
from functools import lru_cache

import torch
from torch import Tensor

UNIT = 8
"""Rows of the smallest piece: with fewer, products of matrices become products of vectors."""
PIECES = (256, 64, 32, 16)
"""Larger pieces that are tried; of a prompt's tokens the largest, of a step's rows the others."""
ROOM = 64
"""Columns by which a cache of keys and values grows."""
Product = Callable[..., Tensor]
_known: dict[Hashable, tuple[int, ...]] = {}


def whole_units(rows: int) -> int:
    """The next multiple of `UNIT`."""
    return -(-rows // UNIT) * UNIT


def pieces_of(key: Hashable, product: Product, inputs: int, like: Tensor, *, outputs: int = 0) -> tuple[int, ...]:
    """The numbers of rows, the largest first, over which `product` gives each row the bits that it has among `UNIT`.

    `key` is what the choice of a kernel hangs on; rows have `inputs` numbers of the format of `like`, and where
    `outputs` are given the product takes a second argument, rows of so many.
    """
    place = (key, inputs, outputs, like.dtype, torch.get_num_threads())
    if place not in _known:
        generator = torch.Generator().manual_seed(0)
        sides = [size for size in (outputs, inputs) if size]
        rows = [torch.randn(PIECES[0], size, generator=generator).to(like.dtype) for size in sides]
        small = torch.cat([product(*(x[at : at + UNIT] for x in rows)) for at in range(0, PIECES[0], UNIT)])
        same = (size for size in PIECES if torch.equal(product(*(x[:size] for x in rows)), small[:size]))
        _known[place] = (*same, UNIT)
    return _known[place]


def in_pieces(product: Product, pieces: tuple[int, ...], *rows: Tensor) -> Tensor:
    """`product` of a multiple of `UNIT` rows, piece by piece."""
    count = len(rows[0])
    if count in pieces:
        return product(*rows)
    sizes: list[int] = []
    for size in pieces:
        sizes += [size] * ((count - sum(sizes)) // size)
    assert sum(sizes) == count, (count, UNIT)
    return torch.cat([product(*part) for part in zip(*(x.split(sizes) for x in rows), strict=True)])


def whole_rooms(columns: int) -> int:
    """The next multiple of `ROOM`."""
    return -(-columns // ROOM) * ROOM


def attention(q_BKGD: Tensor, keys_BKSD: Tensor, values_BKSD: Tensor, mask_BS: Tensor, scale: float) -> Tensor:
    """Of one token a row: the heads' outputs side by side, [B, O]. `mask_BS`, float32, is added to the scores."""
    # The heads that share a key are rows of one product.
    q, keys, values = (x.flatten(0, 1) for x in (q_BKGD, keys_BKSD, values_BKSD))
    scores_BKGS = torch.bmm(q, keys.transpose(1, 2)).unflatten(0, q_BKGD.shape[:2])
    weights = torch.add(mask_BS[:, None, None], scores_BKGS, alpha=scale).softmax(dim=-1).to(values.dtype)
    return torch.bmm(weights.flatten(0, 1), values).view(len(mask_BS), -1)


@lru_cache
def attends_alike(group: int, key_heads: int, size: int, dtype: torch.dtype) -> bool:
    """Whether a row has the same bits beside others, and over more columns, as alone over those that it needs."""
    generator, most = torch.Generator().manual_seed(0), 8 * ROOM
    q, keys, values = (
        torch.randn(16, key_heads, wide, size, generator=generator).to(dtype) for wide in (group, most, most)
    )

    def rows(count: int, columns: int, tokens: int) -> Tensor:
        mask_BS = torch.full((count, columns), -torch.inf)
        mask_BS[:, :tokens] = 0.0
        k, v = keys[:count, :, :columns], values[:count, :, :columns]
        return attention(q[:count], k, v, mask_BS, size**-0.5)[:1]

    return all(
        torch.equal(rows(count, columns, tokens), rows(1, whole_rooms(tokens), tokens))
        for tokens in (7, 60, 100, 300)
        for columns in range(whole_rooms(tokens), most + 1, ROOM)
        for count in (1, 2, 3, 16)
    )
