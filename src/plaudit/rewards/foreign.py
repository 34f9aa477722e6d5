"""Reward models made elsewhere, scored by text: another family, another tokenizer, another trainer's layout.

    layout       what lies in the folder                                         the score is read at
    huggingface  `AutoModelForSequenceClassification`, one label, head `score`;  the last token of the template's
                 TRL's merged checkpoints and its PEFT adapters are of it        rendering of the conversation
    openrlhf     the same trunk, the head under its own name (`value_head`,      EOS, after the rendering without
                 `score`, config.value_head_prefix), mean and std in config      its last line ends

The head is the one tensor NAME.weight of shape [1, hidden]. A checkpoint without it is refused by the tensor's name:
transformers would draw one at random and only warn. Text goes through the model's own chat template; typed special
tokens stay plain text. Padding is on the right and the score's place comes from lengths, so the pad token, EOS or not,
does not matter. A reply that the length limit cut is shown to the model as if it were whole. What Plaudit saved itself
is loaded by `rewards.saved`, which checks more.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from jinja2 import TemplateError
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from plaudit.data.chat import hold, span_ids, special_texts
from plaudit.errors import RunStopped, UserError
from plaudit.models.load import load_tokenizer, resolve
from plaudit.models.roles import last_hidden
from plaudit.models.tokens import pad_right
from plaudit.records import Message
from plaudit.rewards.contract import CONTRACT
from plaudit.rewards.score import ROWS, in_batches, unseen
from plaudit.rewards.texts.answers import ScoreItem, matched
from plaudit.run.display import Step

Layout = Literal["huggingface", "openrlhf"]
SCORE = "score.weight"
_PEFT = "base_model.model."
_FILES = ["*.json", "*.jinja", "*.safetensors", "*.model", "*.txt"]


@dataclass(frozen=True)
class ForeignCheckpoint:
    """What lies in a reward model's folder: enough to load it, found without reading a weight."""

    source: str
    base: Path
    adapter: Path | None
    tokenizer: Path
    head: str
    """Name of the head's tensor."""
    layout: Layout


def find_checkpoint(source: str) -> ForeignCheckpoint:
    """What a reward model's folder (or Hub id) holds; UserError when it has no head, no template or no safetensors."""
    folder = Path(source)
    if (folder / "adapter_config.json").is_file():
        found = _adapter_checkpoint(source, folder)
    else:
        found = _full_checkpoint(source, _local(str(folder)))
    tokenizer = load_tokenizer(str(found.tokenizer))
    if not tokenizer.chat_template:
        raise UserError(
            f"reward model {source}: its tokenizer has no chat template, so nobody knows how it wants a conversation "
            "written; save one with the tokenizer"
        )
    return found


def _local(source: str) -> Path:
    found = resolve(source)
    if Path(found).is_dir():
        return Path(found)
    try:
        return Path(snapshot_download(found, allow_patterns=_FILES))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"reward model {source}: cannot be fetched from the Hub ({reason}); give a folder") from error


def _shapes(source: str, file: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors in a safetensors file."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"reward model {source}: {file.name} cannot be read ({error}); copy it again") from error


def _folder_shapes(source: str, folder: Path) -> dict[str, tuple[int, ...]]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"reward model {source}: {folder} holds no *.safetensors weights (pickle files are not read)")
    return {name: shape for file in files for name, shape in _shapes(source, file).items()}


def _config(source: str, folder: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"reward model {source}: its config cannot be read ({reason})") from error


def _head_of(source: str, shapes: dict[str, tuple[int, ...]], config: Any) -> str | None:
    """The one tensor NAME.weight of shape [1, hidden]; None when there is none."""
    hidden = config.get_text_config().hidden_size
    stated = config.to_dict().get("value_head_prefix")
    if stated is not None and f"{stated}.weight" not in shapes:
        raise UserError(
            f"reward model {source}: tensor '{stated}.weight' is missing: config.value_head_prefix names it, and "
            "without it the model has no score"
        )
    top = {name: shape for name, shape in shapes.items() if name.count(".") == 1 and name.endswith(".weight")}
    labels = top.get(SCORE, (1, hidden))
    if labels[0] != 1:
        raise UserError(f"reward model {source}: its head gives {labels[0]} labels; a reward model gives one")
    heads = [name for name, shape in top.items() if shape == (1, hidden)]
    if len(heads) > 1:
        raise UserError(f"reward model {source}: {', '.join(heads)} could each be its head; keep one")
    return heads[0] if heads else None


def _full_checkpoint(source: str, folder: Path) -> ForeignCheckpoint:
    config = _config(source, folder)
    head = _head_of(source, _folder_shapes(source, folder), config)
    if head is None:
        raise UserError(
            f"reward model {source}: tensor '{SCORE}' is missing: the checkpoint has no scalar head (a tensor of shape "
            f"[1, {config.get_text_config().hidden_size}]); transformers would make one up"
        )
    if "plaudit_score_mean" in config.to_dict():
        raise UserError(
            f"reward model {source}: it was exported by Plaudit, but the rules its scores stand under ({CONTRACT}) are "
            "not beside it; copy the whole folder"
        )
    return ForeignCheckpoint(source, folder, None, folder, head, _layout(head, config))


def _layout(head: str, config: Any) -> Layout:
    foreign = head != SCORE or {"value_head_prefix", "normalize_reward"} & set(config.to_dict())
    return "openrlhf" if foreign else "huggingface"


def _adapter_checkpoint(source: str, folder: Path) -> ForeignCheckpoint:
    try:
        settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"reward model {source}: adapter_config.json is no JSON ({error}); copy it again") from error
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise UserError(f"reward model {source}: {file.name} is missing (pickle files are not read)")
    named = settings.get("base_model_name_or_path") or ""
    base = _local(str(folder / named) if (folder / named / "config.json").is_file() else named)
    config = _config(source, base)
    own = {_plain(name): shape for name, shape in _shapes(source, file).items()}
    head = _head_of(source, own, config)
    head = head or _head_of(source, _folder_shapes(source, base), config)
    if head is None:
        raise UserError(
            f"reward model {source}: tensor '{_PEFT}{SCORE}' is missing: neither the adapter nor its base "
            f"{named} has a scalar head (train with modules_to_save=['score']); transformers would make one up"
        )
    tokenizer = folder if any(folder.glob("tokenizer*")) else base
    return ForeignCheckpoint(source, base, folder, tokenizer, head, _layout(head, config))


def _plain(name: str) -> str:
    """A tensor's name in an adapter's file as it is in the model."""
    return name.removeprefix(_PEFT).replace(".modules_to_save.", ".")


def _tensor(folder: Path, name: str) -> Tensor | None:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118
                if _plain(key) == name:
                    return tensors.get_tensor(key)
    return None


@dataclass
class ForeignRewardModel:
    """A reward model made elsewhere: a `Scorer` of texts through its own tokenizer and chat template.

    `changed` of the replies so far did not survive its tokenizer or template: decoded, their ids spell another text
    than was written.
    """

    checkpoint: ForeignCheckpoint
    model: PreTrainedModel
    head_D: Tensor
    """The head's weights, float32 whatever the trunk's format."""
    tokenizer: Any
    batch_size: int = ROWS
    changed: int = 0

    def __post_init__(self) -> None:
        self.name = f"reward model {self.checkpoint.source}"
        self._special = special_texts(self.tokenizer)

    @torch.no_grad()
    def score(self, items: Sequence[ScoreItem], advance: Step = unseen) -> dict[str, float]:
        """Raw scores: no stored moment is applied. RunStopped when a text is too long or a score not finite."""
        ids = [self.ids(item) for item in items]

        def score(part: list[int]) -> Tensor:
            # Attention is causal, so what stands on the right of a text cannot reach its score: any id pads.
            tokens = pad_right([ids[i] for i in part], [[]] * len(part), 0, self.model.device)
            return last_hidden(self.model, tokens).float() @ self.head_D[:, None]

        scores_B1 = in_batches([len(row) for row in ids], self.batch_size, score, advance)
        asked = [item.id for item in items]
        return matched(self.name, asked, dict(zip(asked, scores_B1[:, 0].tolist(), strict=True)))

    def ids(self, item: ScoreItem) -> list[int]:
        """Token ids of the prompt with its reply, as this model was trained to see them; counts what it changed."""
        ids, survived = self._template_ids(item)
        self.changed += not survived
        longest = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if longest is not None and len(ids) > longest:
            raise RunStopped(f"{self.name}: {item.id!r} has {len(ids)} tokens, the model takes {longest}")
        return ids

    def _template_ids(self, item: ScoreItem) -> tuple[list[int], bool]:
        messages = (*item.prompt.messages, Message("assistant", item.completion.text))
        text = self._rendered(hold(messages, self._special))
        written = self._rendered(messages)
        if self.checkpoint.layout == "openrlhf":
            text, written = text.rstrip("\n"), written.rstrip("\n")
            end = "" if text.endswith(self.tokenizer.eos_token) else f" {self.tokenizer.eos_token}"
            text, written = text + end, written + end
        ids = span_ids(self.tokenizer, text, messages)
        spelt = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return ids, spelt == written and item.completion.text in written

    def _rendered(self, messages: Sequence[Message]) -> str:
        try:
            return self.tokenizer.apply_chat_template([message.as_json() for message in messages], tokenize=False)
        except TemplateError as error:
            roles = ", ".join(message.role for message in messages)
            raise RunStopped(f"{self.name}: its chat template refuses the turns {roles}: {error}") from error


def load_foreign(source: str, dtype: torch.dtype, device: torch.device, batch_size: int = ROWS) -> ForeignRewardModel:
    """The reward model in a folder (or under a Hub id) of any layout above, frozen, in eval mode.

    UserError that names the tensor when the head or another weight is missing.
    """
    found = find_checkpoint(source)
    head = None if found.adapter is None else _tensor(found.adapter, found.head)
    model = _load_trunk(found, torch.float32 if found.adapter else dtype)
    if found.adapter is not None:
        model = _merged(found, model)
    head = head if head is not None else _tensor(found.base, found.head)
    assert head is not None
    model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
    head_D = head[0].float().to(model.device)
    return ForeignRewardModel(found, model, head_D, load_tokenizer(str(found.tokenizer)), batch_size)


def _load_trunk(found: ForeignCheckpoint, dtype: torch.dtype) -> PreTrainedModel:
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            found.base, num_labels=1, dtype=dtype, attn_implementation="sdpa", output_loading_info=True
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"reward model {found.source}: cannot be loaded ({type(error).__name__}: {reason})") from error
    if not isinstance(getattr(model, "score", None), torch.nn.Linear):
        raise UserError(
            f"reward model {found.source}: {type(model).__name__} does not read a score at the last token, so it is "
            "not supported; serve it behind an endpoint"
        )
    missing = sorted(set(info["missing_keys"]) - {SCORE})
    if missing:
        raise UserError(
            f"reward model {found.source}: tensor {missing[0]!r} is missing ({len(missing)} are); transformers would "
            "make it up"
        )
    known = {found.head, "mean", "std"}
    foreign = sorted(n for n in info["unexpected_keys"] if n not in known and not n.startswith("lm_head."))
    if foreign:
        raise UserError(
            f"reward model {found.source}: {type(model).__name__} has no place for tensor {foreign[0]!r} "
            f"({len(foreign)} such), so its scores would not be the checkpoint's"
        )
    return model


def _merged(found: ForeignCheckpoint, model: PreTrainedModel) -> PreTrainedModel:
    """The adapter merged into its base, in float32, every tensor of the adapter accounted for."""
    assert found.adapter is not None
    try:
        peft = PeftModel.from_pretrained(model, str(found.adapter))
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"reward model {found.source}: its adapter does not fit its base ({reason})") from error
    wanted = {_plain(name) for name in get_peft_model_state_dict(peft, save_embedding_layers=False)} - {SCORE}
    given = {_plain(name) for name in _shapes(found.source, found.adapter / "adapter_model.safetensors")} - {found.head}
    for names, what in ((wanted - given, "is missing"), (given - wanted, "belongs to no layer of the base")):
        if names:
            raise UserError(f"reward model {found.source}: adapter tensor '{_PEFT}{min(names)}' {what}")
    return peft.merge_and_unload()
