"""A recipe from a script or a configuration of TRL's: every field becomes a key of ours, or the reason why it does not.

Nothing of it is run: Python is read with `ast`. A script may make its configuration (`PPOConfig(...)`), hold the flags
of a command line as a list, or leave them to a JSON or YAML file, which is then given beside it; a shell script is read
for its flags. Fields that the files do not set are left at our defaults.
"""

import ast
import json
import math
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import yaml

from plaudit.data.formats.rows import shown
from plaudit.errors import UserError, no_file
from plaudit.recipes.coming.table import Entry, tables
from plaudit.run.loggers.backends import LoggerName

STAGES = {"PPOConfig": "ppo", "RewardConfig": "reward", "SFTConfig": "sft"}
_CLASSES = {**{name: name for name in STAGES}, "PPOv2Config": "PPOConfig", "ModelConfig": "", "ScriptArguments": ""}
_CLASSES["LoraConfig"] = ""
_WORDS = {"ppo": "PPOConfig", "rloo": "PPOConfig", "reward": "RewardConfig", "rm": "RewardConfig", "sft": "SFTConfig"}
_SHARED = ("TrainingArguments", "ModelConfig", "ScriptArguments")
_DATA = {"sft": "data.demonstrations", "reward": "preferences.rankings", "ppo": "data.prompts"}
_LOADERS = {"json", "csv", "text", "parquet"}
"""What `load_dataset` reads files by; another name is a data set of the Hub."""
_BEFORE = {"batch_size", "mini_batch_size", "forward_batch_size"}
_BATCH = {"per_device_train_batch_size", "gradient_accumulation_steps", "num_mini_batches", *_BEFORE}
"""The fields that sizes of batches are made of, in PPO before 1.0 and since."""
MODEL = "path/to/a/chat/model"
"""What stands where the files name no model."""


@dataclass
class Found:
    """The fields that the files set, by class ("" for those that any may have), and what could not be read."""

    fields: dict[str, dict[str, Any]] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)

    def add(self, name: str, values: dict[str, Any]) -> None:
        self.fields.setdefault(name, {}).update(values)


@dataclass
class Imported:
    """A recipe, and (field, value, key or "", what happened) of every field."""

    recipe: dict[str, Any]
    rows: list[tuple[str, Any, str, str]]

    def text(self) -> str:
        """The recipe as a file, with what was not carried over as comments."""
        body = yaml.safe_dump(self.recipe, sort_keys=False, allow_unicode=True, width=120)
        # A name is whatever a file holds: it must not end its comment.
        lost = [f"# {' '.join(name.split())}={shown(value)}: {how}\n" for name, value, key, how in self.rows if not key]
        heads = ["# From TRL. Files and models that it names are to be looked at; docs/coming.md has every field.\n"]
        return "".join([*heads, body, *(["\n# Not carried over:\n"] if lost else []), *lost])


def from_trl(paths: Sequence[Path], stage: str | None = None) -> Imported:
    """The recipe of scripts and configurations. `stage` says what a file of plain fields configures, where that cannot
    be seen: sft, reward or ppo."""
    found = Found()
    for path in paths:
        if why := no_file(path):
            raise UserError(f"{path}: {why}")
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.suffix == ".py":
            _read_script(path, text, found)
        elif path.suffix in (".json", ".yaml", ".yml"):
            _read_fields(path, text, found)
        else:
            try:
                _read_flags(shlex.split(text.replace("\\\n", " "), comments=True), found)
            except ValueError as error:
                raise UserError(f"{path}: cannot be read as a shell script: {error}") from error
    if stage is not None:
        found.add(next(name for name, own in STAGES.items() if own == stage), {})
    loose = found.fields.pop("", {})
    if not found.fields:
        found.add(_class_of(loose, paths), {})
    rows: list[tuple[str, Any, str, str]] = []
    recipe: dict[str, Any] = {"name": re.sub(r"\W+", "-", paths[0].stem).strip("-") or "from-trl", "model": MODEL}
    recipe["data"] = {"prompts": "prompts.jsonl", "demonstrations": "demonstrations.jsonl"}
    for name, values in found.fields.items():
        # A field that the class has is its own; the others are those of the model and the data.
        try:
            _convert(name, {**loose, **values}, recipe, rows)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{', '.join(map(str, paths))}: a field of {name} is not of its kind ({error}); write the number there"
            ) from error
    if "SFTConfig" not in found.fields and any("sft_model_path" in {**loose, **own} for own in found.fields.values()):
        # PPO alone, on a model that was fine-tuned elsewhere: there are no demonstrations to ask for.
        recipe["sft"] = {"skip": True}
        del recipe["data"]["demonstrations"]
    rows += [(what, "?", "", "is no literal, so it could not be read") for what in found.unread]
    return Imported(recipe, list({(row[0], str(row[1]), row[2]): row for row in rows}.values()))


# --- reading ---


def _read_script(path: Path, text: str, found: Found) -> None:
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise UserError(f"{path}:{error.lineno}: not valid Python: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{path}: not valid Python: {error}") from error
    known: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            for value in _literal(node.value, {}):
                known[node.targets[0].id] = value
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and (name := STAGES.get(_last(node)) and _last(node)):
            found.add(name, {})
        if isinstance(node, ast.List | ast.Tuple):
            for flags in _literal(node, known):
                if any(isinstance(flag, str) and flag.startswith("--") for flag in flags):
                    _read_flags([str(flag) for flag in flags], found)
        if isinstance(node, ast.Call):
            _read_call(node, known, found)


def _read_call(node: ast.Call, known: dict[str, Any], found: Found) -> None:
    called = _last(node.func)
    if called in _CLASSES:
        name = _CLASSES[called]
        for given in node.keywords:
            if given.arg is None:
                if unpacked := _literal(given.value, known):
                    found.add(name, unpacked[0])
                else:
                    found.unread.append(f"{called}(**{ast.unparse(given.value)})")
                continue
            if value := _literal(given.value, known):
                found.add(name, {given.arg: value[0]})
            else:
                found.unread.append(f"{called}.{given.arg}")
    first = _literal(node.args[0], known) if node.args else []
    if called == "load_dataset" and first and isinstance(first[0], str):
        named = _file_of(node, known) if first[0] in _LOADERS else first[0]
        if isinstance(named, str):
            found.fields.setdefault("", {}).setdefault("dataset_name", named)
        else:
            found.unread.append("load_dataset.data_files")
    causal = isinstance(node.func, ast.Attribute) and _last(node.func.value).startswith("AutoModelForCausalLM")
    if called == "from_pretrained" and causal and first and isinstance(first[0], str):
        found.fields.setdefault("", {}).setdefault("model_name_or_path", first[0])


def _file_of(call: ast.Call, known: dict[str, Any]) -> Any:
    """The file of `load_dataset("csv", data_files=...)`, the first or that of split train where there are several; None
    for what is no literal."""
    given = next((keyword.value for keyword in call.keywords if keyword.arg == "data_files"), None)
    files = next(iter(_literal(given, known)), None) if given is not None else None
    if isinstance(files, dict):
        files = files.get("train")
    return next(iter(files), None) if isinstance(files, list | tuple) else files


def _last(node: ast.AST) -> str:
    """The name that a name or a dotted name ends with."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _literal(node: ast.AST, known: dict[str, Any]) -> list[Any]:
    """[the value] of a literal, or of a name that was assigned one; [] for anything else."""
    if isinstance(node, ast.Name) and node.id in known:
        return [known[node.id]]
    try:
        return [ast.literal_eval(node)]
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return []


def _read_fields(path: Path, text: str, found: Found) -> None:
    try:
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: a configuration is a mapping of fields, found {type(values).__name__}")
    for key, value in values.items():
        found.add(_CLASSES.get(key, ""), value if key in _CLASSES and isinstance(value, dict) else {key: value})


def _read_flags(words: Sequence[str], found: Found) -> None:
    """`--field value`, `--field=value`, `--field` (true); a script or command named ppo, reward or sft says whose."""
    values: dict[str, Any] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name, given, text = word[2:].partition("=")
            name = name.replace("-", "_")
            values[name] = _value(text) if given else True
        elif name:
            before = values[name]
            more = [*before, _value(word)] if isinstance(before, list) else [before, _value(word)]
            values[name] = _value(word) if before is True else more
        elif named := [whose for part, whose in _WORDS.items() if part in re.split(r"[^a-z]+", Path(word).stem)]:
            found.add(named[0], {})
    found.add("", values)


def _value(text: str) -> Any:
    """A number, a truth value or a text, as a command line has them."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def _class_of(values: dict[str, Any], paths: Sequence[Path]) -> str:
    """The configuration that alone has some of the fields."""
    every = {name: set(tables("trl")[name]) for name in STAGES}
    only = {
        name: own - set().union(*(other for whose, other in every.items() if whose != name))
        for name, own in every.items()
    }
    fitting = [name for name in STAGES if only[name] & set(values)]
    if len(fitting) != 1:
        raise UserError(
            f"{', '.join(map(str, paths))}: cannot tell which of {', '.join(STAGES)} this is; say it with --as "
            "(sft, reward or ppo), or give the script beside its configuration"
        )
    return fitting[0]


# --- converting ---


def _convert(name: str, values: dict[str, Any], recipe: dict[str, Any], rows: list[tuple[str, Any, str, str]]) -> None:
    """The fields `values` of one configuration: into the recipe, and a row for each."""
    stage, ours = STAGES[name], tables("trl")
    changed = _batches(stage, values)
    for key, value in changed.items():
        _put(recipe, key, value)
    for name_of, value in values.items():
        entry = next((ours[part][name_of] for part in (name, *_SHARED) if name_of in ours[part]), None)
        if entry is None:
            rows.append((name_of, value, "", "is no field of TRL 1.12 or of its PPO before"))
        elif entry.key is None or value is None:
            rows.append((name_of, value, "", entry.how or "is not set"))
        elif name_of in _BATCH:
            rows.append((name_of, value, entry.key, entry.how))
        else:
            rows.append((name_of, value, *_carried(name_of, value, entry, stage, values, recipe)))


def _carried(
    name: str, value: Any, entry: Entry, stage: str, values: dict[str, Any], recipe: dict[str, Any]
) -> tuple[str, str]:
    """(key or "", what happened) of a field that has a key."""
    key = _DATA[stage] if name in ("dataset_name", "dataset_config") else (entry.key or "").replace("STAGE", stage)
    made = _CONVERTED[name](value, values) if name in _CONVERTED else value
    if made is None or (key.startswith("ppo.") and stage != "ppo"):
        return "", entry.how
    _put(recipe, key, made)
    if key == "ppo.kl_coef":
        recipe["ppo"].setdefault("score_scale", "none")
    return key, entry.how


def _put(recipe: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        recipe = recipe.setdefault(parent, {})
    recipe[last] = value


def _batches(stage: str, values: dict[str, Any]) -> dict[str, int]:
    """The sizes of batches, which are products there and numbers here; none where nothing of them is set."""
    if not set(values) & _BATCH:
        return {}
    times = int(values.get("gradient_accumulation_steps") or 1)
    if stage != "ppo":
        rows = int(values.get("per_device_train_batch_size") or 8)
        names = {"sft": ("micro_batch_size", "batch_size"), "reward": ("rankings_per_micro_batch", "rankings_per_step")}
        small, large = names[stage]
        return {f"{stage}.{small}": rows, f"{stage}.{large}": rows * times}
    if set(values) & _BEFORE:
        rows = int(values.get("forward_batch_size") or values.get("mini_batch_size") or 1)
        whole = int(values.get("batch_size") or 256)
    else:
        rows = int(values.get("per_device_train_batch_size") or 8)
        whole = rows * times * int(values.get("num_mini_batches") or 1)
    return {"ppo.batch_size": whole, "ppo.minibatch_size": rows * times, "ppo.micro_batch_size": rows}


def _updates(value: Any, values: dict[str, Any]) -> int:
    sizes = _batches("ppo", values) or {"ppo.batch_size": 256 if "steps" in values else 8}
    return math.ceil(float(value) / sizes["ppo.batch_size"])


def _hub(_: Any, values: dict[str, Any]) -> str | None:
    """A data set of the Hub with its configuration, or a file."""
    name, config = values.get("dataset_name"), values.get("dataset_config")
    if not isinstance(name, str):
        return None
    if Path(name).suffix in (".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet"):
        return name
    return f"hub:{name}:{config}" if config else f"hub:{name}"


def _whole(value: Any, _: dict[str, Any]) -> int | None:
    return int(value) if float(value) >= 1 and float(value).is_integer() else None


def _one_of(**names: Any) -> Callable[[Any, dict[str, Any]], Any]:
    return lambda value, _: names.get(str(value).lower().removeprefix("torch."))


def _loggers(value: Any, _: dict[str, Any]) -> list[str] | None:
    """Those of ours that are installed: a recipe with another one would be refused."""
    named = [str(name) for name in (value if isinstance(value, list) else [value])]
    known = get_args(LoggerName)
    return [name for name in known if (name in named or "all" in named) and find_spec(name)] or None


_FORMATS = {"auto": "auto", "bfloat16": "bfloat16", "float32": "float32"}
_CONVERTED: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "vf_coef": lambda value, _: float(value) / 2,
    "total_episodes": _updates,
    "steps": _updates,
    "num_train_epochs": _whole,
    "max_steps": _whole,
    "warmup_steps": lambda value, _: int(value) if float(value).is_integer() else None,
    "eval_steps": _whole,
    "save_steps": _whole,
    "lr_scheduler_type": _one_of(
        linear="linear", cosine="cosine", constant="constant", constant_with_warmup="constant"
    ),
    "bf16": _one_of(true="bfloat16"),
    "dtype": _one_of(**_FORMATS),
    "torch_dtype": _one_of(**_FORMATS),
    "truncation_mode": _one_of(keep_end="left_truncate"),
    "assistant_only_loss": _one_of(true="all", false="last"),
    "kl_penalty": _one_of(kl="k1", mse="k2"),
    "target": lambda value, values: None if values.get("adap_kl_ctrl") is False else float(value),
    "horizon": _whole,
    "adap_kl_ctrl": lambda value, values: values.get("target", 6.0) if value else None,
    "use_score_scaling": _one_of(true="running"),
    "reward_model_path": lambda value, _: [{"model": value}],
    "reward_model": lambda value, _: [{"model": str(value).removeprefix("model:")}],
    "report_to": _loggers,
    "log_with": _loggers,
    "load_in_8bit": _one_of(true="int8"),
    "load_in_4bit": _one_of(true="nf4"),
    "query_dataset": lambda value, _: f"hub:{value}",
    "dataset_name": _hub,
    "dataset_config": _hub,
}
