"""The plan of a run: what every command does, in an empty folder, one that stopped half-way and one that has ended."""

from typing import Any

import pytest

from plaudit.errors import UserError
from plaudit.stages.plan import Flags, Plan, plan_of
from plaudit.stages.recipe import MAY_CHANGE, Recipe

ALL = "sft preferences reward ppo evaluate report"
WITHOUT = "sft ppo evaluate report"
"""Without `trained` nothing uses a reward model."""


def recipe(*, trained: bool) -> Recipe:
    rewards = [{"trained": True}] if trained else [{"function": "a:b"}]
    data = {"prompts": "p", "demonstrations": "d"}
    return Recipe.model_validate({"name": "a", "model": "b", "data": data, "ppo": {"rewards": rewards}})


def plan(trained: bool, finished: str, checkpoints: str, flags: Flags) -> Plan:
    return plan_of(recipe(trained=trained), set(finished.split()), set(checkpoints.split()), flags)


RUN, RESUME, INEXACT = Flags(), Flags(resume=True), Flags(resume=True, inexact=True)


def from_(stage: str, **more: Any) -> Flags:
    return Flags(start=stage, **more)


def only(*stages: str) -> Flags:
    return Flags(only=stages)


def on(stage: str) -> str:
    """This stage and those after it."""
    beside = {"rejection": "rejection dpo baselines report", "dpo": "dpo baselines report"}
    return beside.get(stage) or ALL[ALL.index(stage) :]


SHARED = {
    "sft": "sampling lora optimiser lora.stages.sft optimiser.stages.sft",
    "preferences": "sampling sampling.stages.preferences",
    "reward": "lora.stages.reward optimiser.stages.reward",
    "ppo": "sampling.stages.ppo lora.stages.ppo optimiser.stages.ppo",
    "evaluate": "sampling.stages.evaluate",
    "report": "",
}
"""What may change of the shared sections when a stage begins anew and all after it do, beyond what may for those."""


def may_change(anew: list[str]) -> set[str]:
    beside = (
        {"rejection", "dpo", "baselines"} if "evaluate" in anew else set()
    )  # comes before the report, and is made anew where it is
    # How later rounds begin may change in round 1, which reads none of it; who samples, and who holds what, may between
    # two stages.
    return {
        "rounds",
        "rollout",
        "distributed",
        *anew,
        *beside,
        *(key for stage in anew for key in SHARED.get(stage, "").split()),
    }


NEW = [
    # flags, `trained` pays, finished, with checkpoints, and the stages that run, all of them anew
    (RUN, True, "", "", ALL),
    (RUN, True, "sft", "preferences", ALL),
    (RUN, True, ALL, "", ALL),
    (RUN, False, "", "", WITHOUT),
    (from_("sft"), True, ALL, "", ALL),
    (from_("ppo"), True, ALL, "ppo", on("ppo")),
    (from_("ppo"), True, "", "", on("ppo")),
    (from_("report"), True, ALL, "", "report"),
    (from_("ppo", resume=True), True, "sft", "preferences", on("ppo")),
    (from_("preferences"), False, ALL, "", on("ppo")),
    (from_("evaluate"), False, WITHOUT, "", on("evaluate")),
    (Flags(until="reward"), True, "", "", "sft preferences reward"),
    (Flags(until="reward"), False, "", "", "sft"),
    (from_("preferences", until="preferences"), True, ALL, "", "preferences"),
    (only("sft"), True, "", "", "sft"),
    (only("reward"), True, "sft preferences", "reward", "reward"),
    (only("ppo"), False, "sft", "", "ppo"),
    (only("report"), True, ALL, "", "report"),
    (only("rejection"), True, "sft preferences reward ppo", "rejection", "rejection"),
    (only("dpo"), True, "sft preferences", "dpo", "dpo"),
    (only("dpo"), False, "sft preferences", "", "dpo"),
]


@pytest.mark.parametrize(("flags", "trained", "finished", "checkpoints", "stages"), NEW)
def test_a_command_without_resume(flags: Flags, trained: bool, finished: str, checkpoints: str, stages: str) -> None:
    """What the stages and all after them made is replaced, so their keys may change; in a new run no other may."""
    made = plan(trained, finished, checkpoints, flags)
    assert " ".join(made.stages) == stages
    assert (made.from_checkpoint, made.checked, made.inexact) == (None, (), False)
    new = flags.start is None and not flags.only
    assert made.in_old_folder == (not new)
    assert set(made.may_change) == may_change(on(made.stages[0]).split()) | (set() if new else {*MAY_CHANGE})


def test_a_resumed_run_goes_on_up_to_the_stage_that_is_named_and_no_further() -> None:
    goes_on = plan(True, "sft preferences", "reward", Flags(resume=True, until="ppo"))
    assert (goes_on.stages, goes_on.from_checkpoint) == (("reward", "ppo"), "reward")
    with pytest.raises(UserError, match=r"--until reward: the run begins at ppo, which comes after it"):
        plan(True, "sft preferences reward", "", Flags(resume=True, until="reward"))
    with pytest.raises(UserError, match=r"--until 'card': not a stage; the stages are sft, preferences"):
        Flags(until="card")


def test_what_dpo_made_by_name_was_made_with_stays_in_the_recipe() -> None:
    """--from ppo leaves it as it is; a recipe that has it as a stage makes it anew."""
    ended = {*ALL.split(), "dpo"}
    assert "dpo" not in plan_of(recipe(trained=True), ended, set(), from_("ppo")).may_change
    assert "dpo" in plan_of(recipe(trained=True), ended, set(), from_("preferences")).may_change
    beside = recipe(trained=True).model_copy(update={"baselines": ["dpo"]})
    assert "dpo" in plan_of(beside, ended, set(), from_("ppo")).may_change


def test_the_baselines_of_a_recipe_are_stages_of_its_runs() -> None:
    """DPO learns rankings, also where no reward model pays PPO."""
    beside = recipe(trained=True).model_copy(update={"baselines": ["best_of_n", "rejection", "dpo"]})
    assert " ".join(plan_of(beside, set(), set(), RUN).stages) == (
        "sft preferences reward ppo evaluate rejection dpo baselines report"
    )
    without = recipe(trained=False).model_copy(update={"baselines": ["best_of_n"]})
    assert " ".join(plan_of(without, set(), set(), RUN).stages) == "sft ppo evaluate baselines report"
    without = recipe(trained=False).model_copy(update={"baselines": ["dpo"]})
    assert " ".join(plan_of(without, set(), set(), RUN).stages) == "sft preferences ppo evaluate dpo baselines report"


RESUMED = [
    # `trained` pays, finished, with checkpoints, and: the stages that run, the one that goes on from its checkpoint
    (True, "", "", ALL, None),
    (True, "", "sft", ALL, "sft"),
    (True, "sft", "", on("preferences"), None),
    (True, "sft preferences", "reward", on("reward"), "reward"),
    # Checkpoints of a stage that ended are none to go on from.
    (True, "sft preferences reward", "sft reward", on("ppo"), None),
    # A stage that ended behind one that did not was made of what is replaced now.
    (True, "sft reward", "", on("preferences"), None),
    (True, ALL, "", "report", None),
    (False, "sft", "ppo", on("ppo"), "ppo"),
    (False, "sft", "", on("ppo"), None),
    (False, WITHOUT, "", "report", None),
]


@pytest.mark.parametrize("flags", [RESUME, INEXACT])
@pytest.mark.parametrize(("trained", "finished", "checkpoints", "stages", "goes_on"), RESUMED)
def test_resuming(
    flags: Flags, trained: bool, finished: str, checkpoints: str, stages: str, goes_on: str | None
) -> None:
    """The keys of the stage that goes on may not change; those before it are checked."""
    made = plan(trained, finished, checkpoints, flags)
    assert " ".join(made.stages) == stages
    assert made.from_checkpoint == goes_on
    whole = ALL if trained else WITHOUT
    assert " ".join(made.checked) == whole.removesuffix(stages).strip()
    assert (made.inexact, made.in_old_folder) == (flags == INEXACT, True)
    anew = on(made.stages[0]).split()
    assert set(made.may_change) == may_change(anew[1:] if goes_on else anew) | {*MAY_CHANGE}


def test_one_stage_whose_processes_were_started_anew_goes_on_alone() -> None:
    made = plan(True, "sft preferences reward", "ppo", Flags(only=("ppo",), resume=True))
    assert (made.stages, made.from_checkpoint, made.checked) == (("ppo",), "ppo", ())


@pytest.mark.parametrize(
    ("flags", "trained", "finished", "lines"),
    [
        (RUN, True, "", ()),
        (RESUME, True, "", ("Nothing to resume in runs/a: the run begins at sft",)),
        (RESUME, True, "sft preferences", ("Resuming at reward: sft, preferences had ended",)),
        (from_("ppo"), True, ALL, ()),
        (from_("ppo"), False, ALL, ()),
        (only("ppo"), False, "sft", ()),
        (RUN, False, "", ("Skipping preferences and reward: {}",)),
        (from_("reward"), False, "", ("Skipping reward: {}",)),
        (RESUME, False, "sft", ("Resuming at ppo: sft had ended", "Skipping preferences and reward: {}")),
    ],
)
def test_what_it_says(flags: Flags, trained: bool, finished: str, lines: tuple[str, ...]) -> None:
    why = "ppo.rewards has no `trained: true`, so nothing uses them"
    assert plan(trained, finished, "", flags).lines == tuple(line.format(why) for line in lines)


def test_without_a_reward_model_ppo_starts_from_the_sft_model() -> None:
    assert plan(True, "", "", RUN).needs["ppo"] == ("reward/reward.json", "reward")
    assert plan(False, "", "", RUN).needs["ppo"] == ("sft/model/config.json", "sft")


@pytest.mark.parametrize("stage", ["preferences", "reward"])
def test_a_stage_that_the_recipe_has_no_use_for_is_refused(stage: str) -> None:
    with pytest.raises(UserError, match=rf"stage {stage}: this recipe has no use for it; add `trained: true`"):
        plan(False, "sft", "", only(stage))
