"""Before a run: what its stages will ask of a model, asked once on a few tokens.

A model is taken as it is, taken with something said at the start, or refused with the reason and what to do. Nothing is
written, and the model is let go of at the end.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, PreTrainedModel

from plaudit.data.chat import ChatFormat
from plaudit.dist.machine import Machine
from plaudit.errors import UserError
from plaudit.models.adapted import adapted
from plaudit.models.config import LoraSettings, Quantise
from plaudit.models.export import classifier_refused
from plaudit.models.kernels.attention import hidden_states
from plaudit.models.kernels.choose import cache_refused, decoder_of, own_decoder
from plaudit.models.kernels.decoder import RereadingDecoder
from plaudit.models.kernels.probe import DECLINES, damaged, relative_error
from plaudit.models.kernels.trunk import trunk_of
from plaudit.models.load import load_model
from plaudit.models.recompute import layers_of
from plaudit.models.roles import Roles
from plaudit.records import Completion, Message

Row = tuple[str, Sequence[Message], Completion | None]
"""(id, prompt, its reply where it has one)."""
ADAPTER_ONLY = (
    "reward/model is left out (other programs cannot load the reward model as a classifier): its adapter and head are "
    "in reward/, and README.md there says how their score is read"
)


@dataclass(frozen=True)
class Limit:
    """How many positions a row may have, and what they are."""

    positions: int
    what: str = "positions that the model learnt"


FOLLOWS = (
    "positions up to which the model's rotary frequencies stay as they are (beyond them the longest row of a batch "
    "chooses those of all, so no number would be a row's own)"
)

TABLE = "positions that the model has a table for"
LOOKUPS = {
    torch.ops.aten.gather: 1,
    torch.ops.aten.index_select: 1,
    torch.ops.aten.slice: 1,
    torch.ops.aten.index: None,
}
"""What reads rows of a tensor, and which argument says in which dimension."""
PROBED = 7

ALIKE = 1e-3
"""‖row − other‖ / ‖row‖ up to which two rows are one: what was trained apart is far above."""
SHORT = 0.5
"""Share of the 5th percentile of the rows' lengths below which a row was never trained: initial rows are short."""
NEAR = 0.1
"""Distance from the mean of all rows, in root mean squares of that distance, within which no trained row lies."""


def examine(
    source: str,
    machine: Machine,
    chat: ChatFormat,
    adapters: Sequence[LoraSettings],
    *,
    full_reward: bool = False,
    rewards: bool = True,
    recompute: bool = False,
    copy: bool = True,
    how: Quantise | None = None,
) -> tuple[list[str], Limit | None]:
    """What is to be said of the model, and the most tokens that a row may have, where there is such a number; UserError
    where the run could not be right. `adapters` are those that its stages train; `full_reward` says that a reward model
    is trained whole, `rewards` that one is trained at all, `recompute` that a stage
    checkpoints gradients, `copy` that PPO samples through one, and `how` that the base is quantised."""
    model = load_model(source, machine.dtype, machine.device, how)
    if (name := damaged(model)) is not None:
        raise UserError(f"model: {source}: {name} holds a NaN or an infinity; copy the weights again")
    check_vocabulary(model, chat, source)
    check_causal(model, source)
    if recompute:
        layers_of(model)
    said = untrained_tokens(model, chat)
    if machine.dtype == torch.bfloat16 and AutoConfig.from_pretrained(source).dtype == torch.float16:
        said.append("its weights are float16, of whose 11 bits bfloat16 keeps 8; dtype: float32 keeps all")
    if isinstance(decoder_of(model), RereadingDecoder):
        said.append(f"sampling reads every row anew for each token, which is slow: {cache_refused(model)}")
    if not copy:
        own_decoder(model, lambda: None)
    if full_reward and (why := classifier_refused(model)) is not None:
        raise UserError(f"lora.stages.reward=null: {why}, and a reward model trained whole is one; train an adapter")
    learnt = learnt_positions(model)
    longest = table_positions(model) or steady_positions(model, source) if learnt is None else Limit(learnt)
    for lora in dict.fromkeys(one.model_dump_json() for one in adapters):
        settings = LoraSettings.model_validate_json(lora)
        chosen = adapted(model, settings.target_modules)
        if chosen.left_out:
            said.append(f"adapters stand on {chosen}")
        roles = Roles(model, trained="policy", lora=settings)
        if rewards and (why := classifier_refused(model)) is not None:
            said.append(f"{why}, so {ADAPTER_ONLY}")
        check_merge(roles, source)
        model = roles.peft.unload()
    return list(dict.fromkeys(said)), longest


def check_vocabulary(model: PreTrainedModel, chat: ChatFormat, source: str) -> None:
    """UserError where the chat format uses ids that have no row in the embedding."""
    rows: int = model.get_input_embeddings().weight.shape[0]
    used = {chat.eos_id, chat.pad_id, *chat.prompt_ids((Message("user", "Hello."),))}
    # A word of the tokenizer is found in any text that holds it; a special token is not.
    words = {*chat.tokenizer.get_vocab().values()} - chat.control
    beyond = sorted(token for token in used | words if token >= rows)
    if beyond:
        names = ", ".join(repr(chat.tokenizer.convert_ids_to_tokens(token)) for token in beyond[:5])
        raise UserError(
            f"model: {source}: the tokenizer's {names} have no row in the model's embedding, which has {rows}; add "
            "rows once with model.resize_token_embeddings(len(tokenizer)) and save the model again"
        )


@torch.no_grad()
def check_causal(model: PreTrainedModel, source: str) -> None:
    """UserError where a later token changes an earlier state: such a model gives no probability of a next token."""
    first, second = ([5, 17, 9, 30, 11, 8, *more] for more in ([2, 21, 14], [12, 7, 25]))
    one, other = (hidden_states(model, torch.tensor([ids], device=model.device))[0, :6] for ids in (first, second))
    if not _alike(one, other):
        raise UserError(
            f"model: {source}: its states change with the tokens behind them, so it is no causal language model "
            "(in its config is_decoder may be false); give one that is"
        )


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two states are one, but for rounding."""
    return relative_error(one, other) < (1e-3 if one.dtype == torch.float32 else 1e-1)


def check_merge(roles: Roles, source: str) -> None:
    """UserError where a merged adapter would find no place in the plain model."""
    known = {name.replace(".base_layer.", ".") for name, _ in roles.peft.get_base_model().named_parameters()}
    lost = [name for name in roles.merged_names("policy") if name not in known]
    if lost:
        raise UserError(f"model: {source}: {lost[0]} could not be merged; leave it out of lora.target_modules")


@torch.no_grad()
def learnt_positions(model: PreTrainedModel) -> int | None:
    """How many positions a model has rows for, in tables that text is looked up in (a vision tower's are none); None
    where they are computed (rotary, ALiBi)."""
    called: list[nn.Embedding] = []
    tables = [m for name, m in model.named_modules() if isinstance(m, nn.Embedding) and _is_positions(name)]
    handles = [table.register_forward_hook(lambda table, *_: called.append(table)) for table in tables]
    hidden_states(model, torch.tensor([[5, 17, 9]], device=model.device))
    for handle in handles:
        handle.remove()
    stated = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min([*(table.num_embeddings for table in called), *([stated] if stated else [])]) if called else None


def _is_positions(name: str) -> bool:
    leaf = name.rpartition(".")[2]
    return leaf == "wpe" or "position" in leaf


class _Tables(TorchDispatchMode):
    """Whether a pass over PROBED tokens reads some of the `rows` rows of a tensor, as of a table of positions."""

    def __init__(self, rows: int):
        super().__init__()
        self.rows, self.found = rows, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (kind := func.overloadpacket) in LOOKUPS and args[0].dim():
            place, shape = LOOKUPS[kind], args[0].shape
            asked = (
                [i for i, one in enumerate(args[1]) if one is not None] if place is None else args[place : place + 1]
            )
            # What is cut out of a state has the tokens as a dimension, or pieces of up to 256 of them.
            a_state = kind is torch.ops.aten.slice and (PROBED in shape or self.rows <= 256)
            self.found |= not a_state and any(shape[dim] == self.rows for dim in asked or [0])
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def table_positions(model: PreTrainedModel) -> Limit | None:
    """The positions that a model keeps computed numbers for: rotations (GPT-J), waves (CTRL), a bias (MPT). A row that
    is longer would be an IndexError in the middle of a run, and on a GPU the end of the process."""
    config = model.config.get_text_config()
    stated = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    if not isinstance(stated, int):
        return None
    with _Tables(stated) as tables:
        hidden_states(model, torch.arange(5, 5 + PROBED, device=model.device)[None])
    return Limit(stated, TABLE) if tables.found else None


@torch.no_grad()
def steady_positions(model: PreTrainedModel, source: str) -> Limit | None:
    """How long a row may be so that no row's states follow its neighbours; None where they never do. Some rotary
    frequencies (`longrope`, `dynamic`) are chosen by the farthest position of a batch, for all of its rows."""
    trunk, text = trunk_of(model), model.config.get_text_config()
    stated = getattr(text, "max_position_embeddings", None)
    # Where positions are looked up in a table, a GPU does not forgive one beyond its end.
    computed = any(hasattr(module, "rope_type") for module in model.modules())
    if not (stated and computed and "position_ids" in signature(trunk.forward).parameters):
        return None
    ids_BT = torch.tensor([[5, 17, 9, 30]] * 2, device=model.device)

    def beside(last: int) -> Tensor:
        """The first row's states, where the other ends at position `last`."""
        ends = [torch.arange(end - 3, end + 1, device=model.device) for end in (3, last)]
        states_BTD: Tensor = trunk(input_ids=ids_BT, position_ids=torch.stack(ends), use_cache=False).last_hidden_state
        return states_BTD[0]

    try:
        near = beside(3)
        # Before the far one: frequencies that have grown with a row stay so for a while.
        steady = [limit for limit in (*_originals(text), stated) if limit > 3 and _alike(near, beside(limit - 1))]
        follows = not _alike(near, beside(2 * stated))
    except DECLINES:
        return None  # it does not take positions this way
    if follows and not steady:
        raise UserError(
            f"model: {source}: its states change with the length of other rows in a batch; give one whose rotary "
            "frequencies are fixed (rope_parameters of config.json)"
        )
    return Limit(max(steady), FOLLOWS) if follows else None


def _originals(config: Any) -> Iterator[int]:
    """The positions that the rotary settings name, those of kinds of layers included."""
    settings = getattr(config, "rope_parameters", None) or {}
    for one in (settings, *(value for value in settings.values() if isinstance(value, dict))):
        if limit := one.get("original_max_position_embeddings"):
            yield int(limit)


def trained_positions(model: str) -> int | None:
    """How many positions a resolved source says that it was trained on."""
    stated: int | None = getattr(AutoConfig.from_pretrained(model).get_text_config(), "max_position_embeddings", None)
    return stated


def check_lengths(limit: Limit, chat: ChatFormat, prompts: Iterable[tuple[str, Sequence[Message]]], new: int) -> None:
    """UserError for a prompt whose reply of `new` tokens would end beyond the last position."""
    for name, length in longer_than(
        limit.positions - new, chat, ((name, messages, None) for name, messages in prompts)
    ):
        raise UserError(
            f"prompt {name!r} has {length} tokens, and with sampling.max_new_tokens={new} more it is longer than "
            f"the {limit.positions} {limit.what}; shorten it, or lower sampling.max_new_tokens"
        )


def check_replies(limit: Limit, chat: ChatFormat, rows: Iterable[Row]) -> None:
    """UserError for a demonstration, or a reply of a ranking, that ends beyond the last position."""
    for name, length in longer_than(limit.positions, chat, rows):
        raise UserError(
            f"{name!r} has {length} tokens with its reply, more than the {limit.positions} {limit.what}; shorten it, "
            f"or set sft.max_length={limit.positions} for demonstrations (sft.too_long says what becomes of them)"
        )


def longer_than(limit: int, chat: ChatFormat, rows: Iterable[Row]) -> Iterator[tuple[str, int]]:
    """(name, tokens) of the rows with more than `limit` tokens. No tokenizer makes more tokens than a text has bytes,
    so most need not be tokenised."""
    for name, messages, reply in rows:
        texts = [message.content for message in messages] + ([] if reply is None else [reply.text])
        if sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) < limit // 2:
            continue
        length = len(chat.prompt_ids(messages)) + (0 if reply is None else len(chat.reply_ids(reply)))
        if length > limit:
            yield name, length


def untrained_tokens(model: PreTrainedModel, chat: ChatFormat) -> list[str]:
    """What is to be said where the chat template writes tokens whose rows were never trained: they are another token's,
    as those of reserved tokens are, or far shorter than the others."""
    written, _ = chat.conversation_ids((Message("user", "Hello."),), "Yes.")
    names, end = chat.tokenizer.convert_ids_to_tokens, chat.eos_id
    own = chat.tokenizer.eos_token_id
    tokens = sorted({*written, own} & chat.control)
    bad = {token: why for token in tokens if (why := _untrained(model, token)) is not None}
    found = [token for token in tokens if token in bad and token in written]
    if not found:
        return []
    ways = "lora.stages.sft: null trains every row"
    if end in bad and own not in bad and own in chat.control:
        ways = f"data.end_of_turn: {names(own)!r} ends turns with the model's own end of text; {ways}"
    texts, few = ", ".join(repr(names(token)) for token in found), ", so few replies may end" if end in bad else ""
    why = f"whose {bad[found[0]]}: it was never trained, and an adapter does not change it{few}"
    return [f"the chat template writes {texts}, {why}; {ways}"]


@torch.no_grad()
def _untrained(model: PreTrainedModel, token: int) -> str | None:
    """Why the row of a token looks as if nobody had trained it."""
    for place, layer in (("LM head", model.get_output_embeddings()), ("embedding", model.get_input_embeddings())):
        weight_VD = layer.weight
        row_D = weight_VD[token].float()
        few = slice(0, 32)  # enough to rule nearly all others out
        near = ((weight_VD[:, few].float() - row_D[few]).norm(dim=1) <= ALIKE * row_D[few].norm()).nonzero()[:, 0]
        twins = ((weight_VD[near].float() - row_D).norm(dim=1) <= ALIKE * row_D.norm()).sum().item() - 1
        if twins > 0:
            return f"row of the {place} is also that of {twins} other token{'s'[: twins > 1]}"
        sizes_V = torch.linalg.vector_norm(weight_VD, dim=1, dtype=torch.float32)
        if row_D.norm() < SHORT * sizes_V.kthvalue(1 + len(sizes_V) // 20).values:
            return f"row of the {place} is shorter than half of nearly every other"
        mean_D = weight_VD.mean(dim=0, dtype=torch.float32)
        spread = (sizes_V.square().mean() - mean_D.square().sum()).clamp(min=0).sqrt()
        if (row_D - mean_D).norm() < NEAR * spread:
            return f"row of the {place} is the mean of all, as resize_token_embeddings makes it"
    return None
