"""One base, four roles: equal to PEFT's public calls, one copy of the weights, and gradients only where they belong."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from conftest import ARCHITECTURES
from plaudit.models.config import LoraSettings
from plaudit.models.kernels.attention import use_packed_attention
from plaudit.models.kernels.merge import merge_into
from plaudit.models.roles import Roles, plain_logprobs
from plaudit.models.tokens import Tokens
from plaudit.train.saving import load_parameters

LORA = LoraSettings(r=4, alpha=8)
POLICY = frozenset({"logprobs", "values"})
LOGPROBS = frozenset({"logprobs"})
SCORES = frozenset({"scores"})
Load = Callable[[Path], PreTrainedModel]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request: pytest.FixtureRequest, tiny_model: Callable[..., Path]) -> Path:
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def reward_adapter(
    folder: Path, load: Load, stirred: Callable[..., Roles], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("reward") / "adapter"
    stirred(load(folder), seed=1, trained="reward").save_adapter(path)
    return path


@pytest.fixture
def four(folder: Path, load: Load, stirred: Callable[..., Roles], reward_adapter: Path) -> Roles:
    """Policy, critic, reference and reward model, none of them at its start."""
    roles = stirred(load(folder), seed=2, trained="policy", reward=[reward_adapter], temperature=0.7)
    roles.score_heads[0].weight.data = torch.randn(32, generator=torch.Generator().manual_seed(8))
    return roles


def reply_logprobs(logits_BTV: Tensor, tokens: Tokens, temperature: float) -> Tensor:
    """log π(a_t) by the book, from full logits: column t is about token t + 1, zero where the mask is False."""
    q_BTV = torch.log_softmax(logits_BTV.float() / temperature, dim=-1)
    chosen_BT = q_BTV[:, :-1].gather(2, tokens.tokens_BT[:, 1:, None]).squeeze(2)
    chosen_BT = torch.cat([chosen_BT, chosen_BT.new_zeros(len(chosen_BT), 1)], dim=1)
    return torch.where(tokens.mask_BT, chosen_BT, 0.0)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found.detach(), expected.detach(), rtol=tolerance, atol=tolerance)


def base_hash(roles: Roles) -> str:
    digest = hashlib.sha256()
    for name, tensor in roles.base_tensors():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def test_every_role_equals_pefts_public_path(four: Roles, ragged: Tokens) -> None:
    """The roles switch adapters by hand; PEFT's own set_adapter and disable_adapter must give the same numbers."""
    ours = {
        "policy": four(ragged, "policy", POLICY),
        "reference": four(ragged, "reference", LOGPROBS),
        "reward": four(ragged, "reward", SCORES),
    }
    with torch.no_grad():
        four.peft.set_adapter("policy")
        out = four.peft(input_ids=ragged.tokens_BT, output_hidden_states=True)
        close(ours["policy"].logprobs_BT, reply_logprobs(out.logits, ragged, 0.7))
        values_BT = out.hidden_states[-1] @ four.value_head.weight + four.value_head.bias
        close(ours["policy"].values_BT, torch.where(ragged.mask_BT, values_BT, 0.0))
        with four.peft.disable_adapter():
            logits_BTV = four.peft(input_ids=ragged.tokens_BT).logits
        close(ours["reference"].logprobs_BT, reply_logprobs(logits_BTV, ragged, 0.7))
        four.peft.set_adapter("reward")
        hidden_BTD = four.peft(input_ids=ragged.tokens_BT, output_hidden_states=True).hidden_states[-1]
        last_BD = torch.stack([hidden_BTD[i, length - 1] for i, length in enumerate(ragged.lengths_B.tolist())])
        close(ours["reward"].scores_BM[:, 0], last_BD @ four.score_heads[0].weight)
    assert (ours["policy"].logprobs_BT - ours["reference"].logprobs_BT).abs().max() > 0.01, "the adapter does nothing"


def test_the_order_of_calls_does_not_matter(four: Roles, ragged: Tokens) -> None:
    first = four(ragged, "policy", POLICY).logprobs_BT
    four(ragged, "reward", SCORES)
    four(ragged, "reference", LOGPROBS)
    assert torch.equal(four(ragged, "policy", POLICY).logprobs_BT, first)


@pytest.mark.row(18)
def test_row_18_reference_is_the_base_alone(four: Roles, ragged: Tokens, folder: Path, load: Load) -> None:
    assert torch.equal(
        four(ragged, "reference", LOGPROBS).logprobs_BT.detach(), plain_logprobs(load(folder), ragged, 0.7)
    )


@pytest.mark.row(18)
def test_row_18_a_fresh_policy_is_the_reference(folder: Path, load: Load, ragged: Tokens) -> None:
    """Row 18: log-ratio exactly 0 before training."""
    roles = Roles(load(folder), trained="policy", lora=LORA)
    policy, reference = roles(ragged, "policy", POLICY), roles(ragged, "reference", LOGPROBS)
    assert torch.equal(policy.logprobs_BT, reference.logprobs_BT)
    assert torch.equal(policy.entropy_BT, reference.entropy_BT)
    assert not policy.values_BT.any(), "the critic starts at 0"


def test_what_is_not_asked_for_is_none(four: Roles, ragged: Tokens) -> None:
    only = four(ragged, "policy", frozenset({"values"}))
    assert only.values_BT is not None
    assert only.logprobs_BT is only.entropy_BT is only.scores_BM is None
    for role, need in (("reference", "values"), ("reward", "logprobs"), ("policy", "scores")):
        with pytest.raises(AssertionError):
            four(ragged, role, frozenset({need}))


@pytest.mark.parametrize("packs", [False, True])
def test_the_last_token_is_read_only_where_its_state_is_asked_for(
    four: Roles, ragged: Tokens, packs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No action follows it, so its products would be for nothing."""
    model, read = four.peft.get_base_model(), list[int]()
    trunk = getattr(model, model.base_model_prefix)
    trunk.register_forward_pre_hook(lambda *given: read.append(given[2]["input_ids"].numel()), with_kwargs=True)
    rows, columns = ragged.tokens_BT.shape
    whole, shorter = rows * columns, rows * (columns - 1)
    if packs:
        assert use_packed_attention(model) is None
        read.clear()
        monkeypatch.setattr("plaudit.models.roles.PACKED_BELOW", 10.0)
        four.packs, whole, shorter = True, int(ragged.lengths_B.sum()), int(ragged.lengths_B.sum()) - rows
    for role, need in (("policy", POLICY), ("reference", LOGPROBS), ("reward", SCORES)):
        four(ragged, role, need)
    four(ragged, "policy", POLICY | {"last_values"})
    assert read == [shorter, shorter, whole, whole]


@pytest.mark.parametrize(("trained", "head"), [("policy", "value_head"), ("reward", "score_heads")])
def test_only_the_trained_adapter_and_its_head_learn(
    trained: str, head: str, folder: Path, load: Load, reward_adapter: Path, ragged: Tokens
) -> None:
    roles = Roles(load(folder), trained=trained, lora=LORA, reward=[reward_adapter] if trained == "policy" else ())

    def learning() -> set[str]:
        return {name for name, parameter in roles.named_parameters() if parameter.requires_grad}

    expected = {
        name
        for name, _ in roles.named_parameters()
        if (".lora_" in name and f".{trained}." in name) or name.startswith(f"{head}.")
    }
    assert any(".lora_A." in name for name in expected)
    assert any(".lora_B." in name for name in expected)
    assert learning() == expected == set(roles.trainable())
    roles(ragged, trained, POLICY if trained == "policy" else SCORES)
    if trained == "policy":
        roles(ragged, "reference", LOGPROBS)
        roles(ragged, "reward", SCORES)
    assert learning() == expected


@pytest.mark.row(18, 19)
def test_rows_18_and_19_training_moves_neither_base_nor_reward(four: Roles, ragged: Tokens) -> None:
    """Rows 18 and 19: after optimiser steps the base's bytes, the reference and the scores are what they were."""
    before = base_hash(four)
    reference = four(ragged, "reference", LOGPROBS).logprobs_BT.detach().clone()
    scores = four(ragged, "reward", SCORES).scores_BM.detach().clone()
    policy = four(ragged, "policy", POLICY).logprobs_BT.detach().clone()
    frozen = {name: p.clone() for name, p in four.named_parameters() if not p.requires_grad}
    optimiser = torch.optim.AdamW(four.trainable().values(), lr=0.05)
    for _ in range(3):
        output = four(ragged, "policy", POLICY)
        (output.logprobs_BT.sum() + (output.values_BT**2).sum() + output.entropy_BT.sum()).backward()
        optimiser.step()
        optimiser.zero_grad()
    assert base_hash(four) == before
    assert torch.equal(four(ragged, "reference", LOGPROBS).logprobs_BT, reference)
    assert torch.equal(four(ragged, "reward", SCORES).scores_BM, scores)
    for name, parameter in four.named_parameters():
        assert name not in frozen or torch.equal(parameter, frozen[name]), name
    assert (four(ragged, "policy", POLICY).logprobs_BT - policy).abs().max() > 0.01


@pytest.mark.row(19)
def test_row_19_nothing_trained_shares_storage(four: Roles) -> None:
    trained = {parameter.untyped_storage().data_ptr() for parameter in four.trainable().values()}
    rest = {p.untyped_storage().data_ptr() for p in four.parameters() if not p.requires_grad}
    assert not trained & rest


def test_one_copy_of_the_base(four: Roles, folder: Path, load: Load) -> None:
    """Four roles, and the base's bytes are there once."""

    def storages(tensors: list[Tensor]) -> dict[int, int]:
        return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}

    plain = sum(storages(list(load(folder).parameters())).values())
    assert sum(storages([tensor for _, tensor in four.base_tensors()]).values()) == plain
    adapters = [p for name, p in four.named_parameters() if ".lora_" in name or "_head" in name]
    own = set(storages([*four.parameters(), *four.buffers()])) - set(storages(adapters))
    buffers = storages(list(four.buffers()))
    assert sum(size for key, size in storages(list(four.parameters())).items() if key in own) == plain
    assert sum(buffers.values()) < 4096, "a second copy of the weights hides in a buffer"


@pytest.mark.row(7, 20)
def test_rows_7_and_20_nothing_is_in_training_mode(four: Roles, ragged: Tokens) -> None:
    assert not any(module.training for module in four.modules())
    for role, need in (("policy", POLICY), ("reference", LOGPROBS), ("reward", SCORES)):
        four(ragged, role, need)
    assert not any(module.training for module in four.modules())
    assert torch.equal(four(ragged, "policy", POLICY).logprobs_BT, four(ragged, "policy", POLICY).logprobs_BT)


@pytest.mark.row(20)
@pytest.mark.parametrize("reaches", [False, True])
def test_row_20_value_gradient(
    reaches: bool, folder: Path, load: Load, stirred: Callable[..., Roles], ragged: Tokens
) -> None:
    """Row 20: a pure value loss trains the head alone, or the trunk too, as configured."""
    roles = stirred(load(folder), trained="policy", value_gradient=reaches)
    (roles(ragged, "policy", POLICY).values_BT ** 2).sum().backward()
    assert roles.value_head.weight.grad.abs().max() > 0
    trunk = [p.grad for name, p in roles.trainable().items() if ".lora_" in name]
    assert any(grad is not None and grad.abs().max() > 0 for grad in trunk) == reaches


@pytest.mark.row(20)
def test_row_20_value_gradient_changes_no_value(
    folder: Path, load: Load, stirred: Callable[..., Roles], ragged: Tokens
) -> None:
    values = [
        stirred(load(folder), trained="policy", value_gradient=reaches)(ragged, "policy", POLICY).values_BT
        for reaches in (False, True)
    ]
    assert torch.equal(*values)


@pytest.mark.row(31)
def test_merged_weights_equal_pefts_merge(
    folder: Path, load: Load, stirred: Callable[..., Roles], ragged: Tokens
) -> None:
    roles = stirred(load(folder), trained="policy")
    ours = {name: tensor.clone() for name, tensor in roles.merged_weights("policy", None)}
    policy = roles(ragged, "policy", POLICY).logprobs_BT
    plain = load(folder)
    before = {name: tensor.clone() for name, tensor in plain.named_parameters()}
    merge_into(plain, iter(ours.items()))
    close(plain_logprobs(plain, ragged, 1.0), policy)
    theirs = dict(roles.peft.merge_and_unload().named_parameters())
    assert ours, "no layer was adapted"
    for name, tensor in plain.named_parameters():
        close(tensor, theirs[name], 1e-6)
        assert torch.equal(tensor, before[name]) == (name not in ours)


def test_saved_adapter_loads_with_plain_peft(
    four: Roles, folder: Path, load: Load, ragged: Tokens, tmp_path: Path
) -> None:
    ours = four(ragged, "policy", POLICY).logprobs_BT
    four.save_adapter(tmp_path / "adapter")
    four.save_adapter(tmp_path / "adapter")  # over an older one
    assert {path.name for path in tmp_path.iterdir()} == {"adapter"}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {p.name for p in (tmp_path / "adapter").iterdir()}
    modules = json.loads((tmp_path / "adapter/adapter_config.json").read_text())["target_modules"]
    assert modules == sorted(modules), "the order of a set is another one in every process"
    model = PeftModel.from_pretrained(load(folder), str(tmp_path / "adapter"))
    with torch.no_grad():
        close(ours, reply_logprobs(model(input_ids=ragged.tokens_BT).logits, ragged, 0.7))


def test_loaded_reward_adapter_scores_like_the_one_that_was_trained(
    folder: Path, load: Load, stirred: Callable[..., Roles], ragged: Tokens, reward_adapter: Path, four: Roles
) -> None:
    trained = stirred(load(folder), seed=1, trained="reward")
    frozen = Roles(load(folder), reward=[reward_adapter])
    assert not frozen.trainable()
    for roles in (four, frozen):
        roles.score_heads.load_state_dict(trained.score_heads.state_dict())
        assert torch.equal(roles(ragged, "reward", SCORES).scores_BM, trained(ragged, "reward", SCORES).scores_BM)


def test_the_seed_decides_the_start(folder: Path, load: Load) -> None:
    def start(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed * 17 + 3)  # the global generator must not matter
        roles = Roles(load(folder), trained="reward", lora=LORA, seed=seed)
        return roles.adapter_state()

    first = start(1)
    torch.rand(1)
    again, other = start(1), start(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first if "lora_A" in name)
    assert not first["score_heads.0.weight"].any()


def test_building_roles_leaves_the_global_generator_alone(folder: Path, load: Load) -> None:
    model = load(folder)
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    Roles(model, trained="policy", lora=LORA, seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_adapter_state_is_a_copy_and_can_be_put_back(four: Roles, ragged: Tokens) -> None:
    state, policy = four.adapter_state(), four(ragged, "policy", POLICY)
    with torch.no_grad():
        for parameter in four.trainable().values():
            parameter.add_(0.3)
    assert not torch.equal(four(ragged, "policy", POLICY).logprobs_BT, policy.logprobs_BT)
    load_parameters(four.trainable(), state)
    back = four(ragged, "policy", POLICY)
    assert torch.equal(back.logprobs_BT, policy.logprobs_BT)
    assert torch.equal(back.values_BT, policy.values_BT)


@pytest.mark.row(5)
def test_row_5_policy_and_reference_share_the_temperature(folder: Path, load: Load, ragged: Tokens) -> None:
    """Row 5: the temperature of the sampler divides the logits of both, and KL stays 0 at the start."""
    roles = Roles(load(folder), trained="policy", lora=LORA, temperature=0.5)
    policy, reference = roles(ragged, "policy", POLICY), roles(ragged, "reference", LOGPROBS)
    assert torch.equal(policy.logprobs_BT, reference.logprobs_BT)
    with torch.no_grad():
        close(policy.logprobs_BT, reply_logprobs(load(folder)(input_ids=ragged.tokens_BT).logits, ragged, 0.5))


# Ensembles: M members on the one base.


def test_members_are_the_models_they_would_be_alone(
    folder: Path, load: Load, stirred: Callable[..., Roles], ragged: Tokens, tmp_path: Path
) -> None:
    """Column m of an ensemble's scores is what member m gives when it is loaded as the only one."""
    both = stirred(load(folder), trained="reward", members=2)
    scores_BM = both(ragged, "reward", SCORES).scores_BM
    assert scores_BM.shape == (4, 2)
    assert (scores_BM[:, 0] - scores_BM[:, 1]).abs().max() > 0.1
    for member in range(2):
        assert torch.equal(both(ragged, "reward", SCORES, member=member).scores_BM, scores_BM[:, member : member + 1])
        both.save_adapter(tmp_path / f"{member}", member)
        alone = Roles(load(folder), reward=[tmp_path / f"{member}"])
        alone.score_heads[0].load_state_dict(both.score_heads[member].state_dict())
        close(alone(ragged, "reward", SCORES).scores_BM, scores_BM[:, member : member + 1], 1e-6)
    loaded = Roles(load(folder), trained="policy", lora=LORA, reward=[tmp_path / "0", tmp_path / "1"])
    loaded.score_heads.load_state_dict(both.score_heads.state_dict())
    assert torch.equal(loaded(ragged, "reward", SCORES).scores_BM, scores_BM)
    assert {name for name in loaded.trainable() if "reward" in name or "score" in name} == set()


def test_members_start_apart_and_the_first_as_it_would_alone(folder: Path, load: Load) -> None:
    alone = Roles(load(folder), trained="reward", lora=LORA, seed=1).adapter_state()
    both = Roles(load(folder), trained="reward", lora=LORA, seed=1, members=2).adapter_state()
    assert all(torch.equal(tensor, both[name]) for name, tensor in alone.items())
    assert len(both) == 2 * len(alone)
    for name in (name for name in alone if "lora_A" in name):
        assert not torch.equal(alone[name], both[name.replace(".reward.", ".reward_1.")])


def test_a_member_learns_by_itself(folder: Path, load: Load, stirred: Callable[..., Roles], ragged: Tokens) -> None:
    roles = stirred(load(folder), trained="reward", members=2)
    roles(ragged, "reward", SCORES, member=1).scores_BM.sum().backward()
    touched = {name for name, p in roles.trainable().items() if p.grad is not None and p.grad.any()}
    assert touched == {name for name in roles.trainable() if ".reward_1." in name or name.startswith("score_heads.1")}


@pytest.mark.row(26)
def test_row_26_a_head_that_was_not_loaded_scores_nothing(
    folder: Path, load: Load, reward_adapter: Path, ragged: Tokens
) -> None:
    """Row 26: a forgotten head gives no number, which every stage refuses, and not a random one."""
    assert Roles(load(folder), reward=[reward_adapter])(ragged, "reward", SCORES).scores_BM.isnan().all()
