"""The report's plots: SFT, the reward model and PPO step by step, and the scores before and after.

Numbers are read from the stages' files as they are; nothing is fitted or smoothed but the one trailing mean that its
key names.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter

from plaudit.guard.limits import KL_BUDGET
from plaudit.view.names import name_of
from plaudit.view.plots import (
    INK,
    MUTED,
    PPO,
    REWARD,
    SFT,
    Key,
    Plot,
    Rows,
    change,
    column,
    draw,
    histogram,
    in_percent,
    whole_steps,
)
from plaudit.view.text import number, percent

SMOOTHED = 8


def sft_plot(steps: Rows) -> Plot:
    """Training and held-out loss."""
    trained = [row for row in steps if "loss" in row]
    held_out = [row for row in steps if "eval_loss" in row]

    def paint(axes: Axes) -> None:
        axes.plot(column(trained, "step"), column(trained, "loss"), color=MUTED, linewidth=0.9)
        axes.plot(column(held_out, "step"), column(held_out, "eval_loss"), color=SFT, marker="o")
        whole_steps(axes)

    moved = change(held_out[0]["eval_loss"], held_out[-1]["eval_loss"])
    title = f"SFT: the loss on held-out demonstrations {moved} nats a token"
    keys = [("thin", "muted", "training step"), ("dot", "sft", "held-out demonstrations")]
    return draw("sft-loss", title, "optimiser step", "loss (nats a token)", paint, keys)


def reward_plots(rows: Rows, summary: dict[str, Any]) -> list[Plot]:
    """The reward model's loss and accuracy; of an ensemble those of the first member."""
    # The row before the first step has a held-out loss only.
    rows = [row for row in rows if "loss" in row and row.get("member", 0) == 0]
    steps = column(rows, "step")
    window = min(SMOOTHED, len(steps))

    def trailing_mean(name: str) -> list[float]:
        """The first belongs to place window − 1."""
        return np.lib.stride_tricks.sliding_window_view(column(rows, name), window).mean(axis=1).tolist()

    def smoothed(axes: Axes, name: str, level: float) -> None:
        axes.axhline(level, color=MUTED, linestyle="--", linewidth=1)
        axes.plot(steps, column(rows, name), color=MUTED, linewidth=0.7)
        axes.plot(steps[window - 1 :], trailing_mean(name), color=REWARD)
        whole_steps(axes)

    def accuracy(axes: Axes) -> None:
        smoothed(axes, "accuracy", 0.5)
        if on_pairs:
            ends, right = summary["accuracy_ci"], summary["accuracy"]
            spread = [[right - ends[0]], [ends[1] - right]] if ends else None
            axes.errorbar([steps[-1]], [right], spread, color=INK, fmt="o", capsize=3, zorder=5)
        in_percent(axes.yaxis)

    on_pairs, coin = "accuracy" in summary, float(np.log(2))
    end = number(trailing_mean("loss")[-1])
    what = "pair" if on_pairs else "label"
    loss_title = f"Reward model: the training loss ends at {end} nats a {what}, a coin's is {number(coin)}"
    title = f"Reward model: its AUC on held-out labels is {percent(summary['auc'])}" if not on_pairs else ""
    title = title or f"Reward model: it picks the preferred reply in {percent(summary['accuracy'])} of held-out pairs"
    keys = [("thin", "muted", "each step"), ("line", "reward", f"mean of {window} steps")]
    loss_keys = [*keys, ("dash", "muted", "a coin, ln 2")]
    keys += [("dot", "ink", "held-out pairs, 95 % interval")] if on_pairs else []
    keys += [("dash", "muted", "a coin")]
    x, y = "optimiser step", f"loss (nats a {what})"
    return [
        draw("reward-loss", loss_title, x, y, lambda axes: smoothed(axes, "loss", coin), loss_keys),
        draw("reward-accuracy", title, x, f"accuracy (% of {what}s)", accuracy, keys),
    ]


def ppo_plots(updates: Rows, validation: Rows, config: dict[str, Any], kept_update: int) -> list[Plot]:
    """PPO update by update: what the policy was like before each update, then what the update did."""
    watched = [watch_plot(validation, kept_update)] if all("held_out_score" in row for row in validation) else []
    held = [name.removeprefix("bound_") for name in updates[0] if name.startswith("bound_")]
    watched += [plot for name in held for plot in constraint_plots(updates, validation, name)]
    return [*_policy_plots(updates, validation, config, kept_update), *watched, *_update_plots(updates, config)]


def constraint_plots(updates: Rows, validation: Rows, source: str) -> list[Plot]:
    """What a constraint holds up, on training and validation prompts, with its bound; and its multiplier."""
    name, bound = f"constraint_{source}", updates[0][f"bound_{source}"]
    seen, looks = [row for row in updates if name in row], [row for row in validation if name in row]

    def value(axes: Axes) -> None:
        axes.axhline(bound, color=MUTED, linestyle="--", linewidth=1)
        axes.plot([row["update"] - 1 for row in seen], column(seen, name), color=PPO, linewidth=0.9, alpha=0.7)
        axes.plot(column(looks, "update"), column(looks, name), color=PPO, marker="o", linestyle="none")
        whole_steps(axes)

    def price(axes: Axes) -> None:
        axes.plot([row["update"] - 1 for row in updates], column(updates, f"multiplier_{source}"), color=PPO)
        whole_steps(axes)

    keys = [("thin", "ppo", "training prompts"), ("dot", "ppo", "validation prompts"), ("dash", "muted", "at least")]
    last = f": {number(looks[-1][name])} at the last look, at least {number(bound)}" if looks else ""
    multiplier = f"The multiplier of {source} ended at {number(updates[-1][f'multiplier_{source}'])}"
    return [
        draw(f"ppo-{name}", f"Constraint {source}{last}", "updates done", source, value, keys),
        draw(f"ppo-multiplier-{source}", multiplier, "updates done", "λ", price),
    ]


def watch_plot(validation: Rows, kept_update: int) -> Plot:
    """What the proxy and the held-out score gained, over √KL (the axis of Gao et al. 2023, arXiv:2210.10760, on which
    a score that is over-optimised turns down)."""
    # A KL is estimated from samples, so that of a policy which hardly moved may come out below 0.
    distance = [max(0.0, row["kl"]) ** 0.5 for row in validation]
    first, last = validation[0], validation[-1]
    place = next(i for i, row in enumerate(validation) if row["update"] == kept_update)

    def paint(axes: Axes) -> None:
        axes.axhline(0, color=SFT, linestyle=":", linewidth=1.3)
        for name, error, colour in (("score", "score", PPO), ("held_out_score", "held_out", REWARD)):
            gains = [row[name] - first[name] for row in validation]
            spread = [2 * row.get(f"{error}_gain_se", 0.0) for row in validation]
            errors = spread if any(spread) else None
            axes.errorbar(distance, gains, errors, color=colour, marker="o", elinewidth=0.7, capsize=2)
            axes.plot([distance[place]], [gains[place]], color=INK, marker="o", markersize=9, fillstyle="none")

    best = max(validation, key=lambda row: row["held_out_score"])
    moved = change(*(row["held_out_score"] - first["held_out_score"] for row in (best, last)))
    title = f"From its best look (after update {best['update']}) to the last the gain of the held-out score {moved}"
    if best is last:
        title = "The held-out score is at its best at the last look"
    keys = [("dot", "ppo", "paid by"), ("dot", "reward", "held-out"), ("ring", "ink", "kept"), ("dash", "sft", "SFT")]
    note = "Each score in its own unit, with two standard errors; what counts is where the held-out one turns down."
    return draw("ppo-watch", title, "√KL (√nats a reply)", "gain over the SFT model", paint, keys, note)


def _policy_plots(updates: Rows, validation: Rows, config: dict[str, Any], kept_update: int) -> list[Plot]:
    """Score, KL, length, endings, entropy: of the batches PPO trained on, and of the validation prompts."""
    # A row of metrics.jsonl describes the batch its update trained on, sampled when one update fewer was done.
    done = [row["update"] - 1 for row in updates]
    first = validation[0]
    kept = next(row for row in validation if row["update"] == kept_update)

    def panel(name: str, title: str, limit: tuple[str, float] | None = None, note: str = "") -> Plot:
        def paint(axes: Axes) -> None:
            if name != "kl":  # that of the SFT model is 0
                axes.axhline(first[name], color=SFT, linestyle=":", linewidth=1.3)
            if limit is not None:
                axes.axhline(limit[1], color=MUTED, linestyle="--", linewidth=1)
            axes.plot(done, column(updates, name), color=PPO, linewidth=0.9, alpha=0.7)
            axes.plot(column(validation, "update"), column(validation, name), color=PPO, marker="o", linestyle="none")
            axes.plot([kept_update], [kept[name]], color=INK, marker="o", markersize=9, fillstyle="none")
            if name == "eos":
                in_percent(axes.yaxis)
            whole_steps(axes)

        keys = [("thin", "ppo", "training prompts"), ("dot", "ppo", "validation prompts"), ("ring", "ink", "kept")]
        keys += [("dash", "sft", "SFT")] if name != "kl" else []
        keys += [("dash", "muted", limit[0])] if limit is not None else []
        return draw(f"ppo-{name}", title, "updates done", _named(name), paint, keys, note)

    def moved(name: str, show: Callable[[float], str] = number) -> str:
        return change(first[name], kept[name], show)

    score = f"The reward model's score {moved('score')} on validation prompts"
    kl = f"The policy that is kept is {number(kept['kl'], 1)} nats a reply from the reference"
    length = f"The length of a reply {moved('length', lambda x: number(x, 1))} tokens"
    entropy = f"The policy's entropy {moved('entropy')} nats a token"
    penalty = "A reply that never ended has its penalty subtracted."
    budget = config["kl_budget"] or KL_BUDGET
    return [
        panel("score", score, note=penalty),
        panel("kl", kl, ("KL budget", budget)),
        panel("length", length, ("limit", config["max_new_tokens"])),
        panel("eos", f"The EOS rate {moved('eos', percent)}"),
        panel("entropy", entropy),
    ]


def _update_plots(updates: Rows, config: dict[str, Any]) -> list[Plot]:
    """Clip fraction, KL within an update; with a critic explained variance and value loss."""

    def panel(
        name: str,
        title: str,
        also: Callable[[Axes], None] = whole_steps,
        keys: Sequence[Key] = (),
        note: str = "",
    ) -> Plot:
        def paint(axes: Axes) -> None:
            axes.plot(column(updates, "update"), column(updates, name), color=PPO, marker="o", markersize=2.5)
            also(axes)
            whole_steps(axes)

        return draw(f"ppo-{name}", title, "update", _named(name), paint, keys, note)

    def from_minus_one(axes: Axes) -> None:
        axes.axhline(0, color=MUTED, linestyle="--", linewidth=1)
        axes.set_ylim(max(-1.05, axes.get_ylim()[0]), 1.05)

    def logarithmic(axes: Axes) -> None:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(StrMethodFormatter(""))

    clipped = percent(float(np.mean(column(updates, "clip_fraction"))))
    title = f"Clip fraction: on average {clipped} of the ratios left 1 ± {config['clip_range']:g}"
    plots = [panel("clip_fraction", title, lambda axes: in_percent(axes.yaxis))]
    moved_by = number(float(np.mean(column(updates, "approx_kl"))), 4)
    title = f"Within one update the policy moved {moved_by} nats a token on average"
    plots.append(panel("approx_kl", title))
    if "explained_variance" not in updates[0]:  # an estimator without a critic
        return plots
    explained, value_loss = column(updates, "explained_variance"), column(updates, "l_vf")
    title = f"At the end the critic explains {percent(explained[-1], 0)} of the variance of the returns"
    below = sum(item < -1 for item in explained)
    note = f"{below} of {len(explained)} updates lie below −1 and are not shown." if below else ""
    keys = [("dash", "muted", "a constant guess")]
    plots.append(panel("explained_variance", title, from_minus_one, keys, note))
    wide = min(value_loss) > 0 and max(value_loss) > 20 * min(value_loss)
    title = f"The value loss {change(value_loss[0], value_loss[-1])}"
    return [*plots, panel("l_vf", title, logarithmic if wide else whole_steps)]


def _named(name: str) -> str:
    """Of shares the axes are in percent."""
    return name_of(name).replace("(share of", "(% of")


def score_plots(replies: Rows) -> list[Plot]:
    """How the scores of the test replies are spread, SFT against PPO: proxy, and gold where there is one."""
    plots = []
    for name, unit in (("proxy", "score, std of SFT replies"), ("gold", "the annotator's utility")):
        sft, ppo = ([row[model][name] for row in replies] for model in ("sft", "ppo"))
        if None in sft or None in ppo:
            continue

        def paint(axes: Axes, sft: list[float] = sft, ppo: list[float] = ppo) -> None:
            edges = np.histogram_bin_edges([*sft, *ppo], bins=24)
            for values, colour in ((sft, SFT), (ppo, PPO)):
                histogram(axes, np.histogram(values, edges)[0], edges, float(np.mean(values)), colour)

        title = f"The mean {name} score {change(float(np.mean(sft)), float(np.mean(ppo)))} on test prompts"
        keys = [("line", "sft", "SFT"), ("line", "ppo", "PPO"), ("dash", "muted", "mean")]
        plots.append(draw(f"hist-{name}", title, f"{name} ({unit})", "share of replies (%)", paint, keys))
    return plots


def kind_plot(kinds: Rows) -> Plot:
    """Gold score before and after, kind by kind; rows {kind, sft, ppo}."""

    def paint(axes: Axes) -> None:
        for place, row in enumerate(kinds):
            axes.plot([row["sft"], row["ppo"]], [place, place], color=MUTED, linewidth=1)
            axes.plot([row["sft"]], [place], color=SFT, marker="o", markersize=7)
            axes.plot([row["ppo"]], [place], color=PPO, marker="D", markersize=6)
        axes.set_yticks(range(len(kinds)), [row["kind"][:18] for row in kinds])
        axes.set_ylim(len(kinds) - 0.4, -0.6)

    risen = sum(row["ppo"] > row["sft"] for row in kinds)
    title = f"The gold score rose for {risen} of {len(kinds)} kinds of prompt"
    keys = [("dot", "sft", "SFT"), ("diamond", "ppo", "PPO")]
    height = max(2.3, 0.28 * len(kinds) + 0.8)
    return draw("gold-kinds", title, "gold (the annotator's utility)", "", paint, keys, height=height)
