"""PPO that trains every weight: the reference stays, a killed run goes on bit for bit, the export is the policy."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from conftest import tiny_stage
from plaudit.errors import UserError
from plaudit.models import roles as roles_module
from plaudit.models.full import FullRoles
from plaudit.models.kernels.trunk import trunk_of
from plaudit.models.roles import plain_logprobs
from plaudit.models.tokens import Tokens
from plaudit.run.metrics import Clock, read_metrics
from plaudit.stages.ppo import loop as ppo
from plaudit.stages.ppo.config import PPOConfig
from plaudit.stages.ppo.rollout import picked
from plaudit.stages.ppo.trainer import Trainer, by_micro_batch, layout, start_from_last
from plaudit.stages.ppo.update import gradient
from plaudit.train.config import CheckpointConfig, RoundsConfig
from plaudit.train.run import Run

Load = Callable[[Path], PreTrainedModel]
FULL = {"lora": None, "learning_rate": 1e-3, "evaluate_every": 2}


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def on(home: Path, tiny_run: Callable[..., Run], trained: Path, dtype: str, **changes: Any) -> Any:
    """The settings and a new run that PPO can begin in."""
    return tiny_stage("ppo", tiny_run(home, trained, dtype), **{**FULL, **changes})


@pytest.fixture(scope="module")
def unbroken(tiny_run: Callable[..., Run], trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two updates in bfloat16, whose guards held."""
    config, run = on(tmp_path_factory.mktemp("full"), tiny_run, trained, "bfloat16")
    ppo.train(config, run)
    return run.folder.path / "ppo"


def test_a_fresh_policy_is_the_reference_and_the_sampler_is_the_policy(unbroken: Path) -> None:
    first, second = read_metrics(unbroken / "metrics.jsonl")
    assert first["kl"] == 0
    assert second["kl"] != 0
    # In the first rollout there is nothing but rounding between the two.
    assert second["sampler_gap_mean"] < 2 * first["sampler_gap_mean"]


def test_no_adapter_is_left(unbroken: Path) -> None:
    assert not (unbroken / "adapter").exists()
    assert (unbroken / "value_head/head.safetensors").is_file()


def test_a_run_that_was_killed_goes_on_bit_for_bit(
    unbroken: Path,
    tmp_path: Path,
    tiny_run: Callable[..., Run],
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, run = on(tmp_path, tiny_run, trained, "bfloat16")
    run = replace(run, checkpoints=CheckpointConfig(every_steps=1))
    own = ppo.update

    def killed(trainer: Trainer, batch: Any, number: int, clock: Clock) -> Any:
        if number == 1:
            raise KeyboardInterrupt
        return own(trainer, batch, number, clock)

    monkeypatch.setattr(ppo, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        ppo.train(config, run)
    monkeypatch.undo()
    ppo.train(config, replace(run, resume=True))
    for name in ("metrics.jsonl", "evaluations.jsonl", "model/model.safetensors", "value_head/head.safetensors"):
        assert (run.folder.path / "ppo" / name).read_bytes() == (unbroken / name).read_bytes(), name


def test_the_first_scores_are_computed_as_all_later_ones(
    tmp_path: Path, tiny_run: Callable[..., Run], trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run begins with a trainer that nothing was asked of yet: its scores must round as the other's do."""
    changes = {"replies_per_prompt": 4, "minibatch_size": 4, "micro_batch_size": 4}
    trainer = Trainer(*on(tmp_path, tiny_run, trained, "float32", **changes))
    prompts, rows = picked(trainer, trainer.run.split("train"), 0), list[int]()
    tokens, _, _ = trainer.sampler.sample(prompts, "ppo/rollout", 0)
    pack = roles_module.pack_tokens

    def counted(tokens: Tokens) -> Any:
        rows.append(len(tokens.lengths_B))
        return pack(tokens)

    monkeypatch.setattr(roles_module, "pack_tokens", counted)
    first = by_micro_batch(trainer, tokens, 0, "reward")["scores_BM"]
    packed = [*rows]
    by_micro_batch(trainer, tokens, 0, "reference")
    rows.clear()
    assert torch.equal(by_micro_batch(trainer, tokens, 0, "reward")["scores_BM"], first)
    assert packed == rows == [4]


def update(trainer: Trainer) -> Any:
    batch = ppo.rollout(trainer, picked(trainer, trainer.run.split("train"), 0), 0, Clock())
    return ppo.update(trainer, batch, 0, Clock())[0]


@pytest.mark.parametrize("critic", ["head", "own"])
def test_only_the_policy_and_the_critic_move(
    critic: str, tmp_path: Path, tiny_run: Callable[..., Run], trained: Path
) -> None:
    trainer = Trainer(*on(tmp_path, tiny_run, trained, "float32", critic=critic, entropy_coef=0.01))
    roles = trainer.roles
    assert isinstance(roles, FullRoles)
    before = {name: parameter.detach().clone() for name, parameter in roles.named_parameters()}
    learning = set(roles.trainable())
    assert len({p.data_ptr() for p in roles.parameters()}) == len(before), "two roles share a weight"
    update(trainer)
    moved = {name for name, parameter in roles.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == learning
    named = {name.partition(".")[0] for name in moved}
    assert named == {"policy", "others"} if critic == "own" else {"policy", "value_head"}
    sft = weights(trainer.run.sft_model)
    reference = dict(roles.base_tensors())
    assert all(torch.equal(reference[name], sft[_plain(name)]) for name in reference)


def _plain(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def test_an_offloaded_reference_is_there_while_it_is_asked_and_only_then(
    tmp_path: Path, tiny_run: Callable[..., Run], trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampling and training happen without it; the reward model, whose adapters stand on it, brings it back."""
    plain = Trainer(*on(tmp_path / "plain", tiny_run, trained, "float32"))
    trainer = Trainer(*on(tmp_path / "away", tiny_run, trained, "float32", offload_reference=True))
    roles = trainer.roles
    assert isinstance(roles, FullRoles) and roles.others is not None and roles.away == torch.device("cpu")
    roles.away = torch.device("meta")  # where nothing could be computed
    moves: list[str] = []

    def to(device: torch.device) -> None:
        moves.append(device.type)

    monkeypatch.setattr(roles.others, "to", to)
    seen: list[tuple[str, str]] = []
    for what, model in (("policy", roles.policy), ("reference", roles.reference)):
        trunk_of(model).register_forward_pre_hook(lambda *_, what=what: seen.append((what, (moves or ["cpu"])[-1])))
    update(trainer)
    assert moves == ["meta", "cpu", "meta"]  # sampling; reward model and reference; old policy and training
    assert {*seen} == {("reference", "cpu"), ("policy", "meta")}
    update(plain)
    assert isinstance(plain.roles, FullRoles)
    for name, parameter in plain.roles.named_parameters():
        assert torch.equal(parameter, roles.get_parameter(name)), name


def test_nothing_else_can_be_offloaded() -> None:
    asked = PPOConfig(offload_reference=True)
    asked.check_offload("cuda", full=True)
    PPOConfig().check_offload("cpu", full=False)
    with pytest.raises(UserError, match=r"needs lora\.stages\.ppo=null"):
        asked.check_offload("cuda", full=False)
    with pytest.raises(UserError, match="this run computes there"):
        asked.check_offload("cpu", full=True)
    with pytest.raises(ValueError, match="critic=own and offload_reference=true exclude"):
        PPOConfig(offload_reference=True, critic="own")


def test_the_gradient_is_the_models_own(
    tmp_path: Path, tiny_run: Callable[..., Run], trained: Path, load: Load
) -> None:
    """Without a critic at ratio 1 that of −Σ Â·log π / count, by autograd through the library's own logits."""
    changes = {"advantages": "reinforce_pp", "critic_learning_rate": 1e-3, "micro_batch_size": 2}
    trainer = Trainer(*on(tmp_path, tiny_run, trained, "float32", **changes))
    batch = ppo.rollout(trainer, picked(trainer, trainer.run.split("train"), 0), 0, Clock())
    rows = [row for part in layout(trainer, batch.tokens, 0)[0] for row in part]
    gradient(trainer, batch, batch.old_logprobs_BT.clone(), 0, 0, 0, "here")
    model = load(trainer.run.sft_model).requires_grad_(True)
    tokens, advantages_BT = batch.tokens.rows(rows), batch.advantages_BT[rows]
    seen_BT = torch.arange(tokens.tokens_BT.shape[1]) < tokens.lengths_B[:, None]
    logits_BTV = model(input_ids=tokens.tokens_BT, attention_mask=seen_BT.long()).logits
    q_BT = torch.log_softmax(logits_BTV, dim=-1)[:, :-1].gather(2, tokens.tokens_BT[:, 1:, None]).squeeze(2)
    mask_BT, width = tokens.mask_BT[:, :-1], tokens.tokens_BT.shape[1] - 1
    (-(q_BT * advantages_BT[:, :width])[mask_BT].sum() / mask_BT.sum()).backward()
    for name, parameter in model.named_parameters():
        found = trainer.roles.get_parameter(f"policy.{name}").grad
        torch.testing.assert_close(found, parameter.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_the_export_is_the_policy(tmp_path: Path, tiny_run: Callable[..., Run], trained: Path, load: Load) -> None:
    trainer = Trainer(*on(tmp_path, tiny_run, trained, "float32"))
    tokens = update(trainer).tokens
    expected = trainer.roles(tokens, "policy", frozenset({"logprobs"})).logprobs_BT.detach()
    ppo._save(trainer)
    found = plain_logprobs(load(tmp_path / "run/ppo/model"), tokens, 1.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (found - trainer.roles(tokens, "reference", frozenset({"logprobs"})).logprobs_BT).abs().max() > 1e-3


def test_a_later_round_goes_on_with_every_weight_of_the_policy_before(
    tiny_run: Callable[..., Run], trained: Path, tmp_path: Path, load: Load
) -> None:
    """rounds.start=last: from the weights that round 1 kept, held to the SFT model."""
    first = tmp_path / "first"
    shutil.copytree(trained, first)
    path, generator = first / "ppo/model/model.safetensors", torch.Generator().manual_seed(1)
    moved = {n: t + 0.01 * torch.randn(t.shape, generator=generator) for n, t in load_file(path).items()}
    save_file(moved, path, {"format": "pt"})
    config, run = on(first, tiny_run, trained, "float32", updates=1, learning_rate=1e-5)
    run = replace(run, rounds=RoundsConfig(count=2, number=2, start="last"))
    trainer = Trainer(config, run)
    start_from_last(trainer)
    assert isinstance(trainer.roles, FullRoles)
    last = dict(load(first / "ppo/model").named_parameters())
    for name, parameter in trainer.roles.policy.named_parameters():
        assert torch.equal(parameter, last[name])

    summary = ppo.train(config, run)
    assert summary["started_from"] == "round 1" and "reference" not in summary
    looks = read_metrics(run.folder.path / "ppo/evaluations.jsonl")
    assert looks[0]["kl"] != 0, "it starts away from its reference"
    learnt = weights(run.folder.path / "ppo/model")
    assert all(torch.allclose(learnt[name], moved[name], atol=1e-3) for name in moved)
