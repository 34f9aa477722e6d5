"""Known mistakes of PPO, each planted in a tiny run and found by its name: by a check inside the run, which stops it,
or by the doctor, from what the run left. The same run without a mistake must be found healthy."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import tiny_stage
from plaudit.algo import advantages, losses, masked, rewards
from plaudit.data.chat import ChatFormat
from plaudit.errors import RunStopped, UserError
from plaudit.guard import invariants
from plaudit.guard.doctor import examine
from plaudit.models.load import load_tokenizer
from plaudit.models.roles import Roles
from plaudit.models.tokens import Tokens
from plaudit.rollout import inprocess
from plaudit.run.metrics import read_metrics
from plaudit.stages.pipeline import run_pipeline
from plaudit.stages.plan import Flags
from plaudit.stages.ppo import loop as ppo
from plaudit.stages.ppo import rollout as ppo_rollout
from plaudit.stages.recipe import load_recipe
from plaudit.train.run import Run

Patch = pytest.MonkeyPatch
Fault = Callable[[Patch], object]
WHITEN = masked.whiten

SETTINGS = {"updates": 4, "batch_size": 8, "minibatch_size": 4, "micro_batch_size": 4, "learning_rate": 1e-3}
SETTINGS |= {"evaluate_every": 2, "kl_coef": 0.2}


@pytest.fixture(scope="module")
def run_ppo(trained: Path) -> Callable[..., Path]:
    """run_ppo(home, change, **settings) -> the folder of a run, after its PPO stage; `change` is done to it before."""

    def run(home: Path, change: Callable[[Path], object] = Path.exists, **settings: Any) -> Path:
        folder = shutil.copytree(trained, home / "run", ignore=shutil.ignore_patterns(".lock"))
        change(folder)
        overrides = [f"ppo.{name}={value}" for name, value in {**SETTINGS, **settings}.items()]
        overrides.append("sampling.stages.ppo.max_new_tokens=16")
        recipe = load_recipe(trained.parent / "recipe.yaml", [f"folder={folder}", *overrides])
        return run_pipeline(recipe, Flags(only=("ppo",)))

    return run


def everywhere(patch: Patch, old: Any, new: Any) -> None:
    """`new` in the place of `old`, under whatever name a module of ours knows it: the doctor's too."""
    for module in [m for name, m in sys.modules.items() if name.startswith("plaudit.")]:
        for name in [name for name, value in vars(module).items() if value is old]:
            patch.setattr(module, name, new)


def trainer_with(change: Callable[[Any], object]) -> Fault:
    """A change to the trainer before its loop starts."""

    def plant(patch: Patch) -> None:
        build = ppo.Trainer

        def changed(*arguments: Any) -> Any:
            trainer = build(*arguments)
            change(trainer)
            return trainer

        patch.setattr(ppo, "Trainer", changed)

    return plant


# --- the mistakes ---


def moved_score(by: int) -> Fault:
    """The score `by` tokens after the last one."""
    right = rewards.token_rewards

    def wrong(scores_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, kl_coef: float) -> Tensor:
        out_BT = right(torch.zeros_like(scores_B), kl_BT, mask_BT, kl_coef)
        columns_T = torch.arange(mask_BT.shape[1])
        last_B = torch.where(mask_BT, columns_T, torch.full_like(columns_T, -1)).amax(dim=1)
        places_B = (last_B + by).clamp(0, mask_BT.shape[1] - 1)
        out_BT[torch.arange(len(scores_B)), places_B] += scores_B
        return out_BT

    return lambda patch: everywhere(patch, right, wrong)


def mask_by_id(eos_id: int) -> Fault:
    """pad = eos, and the mask is where ids are not the pad id."""
    right = Tokens.mask_BT.fget  # type: ignore[attr-defined]

    def wrong(self: Tokens) -> Tensor:
        mask_BT = right(self) & (self.tokens_BT.roll(-1, dims=1) != eos_id)
        mask_BT[torch.arange(len(mask_BT)), self.prompt_lengths_B - 1] = True
        return mask_BT

    return lambda patch: patch.setattr(Tokens, "mask_BT", property(wrong))


def other_reference(patch: Patch) -> None:
    """The reference is another model, and nobody checks the KL of the fresh policy."""
    right = ppo_rollout.by_micro_batch

    def wrong(trainer: Any, tokens: Tokens, update: int, role: str) -> dict[str, Tensor]:
        found = right(trainer, tokens, update, role)
        if role == "reference":
            found["logprobs_BT"] = found["logprobs_BT"] * 1.1
        return found

    patch.setattr(ppo_rollout, "by_micro_batch", wrong)
    patch.setattr(invariants, "check_fresh_kl", lambda *_: None)


def rate_of(group: int, factor: float) -> Fault:
    """The learning rate of one group of the optimiser times `factor`."""

    def change(trainer: Any) -> None:
        trainer.schedule.base_lrs[group] *= factor
        trainer.optimiser.param_groups[group]["lr"] *= factor

    return trainer_with(change)


def whitened_by(parts: Callable[[Tensor, Tensor], Tensor]) -> Fault:
    """Advantages whitened by another rule; scores as before."""
    right = masked.whiten

    def wrong(x: Tensor, mask: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        return (parts(x, mask), torch.ones(())) if x.dim() == 2 else right(x, mask, **options)

    return lambda patch: everywhere(patch, right, wrong)


def by_pairs(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    spans = [slice(i, i + 2) for i in range(0, len(x_BT), 2)]
    return torch.cat([WHITEN(x_BT[span], mask_BT[span])[0] for span in spans])


def with_padding(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return (x_BT - x_BT.mean()) / x_BT.std()


def padding_in_the_moments(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return torch.where(mask_BT, with_padding(x_BT, mask_BT), torch.zeros_like(x_BT))


def changed_gae(**fixed: float) -> Fault:
    right = advantages.gae
    return lambda patch: everywhere(patch, right, lambda *a, **options: right(*a, **{**options, **fixed}))


def one_state_late(patch: Patch) -> None:
    """Each token has the advantage of the token before it; the returns are right."""
    right = advantages.gae

    def wrong(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        advantages_BT, returns_BT = right(rewards_BT, values_BT, mask_BT, **options)
        return torch.where(mask_BT, advantages_BT.roll(1, dims=1), 0.0), returns_BT

    everywhere(patch, right, wrong)


def halved_kl(patch: Patch) -> None:
    right = rewards.kl_estimate
    everywhere(patch, right, lambda one, other, *rest: right(one, other, *rest) / 2)


def flipped_kl(patch: Patch) -> None:
    right = rewards.kl_estimate
    everywhere(patch, right, lambda one, other, *rest: right(other, one, *rest))


def paid_for_kl(patch: Patch) -> None:
    right = rewards.token_rewards
    everywhere(patch, right, lambda scores, kl, mask, coef: right(scores, kl, mask, -coef))


def wrong_entropy_sign(patch: Patch) -> None:
    right = losses.ppo_loss
    everywhere(patch, right, lambda **options: right(**{**options, "entropy_coef": -options["entropy_coef"]}))


def doubled_kl_coef(patch: Patch) -> None:
    right = rewards.token_rewards
    everywhere(patch, right, lambda scores, kl, mask, coef: right(scores, kl, mask, 2 * coef))


# --- found by the doctor ---


@pytest.mark.parametrize(
    ("name", "fault", "settings"),
    [
        ("score at the wrong token", moved_score(1), {}),
        ("score at the wrong token", moved_score(-1), {}),
        ("wrong reference", other_reference, {}),
        ("frozen critic", rate_of(1, 0.0), {}),
        ("policy does not move", rate_of(0, 0.0), {"updates": 4}),
        ("learning rate too high", rate_of(0, 100.0), {"updates": 4, "learning_rate": 3e-4}),
        ("advantages not masked", whitened_by(with_padding), {}),
        ("whitening off", whitened_by(padding_in_the_moments), {}),
        ("whitening per micro-batch", whitened_by(by_pairs), {}),
        ("returns do not follow", changed_gae(gamma=0.9), {}),
        ("returns do not follow", changed_gae(lam=0.2), {}),
        ("advantages do not follow", one_state_late, {}),
        ("KL sign flipped", flipped_kl, {}),
        ("KL does not follow", halved_kl, {}),
        ("KL penalty paid out", paid_for_kl, {}),
        ("another KL coefficient", doubled_kl_coef, {}),
        ("entropy bonus sign", wrong_entropy_sign, {"entropy_coef": 0.1}),
    ],
)
def test_the_doctor_names_a_planted_mistake(
    name: str,
    fault: Fault,
    settings: dict[str, Any],
    run_ppo: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: Patch,
) -> None:
    """The mistake stays in place while the doctor looks: it must not be wrong in the same way."""
    fault(monkeypatch)
    found = examine(run_ppo(tmp_path, **{"updates": 2, **settings})).findings
    assert name in [finding.name for finding in found]
    assert all(finding.says and finding.evidence and finding.change for finding in found)


def test_the_doctor_names_a_mask_by_id(
    run_ppo: Callable[..., Path], trained: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    mask_by_id(ChatFormat(load_tokenizer(str(trained / "sft/model"))).eos_id)(monkeypatch)
    found = examine(run_ppo(tmp_path))
    assert "end of turn masked out" in [finding.name for finding in found.findings]
    assert found.faults


@pytest.mark.parametrize("settings", [{}, {"entropy_coef": 0.1}, {"whiten_advantages": "false"}, {"lam": 1.0}])
def test_a_healthy_run_passes_every_check_and_has_no_finding(
    settings: dict[str, Any], run_ppo: Callable[..., Path], tmp_path: Path, plaudit: Callable[..., SimpleNamespace]
) -> None:
    """But for what may be true of a model this small: it ends few of its replies. The second sums its gradients."""
    settings = settings | ({"micro_batch_size": 2} if "entropy_coef" in settings else {})
    folder = run_ppo(tmp_path, **settings)
    found = [finding.name for finding in examine(folder).findings]
    assert set(found) <= {"replies do not end"}
    done = plaudit("doctor", folder)
    assert done.code == 0 and "updates 1, 2, 3, 4" in done.out
    assert ("0 faults, 1 symptom" if found else "Nothing is wrong") in done.out


def test_the_command_says_what_is_wrong_and_fails_for_a_fault(
    run_ppo: Callable[..., Path], tmp_path: Path, plaudit: Callable[..., SimpleNamespace], monkeypatch: Patch
) -> None:
    moved_score(1)(monkeypatch)
    folder = run_ppo(tmp_path)
    done = plaudit("doctor", folder)
    assert done.code == 1
    assert "fault: score at the wrong token" in done.out and "1 token off" in done.out
    told = json.loads(plaudit("doctor", folder, "--json").out)
    assert told["faults"] >= 1 and told["findings"][0]["level"] == "fault"


@pytest.mark.row(35)
@pytest.mark.parametrize(
    ("stage", "file", "name"),
    [
        ("sft", "sft/model/config.json", "reference changed"),
        ("reward", "reward/head.safetensors", "reward model changed"),
    ],
)
def test_files_that_changed_since_their_stage_are_found(
    stage: str, file: str, name: str, trained: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    (folder / file).write_bytes((folder / file).read_bytes() + b" ")
    (found,) = [finding for finding in examine(folder).findings if finding.name == name]
    assert file in found.evidence and f"--from {stage}" in found.change


# --- found inside the run ---


def dropout(trainer: Any) -> None:
    for layer in trainer.roles._lora_layers:
        layer.lora_dropout["policy"] = torch.nn.Dropout(0.5)
    trainer.roles.train()


def hidden_noise(trainer: Any) -> None:
    """Noise that no module's flag tells of, too small for the bounds of other checks."""
    model = trainer.roles.peft.get_base_model()
    model.model.norm.register_forward_hook(lambda module, inputs, out: out + 3e-8 * torch.randn_like(out))


def early_values(trainer: Any) -> None:
    right = trainer.roles.value_head.forward
    # The head is given the states of the replies in order: a row further down is a state further back.
    trainer.roles.value_head.forward = lambda hidden: right(hidden.roll(1, dims=0))


def drifting_base(trainer: Any) -> None:
    right = trainer.engine.generate

    def generate(*arguments: Any, **options: Any) -> Any:
        with torch.no_grad():
            next(p for name, p in trainer.roles.base_tensors() if p.dim() == 1)[3] *= 1.000001
        return right(*arguments, **options)

    trainer.engine.generate = generate


def cut_law(patch: Patch) -> None:
    right = inprocess.sample

    def top(logits_BV: Tensor, *rest: Any) -> Any:
        least = logits_BV.topk(8, dim=-1).values[:, -1:]
        return right(logits_BV.masked_fill(logits_BV < least, -1e9), *rest)

    patch.setattr(inprocess, "sample", top)


@pytest.mark.row(5)
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("dropout on", trainer_with(dropout)),
        ("temperature mismatch", trainer_with(lambda trainer: setattr(trainer.engine, "temperature", 0.7))),
        ("temperature mismatch", trainer_with(lambda trainer: setattr(trainer.roles, "temperature", 0.8))),
        ("sampling law cut short", cut_law),
        ("the reference changed", trainer_with(drifting_base)),
        ("the trainer is random", trainer_with(hidden_noise)),
        ("one token too early", trainer_with(early_values)),
    ],
)
def test_the_run_stops_with_the_name_of_a_planted_mistake(
    name: str, fault: Fault, run_ppo: Callable[..., Path], tmp_path: Path, monkeypatch: Patch
) -> None:
    fault(monkeypatch)
    with pytest.raises(RunStopped, match=name):
        run_ppo(tmp_path)


def test_the_reward_model_of_another_template_is_refused(run_ppo: Callable[..., Path], tmp_path: Path) -> None:
    """Row 21: the SFT model's template was changed after the reward model had learnt. A run sees that its files are not
    what they were; what a reward model says of another template is in tests/rewards/test_saved.py."""

    def change(folder: Path) -> None:
        for file in (folder / "sft/model").glob("chat_template*"):
            file.write_text(file.read_text().replace("You are tiny.", "You are small."))

    with pytest.raises(UserError, match="sft/model is not what it was"):
        run_ppo(tmp_path, change)


# --- a sampler that is not the policy ---


def scaled_adapter(factor: float) -> Fault:
    """The copy that samples has `factor` times the adapter."""
    right = Roles.merged_weights

    def wrong(self: Roles, adapter: str, *rest: Any) -> Any:
        own = [layer.scaling[adapter] for layer in self._lora_layers]
        for layer, scaling in zip(self._lora_layers, own, strict=True):
            layer.scaling[adapter] = scaling * factor
        yield from right(self, adapter, *rest)
        for layer, scaling in zip(self._lora_layers, own, strict=True):
            layer.scaling[adapter] = scaling

    return lambda patch: patch.setattr(Roles, "merged_weights", wrong)


def yesterdays_adapter(patch: Patch) -> None:
    """The copy that samples has the weights it was given one merge ago."""
    right, given = Roles.merged_weights, list[list[tuple[str, Tensor]]]()

    def wrong(self: Roles, adapter: str, *rest: Any) -> Any:
        given.append([(name, weight.clone()) for name, weight in right(self, adapter, *rest)])
        return iter(given[-2:][0])

    patch.setattr(Roles, "merged_weights", wrong)


ELSEWHERE = {
    "half": (scaled_adapter(0.5), "stale or lost adapter"),
    "none": (scaled_adapter(0.0), "stale or lost adapter"),
    "twice": (scaled_adapter(2.0), "adapter applied more than once"),
    "yesterday's": (yesterdays_adapter, "stale or lost adapter"),
}


@pytest.mark.row(31)
@pytest.mark.parametrize(("fault", "says"), ELSEWHERE.values(), ids=ELSEWHERE)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_row_31_a_sampler_without_the_whole_adapter_of_today_stops_the_run(
    fault: Fault,
    says: str,
    dtype: str,
    tiny_run: Callable[..., Run],
    before_ppo: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: Patch,
) -> None:
    """No look between the rollouts, so one merge ago is one update ago. In bf16 the gap alone passes."""
    run = tiny_run(tmp_path, before_ppo(dtype), dtype)
    fault(monkeypatch)
    with pytest.raises(RunStopped, match=says) as stop:
        ppo.train(*tiny_stage("ppo", run, **{**SETTINGS, "evaluate_every": 4, "batch_size": 16}))
    assert ("sampler and trainer disagree" in str(stop.value)) == (dtype == "float32")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_healthy_sampler_is_never_taken_for_another(
    dtype: str, tiny_run: Callable[..., Run], before_ppo: Callable[[str], Path], tmp_path: Path
) -> None:
    """80 updates, at a rate that takes the policy clear of rounding: most of them are measured, none stops."""
    run = tiny_run(tmp_path, before_ppo(dtype), dtype)
    changes = {**SETTINGS, "updates": 80, "batch_size": 16, "evaluate_every": 80, "watch": {"enabled": False}}
    ppo.train(*tiny_stage("ppo", run, **changes))
    slopes = [
        row["sampler_slope"] for row in read_metrics(run.folder.path / "ppo/metrics.jsonl") if "sampler_slope" in row
    ]
    assert len(slopes) > 60
    assert abs(sum(slopes) / len(slopes)) < 0.1


def test_the_doctor_names_a_sampler_without_the_whole_adapter(
    run_ppo: Callable[..., Path], tmp_path: Path, monkeypatch: Patch
) -> None:
    scaled_adapter(0.5)(monkeypatch)
    unchecked = {"sampler_gap_mean": 0.0, "sampler_gap_p99": 0.0}
    monkeypatch.setattr(ppo_rollout, "check_sampler", lambda *_: unchecked)
    (found,) = [f for f in examine(run_ppo(tmp_path)).findings if f.name == "stale or lost adapter"]
    assert "+0.5" in found.evidence and found.level == "fault"


# --- the checks themselves ---


def reader(roles: Roles, by: int = 0, logprobs_by: int = 0) -> Callable[[Tokens], tuple[Tensor, Tensor]]:
    """A forward pass whose columns are those of the state `by` further on."""

    def read(tokens: Tokens) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            hidden = roles.peft.get_base_model().model(input_ids=tokens.tokens_BT).last_hidden_state
            values_BT = (roles.value_head(hidden) * 1.0).roll(-by, dims=1) * tokens.mask_BT
            out = roles(tokens, "policy", frozenset({"logprobs"}))
        return out.logprobs_BT.roll(-logprobs_by, dims=1), values_BT

    return read


@pytest.fixture
def reply(ragged: Tokens) -> Tokens:
    return ragged.rows([0])


def test_values_on_their_own_states_pass(
    stirred: Callable[..., Roles], tiny_model: Callable[..., Path], load: Any, reply: Tokens
) -> None:
    roles = stirred(load(tiny_model()), trained="policy")
    invariants.check_alignment(reader(roles), reply)


@pytest.mark.parametrize(("by", "logprobs_by", "says"), [(1, 0, "too late"), (-1, 0, "too early"), (0, 1, "log-prob")])
def test_values_and_log_probabilities_on_a_wrong_state_stop_the_run(
    by: int,
    logprobs_by: int,
    says: str,
    stirred: Callable[..., Roles],
    tiny_model: Callable[..., Path],
    load: Any,
    reply: Tokens,
) -> None:
    roles = stirred(load(tiny_model()), trained="policy")
    with pytest.raises(RunStopped, match=says):
        invariants.check_alignment(reader(roles, by, logprobs_by), reply)


def test_a_trainer_that_is_random_is_said_to_have_dropout() -> None:
    same = torch.tensor([[0.5, -1.0]])
    invariants.check_repeatable(same, same.clone())
    with pytest.raises(RunStopped, match="dropout on"):
        invariants.check_repeatable(same, same + 1e-6)


def test_one_changed_number_changes_the_fingerprint() -> None:
    tensors = {"a": torch.randn(7, 3), "b": torch.randn(5).bfloat16(), "c": torch.tensor([True, False])}
    before = invariants.fingerprint(tensors.items())
    invariants.check_unchanged("x", before, invariants.fingerprint(tensors.items()))
    tensors["b"][2] = torch.nextafter(tensors["b"][2], torch.tensor(9.0).bfloat16())
    with pytest.raises(RunStopped, match="the base changed: 1 of 3 tensors, the first is b"):
        invariants.check_unchanged("the base", before, invariants.fingerprint(tensors.items()))
