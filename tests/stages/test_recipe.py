"""The recipe: what is refused is named by file, line, key and value; an override wins; every field explains itself."""

import re
import shutil
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from plaudit.errors import UserError
from plaudit.stages.before.schema import schema_line
from plaudit.stages.recipe import MOVED, Recipe, load_recipe

PLAIN = """\
name: mine
model: OWNER/NAME
data:
  prompts: data/prompts.jsonl
  demonstrations: data/demonstrations.jsonl
"""


def put(folder: Path, more: str = "", text: str = PLAIN) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text + more, encoding="utf-8")
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- what is read ---


def test_a_recipe_needs_five_lines_and_the_rest_stands_at_its_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(put(tmp_path))
    assert (recipe.name, recipe.model, recipe.seed, recipe.folder) == ("mine", "OWNER/NAME", 0, None)
    assert recipe.run_folder == Path("runs/mine")
    assert recipe.ppo.clip_range == 0.2
    assert recipe.ppo.value_coef == 0.1
    assert recipe.ppo.lam == 0.95


def test_data_paths_start_at_the_folder_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    put(tmp_path, "preferences: {rankings: people/rankings.jsonl}\n")
    recipe = load_recipe(Path("../recipe.yaml"))
    home = tmp_path.resolve()
    assert recipe.data.prompts == home / "data" / "prompts.jsonl"
    assert recipe.data.demonstrations == home / "data" / "demonstrations.jsonl"
    assert recipe.preferences.rankings == [home / "people" / "rankings.jsonl"]


def test_absolute_data_paths_stay_and_no_rankings_stay_none(tmp_path: Path) -> None:
    recipe = load_recipe(put(tmp_path), ["data.prompts=/abs/prompts.jsonl"])
    assert recipe.data.prompts == Path("/abs/prompts.jsonl")
    assert recipe.preferences.rankings == []


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path: Path) -> None:
    """YAML 1.1 takes 3e-4 (no dot) for a string."""
    assert load_recipe(put(tmp_path, "ppo: {learning_rate: 3e-4}\n")).ppo.learning_rate == 0.0003


def test_a_resolved_recipe_is_a_recipe(tmp_path: Path) -> None:
    """What a run writes to its folder can be run again and is the same recipe."""
    recipe = load_recipe(put(tmp_path, "ppo: {updates: 3}\n"), ["seed=7", f"folder={tmp_path}/run"])
    (tmp_path / "again").mkdir()
    again = put(tmp_path / "again", text=yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    assert load_recipe(again) == recipe


def test_a_recipe_cannot_be_changed(tmp_path: Path) -> None:
    recipe = load_recipe(put(tmp_path))
    with pytest.raises(ValidationError):
        recipe.ppo.updates = 3


def shipped() -> list[str]:
    with as_file(files("plaudit.recipes")) as home:
        return sorted(path.name for path in home.glob("*.yaml"))


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_is_valid_and_its_files_are_there(name: str) -> None:
    with as_file(files("plaudit.recipes")) as home:
        recipe = load_recipe(home / name)
        assert recipe.data.prompts.is_file()
        assert recipe.data.demonstrations.is_file()
        # Editors complete the keys once `plaudit schema` has written the schema beside it, as `plaudit init` does.
        assert (home / name).read_text(encoding="utf-8").startswith(schema_line() + "\n")


def test_the_demo_is_shipped() -> None:
    assert "demo.yaml" in shipped()


# --- unknown keys ---


@pytest.mark.parametrize(
    ("more", "line", "name", "near"),
    [
        ("sed: 3\n", 6, "sed", "seed"),
        ("ppo:\n  updates: 3\n  clip_rang: 0.1\n", 8, "ppo.clip_rang", "ppo.clip_range"),
        ("lora:\n  alfa: 3\n", 7, "lora.alfa", "lora.alpha"),
        ("lora:\n  stages:\n    ppo: {alfa: 3}\n", 8, "lora.stages.ppo.alfa", "lora.stages.ppo.alpha"),
        ("sft:\n  mixture:\n    - {kid: a}\n", 7, "sft.mixture.0.kid", "sft.mixture.0.kind"),
        ("rewards: {}\n", 6, "rewards", "reward"),
        ("reward: {learningrate: 1}\n", 6, "reward.learningrate", "reward.learning_rate"),
    ],
)
def test_an_unknown_key_is_named_with_its_line_and_the_nearest_name(
    tmp_path: Path, more: str, line: int, name: str, near: str
) -> None:
    path = put(tmp_path, more)
    assert f"{path}:{line}: unknown key {name!r}; did you mean {near!r}?" in refusal(path)


def test_an_unknown_key_like_no_other_lists_the_known_ones(tmp_path: Path) -> None:
    path = put(tmp_path, "lora: {zzz: 1}\n")
    assert refusal(path) == f"{path}:6: unknown key 'lora.zzz'; known here: alpha, r, stages, target_modules"


def test_an_unknown_key_in_data_is_named(tmp_path: Path) -> None:
    path = put(tmp_path, "  prompt: x\n")
    assert f"{path}:6: unknown key 'data.prompt'; did you mean 'data.prompts'?" in refusal(path)


def test_every_mistake_is_reported_at_once(tmp_path: Path) -> None:
    message = refusal(put(tmp_path, "sed: 3\nppo: {updates: 0}\n"))
    assert "'sed'" in message
    assert "ppo.updates" in message


# --- wrong values ---


@pytest.mark.parametrize(
    ("more", "line", "name", "value"),
    [
        ("seed: many\n", 6, "seed", "'many'"),
        ("seed: -1\n", 6, "seed", "-1"),
        ("seed: 1.5\n", 6, "seed", "1.5"),
        ("dtype: float16\n", 6, "dtype", "'float16'"),
        ("ppo:\n  updates: 0\n", 7, "ppo.updates", "0"),
        ("ppo:\n\n  gamma: 1.5\n", 8, "ppo.gamma", "1.5"),
        ("ppo: {sampling_copy: perhaps}\n", 6, "ppo.sampling_copy", "'perhaps'"),
        ("ppo: {learning_rate: [1]}\n", 6, "ppo.learning_rate", "[1]"),
        ("ppo: {learning_rate: .nan}\n", 6, "ppo.learning_rate", "nan"),
        ("lora:\n  stages:\n    sft:\n      r: sixteen\n", 9, "lora.stages.sft.r", "'sixteen'"),
        ("lora:\n  stages:\n    sfd: {r: 3}\n", 8, "lora.stages.sfd", "'sfd'"),
        ("lora:\n  stages:\n    sft: 3\n", 8, "lora.stages.sft", "3"),
        ("lora:\n  target_modules: 3\n", 7, "lora.target_modules", "3"),
        ("ppo: 3\n", 6, "ppo", "3"),
        ("preferences: {replies: 1}\n", 6, "preferences.replies", "1"),
        ("sampling: {temperature: 0}\n", 6, "sampling.temperature", "0"),
        ("sampling: {stages: {ppo: {temperature: 0}}}\n", 6, "sampling.stages.ppo.temperature", "0"),
    ],
)
def test_a_wrong_value_is_shown_with_its_line_and_key(
    tmp_path: Path, more: str, line: int, name: str, value: str
) -> None:
    path = put(tmp_path, more)
    message = refusal(path)
    assert f"{path}:{line}: {name}" in message
    assert f"found {value}" in message


@pytest.mark.parametrize(
    "key",
    ["seed", "ppo.updates", "ppo.clip_range", "ppo.watch.patience", "lora.r", "lora.alpha", "ppo.micro_batch_size"],
)
def test_a_truth_value_is_not_a_number(tmp_path: Path, key: str) -> None:
    """`seed: yes` is a mistake, not seed 1."""
    message = refusal(put(tmp_path), f"{key}=yes")
    assert key in message
    assert "True" in message


@pytest.mark.parametrize("value", ["0", "2.5", "many"])
def test_a_micro_batch_is_a_number_or_auto(tmp_path: Path, value: str) -> None:
    message = refusal(put(tmp_path), f"ppo.micro_batch_size={value}")
    assert "ppo.micro_batch_size" in message and "a whole number is needed, 1 or more, or auto" in message
    assert load_recipe(put(tmp_path), ["ppo.micro_batch_size=auto"]).ppo.micro_batch_size == "auto"


@pytest.mark.parametrize("text", ["name: ''\n", "model: ''\n"])
def test_an_empty_name_or_model_is_refused(tmp_path: Path, text: str) -> None:
    key = text.split(":")[0]
    lines = [line for line in PLAIN.splitlines(keepends=True) if not line.startswith(f"{key}:")]
    path = put(tmp_path, text=text + "".join(lines))
    assert f"{path}:1: {key}:" in refusal(path)


@pytest.mark.parametrize(
    ("section", "smaller", "larger", "values"),
    [
        ("ppo", "minibatch_size", "batch_size", (12, 32)),
        ("ppo", "micro_batch_size", "minibatch_size", (6, 16)),
        ("ppo", "minibatch_size", "batch_size", (64, 32)),
        ("sft", "micro_batch_size", "batch_size", (3, 16)),
        ("reward", "rankings_per_micro_batch", "rankings_per_step", (3, 8)),
    ],
)
def test_a_part_that_does_not_divide_its_whole_is_refused_with_both_numbers(
    tmp_path: Path, section: str, smaller: str, larger: str, values: tuple[int, int]
) -> None:
    """Every field whose help says "must divide"."""
    path = put(tmp_path, f"{section}:\n  {smaller}: {values[0]}\n  {larger}: {values[1]}\n")
    message = refusal(path)
    assert f"{path}:6: {section}: " in message
    assert f"{smaller}={values[0]} does not divide {larger}={values[1]}" in message


def test_parts_that_divide_are_accepted(tmp_path: Path) -> None:
    recipe = load_recipe(put(tmp_path), ["ppo.batch_size=24", "ppo.minibatch_size=12", "ppo.micro_batch_size=4"])
    assert (recipe.ppo.batch_size, recipe.ppo.minibatch_size, recipe.ppo.micro_batch_size) == (24, 12, 4)


@pytest.mark.parametrize(
    ("missing", "name"), [("name", "name"), ("model", "model"), ("  prompts", "data.prompts"), ("data", "data")]
)
def test_a_missing_key_is_named(tmp_path: Path, missing: str, name: str) -> None:
    values = yaml.safe_load(PLAIN)
    if missing.startswith(" "):
        del values["data"][missing.strip()]
    else:
        del values[missing]
    path = put(tmp_path, text=yaml.safe_dump(values))
    message = refusal(path)
    assert message.startswith(f"{path}")
    assert f"key {name!r} is missing" in message


# --- files that are no recipe ---


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path / 'nowhere.yaml'}: no such recipe" in refusal(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    "text",
    ["name: [1, 2\n", "a: b: c\n", "name: x\n\tmodel: y\n", "'", "name: &a *b\n", "key: !!python/object:os.x {}"],
)
def test_what_is_not_yaml_is_named(tmp_path: Path, text: str) -> None:
    path = put(tmp_path, text=text)
    assert re.match(rf"{re.escape(str(path))}:\d+: not valid YAML: ", refusal(path))


def test_a_python_object_in_a_recipe_is_not_built(tmp_path: Path) -> None:
    """A recipe is data: nothing runs in it."""
    target = tmp_path / "made"
    path = put(tmp_path, f"folder: !!python/object/apply:os.mkdir ['{target}']\n")
    assert "not valid YAML" in refusal(path)
    assert not target.exists()


@pytest.mark.parametrize(("text", "kind"), [("", "None"), ("- a\n- b\n", "['a', 'b']"), ("just text\n", "'just text'")])
def test_what_is_not_a_mapping_is_named(tmp_path: Path, text: str, kind: str) -> None:
    path = put(tmp_path, text=text)
    assert refusal(path) == f"{path}: a recipe is a mapping of keys; this file holds {kind}"


def test_a_recipe_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"name: caf\xe9\n")
    assert refusal(path).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("more", "line", "name"),
    [("ppo: {updates: 3}\nppo: {epochs: 1}\n", 7, "ppo"), ("ppo:\n  updates: 3\n  updates: 4\n", 8, "ppo.updates")],
)
def test_a_key_given_twice_is_refused(tmp_path: Path, more: str, line: int, name: str) -> None:
    """YAML keeps the last one silently: the first `ppo:` section would be a setting that does nothing (row 28)."""
    path = put(tmp_path, more)
    message = refusal(path)
    assert f"{path}:{line}" in message
    assert f"'{name}'" in message


# --- overrides ---


def test_an_override_wins_and_leaves_its_neighbours(tmp_path: Path) -> None:
    path = put(tmp_path, "seed: 3\nppo: {updates: 3, epochs: 4}\n")
    recipe = load_recipe(path, ["ppo.updates=9", "seed=5", "lora.r=2", "ppo.sampling_copy=false"])
    assert (recipe.ppo.updates, recipe.ppo.epochs, recipe.seed, recipe.lora.r) == (9, 4, 5, 2)
    assert recipe.ppo.sampling_copy is False
    assert "updates: 3" in path.read_text()


def test_the_last_of_two_overrides_wins(tmp_path: Path) -> None:
    assert load_recipe(put(tmp_path), ["seed=1", "seed=2"]).seed == 2


def test_an_override_may_hold_an_equals_sign_null_a_list_or_a_section(tmp_path: Path) -> None:
    recipe = load_recipe(
        put(tmp_path),
        ["data.system=1+1=2 is right", "folder=null", "lora.target_modules=[q_proj, v_proj]", "sft={epochs: 7}"],
    )
    assert recipe.data.system == "1+1=2 is right"
    assert recipe.folder is None
    assert recipe.lora.target_modules == ["q_proj", "v_proj"]
    assert recipe.sft.epochs == 7


def test_an_override_mends_a_bad_value_of_the_file(tmp_path: Path) -> None:
    assert load_recipe(put(tmp_path, "seed: many\n"), ["seed=4"]).seed == 4


def test_an_override_reaches_into_a_section_that_stands_empty(tmp_path: Path) -> None:
    """`ppo:` with every line below it commented out."""
    assert load_recipe(put(tmp_path, "ppo:\n  # updates: 3\n"), ["ppo.updates=4"]).ppo.updates == 4


@pytest.mark.parametrize("override", ["seed", "seed:3", "=3", ""])
def test_an_override_without_key_or_equals_sign_is_shown(tmp_path: Path, override: str) -> None:
    message = refusal(put(tmp_path), override)
    assert f"override {override!r}" in message
    assert "key=value" in message


def test_an_override_below_a_value_is_refused(tmp_path: Path) -> None:
    message = refusal(put(tmp_path), "name.first=x")
    assert "override 'name.first=x': 'name' has no keys below it" in message


def test_an_override_that_is_not_yaml_is_shown(tmp_path: Path) -> None:
    assert "override 'seed=[1': the value is not valid YAML" in refusal(put(tmp_path), "seed=[1")


def test_a_misspelt_override_gets_the_nearest_name(tmp_path: Path) -> None:
    assert "unknown key 'ppo.update'; did you mean 'ppo.updates'?" in refusal(put(tmp_path), "ppo.update=3")


@pytest.mark.parametrize("override", ["ppo.updates=0", "ppo={updates: 0}"])
def test_a_bad_override_does_not_blame_a_line_of_the_file(tmp_path: Path, override: str) -> None:
    path = put(tmp_path, "ppo:\n  updates: 3\n")
    message = refusal(path, override)
    assert "ppo.updates" in message
    assert "found 0" in message
    assert f"{path}:7" not in message


# --- help ---


def inner(annotation: object) -> type[BaseModel] | None:
    """The settings in a type: its own, or those of a list's or a mapping's items."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := inner(part))), None)


def models_of(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        if section := inner(field.annotation):
            yield from models_of(section)


FIELDS = [
    pytest.param(model, name, id=f"{model.__name__}.{name}")
    for model in dict.fromkeys(models_of(Recipe))
    for name in model.model_fields
]


@pytest.mark.parametrize(("model", "name"), FIELDS)
def test_every_field_explains_itself(model: type[BaseModel], name: str) -> None:
    description = model.model_fields[name].description
    assert description is not None
    assert len(description) >= 10
    assert description.endswith(".")


@pytest.mark.parametrize("model", dict.fromkeys(models_of(Recipe)), ids=lambda model: model.__name__)
def test_every_section_explains_itself_and_refuses_what_it_does_not_know(model: type[BaseModel]) -> None:
    assert model.__doc__
    assert model.model_config.get("extra") == "forbid"
    assert model.model_config.get("frozen") is True


def test_all_sections_are_walked() -> None:
    names = {model.__name__ for model in models_of(Recipe)}
    assert names >= {"Recipe", "DataConfig", "SFTConfig", "PreferencesConfig", "RewardConfig", "PPOConfig"}
    assert names >= {
        "EvaluateConfig",
        "LoraConfig",
        "LoraOfStage",
        "SamplingOfStage",
        "OptimiserOfStage",
        "RewardSource",
    }
    assert len(FIELDS) > 60


def test_a_copied_recipe_folder_is_the_same_recipe_elsewhere(tmp_path: Path) -> None:
    """Nothing in the shipped demo depends on where it lies."""
    with as_file(files("plaudit.recipes")) as home:
        shutil.copytree(home, tmp_path / "copy", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    recipe = load_recipe(tmp_path / "copy" / "demo.yaml")
    assert recipe.data.prompts == (tmp_path / "copy" / "demo" / "prompts.jsonl").resolve()


# --- how many keys there are, and those that were ---


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key that can be given a value; what a section says otherwise of one stage (`stages`) is one."""
    for name, field in model.model_fields.items():
        section = None if name == "stages" else inner(field.annotation)
        yield from keys_of(section, f"{prefix}{name}.") if section else [prefix + name]


def test_the_keys_stay_few() -> None:
    assert len(list(keys_of(Recipe))) <= 170


def test_no_key_of_before_is_a_key_and_every_new_one_is() -> None:
    keys = set(keys_of(Recipe))
    for old, now in MOVED.items():
        assert old not in keys
        assert now.startswith("no key any more: ") or now.split(" now")[0].split("=")[0] in keys | {"lora"}, old


@pytest.mark.parametrize(
    ("more", "line", "old", "now"),
    [
        ("ppo: {max_new_tokens: 8}\n", 6, "ppo.max_new_tokens", "sampling.max_new_tokens now (for ppo alone sampling"),
        ("evaluate:\n  temperature: 1\n", 7, "evaluate.temperature", "sampling.temperature now"),
        ("sft: {lora: null}\n", 6, "sft.lora", "lora now (for sft alone lora.stages.sft)"),
        ("sft: {mixture: [{format: hh}]}\n", 6, "sft.mixture.0.format", "data.formats now, a mapping {FILE: FORMAT}"),
        ("sft: {packing: false}\n", 6, "sft.packing", "no key any more: demonstrations share rows"),
    ],
)
def test_a_key_of_before_is_refused_with_its_new_name(tmp_path: Path, more: str, line: int, old: str, now: str) -> None:
    path = put(tmp_path, more)
    assert f"{path}:{line}: {old} is {now}" in refusal(path)


@pytest.mark.parametrize(
    ("override", "now"),
    [
        ("ppo.whiten_scores=false", "ppo.whiten_scores is ppo.score_scale now: whiten, running or none"),
        ("sft.lora.r=2", "sft.lora is lora now (for sft alone lora.stages.sft)"),
    ],
)
def test_so_is_one_on_the_command_line(tmp_path: Path, override: str, now: str) -> None:
    assert refusal(put(tmp_path), override) == f"override {override!r}: {now}"


# --- sections that several stages read ---


def test_a_stage_reads_a_shared_section_with_its_own_exceptions(tmp_path: Path) -> None:
    recipe = load_recipe(
        put(tmp_path, "sampling: {temperature: 0.7, stages: {evaluate: {max_new_tokens: 64}}}\n"),
        ["lora.stages.sft=null", "lora.stages.ppo.r=4", "optimiser.stages.ppo={warmup_steps: 0}"],
    )
    laws = {stage: recipe.sampling.of(stage) for stage in ("preferences", "ppo", "evaluate")}
    assert {stage: (law.temperature, law.max_new_tokens) for stage, law in laws.items()} == {
        "preferences": (0.7, 32),
        "ppo": (0.7, 32),
        "evaluate": (0.7, 64),
    }
    adapters = [recipe.lora.of(stage) for stage in ("sft", "reward", "ppo")]
    assert [adapter and (adapter.r, adapter.alpha) for adapter in adapters] == [None, (16, 32), (4, 32)]
    assert [recipe.optimiser.of(stage).warmup_steps for stage in ("sft", "reward", "ppo")] == [4, 4, 0]


def test_beside_a_full_policy_a_critic_of_its_own_needs_the_reward_models_adapter(tmp_path: Path) -> None:
    path, full = put(tmp_path), ("ppo.critic=own", "lora.stages.ppo=null")
    assert load_recipe(path, full).lora.of("ppo") is None
    watched = "ppo.rewards=[{function: 'scores.py:nothing'}, {trained: true, watch: true}]"
    for without in ("lora.stages.reward=null", "ppo.rewards=[{function: 'scores.py:nothing'}]", watched):
        assert "is the adapter of the run's reward model, and there is none" in refusal(path, *full, without)


def test_members_of_an_ensemble_are_adapters(tmp_path: Path) -> None:
    message = refusal(put(tmp_path), "reward.members=2", "lora.stages.reward=null")
    assert "reward.members=2 are adapters on one base" in message


def test_formats_are_of_files_that_the_recipe_names(tmp_path: Path) -> None:
    recipe = load_recipe(put(tmp_path), ["data.formats={data/prompts.jsonl: prompts}"])
    assert recipe.data.formats == {recipe.data.prompts: "prompts"}
    assert "data.formats: other.jsonl is no file of this recipe" in refusal(
        put(tmp_path), "data.formats={other.jsonl: hh}"
    )
    assert "data/prompts.jsonl: must be one of" in refusal(put(tmp_path), "data.formats={data/prompts.jsonl: cvs}")
