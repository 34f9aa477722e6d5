"""A saved reward model: what is written so that it can be trusted, and the one way to load it.

`files_of` opens a folder: every file must have the bytes it was saved with, and texts must become the same tokens.
`RewardFiles.attach` then loads the heads and recomputes the scores of a few fixed texts: they must be those that were
stored (docs/correctness.md, rows 21 and 26). What is missing, damaged or different is a `UserError` with the reason.

    files = files_of(folder, sft_model, chat)
    roles = Roles(base, trained="policy", lora=lora, reward=files.adapters)    # beside a policy, on its base
    reward = files.attach(roles, dtype, device)
    reward = load_reward_model(folder, dtype, device)                          # by itself
    reward.score(items)                                                        # normalised, {id: score}
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from plaudit.data.baked import without_system
from plaudit.data.chat import ChatFormat
from plaudit.data.hashes import sha256, sha256_json
from plaudit.errors import UserError
from plaudit.models.full import FullReward, raw_scores
from plaudit.models.heads import HEAD, head_file, load_head
from plaudit.models.load import load_chat, load_classifier, load_model
from plaudit.models.roles import Roles
from plaudit.models.tokens import Tokens, pad_right
from plaudit.records import Completion, Message
from plaudit.rewards.contract import RewardContract
from plaudit.rewards.score import ROWS, score_replies
from plaudit.rewards.texts.answers import ScoreItem, matched
from plaudit.run.folder import RunFolder

PROBES: tuple[tuple[tuple[Message, ...], Completion], ...] = (
    ((Message("user", "How do I boil an egg?"),), Completion("Eight minutes in boiling water, then cold water.")),
    ((Message("user", "Wie spät ist es in Kyōto?"),), Completion("Ich weiß es nicht – schau auf 時計. ☂")),
    (
        (Message("user", "Name a river."), Message("assistant", "The Loire."), Message("user", "And a shorter one?")),
        Completion("The Orne", finished=False),
    ),
    ((Message("user", "Are you there?"),), Completion("")),
)
"""The texts of the golden scores: plain, not ASCII, of several turns and cut by the length limit, empty."""

ADAPTER_CONFIG = "adapter_config.json"
FLOAT32_BOUND = 1e-4
LOW_BOUND = 0.05
"""Golden scores may move by this much: in float32 as it is, in lower precision times the std of the scores."""


@dataclass(frozen=True)
class RewardModel:
    """A reward model that Plaudit saved, loaded and checked: by tokens, or by text as a `Scorer`."""

    name: str
    model: Roles | FullReward
    contract: RewardContract
    chat: ChatFormat
    batch_size: int = ROWS
    """Texts in one forward pass."""

    def raw(self, tokens: Tokens) -> Tensor:
        """Raw scores of every member, [B, M]."""
        return raw_scores(self.model, tokens)

    def score(self, items: Sequence[ScoreItem]) -> dict[str, float]:
        """Normalised by the contract, of an ensemble aggregated as it says."""
        asked, replies = [item.id for item in items], [(item.prompt, item.completion) for item in items]
        scores_B = self.contract.normalised(score_replies(self.model, self.chat, replies, rows=self.batch_size))
        return matched(self.name, asked, dict(zip(asked, scores_B.tolist(), strict=True)))


@dataclass(frozen=True)
class RewardFiles:
    """A reward model's folder whose files and rules are as they should be."""

    folder: Path
    contract: RewardContract
    chat: ChatFormat

    @property
    def adapters(self) -> list[Path]:
        """What `Roles` loads; empty for a merged model."""
        if self.contract.model is not None:
            return []
        return [self.folder / adapter_name(member) for member in range(len(self.contract.mean))]

    def attach(
        self, on: Roles | PreTrainedModel | None, dtype: torch.dtype, device: torch.device, batch_size: int = ROWS
    ) -> RewardModel:
        """The reward model: `on`, roles that hold `adapters` or the base that gets them, or a merged one of its own.

        UserError when a head is not there or the golden scores come out otherwise.
        """
        if self.contract.model is not None:
            model: Roles | FullReward = load_merged(self.folder / self.contract.model, dtype, device)
        else:
            assert on is not None
            model = with_heads(on if isinstance(on, Roles) else Roles(on, reward=self.adapters), self.folder)
        check_golden(model, self.chat, self.contract, self.folder, dtype)
        return RewardModel(f"reward model {self.folder}", model, self.contract, self.chat, batch_size)


def files_of(folder: Path, base: Path | None, chat: ChatFormat | None = None) -> RewardFiles:
    """Open a reward model's folder; `base` is the SFT model it stands on, None for a merged model. Without `chat` its
    own: the tokenizer beside the weights, and the system message it was trained with."""
    contract = RewardContract.load(folder)
    check_files(folder, contract, base)
    if chat is None:
        chat = load_chat(str(base or folder / (contract.model or "")), contract.system)
    contract.check(chat.eos_id, chat.system, template_hash(chat))
    return RewardFiles(folder, contract, chat)


def trained_reward(run: RunFolder, chat: ChatFormat) -> RewardFiles:
    """A run's own reward model, its files and rules checked; UserError when they are not those of its reward stage."""
    return files_of(run.require("reward/reward.json", "reward").parent, run.require("sft/model", "sft"), chat)


def load_reward_model(folder: Path, dtype: torch.dtype, device: torch.device, batch_size: int = ROWS) -> RewardModel:
    """A reward model by itself. `folder` is a run's reward folder, whose SFT model lies beside it, or a merged model
    that Plaudit exported."""
    contract = RewardContract.load(folder)
    base = folder.resolve().parent / "sft" / "model" if contract.model is None else None
    source = base or folder / (contract.model or "")
    if not (source / "config.json").is_file():
        raise UserError(f"{source}: no model is here; {folder} cannot score without it")
    files = files_of(folder, base)
    model = load_model(str(source), dtype, device) if files.adapters else None
    return files.attach(model, dtype, device, batch_size)


def load_merged(folder: Path, dtype: torch.dtype, device: torch.device) -> FullReward:
    """The scorer in a merged model, its head being the classifier's own."""
    classifier = load_classifier(str(folder), dtype, device)
    model = FullReward(classifier, dtype, learns=False)
    with torch.no_grad():
        model.score_heads[0].get_parameter("weight").copy_(classifier.score.weight[0].float())
    return model


def with_heads(roles: Roles, folder: Path) -> Roles:
    """The roles with the heads of `folder` on the reward model's members; UserError when one is not there."""
    for member, head in enumerate(roles.score_heads):
        load_head(head, folder, member)
    return roles


def adapter_name(member: int = 0) -> str:
    """Folder of the adapter of a member of the reward model."""
    return "adapter" if member == 0 else f"adapter_{member}"


def template_hash(chat: ChatFormat) -> str:
    """Of the template without the system message that an export says by itself: the rules state that one."""
    return hashlib.sha256(without_system(chat.tokenizer.chat_template).encode()).hexdigest()


@torch.no_grad()
def golden_scores(model: Roles | FullReward, chat: ChatFormat) -> tuple[tuple[float, ...], ...]:
    """Raw scores of `PROBES`, [probe][member]."""
    prompts = [chat.prompt_ids(messages) for messages, _ in PROBES]
    tokens = pad_right(prompts, [chat.reply_ids(reply) for _, reply in PROBES], chat.pad_id, model.device)
    return tuple(tuple(row) for row in raw_scores(model, tokens).tolist())


def check_golden(
    model: Roles | FullReward, chat: ChatFormat, contract: RewardContract, folder: Path, dtype: torch.dtype
) -> None:
    """UserError when the fixed texts score otherwise than when the reward model was saved."""
    found, stored = torch.tensor(golden_scores(model, chat)), torch.tensor(contract.golden)
    if found.shape != stored.shape:
        raise UserError(f"{folder}: golden scores of shape {list(stored.shape)}, the model gives {list(found.shape)}")
    exact = dtype == torch.float32 and contract.dtype == "float32"
    bound_M = torch.full_like(found[0], FLOAT32_BOUND) if exact else LOW_BOUND * torch.tensor(contract.std)
    gap = (found - stored).abs()
    # A comparison that is false for a score that is no number.
    if not bool((gap <= bound_M).all()):
        probe, member = divmod(int((gap / bound_M).nan_to_num(nan=torch.inf).argmax()), found.shape[1])
        now = str(dtype).removeprefix("torch.")
        raise UserError(
            f"{folder}: the reward model scores {PROBES[probe][1].text!r} {found[probe, member]:.5f} now and "
            f"{stored[probe, member]:.5f} when it was saved (member {member}; allowed: {bound_M[member]:.1e}; saved in "
            f"{contract.dtype}, loaded in {now}): it is not the model that was trained; train or copy it again"
        )


def file_hashes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of the named files of a folder."""
    return {name: _sha256(folder / name) for name in sorted(names)}


def _sha256(path: Path) -> str:
    """Of its bytes; of an adapter's config without the path of its base, which says where and not what."""
    if path.name != ADAPTER_CONFIG:
        return sha256(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged: not JSON ({error}); copy it again") from error
    values.pop("base_model_name_or_path", None)
    return sha256_json(values)


def weights_and_rules(folder: Path) -> list[str]:
    """Names of the files of a model folder that decide its scores: weights, config, tokenizer, template."""
    patterns = (
        "*.safetensors",
        "*.index.json",
        "config.json",
        "tokenizer*",
        "special_tokens_map.json",
        "chat_template*",
        "vocab*",
    )
    return sorted({file.name for pattern in patterns for file in folder.glob(pattern) if file.is_file()})


def member_files(members: int) -> list[str]:
    """Names of the files of `members` adapters and their heads."""
    parts = (ADAPTER_CONFIG, "adapter_model.safetensors")
    names = [f"{adapter_name(member)}/{part}" for member in range(members) for part in parts]
    return names + [head_file(member) for member in range(members)]


def check_files(folder: Path, contract: RewardContract, base: Path | None = None) -> None:
    """UserError for a file that is not there or has other bytes than when it was saved; `base` as for `files_of`."""
    _check_files(folder, contract.files, "the reward model")
    if contract.base:
        if base is None:
            raise UserError(f"{folder}: is an adapter; give the SFT model it was trained on")
        _check_files(base, contract.base, "the SFT model that the reward model stands on")


def _check_files(folder: Path, hashes: dict[str, str], what: str) -> None:
    for name, expected in hashes.items():
        path = folder / name
        if not path.is_file():
            lost = "; without it the model has no score" if path.name.startswith(HEAD.partition(".")[0]) else ""
            raise UserError(f"{path} is missing, a part of {what}{lost}; copy it again, or train again")
        if _sha256(path) != expected:
            raise UserError(
                f"{path}, a part of {what}, has not the bytes that it was saved with (its SHA-256 differs): damaged or "
                "replaced; copy it again, or train again"
            )
