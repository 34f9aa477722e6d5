"""Settings under which ranks cannot hold the base together are refused before a run, by name."""

from collections.abc import Callable
from pathlib import Path

import pytest

from plaudit.dist.ranks import ALONE, Ranks
from plaudit.errors import UserError
from plaudit.stages.memory import Device, Sums
from plaudit.stages.plan import NOTHING_ASKED, plan_of
from plaudit.stages.prepare import _check_sharding
from plaudit.stages.recipe import load_recipe

TWO, FOUR = Ranks(0, 2, 2), Ranks(0, 4, 2)
FITS = ("distributed.shard=all", "sft.samples=0", "rollout.engine=vllm")


@pytest.fixture
def check(write_recipe: Callable[..., Path], tmp_path: Path) -> Callable[..., None]:
    path = write_recipe(tmp_path)

    def call(ranks: Ranks, *overrides: str) -> None:
        recipe = load_recipe(path, overrides)
        _check_sharding(recipe, plan_of(recipe, set(), set(), NOTHING_ASKED), ranks)

    return call


def test_what_can_be_held_together_is_taken(check: Callable[..., None]) -> None:
    check(ALONE)
    check(TWO, *FITS)
    check(FOUR, *FITS, "distributed.shard=node")


@pytest.mark.parametrize(
    ("ranks", "overrides", "said"),
    [
        (ALONE, FITS, "there is one rank to hold it; start several"),
        (Ranks(0, 2, 1), (*FITS, "distributed.shard=node"), "there is one rank to hold it"),
        (Ranks(0, 3, 2), (*FITS, "distributed.shard=node"), "the machines have unequal numbers of ranks"),
        (TWO, (*FITS, "quantise=int8"), "quantise=int8 has bits that are not divided"),
        (TWO, (*FITS, "lora.stages.sft=null"), "lora.stages.sft=null trains the base; give it an adapter"),
        (TWO, (*FITS[:2], "lora.stages.ppo=null"), "lora.stages.ppo=null trains the base; give it an adapter"),
        (TWO, (FITS[0], FITS[2], "sft.samples=2"), "sample replies need a whole copy of the model; set sft.samples=0"),
        (TWO, FITS[:2], "every rank would sample from a whole copy; set rollout.engine=vllm"),
        (TWO, (*FITS, "ppo.torch_compile=true"), "compiled layers are not gathered; set ppo.torch_compile=false"),
    ],
)
def test_what_cannot_is_refused(
    check: Callable[..., None], ranks: Ranks, overrides: tuple[str, ...], said: str
) -> None:
    served = ["rollout.engine=inprocess"] if any("quantise" in word for word in overrides) else []
    with pytest.raises(UserError) as refused:
        check(ranks, *overrides, *served)
    assert str(refused.value).startswith("distributed.shard=") and said in str(refused.value)


def test_one_that_has_less_passes_once_more_for_nothing_where_all_must(tmp_path: Path) -> None:
    held = [Ranks(rank, 2, 2, shard="all") for rank in range(2)]
    assert [ranks.passes(["a", "b", "c"]) for ranks in held] == [[("a", 1.0), ("c", 1.0)], [("b", 1.0), ("a", 0.0)]]
    assert [ranks.passes(["a"]) for ranks in held] == [[("a", 1.0)], [("a", 0.0)]]
    assert [ranks.passes([]) for ranks in held] == [[], []]
    assert [Ranks(rank, 2, 2).passes(["a"]) for rank in range(2)] == [[("a", 1.0)], []]


def test_the_plan_counts_a_part_of_the_base(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """In SFT and PPO, whose ranks hold it together; the reward model's hold it whole."""
    from plaudit.models.shapes import shape_of
    from plaudit.stages.lengths import Lengths

    recipe = load_recipe(write_recipe(tmp_path), FITS)
    shape, lengths = shape_of(str(recipe.model)), Lengths([9], [9], [], [])
    whole, quarter = (Sums(recipe, shape, lengths, Device(4, "gpu", 1e12, parts=parts)) for parts in (1, 4))
    for stage in ("sft", "ppo"):
        assert getattr(quarter, stage)().always["weights"] * 4 == getattr(whole, stage)().always["weights"]
    assert quarter.reward().always["weights"] == whole.reward().always["weights"]
