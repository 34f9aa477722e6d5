"""What is known of devices before one is at hand: memory, products and bandwidth, by the makers' data sheets.

`plaudit plan --gpus 8xH100-80G` names one with how many of it; the speed of this machine's own is measured
(`--measure`). A share of the peak and the time of a launch are assumed where nothing was measured.
"""

import re
from dataclasses import dataclass

from plaudit.errors import UserError

SHARE = 0.3
"""Of the peak that products reach in a pass that is not bound by launches: assumed."""
LAUNCH = 6e-6
"""Seconds of one small operation, however little it computes: assumed."""


@dataclass(frozen=True)
class Card:
    """One device: bytes, operations a second in bfloat16 (dense), bytes a second."""

    name: str
    memory: float
    products: float
    bandwidth: float


CARDS = {
    card.name: card
    for card in (
        Card("A100-40G", 40e9, 312e12, 1.56e12),
        Card("A100-80G", 80e9, 312e12, 2.0e12),
        Card("H100-80G", 80e9, 989e12, 3.35e12),
        Card("H200-141G", 141e9, 989e12, 4.8e12),
        Card("L4-24G", 24e9, 121e12, 0.3e12),
        Card("L40S-48G", 48e9, 362e12, 0.86e12),
        Card("A10-24G", 24e9, 125e12, 0.6e12),
        Card("RTX3090-24G", 24e9, 71e12, 0.94e12),
        Card("RTX4090-24G", 24e9, 165e12, 1.01e12),
        Card("RTX5090-32G", 32e9, 210e12, 1.79e12),
    )
}


def cards_of(asked: str) -> tuple[int, Card]:
    """(how many, which) of a text like 8xH100-80G; another device is 2xNAME-48G, of which only the memory counts."""
    found = re.fullmatch(r"(?:(\d+)x)?([A-Za-z0-9]+)-(\d+)G", asked)
    if found is None or found[1] == "0":
        raise UserError(f"--gpus {asked!r}: write how many of which, like 8xH100-80G; known: {', '.join(CARDS)}")
    name = f"{found[2].upper()}-{found[3]}G"
    known = CARDS.get(name)
    return int(found[1] or 1), known or Card(name, int(found[3]) * 1e9, 0.0, 0.0)
