"""What a run takes of the memory: by hand, and beside what a pass keeps and a whole update has alive."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import CPU, TINY, make_model
from plaudit.errors import UserError
from plaudit.models.config import LoraSettings
from plaudit.models.full import FullPolicy
from plaudit.models.load import load_model
from plaudit.models.recompute import recompute_activations
from plaudit.models.roles import Roles
from plaudit.models.shapes import Shape, shape_of
from plaudit.models.tokens import Batch
from plaudit.stages import memory
from plaudit.stages.before.cards import cards_of
from plaudit.stages.before.fit import speeds_of
from plaudit.stages.lengths import Lengths
from plaudit.stages.memory import Device, Need, Sums, check_fit, micro_batches_of, needs_of, that_would_fit
from plaudit.stages.recipe import Recipe, load_recipe

LENGTHS = Lengths(prompts=[16, 10], demonstrations=[40], ranked=[], labelled=[])
# Two layers of hidden size 8 with one linear layer each of 8 x 8, a vocabulary of 100 that is tied.
BY_HAND = Shape(
    layers=2, hidden=8, intermediate=16, queries=8, keys=4, heads=2, vocabulary=100, gated=True, linear=128, rest=840,
    largest=64, sides=(("a.q_proj", 16), ("b.q_proj", 16)),
)  # fmt: off


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate({**TINY, "model": "unused", **changes})


def test_a_shape_is_counted_from_the_configuration_alone(tiny_model: Callable[..., Path]) -> None:
    """Hidden size 32, two layers, four heads of 8, two of them keys, MLP 48: counted by hand."""
    shape = shape_of(str(tiny_model()))
    attention, mlp = 32 * 32 + 2 * 32 * 16 + 32 * 32, 3 * 32 * 48
    assert shape.linear == 2 * (attention + mlp)
    model = load_model(str(tiny_model()), torch.float32, CPU)
    assert shape.weights == sum(parameter.numel() for parameter in model.parameters())
    assert (shape.layers, shape.hidden, shape.intermediate, shape.queries, shape.keys) == (2, 32, 48, 32, 16)
    assert shape.gated and shape.largest == 32 * 48
    roles = Roles(model, trained="policy", lora=LoraSettings(r=4))
    learnt = sum(parameter.numel() for parameter in roles.adapter_parameters("policy"))
    assert shape.adapted(LoraSettings(r=4)) == (learnt, 14)
    assert shape.adapted(LoraSettings(r=4, target_modules=["q_proj"])) == (2 * 4 * (32 + 32), 2)


def test_bytes_by_hand() -> None:
    assert BY_HAND.base_bytes(2, None) == 2 * 968
    assert BY_HAND.base_bytes(2, "nf4") == 128 * 0.5625 + 2 * 840
    assert BY_HAND.base_bytes(4, "int8") == 128 + 4 * 840
    assert BY_HAND.cache(2) == 2 * 4 * 2 * 2
    numbers = 4 * 8 + 2 * 8 + 2 * 4 + 4 * 16
    lora = LoraSettings(r=3)
    assert BY_HAND.kept(2, lora) == 2 * (numbers * 2 + 8 + 4 * 2) + 2 * 3 * 2
    assert BY_HAND.kept(2, lora, seen=5) - BY_HAND.kept(2, lora) == 2 * 2 * 5 * 2
    halved, half = replace(BY_HAND, swiglu=True), 2 * 2 * 16 * 2  # layers, numbers, features, bytes
    assert BY_HAND.kept(2, lora) - halved.kept(2, lora) == half
    for other, few_bits in ((None, False), (lora, True), (LoraSettings(r=3, target_modules=["q_proj"]), False)):
        assert halved.kept(2, other, few_bits=few_bits) == BY_HAND.kept(2, other)


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("lora", [LoraSettings(r=4), None])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_what_a_pass_keeps_of_a_token(
    lora: LoraSettings | None, recomputed: bool, architecture: str, tmp_path: Path
) -> None:
    """Every storage that the backward pass is handed, weights aside, of rows of 16 and 24 tokens: within a tenth."""
    base = make_model(architecture, 340)
    base.save_pretrained(tmp_path)
    shape = shape_of(str(tmp_path))
    model = FullPolicy(base, torch.float32) if lora is None else Roles(base, trained="policy", lora=lora)
    if recomputed:
        recompute_activations(base)
    one, other = (kept(model, columns) for columns in (16, 24))
    found = (shape.checkpointed if recomputed else shape.kept)(4, lora)
    if recomputed:
        found -= shape.kept(4, lora) / shape.layers  # one layer's own is there in the backward pass only
    # The last norm's input and the gradient of what it gives; where the norm learns, that too.
    head = (2 if lora is not None else 3) * shape.hidden * 4
    assert (other - one) / (2 * 8) == pytest.approx(found + head, rel=0.1)


def kept(model: Roles | FullPolicy, columns: int) -> int:
    """Bytes that a pass over two rows leaves for the backward pass."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    ids_BT = torch.arange(2 * columns).reshape(2, -1) % 300 + 5
    mask_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(Batch(ids_BT, mask_BT), "policy", frozenset({"loss"})).loss
    assert loss is not None
    return sum(found.values())


def test_the_parts_of_ppo_by_hand() -> None:
    told = recipe(ppo={"batch_size": 4, "minibatch_size": 4, "micro_batch_size": 2, "critic": "own"})
    need = Sums(told, BY_HAND, LENGTHS, Device(2, "cpu", 1e9)).ppo()
    adapter = 4 * (16 + 16)
    assert need.always == {
        "weights": 2 * 968,
        "adapters": 2 * adapter * 2,
        "optimiser": 2 * adapter * 12,
        "reward model": adapter * 2,
        "copy": 2 * 968,
    }
    assert need.longest == 16 + 8
    both = 2 * need.longest * need.token
    assert need.phases["going backward"]["activations"] == both
    assert need.phases["the head computes"]["activations"] == both / 2
    assert need.phases["sampling"]["cache"] == 4 * 24 * BY_HAND.cache(2)
    assert need.total == sum(need.always.values()) + max(sum(phase.values()) for phase in need.phases.values())


def test_an_offloaded_reference_is_there_while_replies_are_judged() -> None:
    def need(**changes: Any) -> Need:
        sizes = {"batch_size": 4, "minibatch_size": 4, "micro_batch_size": 2}
        told = recipe(ppo={**sizes, **changes}, lora={"stages": {"ppo": None}})
        return Sums(told, BY_HAND, LENGTHS, Device(2, "gpu", 1e9)).ppo()

    here, away = need(), need(offload_reference=True)
    assert here.always["reference"] == 2 * 968 and "reference" not in away.always
    # Two rows of 24 tokens, each of three times 16 and four times 8 numbers while a layer computes.
    assert away.phases["judging"] == {"reference": 2 * 968, "working": 48 * (3 * 16 + 4 * 8) * 2}
    assert away.phases["going backward"] == here.phases["going backward"]


def test_what_there_is_room_for() -> None:
    """As many rows as it says fit, and one more does not."""
    told = recipe(ppo={"batch_size": 64, "minibatch_size": 64, "micro_batch_size": 1})
    need = Sums(told, BY_HAND, LENGTHS, Device(2, "cpu", 1e9)).ppo()
    rows, at_once = need.largest(10e6)
    free = 10e6 - sum(need.always.values())
    others = need.phases["the head computes"]["logits"]
    assert rows * need.token * need.longest + others <= free < (rows + 1) * need.token * need.longest + others
    assert at_once == int(free / need.row)


def with_free(free: float) -> Any:
    """What PPO of four replies with auto would do on a CPU where so much is free."""
    told = recipe(ppo={"batch_size": 8, "minibatch_size": 4, "micro_batch_size": "auto"})
    return Sums(told, BY_HAND, LENGTHS, Device(2, "cpu", 1e9, free)).ppo()


def test_a_pass_takes_the_largest_half_of_a_step_that_there_is_room_for() -> None:
    """A step is four rows of 16 + 8 tokens; half of what is free may be filled, whatever the machine has in all."""
    whole = with_free(1e9)
    assert (whole.tokens, whole.step) == (96, 96)
    always = sum(whole.always.values())
    for tokens in (96, 48, 24):
        other = recipe(ppo={"batch_size": 8, "minibatch_size": 4, "micro_batch_size": tokens // 24})
        needs = Sums(other, BY_HAND, LENGTHS, Device(2, "cpu", 1e9)).ppo().passing
        assert needs > always
        assert with_free(2 * needs).tokens == tokens
        assert with_free(2 * needs - 1).tokens == max(24, tokens // 2)
    assert with_free(0).tokens == 24  # one row, whatever there is


def test_the_stages_that_choose() -> None:
    """With auto, the default; a number or a budget in the recipe stands. Evaluation always chooses."""
    told = Recipe.model_validate({"name": "auto", "model": "unused", "data": {"prompts": "p", "demonstrations": "d"}})
    needs = needs_of(told, BY_HAND, LENGTHS, Device(4, "cpu", 1e9), ("rejection", "dpo"))
    found = micro_batches_of(needs, told)
    assert set(found) == {"sft", "reward", "ppo", "rejection", "dpo", "evaluate"}
    assert found["sft"] == {"tokens": 16 * (16 + 40), "step": 16 * (16 + 40)}
    assert found["ppo"]["step"] == 16 * (16 + 32) == found["rejection"]["step"]
    assert found["reward"]["step"] == 8 * (16 + 4 * 32) == found["dpo"]["step"]
    assert micro_batches_of(needs_of(recipe(), BY_HAND, LENGTHS, Device(4, "cpu", 1e9)), recipe()).keys() == {
        "evaluate"
    }
    budget = told.model_copy(update={"ppo": told.ppo.model_copy(update={"micro_batch_tokens": 99})})
    assert "ppo" not in micro_batches_of(needs, budget)


def test_each_change_takes_less() -> None:
    """And the first of them that is enough is what is named."""
    told = recipe(ppo={"batch_size": 8, "minibatch_size": 8, "micro_batch_size": 8})
    large = replace(BY_HAND, layers=40, linear=128_000_000)
    whole = Sums(told, large, LENGTHS, Device(2, "gpu", 1e9)).ppo().total

    def change(memory: float) -> str:
        return that_would_fit(told, large, LENGTHS, Device(2, "gpu", memory), "ppo")

    assert change(whole - 1) == "ppo.gradient_checkpointing=true"
    four = "ppo.gradient_checkpointing=true and ppo.micro_batch_size=1 and quantise=nf4"
    assert change(0.75 * whole) == four
    assert change(0.3 * whole) == f"{four} and ppo.sampling_copy=false"
    assert change(1e6).startswith("a smaller model, or shorter rows, since ppo.gradient_checkpointing=true")


def test_a_stage_that_cannot_fit_is_refused_with_the_change() -> None:
    told = recipe()
    totals = {need.stage: need.total for need in needs_of(told, BY_HAND, LENGTHS, Device(4, "cpu", 1e9))}
    # Evaluation judges in smaller passes where there is less.
    largest = max(totals.keys() - {"evaluate"}, key=lambda stage: totals[stage])
    device = Device(4, "cpu", totals[largest] - 1)
    with pytest.raises(UserError, match=rf"memory: {largest} needs about 0\.0 GB, .* {largest}.gradient_checkpointing"):
        check_fit(told, BY_HAND, LENGTHS, device, (largest,))
    check_fit(told, BY_HAND, LENGTHS, device, ("evaluate",))
    check_fit(told, BY_HAND, LENGTHS, Device(4, "cpu", 1e9), tuple(totals))


def test_a_run_is_refused_before_anything_is_written(
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    plaudit: Callable[..., SimpleNamespace],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A machine with half a megabyte beyond what the libraries take."""
    monkeypatch.setattr(memory, "memory_mb", lambda: (memory.LIBRARIES + 5e5) / 1e6)
    path = write_recipe(tmp_path)
    done = plaudit("run", path)
    assert done.code == 2
    assert "memory: sft needs about 0.0 GB" in done.err
    assert "gradient_checkpointing=true" in done.err
    assert not load_recipe(path).run_folder.exists()


def test_cards() -> None:
    count, card = cards_of("8xh100-80G")
    assert (count, card.name, card.memory) == (8, "H100-80G", 80e9)
    assert cards_of("L4-24G")[0] == 1
    assert cards_of("2xOther-48G")[1].memory == 48e9
    for wrong in ("H100", "0xH100-80G", "8 x H100-80G"):
        with pytest.raises(UserError, match="write how many of which, like 8xH100-80G"):
            cards_of(wrong)


def test_the_two_terms_of_the_time_by_hand() -> None:
    """A forward pass multiplies each token by every weight of the linear layers and the head; 80 launches a layer."""
    told = recipe(ppo={"batch_size": 4, "minibatch_size": 4, "micro_batch_size": 4})
    _, card = cards_of("H100-80G")
    arithmetic, launches = speeds_of(told, BY_HAND, LENGTHS, Device(2, "gpu", 80e9), card)
    assert arithmetic.passed == pytest.approx((2 * 128 + 2 * 100 * 8) / (0.3 * 989e12))
    assert launches.passed == pytest.approx(80 * 2 * 6e-6 / (4 * 24))


def test_the_command(
    write_recipe: Callable[..., Path], tmp_path: Path, plaudit: Callable[..., SimpleNamespace]
) -> None:
    path = write_recipe(tmp_path)
    done = plaudit("plan", path, "--gpus", "2xL4-24G")
    assert done.code == 0, done.err
    assert "2 x L4-24G, 24.0 GB" in done.out
    for stage in ("sft", "preferences", "reward", "ppo", "evaluate"):
        assert stage in done.out
    assert "while going backward" in done.out and "launches" in done.out
    assert "in passes of at most" in done.out and "(a whole step)" in done.out
    assert not load_recipe(path).run_folder.exists()
    refused = plaudit("plan", path, "--gpus", "L4-0G")
    assert refused.code == 2
    assert "ppo does not fit" in refused.out
    both = plaudit("plan", path, "--gpus", "L4-24G", "--measure")
    assert (both.code, "leave one of them out" in both.err) == (2, True)
