"""Row 28: every option of PPO changes the loss, the data, the schedule or the outcome, or the config refuses it.

One parametrised test over all fields of `PPOConfig`: a field that is not listed here fails it.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError

from conftest import tiny_stage
from plaudit.algo.rewards import adapt_kl
from plaudit.errors import UserError
from plaudit.guard.limits import WatchConfig
from plaudit.models.recompute import layers_of
from plaudit.run.metrics import Clock, read_metrics
from plaudit.stages.ppo import loop as ppo
from plaudit.stages.ppo.config import PPOConfig
from plaudit.stages.ppo.rollout import picked, score_references
from plaudit.stages.ppo.trainer import layout
from plaudit.train.run import Run

DOCS = Path(__file__).resolve().parents[2] / "docs"
BASE = {
    "updates": 3,
    "micro_batch_size": 2,
    "critic_learning_rate": PPOConfig().critic_learning_rate,
    "keep_by": None,
}
# A score that rises with every call, and one that falls.
RUNS_AWAY = """
rising = falling = 0

def paid(items):
    global rising
    rising += 1
    return {item["id"]: float(rising) for item in items}

def watched(items):
    global falling
    falling -= 1
    return {item["id"]: float(falling) for item in items}
"""


@dataclass(frozen=True)
class Case:
    """`change` beside `base` must be seen: in the training of three updates, in how they were computed (layout,
    recomputed, sampled from; the policy is then the same but for rounding), or in a whole run."""

    change: dict[str, Any]
    base: dict[str, Any] = field(default_factory=dict)
    seen_in: str = "training"


def own_reward(**more: Any) -> dict[str, Any]:
    return {"function": "FILE:watched", "mean": 0.0, "std": 1.0, **more}


GAMED = {
    "rewards": [{"function": "FILE:paid", "mean": 0.0, "std": 1.0}, own_reward(watch=True)],
    "updates": 5,
    "score_scale": "none",
    "kl_budget": 1000.0,
}
# Refused on a CPU: that the numbers stay and what moves is in tests/stages/test_ppo_full.py.
WITH_A_GPU = {"offload_reference"}
CASES: dict[str, Case] = {
    "updates": Case({"updates": 6}),
    "batch_size": Case({"batch_size": 6}),
    "replies_per_prompt": Case({"replies_per_prompt": 2}),
    "minibatch_size": Case({"minibatch_size": 4}),
    "micro_batch_size": Case({"micro_batch_size": 1}, seen_in="layout"),
    "micro_batch_tokens": Case(
        {"micro_batch_tokens": 120, "micro_batch_size": "auto"}, {"micro_batch_size": 1}, seen_in="layout"
    ),
    "gradient_checkpointing": Case({"gradient_checkpointing": True}, {"critic": "own"}, seen_in="recomputed"),
    "epochs": Case({"epochs": 1}),
    "learning_rate": Case({"learning_rate": 5e-3}),
    "critic_learning_rate": Case({"critic_learning_rate": 5e-3}),
    "advantages": Case({"advantages": "reinforce_pp"}),
    "gamma": Case({"gamma": 0.9}),
    "lam": Case({"lam": 0.5}),
    "whiten_advantages": Case({"whiten_advantages": False}),
    "clip_range": Case({"clip_range": 0.01}),
    "clip_range_high": Case({"clip_range_high": 0.01}),
    "dual_clip": Case({"dual_clip": 1.01}),
    "target_kl": Case({"target_kl": 1e-6}),
    "value_coef": Case({"value_coef": 0.5}),
    "value_clip": Case({"value_clip": 1e-4}),
    "critic": Case({"critic": "own"}),
    "critic_warmup": Case({"critic_warmup": 1}),
    "entropy_coef": Case({"entropy_coef": 0.1}),
    "kl_coef": Case({"kl_coef": 0.5}),
    "kl_penalty": Case({"kl_penalty": "k3"}),
    "kl_target": Case({"kl_target": 0.5, "kl_horizon": 10}),
    "kl_horizon": Case({"kl_horizon": 10}, {"kl_target": 0.5}),
    "ptx_coef": Case({"ptx_coef": 1.0}),
    "ptx_rows": Case({"ptx_rows": 2}, {"ptx_coef": 1.0}),
    "score_scale": Case({"score_scale": "running"}),
    "sigmoid_centred": Case({"sigmoid_centred": True}),
    "score_clip": Case({"score_clip": 0.2}),
    "missing_eos": Case({"missing_eos": "replace"}),
    "missing_eos_penalty": Case({"missing_eos_penalty": 3.0}),
    "length_penalty": Case({"length_penalty": 0.1}),
    "length_free": Case({"length_free": 6}, {"length_penalty": 0.1}),
    "evaluate_every": Case({"evaluate_every": 2}, seen_in="run"),
    "evaluate_replies": Case({"evaluate_replies": 2}, seen_in="run"),
    "kl_budget": Case({"kl_budget": 1e-9}, {**GAMED, "keep_by": "score", "watch": {"enabled": False}}, seen_in="run"),
    "keep_by": Case({"keep_by": "score"}, {**GAMED, "watch": {"enabled": False}}, seen_in="run"),
    "watch": Case({"watch": {"enabled": False}}, GAMED, seen_in="run"),
    "rewards": Case({"rewards": [own_reward(), {"trained": True}]}),
    "sampling_copy": Case({"sampling_copy": False}, {"critic": "own"}, seen_in="borrowing"),
}
MORE: list[Case] = [
    # Values of an option that another one's formula hangs on.
    Case({"advantages": "dr_grpo"}, {"advantages": "grpo", "replies_per_prompt": 2}),
    Case({"missing_eos": "bootstrap"}, {"missing_eos": "none"}),
    Case({"critic": "head"}),
    Case({"score_scale": "none"}),
    Case({"score_scale": "running"}, {"score_scale": "none"}),
    Case({"kl_penalty": "loss"}),
    # What PPO reads of the sections that stages share.
    Case({"max_new_tokens": 5}),
    Case({"temperature": 0.8}),
    Case({"schedule": "linear"}),
    Case({"warmup_steps": 3}),
    Case({"max_grad_norm": 0.01}),
    Case({"lora": {"r": 2, "alpha": 8}}),
    Case({"max_length": 20}, {"ptx_coef": 1.0}),
]


@pytest.fixture(scope="module")
def start(tiny_run: Callable[..., Run], trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """start(**changes) -> the config and a new run that PPO can begin in."""

    def call(changes: dict[str, Any]) -> tuple[PPOConfig, Run]:
        home = tmp_path_factory.mktemp("option")
        (home / "scores.py").write_text(RUNS_AWAY)
        told = json.loads(json.dumps({**BASE, **changes}).replace("FILE", str(home / "scores.py")))
        longest = told.pop("max_length", 512)
        config, run = tiny_stage("ppo", tiny_run(home, trained), **told)
        return config, replace(run, max_length=longest)

    return call


class Training:
    """PPO an update at a time: what each logged, and where it left the policy."""

    def __init__(self, config: PPOConfig, run: Run):
        self.trainer, self.prompts = ppo.Trainer(config, run), run.split("train")
        self.rows: list[dict[str, Any]] = []
        self.policies: list[list[torch.Tensor]] = []
        self.layout: Any = None
        if config.sigmoid_centred:
            score_references(self.trainer, self.prompts, run.split("validation"), run.folder.stage("ppo"))

    def after(self, updates: int) -> "Training":
        """This training when it has had at least so many."""
        trainer = self.trainer
        for number in range(len(self.rows), updates):
            batch = ppo.rollout(trainer, picked(trainer, self.prompts, number), number, Clock())
            self.rows.append({**batch.metrics, **ppo.update(trainer, batch, number, Clock())[1]})
            numbers = trainer.numbers
            numbers.controller = adapt_kl(numbers.controller, batch.metrics["kl"], trainer.config.batch_size)
            self.policies.append([p.detach().clone() for p in trainer.roles.adapter_parameters("policy")])
            self.layout = layout(trainer, batch.tokens, number)
        return self

    @property
    def borrowing(self) -> bool:
        return self.trainer.engine.model in self.trainer.roles.bases

    @property
    def recomputed(self) -> bool:
        return any("forward" in vars(layer) for layer in layers_of(self.trainer.roles))


@pytest.fixture(scope="module")
def training(start: Any) -> Callable[..., Training]:
    """training(changes) -> the training of that config, the same one each time it is asked for."""
    known: dict[str, Training] = {}

    def call(changes: dict[str, Any]) -> Training:
        key = json.dumps(changes, sort_keys=True)
        if key not in known:
            known[key] = Training(*start(changes))
        return known[key]

    return call


@pytest.fixture(scope="module")
def whole(start: Any) -> Callable[..., dict[str, Any]]:
    """whole(changes) -> what a whole run looked at and kept, the same one each time it is asked for."""
    known: dict[str, dict[str, Any]] = {}

    def call(changes: dict[str, Any]) -> dict[str, Any]:
        key = json.dumps(changes, sort_keys=True)
        if key not in known:
            config, run = start(changes)
            summary = ppo.train(config, run)
            known[key] = {
                "looks": read_metrics(run.folder.path / "ppo" / "evaluations.jsonl"),
                "kept": (summary["kept_update"], summary["updates"], summary["stopped"]),
            }
        return known[key]

    return call


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.row(28)
@pytest.mark.parametrize("name", [name for name in PPOConfig.model_fields if name not in WITH_A_GPU])
def test_row_28_an_option_changes_something(name: str, training: Any, whole: Any) -> None:
    """No dead knob. Of an option of the training both what is logged and the policy change, within three updates; most
    are seen in the first, and none is done that shows nothing new."""
    case = CASES[name]  # a new option of PPO must be put on the list
    assert name in case.change
    check(case, training, whole)


@pytest.mark.row(28)
@pytest.mark.parametrize("case", MORE, ids=lambda case: ", ".join(f"{k}={v}" for k, v in case.change.items()))
def test_row_28_a_value_changes_something(case: Case, training: Any, whole: Any) -> None:
    check(case, training, whole)


def check(case: Case, training: Any, whole: Any) -> None:
    if case.seen_in == "run":
        plain, changed = whole(case.base), whole({**case.base, **case.change})
        assert plain != changed
        return
    plain, changed = training(case.base), training({**case.base, **case.change})
    if case.seen_in in ("layout", "recomputed", "borrowing"):
        plain.after(3), changed.after(3)
        assert getattr(plain, case.seen_in) != getattr(changed, case.seen_in)
        for a, b in zip(plain.policies[2], changed.policies[2], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
        return
    own = {"length_penalty", "kl_loss", "ptx_loss", "score_function", "score_trained"}
    for updates in (1, 2, 3):
        plain.after(updates), changed.after(updates)
        logs = [
            [{k: v for k, v in row.items() if k not in own} for row in one.rows[:updates]] for one in (plain, changed)
        ]
        moved = not same(plain.policies[updates - 1], changed.policies[updates - 1])
        if logs[0] != logs[1] and moved:
            return
    assert logs[0] != logs[1], "the same numbers are logged"
    assert moved, "the policy is the same"


@pytest.mark.row(28)
def test_row_28_nothing_changed_nothing_changes(training: Any) -> None:
    first, again = training({}).after(3), training({"updates": 3}).after(3)  # two runs of one config
    assert again.rows[:3] == first.rows[:3] and same(again.policies[2], first.policies[2])


@pytest.mark.row(28)
def test_row_28_every_case_is_an_option() -> None:
    assert set(CASES) | WITH_A_GPU == set(PPOConfig.model_fields)


# --- what would do nothing is refused, and both values are named ---

CRITIC_FREE = {"advantages": "rloo", "replies_per_prompt": 2}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({**CRITIC_FREE, "lam": 0.5}, "lam=0.5 would do nothing beside advantages=rloo: it has no critic"),
    ({**CRITIC_FREE, "value_coef": 0.5}, "value_coef=0.5 would do nothing beside advantages=rloo"),
    ({**CRITIC_FREE, "critic": "own"}, "critic=own would do nothing beside advantages=rloo"),
    ({**CRITIC_FREE, "value_clip": 0.2}, "value_clip=0.2 would do nothing beside advantages=rloo"),
    ({**CRITIC_FREE, "critic_warmup": 1}, "critic_warmup=1 would do nothing beside advantages=rloo"),
    ({**CRITIC_FREE, "critic_learning_rate": 1.0}, "critic_learning_rate=1.0 would do nothing beside advantages=rloo"),
    ({**CRITIC_FREE, "missing_eos": "bootstrap"}, "missing_eos=bootstrap needs a critic, and advantages=rloo has none"),
    ({**CRITIC_FREE, "gamma": 0.9}, "gamma=0.9 would do nothing beside advantages=rloo: it takes a reply's whole"),
    ({"advantages": "grpo"}, "replies_per_prompt=1 must be at least 2"),
    ({"advantages": "reinforce_pp", "whiten_advantages": False}, "whiten_advantages=False would do nothing"),
    ({"value_coef": 0.0, "value_clip": 0.2}, "value_clip=0.2 would do nothing beside value_coef=0.0"),
    ({"critic_warmup": 20}, "critic_warmup=20 leaves the policy none of updates=20"),
    ({"target_kl": 0.1, "epochs": 1, "minibatch_size": 32}, "target_kl=0.1 would do nothing: with epochs=1"),
    ({"kl_coef": 0.0, "kl_penalty": "k3"}, "kl_penalty=k3 would do nothing beside kl_coef=0.0"),
    ({"kl_coef": 0.0, "kl_target": 6.0}, "kl_target=6.0 would do nothing beside kl_coef=0.0"),
    ({"kl_horizon": 5}, "kl_horizon=5 would do nothing beside kl_target=None"),
    ({"kl_target": 6.0, "kl_horizon": 5}, "kl_horizon=5 is less than batch_size=32"),
    ({"ptx_rows": 4}, "ptx_rows=4 would do nothing beside ptx_coef=0.0"),
    ({"missing_eos": "none", "missing_eos_penalty": 2.0}, "missing_eos_penalty=2.0 would do nothing beside"),
    ({"length_free": 5}, "length_free=5 would do nothing beside length_penalty=0.0"),
    (
        {"micro_batch_tokens": 99, "micro_batch_size": 4},
        "micro_batch_size=4 would do nothing beside micro_batch_tokens",
    ),
    ({"replies_per_prompt": 3}, "replies_per_prompt=3 does not divide batch_size=32"),
    ({"minibatch_size": 5}, "minibatch_size=5 does not divide batch_size=32"),
    ({"micro_batch_size": 5}, "micro_batch_size=5 does not divide minibatch_size=16"),
    ({"rewards": [{"function": "a:b", "watch": True}]}, "every source has watch=true, so nothing pays"),
    ({"rewards": [{"trained": True, "watch": True, "weight": 2.0}]}, "weight would do nothing for this trained source"),
    ({"dual_clip": 1.0}, "greater than 1"),
    ({"value_clip": True}, "a number is needed, not a truth value"),
]


@pytest.mark.row(28)
@pytest.mark.parametrize(("told", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_row_28_what_would_do_nothing_is_refused(told: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PPOConfig(**told)
    assert message in str(caught.value)


def test_the_recipe_of_the_options_page_is_one() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "ppo-options.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert PPOConfig(**yaml.safe_load(block)["ppo"]).advantages == "rloo"


def test_every_option_has_its_effect_on_the_options_page() -> None:
    """All keys but the adapter's, which recipe.md has, and those that change memory alone, which models.md has."""
    page = (DOCS / "ppo-options.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`ppo\.([a-z_]+)(?:\.[a-z_]+)?`", page))
    elsewhere = {"updates", "gradient_checkpointing", "sampling_copy", "offload_reference"}
    assert named | elsewhere == set(PPOConfig.model_fields)
    assert set(re.findall(r"`ppo\.watch\.([a-z_]+)`", page)) == set(WatchConfig.model_fields)


def test_the_default_is_accepted_with_every_estimator() -> None:
    for name in ("gae", "reinforce_pp"):
        PPOConfig(advantages=name)
    for name in ("rloo", "grpo", "dr_grpo"):
        PPOConfig(advantages=name, replies_per_prompt=4)


def test_a_held_out_score_that_is_not_there_is_noticed_before_training(start: Any) -> None:
    config, run = start({"keep_by": "held_out"})
    with pytest.raises(UserError, match=r"ppo\.keep_by=held_out: no score is there that PPO is not paid by"):
        ppo.train(config, run)
    assert not list((run.folder.path / "ppo").glob("rollouts/*"))
