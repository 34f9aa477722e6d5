"""The report's plots: SFT, the reward model and PPO step by step, and the scores before and after."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from plaudit.guard.limits import KL_BUDGET
from plaudit.view.plots import INK, MUTED, PPO, REWARD, SFT, Key, Plot, Rows, change, column, draw, whole_steps
from plaudit.view.text import number, percent

SMOOTHED = 8


def _trailing_mean(values: Sequence[float], window: int) -> list[float]:
    """Means of `window` neighbours; the first belongs to place window − 1."""
    return [float(np.mean(values[end - window : end])) for end in range(window, len(values) + 1)]


def learning_plots(sft: Rows, reward: Rows, reward_summary: dict[str, Any] | None) -> list[Plot]:
    """SFT: training and held-out loss. Reward model, where one was trained: loss, accuracy."""
    trained = [row for row in sft if "loss" in row]
    held_out = [row for row in sft if "eval_loss" in row]

    def sft_loss(axes: Axes) -> None:
        axes.plot(column(trained, "step"), column(trained, "loss"), color=MUTED, linewidth=0.9)
        axes.plot(column(held_out, "step"), column(held_out, "eval_loss"), color=SFT, marker="o")
        whole_steps(axes)

    before, after = held_out[0]["eval_loss"], held_out[-1]["eval_loss"]
    plot = draw(
        "sft-loss",
        f"SFT: the loss on held-out demonstrations {change(before, after)} nats a token",
        "optimiser step", "loss (nats a token)", sft_loss,
        [("thin", "muted", "training step"), ("dot", "sft", "held-out demonstrations")],
    )  # fmt: skip
    return [plot] if reward_summary is None else [plot, *_reward_learning_plots(reward, reward_summary)]


def _reward_learning_plots(reward: Rows, reward_summary: dict[str, Any]) -> list[Plot]:
    # Of an ensemble the first member is drawn; the row before the first step has a held-out loss only.
    reward = [row for row in reward if "loss" in row and row.get("member", 0) == 0]
    steps = column(reward, "step")
    window = min(SMOOTHED, len(steps))

    def smoothed(axes: Axes, name: str, level: float) -> None:
        values = column(reward, name)
        axes.axhline(level, color=MUTED, linestyle="--", linewidth=1)
        axes.plot(steps, values, color=MUTED, linewidth=0.7)
        axes.plot(steps[window - 1 :], _trailing_mean(values, window), color=REWARD)
        whole_steps(axes)

    def accuracy(axes: Axes) -> None:
        smoothed(axes, "accuracy", 0.5)
        low, high = reward_summary["accuracy_ci"]
        right = reward_summary["accuracy"]
        axes.errorbar([steps[-1]], [right], [[right - low], [high - right]], color=INK, fmt="o", capsize=3, zorder=5)
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0, symbol=""))

    loss = _trailing_mean(column(reward, "loss"), window)[-1]
    coin = float(np.log(2))
    raw, mean = ("thin", "muted", "each step"), ("line", "reward", f"mean of {window} steps")
    return [
        draw(
            "reward-loss",
            f"Reward model: the training loss ends at {number(loss)} nats a pair, a coin's is {number(coin)}",
            "optimiser step", "loss (nats a pair)", lambda axes: smoothed(axes, "loss", coin),
            [raw, mean, ("dash", "muted", "a coin, ln 2")],
        ),
        draw(
            "reward-accuracy",
            f"Reward model: it picks the preferred reply in {percent(reward_summary['accuracy'])} of held-out pairs",
            "optimiser step", "accuracy (% of pairs)", accuracy,
            [raw, mean, ("dot", "ink", "held-out pairs, 95 % interval"), ("dash", "muted", "a coin")],
        ),
    ]  # fmt: skip


def ppo_plots(updates: Rows, validation: Rows, config: dict[str, Any], kept_update: int) -> list[Plot]:
    """PPO update by update: what the policy was like before each update, then what the update did."""
    watched = [watch_plot(validation, kept_update)] if all("held_out_score" in row for row in validation) else []
    return [*_policy_plots(updates, validation, config, kept_update), *watched, *_update_plots(updates, config)]


def watch_plot(validation: Rows, kept_update: int) -> Plot:
    """What the proxy and the held-out score gained, over √KL (the axis of Gao et al. 2023, arXiv:2210.10760, on which
    a score that is over-optimised turns down)."""
    # A KL is estimated from samples, so that of a policy which hardly moved may come out below 0.
    distance = [max(0.0, row["kl"]) ** 0.5 for row in validation]
    first = validation[0]
    place = next(i for i, row in enumerate(validation) if row["update"] == kept_update)
    series = (("score", "score", PPO), ("held_out_score", "held_out", REWARD))

    def paint(axes: Axes) -> None:
        axes.axhline(0, color=SFT, linestyle=":", linewidth=1.3)
        for name, error, colour in series:
            gains = [row[name] - first[name] for row in validation]
            spread = [2 * row.get(f"{error}_gain_se", 0.0) for row in validation]
            axes.errorbar(
                distance, gains, spread if any(spread) else None, color=colour, marker="o", elinewidth=0.7, capsize=2
            )
            axes.plot([distance[place]], [gains[place]], color=INK, marker="o", markersize=9, fillstyle="none")

    best = max(validation, key=lambda row: row["held_out_score"])
    last = validation[-1]
    moved = change(best["held_out_score"], last["held_out_score"])
    title = f"From its best look (after update {best['update']}) to the last the held-out score {moved}"
    if best is last:
        title = "The held-out score is at its best at the last look"
    return draw(
        "ppo-watch", title, "√KL (√nats a reply)", "gain over the SFT model", paint,
        [("dot", "ppo", "paid by"), ("dot", "reward", "held-out"), ("ring", "ink", "kept"), ("dash", "sft", "SFT")],
        "Each score in its own unit, with two standard errors; what counts is where the held-out one turns down.",
    )  # fmt: skip


def _policy_plots(updates: Rows, validation: Rows, config: dict[str, Any], kept_update: int) -> list[Plot]:
    """Score, KL, length, endings, entropy: of the batches PPO trained on, and of the validation prompts."""
    # A row of metrics.jsonl describes the batch its update trained on, sampled when one update fewer was done.
    done = [row["update"] - 1 for row in updates]
    looked = column(validation, "update")
    first = validation[0]
    kept = next(row for row in validation if row["update"] == kept_update)

    def panel(
        name: str, title: str, y_label: str, *, limit: float | None = None, limit_name: str = "", note: str = "",
        share: bool = False, against_sft: bool = True,
    ) -> Plot:  # fmt: skip
        def paint(axes: Axes) -> None:
            if against_sft:
                axes.axhline(first[name], color=SFT, linestyle=":", linewidth=1.3)
            if limit is not None:
                axes.axhline(limit, color=MUTED, linestyle="--", linewidth=1)
            axes.plot(done, column(updates, name), color=PPO, linewidth=0.9, alpha=0.7)
            axes.plot(looked, column(validation, name), color=PPO, marker="o", linestyle="none")
            axes.plot([kept_update], [kept[name]], color=INK, marker="o", markersize=9, fillstyle="none")
            if share:
                axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0, symbol=""))
            whole_steps(axes)

        keys: list[Key] = [
            ("thin", "ppo", "training prompts"),
            ("dot", "ppo", "validation prompts"),
            ("ring", "ink", "kept"),
        ]
        if against_sft:
            keys.append(("dash", "sft", "SFT"))
        if limit is not None:
            keys.append(("dash", "muted", limit_name))
        return draw(f"ppo-{name}", title, "updates done", y_label, paint, keys, note)

    def moved(name: str, show: Callable[[float], str] = number) -> str:
        return change(first[name], kept[name], show)

    return [
        panel(
            "score", f"The reward model's score {moved('score')} on validation prompts", "score (std of SFT replies)",
            note="A reply that never ended has its penalty subtracted.",
        ),
        panel(
            "kl", f"The policy that is kept is {number(kept['kl'], 1)} nats a reply from the reference",
            "KL (nats a reply)", limit=config["kl_budget"] or KL_BUDGET, limit_name="KL budget", against_sft=False,
        ),
        panel(
            "length", f"The length of a reply {moved('length', lambda x: number(x, 1))} tokens", "length (tokens)",
            limit=config["max_new_tokens"], limit_name="limit",
        ),
        panel("eos", f"The EOS rate {moved('eos', percent)}", "EOS rate (% of replies)", share=True),
        panel("entropy", f"The policy's entropy {moved('entropy')} nats a token", "entropy (nats a token)"),
    ]  # fmt: skip


def _update_plots(updates: Rows, config: dict[str, Any]) -> list[Plot]:
    """Clip fraction, KL within an update, explained variance, value loss."""
    numbers = column(updates, "update")

    def line(
        name: str, *, share: bool = False, floor: float | None = None, log: bool = False
    ) -> Callable[[Axes], None]:
        def paint(axes: Axes) -> None:
            axes.plot(numbers, column(updates, name), color=PPO, marker="o", markersize=2.5)
            if share:
                axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0, symbol=""))
            if floor is not None:
                axes.axhline(0, color=MUTED, linestyle="--", linewidth=1)
                axes.set_ylim(max(floor, axes.get_ylim()[0]), 1.05)
            if log:
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
                axes.yaxis.set_minor_formatter(StrMethodFormatter(""))
            whole_steps(axes)

        return paint

    clipped, moved_by = np.mean(column(updates, "clip_fraction")), np.mean(column(updates, "approx_kl"))
    plots = [
        draw(
            "ppo-clip_fraction",
            f"Clip fraction: on average {percent(float(clipped))} of the ratios left 1 ± {config['clip_range']:g}",
            "update", "clip fraction (% of tokens)", line("clip_fraction", share=True),
        ),
        draw(
            "ppo-approx_kl",
            f"Within one update the policy moved {number(float(moved_by), 4)} nats a token on average",
            "update", "approximate KL (nats a token)", line("approx_kl"),
        ),
    ]  # fmt: skip
    if "explained_variance" not in updates[0]:  # an estimator without a critic
        return plots
    explained, value_loss = column(updates, "explained_variance"), column(updates, "l_vf")
    below = sum(item < -1 for item in explained)
    wide = min(value_loss) > 0 and max(value_loss) > 20 * min(value_loss)
    return [
        *plots,
        draw(
            "ppo-explained_variance",
            f"At the end the critic explains {percent(explained[-1], 0)} of the variance of the returns",
            "update", "explained variance (1 is perfect)", line("explained_variance", floor=-1.05),
            [("dash", "muted", "a constant guess")],
            f"{below} of {len(explained)} updates lie below −1 and are not shown." if below else "",
        ),
        draw(
            "ppo-l_vf", f"The value loss {change(value_loss[0], value_loss[-1])}",
            "update", "value loss (squared return)", line("l_vf", log=wide),
        ),
    ]  # fmt: skip


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
                share = np.histogram(values, edges)[0] / len(values) * 100
                axes.stairs(share, edges, fill=True, color=colour, alpha=0.25)
                axes.stairs(share, edges, color=colour, linewidth=1.3)
                axes.axvline(float(np.mean(values)), color=colour, linestyle="--", linewidth=1.3)

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
