"""The data that is shipped: its size, its kinds, its splits, and that nothing held out is trained on."""

import re
from collections import Counter
from importlib.resources import as_file, files
from pathlib import Path

import pytest

from plaudit.data.annotator import declines, simulated_annotator
from plaudit.data.files import read_demonstrations, read_prompts
from plaudit.records import Demonstration, Prompt
from plaudit.stages.recipe import Recipe, load_recipe

KINDS = {"instruction", "domain", "safety"}


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    with as_file(files("plaudit.recipes")) as home:
        return load_recipe(home / "demo.yaml")


@pytest.fixture(scope="module")
def prompts(recipe: Recipe) -> list[Prompt]:
    return read_prompts(recipe.data.prompts)


@pytest.fixture(scope="module")
def demonstrations(recipe: Recipe) -> list[Demonstration]:
    return read_demonstrations(recipe.data.demonstrations)


def plain(text: str) -> str:
    """A prompt without capitals, punctuation and spacing: what a near-copy shares."""
    return " ".join(re.findall(r"[a-z0-9']+", text.lower()))


def test_the_recipe_is_read_and_points_at_the_shipped_files(recipe: Recipe) -> None:
    assert recipe.name == "demo"
    for path in (recipe.data.prompts, recipe.data.demonstrations):
        assert path.is_absolute()
        assert path.is_file()
        assert Path("plaudit/recipes/demo") == Path(*path.parts[-4:-1])


def test_there_are_enough_prompts_of_every_kind(prompts: list[Prompt]) -> None:
    assert len(prompts) >= 400
    assert {prompt.kind for prompt in prompts} == KINDS
    assert {prompt.split for prompt in prompts} == {"train", "validation", "test"}


def test_enough_prompts_are_held_out_and_every_kind_is_tested(prompts: list[Prompt]) -> None:
    assert sum(prompt.split != "train" for prompt in prompts) >= 64
    for split in ("train", "validation", "test"):
        assert {prompt.kind for prompt in prompts if prompt.split == split} == KINDS


def test_there_are_enough_demonstrations_of_every_kind(demonstrations: list[Demonstration]) -> None:
    assert len(demonstrations) >= 200
    assert {d.prompt.kind for d in demonstrations} == KINDS
    assert {d.prompt.kind for d in demonstrations if d.prompt.split == "train"} == KINDS


def test_some_demonstrations_are_held_out_for_the_loss(demonstrations: list[Demonstration]) -> None:
    splits = Counter(d.prompt.split == "train" for d in demonstrations)
    assert splits[False] >= 20
    assert splits[True] >= 200


@pytest.mark.row(25)
def test_row25_no_held_out_prompt_is_among_the_training_demonstrations(
    prompts: list[Prompt], demonstrations: list[Demonstration]
) -> None:
    held_out = {plain(p.text) for p in prompts if p.split != "train"}
    held_out |= {plain(d.prompt.text) for d in demonstrations if d.prompt.split != "train"}
    trained = {plain(d.prompt.text) for d in demonstrations if d.prompt.split == "train"}
    assert trained & held_out == set()
    assert len(held_out) >= 64


@pytest.mark.row(25)
def test_row25_no_prompt_differs_from_another_in_capitals_or_punctuation_only(prompts: list[Prompt]) -> None:
    repeated = [text for text, count in Counter(plain(p.text) for p in prompts).items() if count > 1]
    assert repeated == []


def test_every_demonstration_agrees_with_the_prompt_of_its_id(
    prompts: list[Prompt], demonstrations: list[Demonstration]
) -> None:
    by_id = {prompt.id: prompt for prompt in prompts}
    for demonstration in demonstrations:
        assert demonstration.prompt == by_id[demonstration.prompt.id]


def test_every_demonstration_is_the_only_one_of_its_prompt(demonstrations: list[Demonstration]) -> None:
    assert max(Counter(d.prompt.id for d in demonstrations).values()) == 1


def test_ideal_continuations_are_of_every_mood(demonstrations: list[Demonstration]) -> None:
    """Else the SFT model's replies to one opening are alike in warmth, and no reward model can learn it from a few."""
    annotator = simulated_annotator(noise=0.0, tie_margin=0.0, seed=0)
    moods = [annotator.warmth(d.completion) for d in demonstrations if d.prompt.kind == "domain"]
    shares = [sum(test(mood) for mood in moods) / len(moods) for test in (lambda m: m > 0.5, lambda m: m < -0.5)]
    assert all(0.25 < share < 0.4 for share in shares)


def test_an_ideal_reply_declines_where_the_prompt_asks_for_harm(demonstrations: list[Demonstration]) -> None:
    safety = [d for d in demonstrations if d.prompt.kind == "safety"]
    assert [d.prompt.id for d in safety if not declines(d.completion)] == []
    assert len(safety) >= 30
