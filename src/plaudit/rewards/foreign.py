"""Reward models made elsewhere, scored by text: another family, another tokenizer, another trainer's layout.

    layout       what lies in the folder                                         the score is read at
    huggingface  `AutoModelForSequenceClassification`, one label, head `score`;  the last token of the template's
                 TRL's merged checkpoints and its PEFT adapters are of it        rendering of the conversation
    openrlhf     the same trunk, the head under its own name (`value_head`,      EOS, after the rendering without
                 `score`, config.value_head_prefix), mean and std in config      its last line ends

The head is the one tensor NAME.weight of shape [1, hidden], with NAME.bias where it has one. A checkpoint without it
is refused by the tensor's name:
transformers would draw one at random and only warn. Text goes through the model's own chat template; typed special
tokens stay plain text. Padding is on the right and the score's place comes from lengths, so the pad token, EOS or not,
does not matter. A reply that the length limit cut is shown to the model as if it were whole. What Plaudit saved itself
is loaded by `rewards.saved`, which checks more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jinja2 import TemplateError
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from plaudit.data.spelling import Spelling
from plaudit.errors import RunStopped, UserError
from plaudit.models.load import load_tokenizer, resolve
from plaudit.models.roles import last_hidden
from plaudit.models.sources.adapters import ADAPTER, PEFT, base_of, merge, plain_name, shapes_of
from plaudit.models.sources.reasons import refusing
from plaudit.models.tokens import pad_right
from plaudit.records import Completion, Message, Prompt
from plaudit.rewards.contract import CONTRACT
from plaudit.rewards.score import ROWS, in_batches, unseen
from plaudit.rewards.texts.answers import ScoreItem, matched
from plaudit.run.display import Step

Layout = Literal["huggingface", "openrlhf"]
SCORE = "score.weight"


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
    name, folder = f"reward model {source}", Path(source)
    adapter = folder if (folder / ADAPTER).is_file() else None
    base = Path(resolve(source if adapter is None else base_of(name, adapter)))
    with refusing(f"{name}: its config cannot be read"):
        config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    head = _head_of(name, adapter, config) if adapter else None
    head = head or _head_of(name, base, config)
    if head is None:
        size = config.get_text_config().hidden_size
        lost, why = SCORE, f"the checkpoint has no scalar head (a tensor of shape [1, {size}])"
        if adapter is not None:
            lost = PEFT + SCORE
            why = f"neither the adapter nor its base {base} has a scalar head (train with modules_to_save=['score'])"
        elif any("v_head." in key for key in shapes_of(name, base)):
            why += "; its v_head is the value head of a critic: give the reward model that was trained, not the policy"
        raise UserError(f"{name}: tensor '{lost}' is missing: {why}; transformers would make one up")
    if adapter is None and "plaudit_score_mean" in config.to_dict():
        raise UserError(
            f"{name}: it was exported by Plaudit, but the rules its scores stand under ({CONTRACT}) are not beside it; "
            "copy the whole folder"
        )
    tokenizer = adapter if adapter and any(adapter.glob("tokenizer*")) else base
    known = load_tokenizer(str(tokenizer))
    if not known.chat_template:
        raise UserError(
            f"{name}: its tokenizer has no chat template, so nobody knows how it wants a conversation written; save "
            "one with the tokenizer"
        )
    foreign = head != SCORE or {"value_head_prefix", "normalize_reward"} & set(config.to_dict())
    if foreign and known.eos_token is None:
        raise UserError(
            f"{name}: its score is read at EOS, and its tokenizer has none; write its eos_token into "
            "tokenizer_config.json"
        )
    return ForeignCheckpoint(source, base, adapter, tokenizer, head, "openrlhf" if foreign else "huggingface")


def _head_of(name: str, folder: Path, config: Any) -> str | None:
    """The one tensor NAME.weight of shape [1, hidden]; None when there is none."""
    shapes, hidden = shapes_of(name, folder), config.get_text_config().hidden_size
    stated = config.to_dict().get("value_head_prefix")
    if stated is not None and f"{stated}.weight" not in shapes:
        raise UserError(
            f"{name}: tensor '{stated}.weight' is missing: config.value_head_prefix names it, and without it the model "
            "has no score"
        )
    top = {key: shape for key, shape in shapes.items() if key.count(".") == 1 and key.endswith(".weight")}
    labels = top.get(SCORE, (1, hidden))
    if labels[0] != 1:
        raise UserError(f"{name}: its head gives {labels[0]} labels; a reward model gives one")
    heads = [key for key, shape in top.items() if shape == (1, hidden)]
    if len(heads) > 1:
        raise UserError(f"{name}: {', '.join(heads)} could each be its head; keep one")
    return heads[0] if heads else None


def _tensors(folder: Path, name: str) -> list[Tensor]:
    """The tensor of this name in a folder's files, if it is there."""
    found = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            found += [tensors.get_tensor(key) for key in tensors.keys() if plain_name(key) == name]  # noqa: SIM118
    return found


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
    bias: float = 0.0
    """The head's, where it has one."""

    def __post_init__(self) -> None:
        self.name = f"reward model {self.checkpoint.source}"
        self._spelling = Spelling(self.tokenizer)

    @torch.no_grad()
    def score(self, items: Sequence[ScoreItem], advance: Step = unseen) -> dict[str, float]:
        """Raw scores: no stored moment is applied. RunStopped when a text is too long or a score not finite."""
        ids = [self.ids(item) for item in items]

        def score(part: list[int]) -> Tensor:
            # Attention is causal, so what stands on the right of a text cannot reach its score: any id pads.
            tokens = pad_right([ids[i] for i in part], [[]] * len(part), 0, self.model.device)
            return last_hidden(self.model, tokens).float() @ self.head_D[:, None] + self.bias

        scores_B1 = in_batches([len(row) for row in ids], self.batch_size, score, advance)
        asked = [item.id for item in items]
        return matched(self.name, asked, dict(zip(asked, scores_B1[:, 0].tolist(), strict=True)))

    def ids(self, item: ScoreItem) -> list[int]:
        """Token ids of the prompt with its reply, as this model was trained to see them; counts what it changed."""
        ids, survived = self._template_ids(item)
        self.changed += not survived
        rows = self.model.get_input_embeddings().weight.shape[0]
        if max(ids) >= rows:
            name = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise UserError(
                f"{self.name}: its tokenizer's {name!r} has no row in its embedding, which has {rows}; add rows once "
                "with model.resize_token_embeddings(len(tokenizer)) and save the model again"
            )
        if self.longest is not None and len(ids) > self.longest:
            raise RunStopped(
                f"{self.name}: {item.id!r} has {len(ids)} tokens, the model takes {self.longest}; shorten the prompt, "
                "or lower sampling.max_new_tokens"
            )
        return ids

    @property
    def longest(self) -> int | None:
        """Tokens that it takes, where that is stated."""
        stated: int | None = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return stated

    def check_room(self, prompt: Prompt, new: int) -> None:
        """UserError where a reply of `new` tokens to this prompt would be longer than the model takes."""
        beside = len(self.ids(ScoreItem(prompt.id, prompt, Completion("Yes."))))
        if self.longest is not None and beside + new > self.longest:
            raise UserError(
                f"{self.name}: prompt {prompt.id!r} has about {beside} tokens there, and with sampling.max_new_tokens="
                f"{new} more it is longer than the {self.longest} that the model takes; shorten it, or lower "
                "sampling.max_new_tokens"
            )

    def _template_ids(self, item: ScoreItem) -> tuple[list[int], bool]:
        messages = (*item.prompt.messages, Message("assistant", item.completion.text))
        text = self._rendered(self._spelling.hold(messages))
        written = self._rendered(messages)
        if self.checkpoint.layout == "openrlhf":
            text, written = text.rstrip("\n"), written.rstrip("\n")
            end = "" if text.endswith(self.tokenizer.eos_token) else f" {self.tokenizer.eos_token}"
            text, written = text + end, written + end
        ids = self._spelling.span(text, messages)
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
    model = _load_trunk(found, torch.float32 if found.adapter else dtype)
    heads = _tensors(found.base, found.head)
    if found.adapter is not None:
        heads = _tensors(found.adapter, found.head) + heads
        beside = frozenset({SCORE, found.head, _bias(found.head)})
        model = merge(f"reward model {source}", found.adapter, model, beside)
    model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
    head_D = heads[0][0].float().to(model.device)
    biases = [bias for folder in (found.adapter, found.base) if folder for bias in _tensors(folder, _bias(found.head))]
    bias = biases[0].float().item() if biases else 0.0
    return ForeignRewardModel(found, model, head_D, load_tokenizer(str(found.tokenizer)), batch_size, bias=bias)


def _bias(head: str) -> str:
    return f"{head.removesuffix('.weight')}.bias"


def _load_trunk(found: ForeignCheckpoint, dtype: torch.dtype) -> PreTrainedModel:
    name = f"reward model {found.source}"
    with refusing(f"{name}: cannot be loaded"):
        model, info = AutoModelForSequenceClassification.from_pretrained(
            found.base,
            num_labels=1,
            dtype=dtype,
            output_loading_info=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    if not isinstance(getattr(model, "score", None), torch.nn.Linear):
        raise UserError(
            f"{name}: {type(model).__name__} does not read a score at the last token, so it is not supported; serve it "
            "behind an endpoint"
        )
    if missing := sorted(set(info["missing_keys"]) - {SCORE}):
        raise UserError(f"{name}: tensor {missing[0]!r} is missing ({len(missing)} are); transformers would make it up")
    known = {found.head, _bias(found.head), "mean", "std"}
    if foreign := sorted(n for n in info["unexpected_keys"] if n not in known and not n.startswith("lm_head.")):
        raise UserError(
            f"{name}: {type(model).__name__} has no place for tensor {foreign[0]!r} ({len(foreign)} such), so its "
            "scores would not be the checkpoint's"
        )
    return model
