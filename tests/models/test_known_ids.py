"""Ids that spell nothing: an LM head has more rows than the tokenizer has tokens, or the tokenizer skips numbers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from conftest import ARCHITECTURES, CPU, make_model, make_tokenizer
from plaudit.models.config import LoraSettings
from plaudit.models.kernels.logits import know
from plaudit.models.load import load_model
from plaudit.models.roles import Roles, plain_logprobs, plain_loss
from plaudit.models.tokens import Tokens, pad_right
from plaudit.rollout.inprocess import InProcessEngine

MORE = 200
"""Rows beyond the tokenizer: far more likely together, in a random model, than not to be drawn."""
HOLES = (5, 17, 300)


def padded(folder: Path, architecture: str = "llama") -> Path:
    tokenizer = make_tokenizer()
    make_model(architecture, len(tokenizer) + MORE).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(params=ARCHITECTURES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return padded(tmp_path, request.param)


def law(folder: Path, tokens: Tokens, known: list[int], temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """log π(a_t) and entropies by transformers' own logits, the softmax over `known` alone."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(tokens.tokens_BT).logits.double() / temperature
    kept = torch.full_like(logits, -torch.inf)
    kept[:, :, known] = logits[:, :, known]
    logp_BTV = torch.log_softmax(kept, dim=2)
    targets_BT = tokens.tokens_BT.roll(-1, dims=1)
    chosen_BT = logp_BTV.gather(2, targets_BT[:, :, None]).squeeze(2)
    entropy_BT = -(logp_BTV.exp() * logp_BTV.masked_fill(logp_BTV.isinf(), 0.0)).sum(dim=2)
    mask_BT = tokens.mask_BT
    return (x.masked_fill(~mask_BT, 0.0).float() for x in (chosen_BT, entropy_BT))


def sampled(model: PreTrainedModel, rows: int = 64, longest: int = 8) -> tuple[list[list[int]], list[list[float]]]:
    engine = InProcessEngine(model, eos_id=-1, temperature=1.3)
    uniforms = np.random.default_rng(0).random((rows, longest), dtype=np.float32)
    found = engine.generate([[9, 11, 12]] * rows, uniforms)
    return [one.ids for one in found], [one.logprobs for one in found]


def test_ids_without_a_token_are_never_sampled(folder: Path) -> None:
    """Sampler and trainer speak of the softmax over the tokenizer's ids; the numbers are transformers'."""
    known = sorted(make_tokenizer().get_vocab().values())
    ids, logprobs = sampled(load_model(str(folder), torch.float32, CPU))
    assert max(map(max, ids)) < len(known)
    tokens = pad_right([[9, 11, 12]] * len(ids), ids, 3, CPU)
    expected_BT, entropy_BT = law(folder, tokens, known, 1.3)
    model = load_model(str(folder), torch.float32, CPU)
    torch.testing.assert_close(plain_logprobs(model, tokens, 1.3), expected_BT, rtol=0, atol=2e-5)
    expected = expected_BT[tokens.mask_BT].view(len(ids), -1)
    torch.testing.assert_close(torch.tensor(logprobs), expected, rtol=0, atol=1e-4)
    roles = Roles(model, trained="policy", lora=LoraSettings(r=2, alpha=4), temperature=1.3)
    for role in ("policy", "reference"):
        output = roles(tokens, role, frozenset({"logprobs"}))
        torch.testing.assert_close(output.logprobs_BT, expected_BT, rtol=0, atol=2e-5)
        torch.testing.assert_close(output.entropy_BT, entropy_BT, rtol=0, atol=2e-5)


def test_numbers_that_the_tokenizer_skips(tmp_path: Path, tiny_model: Callable[..., Path], ragged: Tokens) -> None:
    """Holes below its largest id are no tokens either; values, entropies and gradients stay numbers."""
    folder = tiny_model("llama")
    model = load_model(str(folder), torch.float32, CPU)
    known = [token for token in range(model.config.vocab_size) if token not in HOLES]
    know(model, known)
    ids, _ = sampled(load_and_know(folder, known), rows=256)
    assert not {token for row in ids for token in row} & {*HOLES}
    roles = Roles(model, trained="policy", lora=LoraSettings(r=2, alpha=4), temperature=1.3)
    output = roles(ragged, "policy", frozenset({"logprobs"}))
    expected_BT, entropy_BT = law(folder, ragged, known, 1.3)
    torch.testing.assert_close(output.logprobs_BT, expected_BT, rtol=0, atol=2e-5)
    torch.testing.assert_close(output.entropy_BT, entropy_BT, rtol=0, atol=2e-5)
    (output.logprobs_BT.sum() + output.entropy_BT.sum()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in roles.parameters())


def load_and_know(folder: Path, known: list[int]) -> PreTrainedModel:
    model = load_model(str(folder), torch.float32, CPU)
    know(model, known)
    return model


def test_the_loss_of_demonstrations_is_everybodys(folder: Path, ragged: Tokens) -> None:
    """SFT's cross-entropy is over all rows, as transformers computes it: that unlearns the ids without a token."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logp_BTV = torch.log_softmax(model(ragged.tokens_BT).logits.double(), dim=2)
    targets_BT1 = ragged.tokens_BT.roll(-1, dims=1)[:, :, None]
    expected = -logp_BTV.gather(2, targets_BT1).squeeze(2)[ragged.mask_BT].sum().item()
    assert plain_loss(load_model(str(folder), torch.float32, CPU), ragged).item() == pytest.approx(expected, rel=1e-5)


def test_a_tokenizer_that_knows_all_changes_nothing(tiny_model: Callable[..., Path]) -> None:
    folder = tiny_model()
    assert len(AutoTokenizer.from_pretrained(folder)) == load_model(str(folder), torch.float32, CPU).config.vocab_size
    model = load_model(str(folder), torch.float32, CPU)
    assert not [name for name in vars(model) if name == "_plaudit_vocabulary"]
