"""`plaudit.run(recipe)` and what it gives: the run's numbers, its policy and its reward model.

`import plaudit` loads none of this; a name is loaded when it is first used.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from plaudit.data.files import read_json
from plaudit.dist.machine import choose_machine
from plaudit.errors import UserError
from plaudit.models.load import quiet_libraries
from plaudit.records import Completion, Prompt
from plaudit.rewards.contract import RewardContract
from plaudit.rewards.saved import load_reward_model
from plaudit.rewards.texts.answers import ScoreItem
from plaudit.run.folder import ORDER, SUMMARY, read_recipe
from plaudit.run.metrics import read_metrics
from plaudit.stages.pipeline import run_pipeline
from plaudit.stages.plan import Flags
from plaudit.stages.recipe import load_recipe, recipe_of
from plaudit.view.card.reward_report import own_folder
from plaudit.view.chat import Asked, Policy, asked_messages


class RewardModel:
    """A reward model that Plaudit trained, loaded and checked: that of a run's folder, or an exported one."""

    def __init__(self, folder: str | Path):
        """UserError when none is there, or when it is not the one that was saved."""
        found = own_folder(str(folder))
        if found is None:
            raise UserError(f"{folder}: no reward model of Plaudit is here; give a run's folder or an exported model")
        quiet_libraries()
        machine = choose_machine(RewardContract.load(found).dtype)
        self._model = load_reward_model(found, machine.dtype, machine.device)

    def score(self, prompts: Sequence[Asked], replies: Sequence[str]) -> list[float]:
        """The normalised score of each reply to the prompt at its place: 0 is the mean of the training replies, 1 their
        standard deviation.

        >>> reward_model = plaudit.RewardModel("runs/demo")
        >>> scores = reward_model.score(["How do I boil an egg?"] * 2, ["Eight minutes in hot water.", "No."])
        >>> len(scores)
        2
        """
        if len(prompts) != len(replies):
            raise UserError(f"{len(prompts)} prompts and {len(replies)} replies: give a prompt for every reply")
        items = [
            ScoreItem(str(n), Prompt(str(n), asked_messages(n, asked), "", "test"), Completion(reply))
            for n, (asked, reply) in enumerate(zip(prompts, replies, strict=True), start=1)
        ]
        scores = self._model.score(items)
        return [scores[item.id] for item in items]


class Run:
    """A run in its folder, finished or as far as it has come.

    >>> demo = plaudit.Run("runs/demo")
    >>> demo.recipe["name"]
    'demo'
    >>> 0 <= demo.summary["reward"]["accuracy"] <= 1
    True
    """

    def __init__(self, folder: str | Path):
        """UserError when no run is there."""
        self.folder = Path(folder)
        self.recipe: dict[str, Any] = read_recipe(self.folder)
        """The resolved recipe: every key."""

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def summary(self) -> dict[str, Any]:
        """The numbers of every stage: summary.json, which the last one writes; before that those of the stages that
        ended."""
        if (path := self.folder / SUMMARY).is_file():
            found: dict[str, Any] = read_json(path)
            return found
        left = {stage: self.folder / stage / "summary.json" for stage in ORDER}
        return {stage: read_json(path) for stage, path in left.items() if path.is_file()}

    def metrics(self, stage: str) -> list[dict[str, Any]]:
        """What a stage logged, step by step: the rows of its metrics.jsonl."""
        return read_metrics(self.folder / stage / "metrics.jsonl")

    def policy(self, stage: str = "ppo") -> Policy:
        """The policy that PPO trained; with `stage="sft"` the SFT model."""
        return Policy(self.folder, stage)

    def reward_model(self) -> RewardModel:
        """The reward model that the run trained."""
        return RewardModel(self.folder)


def run(
    recipe: str | Path | Mapping[str, Any],
    *,
    start: str | None = None,
    until: str | None = None,
    resume: bool = False,
    **overrides: Any,
) -> Run:
    """Run a recipe, a file or a mapping of its keys; returns the run.

    `start`, `until` and `resume` are `plaudit run`'s `--from`, `--until` and `--resume`. `overrides` are recipe keys:
    of a section those that are named (`ppo={"updates": 10}`), or by dotted name (`**{"ppo.updates": 10}`). Relative
    paths of data start at the recipe's folder, those of a mapping at the working directory. UserError for what can be
    mended.

    >>> demo = plaudit.run("recipe.yaml", resume=True)
    >>> demo
    Run('runs/demo')
    """
    flags = Flags(start=start, until=until, resume=resume)
    changes = list(_as_overrides(overrides))
    if isinstance(recipe, Mapping):
        return Run(run_pipeline(recipe_of(dict(recipe), Path.cwd(), changes), flags))
    return Run(run_pipeline(load_recipe(Path(recipe), changes), flags))


def _as_overrides(given: Mapping[str, Any], section: str = "") -> Iterator[str]:
    """`key=value` as on the command line; of a section, which is a mapping, a line a key."""
    for key, value in given.items():
        if isinstance(value, Mapping) and not section:
            yield from _as_overrides(value, f"{key}.")
        else:
            plain = str(value) if isinstance(value, Path) else value
            text = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=float("inf"))
            yield f"{section}{key}={text.removesuffix('...' + chr(10)).strip()}"
