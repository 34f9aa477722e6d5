"""What alarms a run raised, for the report's list of what to read with care: the reward model's card, the doctor's
symptoms, replies that the limit cut. What the evaluation's own numbers say stands in words.html.j2."""

from collections.abc import Mapping, Sequence
from typing import Any

from plaudit.guard.symptoms import symptoms
from plaudit.view.plots import Rows
from plaudit.view.text import percent

CUT = 0.1
"""Share of the ranked replies that the limit cut from which it is said."""


def raised_alarms(
    cards: Sequence[Mapping[str, Any] | None],
    summary: Mapping[str, Any],
    updates: Rows,
    looks: Rows,
    settings: Mapping[str, Any],
) -> list[str]:
    """A sentence or two an alarm."""
    said = [
        f"Reward model: {one['says']} {one['do']}"
        for card in cards
        for one in (card or {}).get("alarms", ())
        if one["level"] == "alarm"
    ]
    said += [
        f"PPO: {one.name}: {one.says} ({one.evidence}). To do: {one.change}."
        for one in symptoms(updates, looks, settings)
    ]
    ended = summary.get("preferences", {}).get("finished_share", 1.0)
    if 1 - ended > CUT:
        said.append(
            f"{percent(1 - ended)} of the ranked replies were cut by the length limit: a part of what was learnt is "
            "where. Raise sampling.max_new_tokens, or shorten the demonstrations."
        )
    return said
