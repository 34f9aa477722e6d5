"""Replies in packed rows and behind a shared prompt: the scores and gradients they have one by one."""

from collections.abc import Callable, Sequence

import pytest
import torch
from test_packed_attention import MODELS, WINDOW, build
from torch import Tensor

from conftest import CPU
from plaudit.models import roles as roles_module
from plaudit.models.config import LoraSettings
from plaudit.models.full import FullReward
from plaudit.models.kernels import attention
from plaudit.models.kernels.attention import prompt_sharing_refused, use_packed_attention
from plaudit.models.kernels.segments import positions
from plaudit.models.roles import RoleOutput, Roles
from plaudit.models.tokens import ReplyRow, Tokens, pack_replies, pad_right

pytestmark = pytest.mark.usefixtures("dense")
SCORES = frozenset({"scores"})
Groups = list[tuple[list[int], list[list[int]]]]


def groups() -> Groups:
    """Three prompts, one of a single token and one longer than Mistral's window; among the replies one is empty (cut
    before its first token), one is a single token, one reaches past the window."""
    generator = torch.Generator().manual_seed(11)

    def ids(length: int) -> list[int]:
        return torch.randint(4, 250, (length,), generator=generator).tolist()

    shapes: list[tuple[int, tuple[int, ...]]] = [(9, (4, 0, 1, 15)), (1, (6, 2)), (17, (3,))]
    assert max(prompt for prompt, _ in shapes) > WINDOW
    return [(ids(prompt), [ids(reply) for reply in replies]) for prompt, replies in shapes]


def alone(chosen: Groups) -> Tokens:
    rows = [(prompt, reply) for prompt, replies in chosen for reply in replies]
    return pad_right([p for p, _ in rows], [r for _, r in rows], 3, CPU)


def scores_and_gradients(
    model: Roles | FullReward, rows: Sequence[Tokens | ReplyRow], weights: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    scores = torch.cat([model(row, "reward", SCORES).scores_BM[:, 0] for row in rows])
    (scores * weights).sum().backward()
    found = {name: p.grad.clone() for name, p in model.trainable().items() if p.grad is not None}
    return scores.detach(), found


def check(usual: Roles | FullReward, packing: Roles | FullReward) -> None:
    """One by one through plain transformers' attention, padded, packed, shared: one score, one gradient."""
    chosen = groups()
    tokens = alone(chosen)
    weights = torch.randn(len(tokens.lengths_B), generator=torch.Generator().manual_seed(2))
    single = [tokens.rows([i]) for i in range(len(weights))]
    expected, gradients = scores_and_gradients(usual, single, weights)
    assert expected.std() > 0.1
    scale = max(gradient.abs().max().item() for gradient in gradients.values())
    assert scale > 0
    found = {
        "padded": scores_and_gradients(usual, [tokens], weights),
        "packed": scores_and_gradients(packing, [pack_replies(chosen, CPU, share=False)], weights),
        "shared": scores_and_gradients(packing, [pack_replies(chosen, CPU, share=True)], weights),
        "packed, padded": scores_and_gradients(packing, [tokens], weights),
    }
    for name, (scores, learnt) in found.items():
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5, msg=name)
        assert learnt.keys() == gradients.keys()
        for key, gradient in learnt.items():
            torch.testing.assert_close(gradient / scale, gradients[key] / scale, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("architecture", MODELS)
def test_shared_equals_packed_equals_alone(architecture: str, stirred: Callable[..., Roles]) -> None:
    """Scores and LoRA gradients; grouped keys, absolute positions, biases, and a window shorter than the rows."""
    packing = build(architecture)
    assert use_packed_attention(packing) is None
    assert prompt_sharing_refused(packing) is None
    lora = LoraSettings(r=4, alpha=8)
    check(stirred(build(architecture), trained="reward", lora=lora), stirred(packing, trained="reward", lora=lora))


@pytest.mark.parametrize("architecture", MODELS)
def test_the_same_of_every_weight(architecture: str) -> None:
    """Full fine-tuning: the gradients of embeddings and norms too."""
    packing = build(architecture)
    assert use_packed_attention(packing) is None
    models = [FullReward(base, torch.float32, learns=True) for base in (build(architecture), packing)]
    for model in models:
        torch.nn.init.normal_(model.score_heads[0].weight, std=0.2, generator=torch.Generator().manual_seed(3))
    check(*models)


def test_a_shared_row_holds_each_prompt_once() -> None:
    chosen = groups()
    shared, packed = (pack_replies(chosen, CPU, share=share) for share in (True, False))
    replies = sum(len(reply) for _, replies in chosen for reply in replies)
    assert shared.tokens_BT.shape == (1, 9 + 1 + 17 + replies)
    assert packed.tokens_BT.shape == (1, 4 * 9 + 2 * 1 + 17 + replies)
    assert shared.segments == ((9, 4, 0, 1, 15), (1, 6, 2), (17, 3))
    # Every sequence ends with its reply's last token; the empty reply's is the prompt's.
    for row in (shared, packed):
        last = row.tokens_BT[row.last_B].tolist()
        assert last == [(reply or prompt)[-1] for prompt, replies in chosen for reply in replies]
    assert positions(((3, 2, 1), 2), CPU).tolist() == [[0, 1, 2, 3, 4, 3, 0, 1]]


@pytest.mark.parametrize("architecture", MODELS)
def test_no_reply_sees_another(architecture: str, stirred: Callable[..., Roles]) -> None:
    """Other replies beside it, the same score to the bit."""
    model = build(architecture)
    assert use_packed_attention(model) is None
    roles = stirred(model, trained="reward")
    prompt, replies = groups()[0]
    other = [list(reversed(replies[0])), replies[1], [77], replies[3]]
    first, second = (
        roles(pack_replies([(prompt, chosen)], CPU, share=True), "reward", SCORES).scores_BM[:, 0].detach()
        for chosen in (replies, other)
    )
    assert torch.equal(first[[1, 3]], second[[1, 3]])
    assert not torch.equal(first[[0, 2]], second[[0, 2]])


def test_a_model_that_cannot_share_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention that lets a reply see the one before it is found out; packing itself goes on."""
    model = build("llama")
    assert use_packed_attention(model) is None
    plain = attention.packed_attention

    def whole(module: torch.nn.Module, *tensors: Tensor, segments: object = None, **rest: object) -> object:
        joined = [s if isinstance(s, int) else sum(s) for s in segments] if segments else None  # type: ignore
        return plain(module, *tensors, segments=joined, **rest)  # type: ignore[arg-type]

    attention.AttentionInterface.register(attention.PACKED, whole)
    monkeypatch.setattr(attention, "packed_attention", whole)
    try:
        reason = prompt_sharing_refused(model)
        assert reason is not None
        assert "behind a shared prompt comes out otherwise" in reason
        assert use_packed_attention(build("llama")) is None
    finally:
        attention.AttentionInterface.register(attention.PACKED, plain)


POLICY = frozenset({"logprobs", "values", "last_values"})


@pytest.mark.parametrize("start", [0, 12])
@pytest.mark.parametrize("architecture", MODELS)
def test_padded_tokens_are_packed_where_that_saves_enough(
    architecture: str, start: int, stirred: Callable[..., Roles], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What PPO asks of the policy, and its gradients: the same in rows that pad and in one row that shares prompts, or
    that shares the start of all of them."""
    first = list(range(100, 100 + start))
    chosen = [(first + prompt, [reply for reply in replies if reply]) for prompt, replies in groups()]
    tokens = alone(chosen)
    usual, packing = (
        stirred(build(architecture), trained="policy", value_gradient=True, temperature=0.7) for _ in range(2)
    )
    assert use_packed_attention(packing.peft.get_base_model()) is None
    packing.packs = True
    cells = list[int]()
    own = roles_module.pack_tokens

    def counting(given: Tokens) -> tuple[ReplyRow, Tensor]:
        row, places_BT = own(given)
        cells.append(row.tokens_BT.numel())
        return row, places_BT

    monkeypatch.setattr(roles_module, "pack_tokens", counting)
    found = []
    for roles in (usual, packing):
        output = roles(tokens, "policy", POLICY)
        weights = {name: torch.randn(t.shape, generator=torch.Generator().manual_seed(4)) for name, t in parts(output)}
        sum((t * weights[name]).sum() for name, t in parts(output)).backward()
        learnt = {name: p.grad for name, p in roles.trainable().items() if p.grad is not None}
        found.append(({name: t.detach() for name, t in parts(output)}, learnt))
    replies = sum(len(reply) for _, replies in chosen for reply in replies)
    # Three, two and one replies to prompts of 9, 1 and 17 tokens behind the start.
    assert cells == [replies + (12 + 3 * 9 + 2 * 1 + 17 if start else 9 + 1 + 17)]
    assert cells[0] < roles_module.PACKED_BELOW * tokens.tokens_BT.numel()
    (expected, gradients), (outputs, learnt) = found
    assert set(expected) == {"logprobs_BT", "entropy_BT", "values_BT", "last_values_B"}
    for name, tensor in expected.items():
        torch.testing.assert_close(outputs[name], tensor, rtol=1e-5, atol=2e-5, msg=name)
    assert learnt.keys() == gradients.keys() and gradients
    scale = max(gradient.abs().max().item() for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(learnt[name] / scale, gradient / scale, rtol=1e-5, atol=1e-5, msg=name)


def parts(output: RoleOutput) -> list[tuple[str, Tensor]]:
    return [(name, tensor) for name, tensor in vars(output).items() if tensor is not None]


def test_rows_of_nearly_one_length_are_not_packed(stirred: Callable[..., Roles]) -> None:
    """Attention one sequence at a time would cost more than the little padding: not one bit changes."""
    tokens = pad_right([[5, 6, 7], [8, 9]], [[9, 2], [4, 4, 2]], 0, CPU)
    roles = stirred(build("llama"), trained="policy")
    expected = roles(tokens, "policy", POLICY)
    roles.packs = True
    for name, tensor in parts(roles(tokens, "policy", POLICY)):
        assert torch.equal(tensor, getattr(expected, name))
