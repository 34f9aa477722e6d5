"""README.md of an exported model: what it was made of, how it was trained, how it was judged; from the run's files.

The header is what the Hugging Face Hub reads. It names no licence: that of the base and of the data is the user's to
know. Nor does the card name a path of this machine.
"""

from pathlib import Path
from typing import Any

import yaml

from plaudit.data.files import read_json, write_text
from plaudit.run.folder import judged_by_people, read_recipe, stage_settings

STEPS = {
    "sft": "Supervised fine-tuning on demonstrations",
    "preferences": "",
    "reward": "A reward model of them",
    "ppo": "Proximal policy optimisation against the reward model, with a KL penalty to the SFT model",
}
JUDGED = {"policy": ("ppo", "evaluate"), "reward": ("reward",)}


def write_card(run: Path, role: str, to: Path) -> None:
    """Write `to`/README.md of the policy or the reward model of the run in the folder `run`."""
    recipe = read_recipe(run)
    write_text(to / "README.md", "\n".join([*_header(recipe, role), *_text(run, recipe, role)]) + "\n")


def _header(recipe: dict[str, Any], role: str) -> list[str]:
    base = recipe["model"]
    header: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation" if role == "policy" else "text-classification",
        "tags": ["plaudit", "rlhf", "ppo" if role == "policy" else "reward-model"],
    }
    if _is_hub_id(base):
        header["base_model"] = base
    return ["---", yaml.safe_dump(header, sort_keys=False).strip(), "---", ""]


def _is_hub_id(source: str) -> bool:
    return source.count("/") == 1 and not source.startswith((".", "/", "~")) and not Path(source).exists()


def _text(run: Path, recipe: dict[str, Any], role: str) -> list[str]:
    base = recipe["model"] if _is_hub_id(recipe["model"]) else Path(recipe["model"]).name
    what = {"policy": "a chat model trained by RLHF", "reward": "a reward model: one score for a conversation"}[role]
    lines = [f"# {recipe['name']}, {role}", "", f"This is {what}, made of `{base}` with Plaudit.", ""]
    lines += ["## How it was trained", ""]
    for stage in ("sft", "preferences", "reward", "ppo") if role == "policy" else ("sft", "preferences", "reward"):
        if (run / stage / "summary.json").is_file():
            lines.append(f"- {STEPS[stage]}{_of(run, recipe, stage)}.")
    if recipe.get("quantise") is not None:
        lines += ["", _bits(recipe)]
    lines += ["", "## How to use it", "", _use(run, recipe, role), "", "## How it was judged", ""]
    for stage in JUDGED[role]:
        if numbers := _numbers(run / stage / "summary.json"):
            lines += [f"`{stage}/summary.json` of the run:", "", "| measure | value |", "| --- | --- |"]
            lines += [f"| `{name}` | {value} |" for name, value in numbers.items()] + [""]
        else:
            lines += [f"Stage `{stage}` of the run has not ended, so there are no numbers of it here.", ""]
    return lines[:-1]


def _bits(recipe: dict[str, Any]) -> str:
    """What a base in few bits means for the weights of an export."""
    return (
        f"While it was trained the base was held in {recipe['quantise']}. The adapters are merged into the weights "
        f"that those bits stand for, not into those of `{Path(recipe['model']).name}`: what was trained is exported."
    )


def _of(run: Path, recipe: dict[str, Any], stage: str) -> str:
    """On what a stage worked."""
    people = judged_by_people(recipe)
    numbers = _numbers(run / stage / "summary.json")
    judged = {"rankings": "rankings of replies", "labels": "labels of single replies"}
    match stage:
        case "sft":
            if recipe["sft"].get("skip"):
                return " was skipped: the model came as it is"
            return f" (`{Path(recipe['data']['demonstrations']).name}`)"
        case "preferences":
            kinds = [f"{numbers[kind]} {what}" for kind, what in judged.items() if kind in numbers]
            by_people = people or "rankings" not in numbers
            return f"{' and '.join(kinds)}, by {'people' if by_people else 'a simulated annotator'}"
        case "ppo" if recipe["ppo"]["rewards"]:
            return "; paid by the sources that the recipe names"
        case _:
            return ""


def _use(run: Path, recipe: dict[str, Any], role: str) -> str:
    system = recipe["data"]["system"]
    opens = "" if system is None else " The chat template opens with the system message of the training."
    if role == "reward" and not (run / "reward/model").exists():
        return "An adapter and a head on the SFT model beside them; `reward/README.md` says how their score is read."
    if role == "reward":
        return (
            "`AutoModelForSequenceClassification` gives the raw score of a conversation that the chat template has "
            f"written, up to its last end-of-turn token; `reward.json` holds the rules it stands under.{opens}"
        )
    law = f"temperature {stage_settings(recipe, 'ppo')['temperature']:g}, no top-k, no top-p"
    return f"`generation_config.json` samples as the training did: {law}.{opens}"


def _numbers(path: Path) -> dict[str, str]:
    """The numbers of a stage's summary, rounded for reading; empty where there is none."""
    summary = read_json(path) if path.is_file() else {}
    return {name: shown for name, value in summary.items() if (shown := _shown(value)) is not None}


def _shown(value: Any) -> str | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    if isinstance(value, list) and value and all(isinstance(part, int | float) for part in value):
        return f"{value[0]:.4g} to {value[-1]:.4g}" if len(value) == 2 else None
    return None
