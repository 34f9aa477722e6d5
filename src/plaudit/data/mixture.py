"""Mixing sources of examples: shares or row counts, and an order that is a function of (seed, epoch, position).

With weights, source i gives a share w_i / Σw of an epoch's examples, to one example. The epoch ends where the first
source has no row left that it has not given (`repeat` times); so nothing is seen more often than its `repeat` says.
With row counts, a source gives exactly that many. Which rows a source gives changes from epoch to epoch. Nothing here
keeps a state, so a resumed run sees the same order, and so does any number of ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from plaudit import rng
from plaudit.errors import UserError


@dataclass(frozen=True)
class Share:
    """One source: how many rows it has, and its weight or its rows an epoch (at most one of the two)."""

    name: str
    size: int
    weight: float | None = None
    rows: int | None = None
    repeat: int = 1


def counts(shares: Sequence[Share]) -> list[int]:
    """How many examples of each source an epoch holds."""
    for share in shares:
        if share.size == 0:
            raise UserError(f"{share.name}: no training demonstration is in this source; mend its path or kind")
        if share.rows is not None and share.rows > share.size * share.repeat:
            raise UserError(
                f"{share.name}: rows={share.rows} is more than its {share.size} demonstrations {share.repeat} times; "
                f"set repeat to {-(-share.rows // share.size)} or lower rows"
            )
    weighted = [share.weight is not None for share in shares]
    if not any(weighted):
        return [share.rows if share.rows is not None else share.size * share.repeat for share in shares]
    if not all(weighted):
        raise UserError("sft.mixture: a source has a weight and another has none; give all of them a weight, or none")
    total = sum(share.weight or 0.0 for share in shares)
    parts = [(share.weight or 0.0) / total for share in shares]
    length = min(int(share.size * share.repeat / part + 1e-9) for share, part in zip(shares, parts, strict=True))
    # Largest remainder: whole numbers nearest to the shares, that add up and never exceed what a source has.
    exact = [part * length for part in parts]
    whole = [int(number + 1e-9) for number in exact]
    order = sorted(range(len(shares)), key=lambda i: (whole[i] - exact[i], i))
    for i in order[: length - sum(whole)]:
        whole[i] += whole[i] < shares[i].size * shares[i].repeat
    if 0 in whole:
        empty = shares[whole.index(0)].name
        raise UserError(f"{empty}: its weight is too small to give one of an epoch's {length} examples; raise it")
    return whole


def epoch_order(shares: Sequence[Share], seed: int, epoch: int) -> list[tuple[int, int]]:
    """(source, row) of every example of an epoch, in the order they are learnt."""
    rows: list[tuple[int, int]] = []
    for source, (share, count) in enumerate(zip(shares, counts(shares), strict=True)):
        # A source alone and whole needs no draw of its own: the shuffle below is its order.
        if len(shares) == 1 and count == share.size:
            rows += [(source, row) for row in range(count)]
            continue
        given: list[int] = []
        for turn in range(share.repeat):
            if len(given) < count:
                given += rng.permutation(seed, f"sft/mixture/{source}", epoch * share.repeat + turn, share.size)
        rows += [(source, row) for row in given[:count]]
    return [rows[i] for i in rng.permutation(seed, "sft", epoch, len(rows))]
