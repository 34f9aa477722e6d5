"""Settings under which ranks cannot hold the base together are refused before a run, by name."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from plaudit.dist.ranks import ALONE, Ranks
from plaudit.errors import UserError
from plaudit.stages.before import fit
from plaudit.stages.memory import Device, Sums
from plaudit.stages.plan import NOTHING_ASKED, Flags, plan_of
from plaudit.stages.prepare import _check_parts, _check_sharding
from plaudit.stages.recipe import load_recipe

TWO, FOUR = Ranks(0, 2, 2), Ranks(0, 4, 2)
FITS = ("distributed.shard=all", "sft.samples=0", "rollout.engine=vllm")


@pytest.fixture
def check(write_recipe: Callable[..., Path], tmp_path: Path) -> Callable[..., None]:
    path = write_recipe(tmp_path)

    def call(ranks: Ranks, *overrides: str, flags: Flags = NOTHING_ASKED) -> None:
        recipe = load_recipe(path, overrides)
        plan = plan_of(recipe, set(), set(), flags)
        _check_parts(recipe, plan, ranks)
        _check_sharding(recipe, plan, ranks)

    return call


def test_what_can_be_held_together_is_taken(check: Callable[..., None]) -> None:
    check(ALONE)
    check(TWO, *FITS)
    check(FOUR, *FITS, "distributed.shard=node")
    check(ALONE, *FITS, flags=Flags(only=("evaluate",)))


def test_sft_alone_is_looked_at_too(check: Callable[..., None]) -> None:
    """A stage by itself is held together as in a run of all; what PPO wants of the sampler does not concern it."""
    sft = Flags(only=("sft",))
    check(TWO, *FITS[:2], flags=sft)
    with pytest.raises(UserError, match=r"lora\.stages\.sft=null trains the base"):
        check(TWO, *FITS[:2], "lora.stages.sft=null", flags=sft)
    with pytest.raises(UserError, match="there is one rank to hold it"):
        check(ALONE, *FITS[:2], flags=sft)


def test_one_process_checks_the_recipe_of_several(
    plaudit: Callable[..., SimpleNamespace], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """And says that a run wants ranks; the run itself is refused, and leaves no folder."""
    recipe = write_recipe(tmp_path)
    done = plaudit("check", recipe, "--quick", *FITS)
    assert done.code == 0, done.out + done.err
    assert "distributed.shard=all: a run of it needs several ranks" in done.out
    assert "distributed.shard" not in plaudit("check", recipe, "--quick").out
    done = plaudit("run", recipe, *FITS)
    assert done.code == 2 and "distributed.shard=all: there is one rank to hold it" in done.err
    assert not (tmp_path / "run").exists()


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


@pytest.mark.parametrize(("gpus", "overrides", "parts"), [("4xL4-24G", FITS, 4), ("4xL4-24G", (), 1), (None, FITS, 1)])
def test_the_plan_of_several_gpus_divides_the_base_where_the_recipe_does(
    gpus: str | None,
    overrides: tuple[str, ...],
    parts: int,
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planned: list[Device] = []
    monkeypatch.setattr(fit, "_print_memory", lambda needs, device: planned.append(device))
    assert fit.plan(load_recipe(write_recipe(tmp_path), overrides), gpus)
    assert [device.parts for device in planned] == [parts]
