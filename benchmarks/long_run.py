"""A long PPO run on the demo task: does the policy stay near the SFT model, does text stay text, is a good one kept?

100 updates of 16 replies of 24 tokens, everything else at the demo's defaults. SFT model, rankings and reward model are
copied from a run of the demo that has ended.

    python benchmarks/long_run.py --from-run runs/demo --folder runs/long --json
    python benchmarks/long_run.py --from-run runs/demo --folder runs/long-free --json ppo.kl_coef=0

The gold score, which PPO is not paid by, is measured on the very replies of each evaluation: a second reward function
sees them, which is watched and not paid. Repetition is that of the tokens of the
replies' texts. Ratios are to the evaluation before the first update, which is the SFT model's.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np

import task
from listening import functions_asked_here
from plaudit.data.annotator import Annotator
from plaudit.data.files import read_prompts
from plaudit.errors import UserError
from plaudit.guard.monitors import repeated_trigrams
from plaudit.models.load import load_tokenizer
from plaudit.records import Message, Prompt
from plaudit.run.folder import MANIFEST, read_recipe
from plaudit.run.metrics import read_metrics
from plaudit.run.provenance import versions
from plaudit.stages.pipeline import run_pipeline
from plaudit.stages.plan import Flags
from plaudit.stages.preferences import loop as preferences
from plaudit.stages.prepare import prepare
from plaudit.stages.recipe import load_recipe

DEMO = Path(preferences.__file__).parents[1] / "recipes" / "demo.yaml"
COPIED = ("sft", "preferences", "reward")


class _Watch:
    """What `watch` needs and keeps: the annotator, the kinds of prompts, (prompt id, reply, gold) in order."""

    annotator: Annotator
    kinds: dict[str, str]
    seen: list[tuple[str, str, float]]


def watch(items: list[dict[str, Any]]) -> dict[str, float]:
    """The second reward function of the recipe: gold, for the record."""
    scores = {}
    for item in items:
        name = item["id"].rpartition("#")[0]
        messages = tuple(Message(turn["role"], turn["content"]) for turn in item["prompt"])
        prompt = Prompt(name, messages, _Watch.kinds.get(name, "other"), "train")
        scores[item["id"]] = _Watch.annotator.utility(prompt, item["completion"])
        _Watch.seen.append((name, item["completion"], scores[item["id"]]))
    return scores


def evaluations_of(logged: list[dict[str, Any]], held_out: list[str], tokenizer: Any) -> list[dict[str, Any]]:
    """The rows of ppo/evaluations.jsonl with gold and repetition of the replies they were made of."""
    seen = [entry for entry in _Watch.seen if entry[0] in set(held_out)]
    size = len(held_out)
    assert len(seen) == size * len(logged), f"{len(seen)} held-out replies were scored in {len(logged)} evaluations"
    rows = []
    for number, row in enumerate(logged):
        part = seen[number * size : (number + 1) * size]
        ids = [task.ids_of(tokenizer, text) for _, text, _ in part]
        gold = float(np.mean([value for _, _, value in part]))
        repeated = float(np.mean([repeated_trigrams(reply) for reply in ids]))
        rows.append({**row, "gold": gold, "repeated_trigrams": repeated})
    return rows


def verdict(rows: list[dict[str, Any]], kept_update: int) -> dict[str, Any]:
    """The figures asked for: KL, repetition, entropy, and gold of the policy that was kept."""
    first, last = rows[0], rows[-1]
    kept = next(row for row in rows if row["update"] == kept_update)
    peak = max(rows, key=lambda row: row["gold"])
    before = first["repeated_trigrams"]
    return {
        "updates": last["update"],
        "kept_update": kept_update,
        "kl_kept": kept["kl"],
        "kl_last": last["kl"],
        "kl_max": max(row["kl"] for row in rows),
        "repeated_trigrams_sft": before,
        "repeated_trigrams_last": last["repeated_trigrams"],
        "repeated_trigrams_ratio": last["repeated_trigrams"] / before if before > 0 else None,
        "repeated_trigrams_ratio_max": max(row["repeated_trigrams"] for row in rows) / before if before > 0 else None,
        "entropy_ratio_last": last["entropy"] / first["entropy"],
        "entropy_ratio_min": min(row["entropy"] for row in rows) / first["entropy"],
        "gold_sft": first["gold"],
        "gold_kept": kept["gold"],
        "gold_last": last["gold"],
        "gold_peak": peak["gold"],
        "gold_peak_update": peak["update"],
        "gold_kept_of_peak": kept["gold"] / peak["gold"] if peak["gold"] > 0 else None,
    }


def measure(recipe: Path, source: Path, folder: Path, updates: int, overrides: list[str]) -> dict[str, Any]:
    """Run PPO; the figures, the stage's summary and the evaluations."""
    made_with = read_recipe(source)
    rewards = "[{trained: true}, {function: 'long_run:watch', watch: true, mean: 0.0, std: 1.0}]"
    given = [
        f"folder={folder}",
        f"seed={made_with['seed']}",
        f"model={made_with['model']}",
        f"dtype={made_with['dtype']}",
        f"ppo.updates={updates}",
        "ppo.batch_size=16",
        "ppo.minibatch_size=16",
        "sampling.stages.ppo.max_new_tokens=24",
        f"ppo.rewards={rewards}",
        *overrides,
    ]
    read = load_recipe(recipe, given)
    annotator = preferences.annotator_of(read.preferences, read.seed)
    if annotator is None:
        raise UserError(f"{recipe}: people ranked, so there is no gold score to watch")
    prompts = read_prompts(read.data.prompts)
    _Watch.annotator, _Watch.kinds, _Watch.seen = annotator, {prompt.id: prompt.kind for prompt in prompts}, []
    with functions_asked_here():
        with prepare(read).folder as opened:
            for stage in COPIED:
                shutil.copytree(source / stage, opened.path / stage)
            shutil.copy(source / MANIFEST, opened.path / MANIFEST)
        run_pipeline(read, Flags(only=("ppo",)))
    held_out = [prompt.id for prompt in prompts if prompt.split == "validation"]
    tokenizer = load_tokenizer(str(folder / "sft" / "model"))
    rows = evaluations_of(read_metrics(folder / "ppo" / "evaluations.jsonl"), held_out, tokenizer)
    summary = task.read_json(folder / "ppo" / "summary.json")
    return {
        "workload": "long run",
        "overrides": overrides,
        "held_out": len(held_out),
        **verdict(rows, summary["kept_update"]),
        "seed": read.seed,
        "versions": versions(),
        "summary": summary,
        "evaluations": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="recipe keys, for example ppo.kl_coef=0")
    parser.add_argument(
        "--from-run", type=Path, required=True, help="folder of a run that got as far as its reward model"
    )
    parser.add_argument("--folder", type=Path, required=True, help="folder of the new run")
    parser.add_argument("--recipe", type=Path, default=DEMO, help="recipe that run was made with; the demo's")
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--out", type=Path, help="write everything there")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    given = parser.parse_args()
    try:
        found = measure(given.recipe, given.from_run, given.folder, given.updates, given.overrides)
    except UserError as error:
        parser.error(str(error))
    task.finish(found, given.out, given.json)


if __name__ == "__main__":
    # PPO imports `long_run` to find `watch`; it must be this very module, so that both see one record.
    import long_run

    long_run.main()
