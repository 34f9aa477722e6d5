"""The plan of a run: which stages, in which order, which of them goes on from a checkpoint. Pure: it reads no file and
prints nothing; pipeline.py carries it out."""

from collections.abc import Set
from dataclasses import dataclass, replace
from pathlib import Path

from plaudit.errors import UserError
from plaudit.rewards.config import uses_trained
from plaudit.run.folder import BESIDE, ORDER, needed_stages, stages_after, stages_beside
from plaudit.stages.recipe import MAY_CHANGE, SHARED, Recipe

NEEDS = {
    "preferences": ("sft/model/config.json", "sft"),
    "reward": ("preferences/summary.json", "preferences"),
    "ppo": ("reward/reward.json", "reward"),
    "rejection": ("ppo/summary.json", "ppo"),
    "dpo": ("preferences/rankings.jsonl", "preferences"),
    "evaluate": ("ppo/model/config.json", "ppo"),
    "baselines": ("evaluate/summary.json", "evaluate"),
    "report": ("evaluate/summary.json", "evaluate"),
}
"""What a stage reads first, and the stage that makes it."""

READ_LATER = (
    "sft/model",
    "sft/summary.json",
    "sft/metrics.jsonl",
    "preferences/rankings.jsonl",
    "preferences/earlier.jsonl",
    "preferences/unpaired.jsonl",
    "preferences/summary.json",
    "reward",
    "ppo/model",
    "ppo/rewards.json",
    "ppo/summary.json",
    "ppo/metrics.jsonl",
    "ppo/evaluations.jsonl",
    "ppo/validation",
    "evaluate",
    "rejection/model",
    "rejection/summary.json",
    "dpo/model",
    "dpo/summary.json",
    "baselines/summary.json",
)
"""What later stages read of the earlier ones: it is looked at when a run is resumed."""

AUTO = "auto"
"""Of `--from`: the first stage whose inputs have changed; where none have, the run goes on as with --resume."""


@dataclass(frozen=True)
class Flags:
    """What the command line asked for; nothing of it is a new run from the first stage to the last."""

    start: str | None = None
    """`--from`: this stage and those after it, again. It wins over `resume`; `AUTO` must have become a stage before a
    plan is made (`found`)."""
    only: tuple[str, ...] = ()
    """`plaudit STAGE`: these stages alone."""
    resume: bool = False
    """`--resume`: the stages that have not ended, the first of them from its last checkpoint. With `only`, of which
    rejection and dpo alone ask for it, and torchrun when it starts again: those, likewise."""
    inexact: bool = False
    """`--inexact`: that checkpoint may be of other code, versions or another machine."""
    copy_from: Path | None = None
    """`--copy-from`: a run whose stages before `start` are taken over into a new folder."""
    until: str | None = None
    """`--until`: of the stages that would run, those up to this one, which is the last."""

    def __post_init__(self) -> None:
        if self.until is not None and self.until not in ORDER:
            raise UserError(f"--until {self.until!r}: not a stage; the stages are {', '.join(ORDER)}")
        if self.start is not None and self.start not in (*ORDER, AUTO):
            raise UserError(f"--from {self.start!r}: not a stage; the stages are {', '.join(ORDER)}, or {AUTO}")


NOTHING_ASKED = Flags()


def found(flags: Flags, changed: tuple[str, list[str]] | None) -> tuple[Flags, str]:
    """`--from auto` as another flag, given the first stage that read something else and what; and why."""
    if changed is None:
        return replace(flags, start=None, resume=True), "--from auto: nothing that a stage read has changed"
    stage, changes = changed
    more = f"; and {len(changes) - 5} more" if len(changes) > 5 else ""
    return replace(flags, start=stage), f"--from auto: from {stage}, because of {'; '.join(changes[:5])}{more}"


@dataclass(frozen=True)
class Plan:
    """What a run does, in order."""

    stages: tuple[str, ...]
    from_checkpoint: str | None
    """The stage among them that goes on from its checkpoint; all others begin anew."""
    inexact: bool
    in_old_folder: bool
    """Whether the run's folder may hold this run already."""
    checked: tuple[str, ...]
    """Earlier stages whose outputs must be those they left."""
    relied_on: tuple[str, ...]
    """Earlier stages that ended: what they read must be what is there now (inputs.py)."""
    may_change: tuple[str, ...]
    """Keys and sections that may differ from the recipe the folder was made with."""
    needs: dict[str, tuple[str, str]]
    """Stage -> the file it reads first, and the stage that makes it."""
    lines: tuple[str, ...]
    """What is printed before it starts."""


def beside(recipe: Recipe, flags: Flags) -> tuple[str, ...]:
    """The stages beside PPO: those of the recipe, and those that are asked for by name."""
    return (*stages_beside(recipe.baselines), *(name for name in BESIDE if name in (*flags.only, flags.start)))


def plan_of(recipe: Recipe, finished: Set[str], checkpoints: Set[str], flags: Flags) -> Plan:
    """What `flags` ask of a run whose stages `finished` have ended and whose stages `checkpoints` have some.

    Only the sections of the stages that begin anew may change, for what they made before is replaced, and in a run that
    goes on MAY_CHANGE. UserError for a stage that is asked for and that the recipe has no use for.
    """
    needed = needed_stages(uses_trained(recipe.ppo.rewards), beside(recipe, flags))
    lines: list[str] = []
    checked: tuple[str, ...] = ()
    resume = flags.resume and flags.start is None
    asked = flags.only or (ORDER[ORDER.index(flags.start) :] if flags.start else ORDER)
    stages = tuple(name for name in asked if name in needed)
    if resume and not flags.only:
        first = next((i for i, name in enumerate(needed) if name not in finished), len(needed) - 1)
        stages, checked = needed[first:], needed[:first]
        if checked:
            lines.append(f"Resuming at {stages[0]}: {', '.join(checked)} had ended")
        elif stages[0] not in checkpoints:
            lines.append(f"Nothing to resume in {recipe.run_folder}: the run begins at {stages[0]}")
    if flags.until is not None:
        begins, last = stages[0], ORDER.index(flags.until)
        stages = tuple(name for name in stages if ORDER.index(name) <= last)
        if not stages:
            raise UserError(
                f"--until {flags.until}: the run begins at {begins}, which comes after it; name a later one"
            )
    if recipe.rounds.number > 1 and "sft" in stages:
        raise UserError(
            f"stage sft: round {recipe.rounds.number} stands on the SFT model of its run, {recipe.run_folder.parent}; "
            "run the stage on the recipe there"
        )
    skipped = tuple(name for name in asked if name not in (*needed, *BESIDE))
    if not stages:
        raise UserError(f"stage {skipped[0]}: this recipe has no use for it; add `trained: true` to ppo.rewards")
    if skipped:
        lines.append(f"Skipping {' and '.join(skipped)}: ppo.rewards has no `trained: true`, so nothing uses them")
    from_checkpoint = stages[0] if resume and stages[0] in checkpoints else None
    later = ORDER[ORDER.index(stages[0]) + (from_checkpoint is not None) :]
    kept = {*finished} - {*stages, *stages_after(stages[0])}
    anew = tuple(name for name in later if name not in kept)
    # Of the sections that several stages read: whole where all of these begin anew, else what they say of those.
    shared = [section for section, readers in SHARED.items() if set(readers) <= set(anew)]
    shared += [f"{section}.stages.{name}" for section, readers in SHARED.items() for name in readers if name in anew]
    # Who samples, and who holds what; a stage that goes on from its checkpoint looks itself (train/saving.py).
    shared += ["rollout", "distributed"]
    shared += ["rounds"] if recipe.rounds.number == 1 or "preferences" in anew else []  # round 1 reads none of it
    old = resume or flags.only != () or flags.start is not None
    needs = NEEDS if "reward" in needed else {**NEEDS, "ppo": NEEDS["preferences"]}
    return Plan(
        stages=stages,
        from_checkpoint=from_checkpoint,
        inexact=flags.inexact,
        in_old_folder=old,
        checked=checked,
        relied_on=tuple(name for name in needed[: needed.index(stages[0])] if name in finished),
        may_change=(*anew, *shared, *(MAY_CHANGE if old else ())),
        needs=needs,
        lines=tuple(lines),
    )
