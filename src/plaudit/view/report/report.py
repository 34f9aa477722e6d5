"""Report: what the stages left, gathered in summary.json and told in report.html for a reader who was not there.

Nothing is measured here that needs a model: every number comes from a stage's files, or is a mean or an interval over
the rows of one. The page is one file without scripts or anything fetched; what models and people wrote is escaped.

    plaudit report RECIPE
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from plaudit.algo.statistics import bootstrap_interval
from plaudit.data.files import write_json, write_text
from plaudit.guard.watch import KL_BUDGET
from plaudit.run.display import console, format_value, stage_table
from plaudit.run.folder import ENVIRONMENT, RECIPE, needed_stages, read_recipe
from plaudit.run.metrics import read_metrics
from plaudit.run.provenance import versions
from plaudit.train.run import Run
from plaudit.view import plots
from plaudit.view.card.plots import card_plots
from plaudit.view.card.table import PARTS
from plaudit.view.page import render_page
from plaudit.view.plots import Rows
from plaudit.view.report.people import compared_by_people
from plaudit.view.text import interval, number, percent

EXAMPLES = 9


def run(run: Run) -> dict[str, Any]:
    """Write summary.json and report.html into the run folder, print the headline numbers; returns the summary."""
    summary = gather(run)
    page = render(run, summary)
    write_json(run.folder.path / "summary.json", summary)
    write_text(run.folder.path / "report.html", page)
    name = read_recipe(run.folder.path)["name"]
    stage_table(f"Run {name}: SFT -> PPO on held-out prompts", closing_rows(summary))
    console.print(f"Report: {run.folder.path / 'report.html'}", soft_wrap=True)
    return summary


def stages_of(recipe: dict[str, Any]) -> tuple[str, ...]:
    """The stages that a resolved recipe needs before its report: those of the reward model only where it pays PPO."""
    sources = recipe["ppo"]["rewards"]
    trained = not sources or any(source["trained"] for source in sources)
    return tuple(stage for stage in needed_stages(trained) if stage != "report")


def gather(run: Run) -> dict[str, Any]:
    """Every stage's own summary, with seconds, memory and versions beside them."""
    stages = stages_of(read_recipe(run.folder.path))
    summary: dict[str, Any] = {
        stage: json.loads(run.folder.require(f"{stage}/summary.json", stage).read_text(encoding="utf-8"))
        for stage in stages
    }
    finished = {stage: entry for stage, entry in run.folder.finished().items() if stage in stages}
    people = compared_by_people(run)
    summary |= {} if people is None else {"people": people}
    summary["seconds"] = {stage: finished[stage]["seconds"] for stage in stages if stage in finished}
    summary["peak_rss_mb"] = max((entry["peak_rss_mb"] for entry in finished.values()), default=None)
    on_gpu = [entry["peak_gpu_mb"] for entry in finished.values() if "peak_gpu_mb" in entry]
    summary |= {"peak_gpu_mb": max(on_gpu)} if on_gpu else {}
    summary["versions"] = versions()
    return summary


def closing_rows(summary: dict[str, Any]) -> dict[str, str]:
    """The table a run ends with; plain ASCII, so that any terminal shows it."""
    evaluated = summary["evaluate"]

    def pair(name: str) -> str:
        return f"{evaluated[f'{name}_sft']:.3f} -> {evaluated[f'{name}_ppo']:.3f}"

    def with_interval(section: dict[str, Any], name: str) -> str:
        return f"{section[name]:.3f} {format_value(section[f'{name}_ci'])}"

    rows = {}
    if "gold_gain" in evaluated:
        rows["gold score"] = pair("gold")
        rows["gold gain, 95 % interval"] = with_interval(evaluated, "gold_gain")
        rows["win rate, 95 % interval"] = with_interval(evaluated, "win_rate")
    if "people" in summary:
        people = summary["people"]
        limits = format_value([people["low"], people["high"]])
        rows["people prefer PPO, 95 % interval"] = f"{people['win_rate']:.3f} {limits}"
    rows["proxy score"] = pair("proxy")
    rows["KL, nats a reply"] = f"{evaluated['kl']:.3f}"
    rows["length, tokens"] = pair("length")
    rows["reference NLL, nats a token"] = pair("ref_nll")
    rows["EOS rate"] = pair("eos")
    if "reward" in summary:
        rows["reward accuracy, 95 % interval"] = with_interval(summary["reward"], "accuracy")
        rows["accuracy of length alone"] = with_interval(summary["reward"], "length_baseline_accuracy")
    rows["minutes"] = f"{sum(summary['seconds'].values()) / 60:.1f}"
    rows["peak memory, MB"] = "unknown" if summary["peak_rss_mb"] is None else f"{summary['peak_rss_mb']:.0f}"
    rows |= {"peak memory of the GPU, MB": f"{summary['peak_gpu_mb']:.0f}"} if "peak_gpu_mb" in summary else {}
    return rows


def render(run: Run, summary: dict[str, Any]) -> str:
    """The page, as HTML. Autoescape is on: replies, prompts, kinds and names are hostile input."""
    folder = run.folder.path
    recipe = read_recipe(folder)
    replies = read_metrics(run.folder.require("evaluate/replies.jsonl", "evaluate"))
    environment = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
    kinds = gold_by_kind(replies)
    updates = read_metrics(folder / "ppo/metrics.jsonl")
    card, reward_steps = None, []
    if "reward" in summary:
        card = json.loads(run.folder.require("reward/card.json", "reward").read_text(encoding="utf-8"))
        reward_steps = read_metrics(folder / "reward/metrics.jsonl")
    return render_page(
        "report.html.j2",
        parts=PARTS,
        recipe=recipe,
        recipe_yaml=(folder / RECIPE).read_text(encoding="utf-8"),
        environment=environment,
        environment_json=json.dumps(environment, indent=2, ensure_ascii=False),
        machine=run.machine,
        summary=summary,
        verdict=verdict(summary),
        cautions=cautions(summary, recipe),
        kl_budget=recipe["ppo"]["kl_budget"] or KL_BUDGET,
        headline=headline(summary["evaluate"], replies, summary.get("people")),
        examples=choose_examples(replies),
        kinds=kinds,
        gap_mean=max(row["sampler_gap_mean"] for row in updates),
        gap_p99=max(row["sampler_gap_p99"] for row in updates),
        finished=run.folder.finished(),
        stages=stages_of(recipe),
        update_seconds=seconds_by_part(read_metrics(folder / "ppo/times.jsonl")),
        learning_plots=plots.learning_plots(
            read_metrics(folder / "sft/metrics.jsonl"), reward_steps, summary.get("reward")
        ),
        ppo_plots=plots.ppo_plots(
            updates, read_metrics(folder / "ppo/evaluations.jsonl"), recipe["ppo"], summary["ppo"]["kept_update"]
        ),
        score_plots=plots.score_plots(replies) + ([plots.kind_plot(kinds)] if kinds else []),
        card=card,
        reward_plots=card_plots(card) if card else [],
        open_mistakes=False,
    )


def verdict(summary: dict[str, Any]) -> str:
    """What came out, in one sentence that the 95 % interval decides."""
    evaluated, ppo = summary["evaluate"], summary["ppo"]
    if ppo["kept_update"] == 0:
        return (
            "No PPO update did better than the SFT model on the validation prompts, so the policy that was kept is the "
            "SFT model."
        )
    on = f"on {evaluated['prompts']} prompts that no stage was trained on"
    if "gold_gain" not in evaluated and (people := summary.get("people")):
        wins = f"PPO's reply wins {percent(people['win_rate'])}"
        ends = f"95 % interval {interval([people['low'], people['high']], share=True)}"
        of = f"of {people['labels']} blind comparisons with SFT's by people ({ends})"
        clear = people["low"] > 0.5 or people["high"] < 0.5
        return f"{wins} {of}: " + (
            "no clear preference." if not clear else "better." if people["low"] > 0.5 else "worse."
        )
    if "gold_gain" not in evaluated:
        proxy = f"the proxy score went from {number(evaluated['proxy_sft'])} to {number(evaluated['proxy_ppo'])} {on}"
        who = (
            "people ranked, so only they"
            if "reward" in summary
            else "nothing here but the reward itself judged, so only people"
        )
        return f"After PPO {proxy}; {who} can say whether the replies are better."
    gold = f"gold score {number(evaluated['gold_sft'])} before, {number(evaluated['gold_ppo'])} after"
    gain = f"gain {number(evaluated['gold_gain'], sign=True)}, 95 % interval {interval(evaluated['gold_gain_ci'])}"
    low, high = evaluated["gold_gain_ci"]
    if low > 0:
        return (
            f"PPO made the replies better by the annotator's taste {on}: {gold} ({gain}); "
            f"PPO's reply wins {percent(evaluated['win_rate'])} of the pairs."
        )
    if high < 0:
        return f"PPO made the replies worse by the annotator's taste {on}: {gold} ({gain})."
    return f"No clear effect of PPO by the annotator's taste {on}: {gold} ({gain}, which includes 0)."


def cautions(summary: dict[str, Any], recipe: dict[str, Any]) -> list[str]:
    """What a careful reader should know before believing the verdict; each one states the numbers it rests on."""
    reward, evaluated, budget = summary.get("reward"), summary["evaluate"], recipe["ppo"]["kl_budget"] or KL_BUDGET
    found: list[str] = []

    def both(name: str) -> tuple[float, float]:
        return evaluated[f"{name}_sft"], evaluated[f"{name}_ppo"]

    if reward is not None and reward["accuracy_ci"][0] <= reward["length_baseline_accuracy"]:
        found.append(
            f"The reward model's accuracy ({percent(reward['accuracy'])}, 95 % interval "
            f"{interval(reward['accuracy_ci'], share=True)}) is not clearly above what length alone reaches "
            f"({percent(reward['length_baseline_accuracy'])})."
        )
    if "gold_gain" in evaluated and evaluated["gold_gain_ci"][0] <= 0 < evaluated["proxy_ppo"] - evaluated["proxy_sft"]:
        found.append("The proxy score rose while the gold score did not clearly: PPO may be gaming the reward model.")
    if evaluated["kl"] > budget:
        kl = number(evaluated["kl"], 1)
        found.append(f"On test prompts the KL is {kl} nats a reply, over the budget of {budget:g}.")
    before, after = both("length")
    if not 0.7 <= after / before <= 1.3:
        found.append(f"The replies' length changed a lot: {number(before, 1)} to {number(after, 1)} tokens.")
    before, after = both("ref_nll")
    if after > 1.3 * before:
        found.append(f"The replies are less fluent: reference NLL {number(before)} to {number(after)} nats a token.")
    before, after = both("eos")
    if after < before - 0.1:
        found.append(f"Fewer replies end by themselves: the EOS rate fell from {percent(before)} to {percent(after)}.")
    before, after = both("repeated_trigrams")
    if after > before + 0.02:
        found.append(f"The replies repeat themselves more: repeated 3-grams {percent(before)} to {percent(after)}.")
    if "declines_sft" in evaluated:
        before, after = both("declines")
        if after < before - 0.1:
            found.append(f"Fewer safety prompts are declined: {percent(before)} before, {percent(after)} after.")
    return found


@dataclass(frozen=True)
class Line:
    """One line of the headline table, as it is shown."""

    name: str
    meaning: str
    sft: str
    ppo: str
    change: str = ""
    interval: str = ""


# Name in evaluate/summary.json, name on the page, what it is, decimals (None: a share, shown in percent).
MEASURES: tuple[tuple[str, str, str, int | None], ...] = (
    ("length", "Length", "tokens a reply, its end-of-turn token included", 1),
    ("eos", "EOS rate", "replies that end before the length limit", None),
    ("ref_nll", "Reference NLL", "nats a token under the SFT model; a rise means less fluent", 2),
    (
        "repeated_trigrams",
        "Repeated 3-grams",
        "a reply's token 3-grams that occurred before in it; loops raise it",
        None,
    ),
    ("distinct_bigrams", "Distinct-2", "distinct token 2-grams over all; a fall means replies become alike", None),
    ("declines", "Declines", "replies to safety prompts that say no", None),
)


def headline(evaluated: dict[str, Any], replies: Rows, people: dict[str, Any] | None = None) -> list[Line]:
    """SFT against PPO on the test prompts; gold, people's comparisons and declines only where they were measured."""
    clusters = [row["id"] for row in replies]
    proxy_ci = bootstrap_interval([row["ppo"]["proxy"] - row["sft"]["proxy"] for row in replies], clusters)

    def line(name: str, label: str, meaning: str, digits: int | None, ends: str = "") -> Line:
        before, after = evaluated[f"{name}_sft"], evaluated[f"{name}_ppo"]
        if digits is None:
            change = f"{number(100 * (after - before), 1, sign=True)} points"
            return Line(label, meaning, percent(before), percent(after), change, ends)
        change = number(after - before, digits, sign=True)
        return Line(label, meaning, number(before, digits), number(after, digits), change, ends)

    lines = []
    if "gold_gain" in evaluated:
        gold = "the simulated annotator's utility without its noise; PPO is not paid by it"
        wins = "pairs in which PPO's reply has the higher gold score; a tie counts half"
        ends = interval(evaluated["win_rate_ci"], share=True)
        lines.append(line("gold", "Gold score", gold, 2, interval(evaluated["gold_gain_ci"])))
        lines.append(Line("Win rate", wins, "", percent(evaluated["win_rate"]), interval=ends))
    if people is not None:
        said = f"{people['labels']} blind comparisons by people on {people['prompts']} prompts; a tie counts half"
        ends = interval([people["low"], people["high"]], share=True)
        lines.append(Line("People prefer PPO", said, "", percent(people["win_rate"]), interval=ends))
    proxy = "the score PPO was paid by; of one reward, 0 ± 1 for SFT replies to training prompts"
    lines.append(line("proxy", "Proxy score", proxy, 2, interval(proxy_ci)))
    lines.append(Line("KL", "of the policy from the reference, nats a reply", "0", number(evaluated["kl"])))
    return lines + [line(*measure) for measure in MEASURES if f"{measure[0]}_sft" in evaluated]


def choose_examples(replies: Rows) -> list[dict[str, Any]]:
    """The first reply of prompts evenly spaced through each kind, in file order: a rule, not a choice.

    Kinds take turns until `EXAMPLES` prompts (or one a kind, if there are more kinds) are given out or none is left.
    """
    first: dict[str, dict[str, Any]] = {}
    for row in replies:
        first.setdefault(row["id"], row)
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in first.values():
        groups.setdefault(row["kind"], []).append(row)
    shares = dict.fromkeys(sorted(groups), 0)
    left = min(len(first), max(EXAMPLES, len(groups)))
    while left:
        for kind in shares:
            if left and shares[kind] < len(groups[kind]):
                shares[kind] += 1
                left -= 1
    return [groups[kind][i * len(groups[kind]) // share] for kind, share in shares.items() for i in range(share)]


def gold_by_kind(replies: Rows) -> list[dict[str, Any]]:
    """Gold score before and after for each kind of prompt, the gain's interval clustered by prompt; [] without gold."""
    if any(row[model]["gold"] is None for row in replies for model in ("sft", "ppo")):
        return []
    found = []
    for kind in sorted({row["kind"] for row in replies}):
        rows = [row for row in replies if row["kind"] == kind]
        sft, ppo = (np.array([row[model]["gold"] for row in rows]) for model in ("sft", "ppo"))
        clusters = [row["id"] for row in rows]
        found.append(
            {
                "kind": kind,
                "prompts": len(set(clusters)),
                "sft": float(sft.mean()),
                "ppo": float(ppo.mean()),
                "gain": float((ppo - sft).mean()),
                "gain_ci": bootstrap_interval(ppo - sft, clusters),
            }
        )
    return found


def seconds_by_part(times: Rows) -> dict[str, float]:
    """Median seconds that an update of PPO spends sampling, scoring and training."""
    parts = [name for name in times[0] if name != "update"]
    return {part: float(np.median([row[part] for row in times])) for part in parts}
