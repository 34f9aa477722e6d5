"""Before a run: what its stages will ask of a model, asked once on a few tokens.

A model is taken as it is, taken with something said at the start, or refused with the reason and what to do. Nothing is
written, and the model is let go of at the end.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn
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
from plaudit.models.kernels.probe import damaged, relative_error
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

ALIKE = 1e-3
"""‖row − other‖ / ‖row‖ up to which two rows are one: what was trained apart is far above."""
SHORT = 0.5
"""Share of the 5th percentile of the rows' lengths below which a row was never trained: initial rows are short."""


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
) -> tuple[list[str], int | None]:
    """What is to be said of the model, and the most tokens that a row may have, where positions are learnt; UserError
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
    longest = learnt_positions(model)
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
    beyond = sorted(token for token in used if token >= rows)
    if beyond:
        names = ", ".join(repr(chat.tokenizer.convert_ids_to_tokens(token)) for token in beyond)
        raise UserError(
            f"model: {source}: the tokenizer's {names} have no row in the model's embedding, which has {rows}; add "
            "rows once with model.resize_token_embeddings(len(tokenizer)) and save the model again"
        )


@torch.no_grad()
def check_causal(model: PreTrainedModel, source: str) -> None:
    """UserError where a later token changes an earlier state: such a model gives no probability of a next token."""
    first, second = ([5, 17, 9, 30, 11, 8, *more] for more in ([2, 21, 14], [12, 7, 25]))
    one, other = (hidden_states(model, torch.tensor([ids], device=model.device))[0, :6] for ids in (first, second))
    if not relative_error(one, other) < (1e-3 if model.dtype == torch.float32 else 1e-1):
        raise UserError(
            f"model: {source}: its states change with the tokens behind them, so it is no causal language model "
            "(in its config is_decoder may be false); give one that is"
        )


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


def trained_positions(model: str) -> int | None:
    """How many positions a resolved source says that it was trained on."""
    stated: int | None = getattr(AutoConfig.from_pretrained(model).get_text_config(), "max_position_embeddings", None)
    return stated


def check_lengths(limit: int, chat: ChatFormat, prompts: Iterable[tuple[str, Sequence[Message]]], new: int) -> None:
    """UserError for a prompt whose reply of `new` tokens would end beyond the last position."""
    for name, length in longer_than(limit - new, chat, ((name, messages, None) for name, messages in prompts)):
        raise UserError(
            f"prompt {name!r} has {length} tokens, and with sampling.max_new_tokens={new} more it is longer than "
            f"the {limit} positions that the model learnt; shorten it, or lower sampling.max_new_tokens"
        )


def check_replies(limit: int, chat: ChatFormat, rows: Iterable[Row]) -> None:
    """UserError for a demonstration, or a reply of a ranking, that ends beyond the last position."""
    for name, length in longer_than(limit, chat, rows):
        raise UserError(
            f"{name!r} has {length} tokens with its reply, more than the {limit} positions that the model learnt; "
            f"shorten it, or set sft.max_length={limit} for demonstrations (sft.too_long says what becomes of them)"
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
    return None
