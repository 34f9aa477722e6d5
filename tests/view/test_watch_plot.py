"""The plot of the watch: proxy and held-out score over √KL, where the evaluations have a held-out score."""

from typing import Any

import pytest

from plaudit.view.report import plots


def looks(held_out: list[float]) -> list[dict[str, Any]]:
    return [
        {"update": 5 * i, "score": 1.0 * i, "held_out_score": gold, "kl": [-0.01, 4.0, 9.0, 16.0][i]}
        for i, gold in enumerate(held_out)
    ]


def test_the_title_says_from_where_to_where_the_held_out_score_moved() -> None:
    """In gains over the SFT model, which are what the plot shows."""
    plot = plots.watch_plot(looks([-0.25, 0.25, 0.0, -0.125]), 5)
    says = "From its best look (after update 5) to the last the gain of the held-out score fell from 0.50 to 0.12"
    assert plot.title == says
    assert (
        plots.watch_plot(looks([0.0, 0.1, 0.2, 0.3]), 15).title == "The held-out score is at its best at the last look"
    )


def test_scores_are_drawn_as_gains_over_the_roots_of_the_kl(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[list[float], list[float], Any]] = []

    class Axes:
        def axhline(self, *_: Any, **__: Any) -> None: ...
        def plot(self, *_: Any, **__: Any) -> None: ...
        def errorbar(self, x: list[float], y: list[float], spread: Any, **_: Any) -> None:
            drawn.append((x, y, spread))

    monkeypatch.setattr(plots, "draw", lambda *arguments, **_: arguments[4](Axes()))
    rows = looks([0.5, 1.0, 0.75, 0.5])
    plots.watch_plot(rows, 5)
    assert drawn == [([0, 2, 3, 4], [0, 1, 2, 3], None), ([0, 2, 3, 4], [0, 0.5, 0.25, 0], None)]
    drawn.clear()
    plots.watch_plot([{**row, "held_out_gain_se": 0.1} for row in rows], 5)
    assert [spread for _, _, spread in drawn] == [None, [0.2] * 4]
