"""Report: what the stages left, gathered in summary.json and told in report.html for a reader who was not there.

Nothing is measured here that needs a model: every number comes from a stage's files, or is a mean or an interval over
the rows of one. The page is one file without scripts or anything fetched; what models and people wrote is escaped.

    plaudit report RECIPE
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plaudit.algo.statistics import bootstrap_interval
from plaudit.data.files import read_json, write_json, write_text
from plaudit.guard.limits import KL_BUDGET
from plaudit.run.branch import label_database
from plaudit.run.display import console, format_value, stage_table
from plaudit.run.folder import (
    ENVIRONMENT,
    RECIPE,
    REPORT,
    SUMMARY,
    judged_by_people,
    needed_stages,
    read_recipe,
    stage_settings,
    stages_beside,
)
from plaudit.run.metrics import read_metrics
from plaudit.run.provenance import versions
from plaudit.train.run import Run
from plaudit.view.card.plots import card_plots
from plaudit.view.card.table import PARTS
from plaudit.view.page import render_page, words
from plaudit.view.report.baselines import NAMES, baselines_plot, verdicts
from plaudit.view.report.care import raised_alarms
from plaudit.view.report.plots import kind_plot, ppo_plots, reward_plots, score_plots, sft_plot
from plaudit.view.report.rounds import print_rounds, rounds_table
from plaudit.view.report.tables import choose_examples, gold_by_kind, seconds_by_part
from plaudit.view.status import kept_sft
from plaudit.view.text import plain

if TYPE_CHECKING:
    from plaudit.label.db.ledger import Ledger


def write_report(run: Run) -> dict[str, Any]:
    """Write summary.json and report.html into the run folder, print the headline numbers; returns the summary."""
    folder = run.folder.path
    summary = gather(run)
    page = render(run, summary)
    write_json(folder / SUMMARY, summary)
    write_text(folder / REPORT, page)
    recipe = read_recipe(folder)
    stage_table(f"Run {recipe['name']}: SFT -> PPO on held-out prompts", closing_rows(summary))
    console.print(plain(words("report/words.html.j2", "verdict", summary)), style="bold", soft_wrap=True)
    for line in verdicts(summary["baselines"]) if "baselines" in summary else ():
        console.print(plain(line), soft_wrap=True)
    if "rounds" in summary:
        print_rounds(summary["rounds"])
    console.print(f"Report: {folder / REPORT}", soft_wrap=True)
    for command, why in next_commands(folder, recipe, summary):
        console.print(f"Next: {command}   ({why})", soft_wrap=True)
    return summary


def next_commands(folder: Path, recipe: Mapping[str, Any], summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The two commands that the numbers suggest, and what for."""
    chat = (f"plaudit chat {folder}", "talk to both models")
    if kept_sft(summary):
        again = f"plaudit run {folder / RECIPE} --from ppo ppo.learning_rate={recipe['ppo']['learning_rate'] / 2:g}"
        return [(f"plaudit doctor {folder}", "what is wrong with the training"), (again, "PPO again, more slowly")]
    if judged_by_people(recipe) and "people" not in summary and "reward" in summary:
        return [(f"plaudit label compare {folder}", "people compare both, blind; then plaudit report"), chat]
    return [chat, (f"plaudit export {folder} --to my-policy", "a plain Hugging Face checkpoint")]


def stages_of(recipe: dict[str, Any]) -> list[str]:
    """The stages that a resolved recipe needs before its report: those of the reward model only where it pays PPO."""
    sources = recipe["ppo"]["rewards"]
    trained = not sources or any(source["trained"] for source in sources)
    return [stage for stage in needed_stages(trained, stages_beside(recipe.get("baselines", ()))) if stage != "report"]


def gather(run: Run) -> dict[str, Any]:
    """Every stage's own summary, with seconds, memory and versions beside them."""
    stages = stages_of(read_recipe(run.folder.path))
    summary = {stage: read_json(run.folder.require(f"{stage}/summary.json", stage)) for stage in stages}
    finished = {stage: entry for stage, entry in run.folder.finished().items() if stage in stages}
    people = compared_by_people(run)
    summary |= {} if people is None else {"people": people}
    summary["seconds"] = {stage: finished[stage]["seconds"] for stage in stages if stage in finished}
    summary["peak_rss_mb"] = max((entry["peak_rss_mb"] for entry in finished.values()), default=None)
    on_gpu = [entry["peak_gpu_mb"] for entry in finished.values() if "peak_gpu_mb" in entry]
    summary |= {"peak_gpu_mb": max(on_gpu)} if on_gpu else {}
    rounds = rounds_table(run.before, run.folder.path, summary)
    return {**summary, **({"rounds": rounds} if rounds else {}), "versions": versions()}


def labels_of(run: Run) -> "Ledger | None":
    """What people said on the labelling page of this run, as far as it counts; None where there is no database."""
    where = label_database(run.folder.path)
    if "://" not in where and not Path(where).is_file():
        return None
    # Here, because it needs the extra `label`, which a run without people does not.
    from plaudit.label.db.database import open_as_it_is, snapshot
    from plaudit.label.db.ledger import counting, read

    engine = open_as_it_is(where)
    with snapshot(engine) as connection:
        ledger = read(connection)
    engine.dispose()
    return counting(ledger)


def compared_by_people(run: Run) -> dict[str, Any] | None:
    """How often people ranked PPO's reply above SFT's in a blind comparison, ties half, with the interval that holds
    after every label (`win_rate`).

    None where nobody compared. Only replies of the evaluation as it is now count: what was said of an older policy
    stays in the database.
    """
    ledger = labels_of(run)
    if ledger is None:
        return None
    from plaudit.label.db.ledger import standing
    from plaudit.label.quality.agreement import asked
    from plaudit.label.quality.sources import win_rate
    from plaudit.label.queue.items import compared

    now = {draft.id for draft in compared(run.folder.path, run.prompts)[0]}
    labels = [label for label in asked(standing(ledger.labels)) if label.item in now]
    return win_rate([item for item in ledger.items if item.id in now], labels, "ppo", "sft", ledger.overlap)


def said_of_people(run: Run) -> list[str]:
    """The alarms of the labelling dashboard about those who ranked for this run."""
    ledger = labels_of(run)
    if ledger is None:
        return []
    from plaudit.label.quality.dashboard import dashboard

    alarms = dashboard(ledger, time.time())["alarms"]
    return [f"Annotators: {row['who'] + ': ' if row['who'] else ''}{row['what']}; {row['do']}." for row in alarms]


def closing_rows(summary: dict[str, Any]) -> dict[str, str]:
    """The table a run ends with; plain ASCII, so that any terminal shows it."""
    evaluated = summary["evaluate"]

    def pair(name: str) -> str:
        return f"{evaluated[f'{name}_sft']:.3f} -> {evaluated[f'{name}_ppo']:.3f}"

    def with_interval(section: dict[str, Any], name: str) -> str:
        return f"{section[name]:.3f} {format_value(section[f'{name}_ci'])}"

    rows = {}
    if kept_sft(summary):
        rows["kept"] = "the SFT model (no update was better)"
    elif "gold_gain" in evaluated:
        rows["gold score"] = pair("gold")
        rows["gold gain, 95 % interval"] = with_interval(evaluated, "gold_gain")
        rows["win rate, 95 % interval"] = with_interval(evaluated, "win_rate")
    if people := summary.get("people"):
        limits = format_value([people["low"], people["high"]])
        rows["people prefer PPO, 95 % interval"] = f"{people['win_rate']:.3f} {limits}"
    rows["proxy score"] = pair("proxy")
    rows["KL, nats a reply"] = f"{evaluated['kl']:.3f}"
    rows["length, tokens"] = pair("length")
    rows["reference NLL, nats a token"] = pair("ref_nll")
    rows["EOS rate"] = pair("eos")
    reward = summary.get("reward", {})
    for name, what in (("accuracy", "accuracy"), ("auc", "AUC on labels")):
        if name in reward:
            rows[f"reward {what}, 95 % interval"] = with_interval(reward, name)
            rows[f"{what} of length alone"] = with_interval(reward, f"length_baseline_{name}")
    rows["minutes"] = f"{sum(summary['seconds'].values()) / 60:.1f}"
    rows["peak memory, MB"] = "unknown" if summary["peak_rss_mb"] is None else f"{summary['peak_rss_mb']:.0f}"
    return rows | ({"peak memory of the GPU, MB": f"{summary['peak_gpu_mb']:.0f}"} if "peak_gpu_mb" in summary else {})


def render(run: Run, summary: dict[str, Any]) -> str:
    """The page, as HTML. Autoescape is on: replies, prompts, kinds and names are hostile input."""
    folder = run.folder.path
    recipe = read_recipe(folder)
    replies = read_metrics(run.folder.require("evaluate/replies.jsonl", "evaluate"))
    prompts = [row["id"] for row in replies]
    environment = read_json(folder / ENVIRONMENT)
    updates, looks = read_metrics(folder / "ppo/metrics.jsonl"), read_metrics(folder / "ppo/evaluations.jsonl")
    kinds = gold_by_kind(replies)
    trained = "skipped" not in summary["sft"]
    card, labels = None, None
    learning = [sft_plot(read_metrics(folder / "sft/metrics.jsonl"))] if trained else []
    if "reward" in summary:
        cards = [folder / "reward" / f"{name}.json" for name in ("card", "labels")]
        card, labels = (read_json(path) if path.is_file() else None for path in cards)
        learning += reward_plots(read_metrics(folder / "reward/metrics.jsonl"), summary["reward"])
    return render_page(
        "report/report.html.j2",
        parts=PARTS,
        recipe=recipe,
        temperature=stage_settings(recipe, "evaluate")["temperature"],
        recipe_yaml=(folder / RECIPE).read_text(encoding="utf-8"),
        environment=environment,
        environment_json=json.dumps(environment, indent=2, ensure_ascii=False),
        machine=run.machine,
        summary=summary,
        by_people=judged_by_people(recipe),
        raised=[
            *raised_alarms((card, labels), summary, updates, looks, stage_settings(recipe, "ppo")),
            *said_of_people(run),
        ],
        kl_budget=recipe["ppo"]["kl_budget"] or KL_BUDGET,
        proxy_ci=bootstrap_interval([row["ppo"]["proxy"] - row["sft"]["proxy"] for row in replies], prompts),
        examples=choose_examples(replies),
        kinds=kinds,
        gap_mean=max(row["sampler_gap_mean"] for row in updates),
        gap_p99=max(row["sampler_gap_p99"] for row in updates),
        slope=max((abs(row["sampler_slope"]) for row in updates if "sampler_slope" in row), default=None),
        finished=run.folder.finished(),
        stages=stages_of(recipe),
        update_seconds=seconds_by_part(read_metrics(folder / "ppo/times.jsonl")),
        learning_plots=learning,
        ppo_plots=ppo_plots(updates, looks, stage_settings(recipe, "ppo"), summary["ppo"]["kept_update"]),
        score_plots=score_plots(replies) + ([kind_plot(kinds)] if kinds else []),
        method_names=NAMES,
        baselines=verdicts(summary["baselines"]) if "baselines" in summary else [],
        baseline_plots=[baselines_plot(summary["baselines"])] if "baselines" in summary else [],
        card=card,
        labels=labels,
        reward_plots=card_plots(card) if card else [],
        open_mistakes=False,
    )
