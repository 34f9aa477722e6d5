"""Numbers that must hold in every run; when one does not, the run stops with the reason.

- Before the first optimiser step of an update the trainer's ratio is 1 (float32: within 1e-6; bf16: exactly, because
  old log-probs are computed in the very micro-batches that are trained on) and no token is clipped.
- A fresh policy adapter changes nothing, so the KL before the first update is 0.
- Sampler and trainer agree about the log-probabilities of the sampled tokens (sampler.py).
- Losses, gradients and scores are finite before the optimiser moves anything.
- No module is in train mode, and one pass gives the same numbers twice: dropout is off.
- A log-probability and a value see the tokens up to their state, and not the action they judge.
- Processes that share the work hold the same weights and the same batch.
- What is frozen (the base, which is the reference, and the reward model) does not change.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from plaudit.errors import RunStopped
from plaudit.models.tokens import Tokens

RATIO_TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 0.0}


def check_first_ratio(largest: float, dtype: torch.dtype) -> None:
    """`largest` is max |ratio − 1| over the first optimiser step of an update."""
    if not largest <= RATIO_TOLERANCE[dtype]:
        raise RunStopped(
            f"before the first step of the update the probability ratio is off by {largest:.3g}, allowed "
            f"{RATIO_TOLERANCE[dtype]:g}: the trainer does not reproduce its own old log-probabilities"
        )


def check_fresh_kl(kl_BT: Tensor, dtype: torch.dtype) -> None:
    """Before the first update policy and reference are one model."""
    largest = kl_BT.abs().max().item()
    if not largest <= RATIO_TOLERANCE[dtype]:
        raise RunStopped(
            f"a fresh policy differs from the reference by {largest:.3g} nats a token, allowed "
            f"{RATIO_TOLERANCE[dtype]:g}: the reference is not the model the policy started from"
        )


def check_modes(model: nn.Module) -> None:
    """No module may be in train mode: dropout would make the trainer another law than the sampler."""
    training = [name or "the model" for name, module in model.named_modules() if module.training]
    if training:
        raise RunStopped(
            f"dropout on: {len(training)} modules are in train mode, the first is {training[0]}; PPO needs all of them "
            "in eval mode"
        )


def check_repeatable(first_BT: Tensor, again_BT: Tensor) -> None:
    """Log-probabilities of the same tokens, computed twice in the same layout by the same weights."""
    largest = (first_BT - again_BT).abs().max().item()
    if not largest == 0:
        raise RunStopped(
            f"dropout on: two passes over the same tokens differ by {largest:.3g} nats; the trainer is random"
        )


def check_alignment(read: Callable[[Tokens], tuple[Tensor, Tensor | None]], tokens: Tokens) -> None:
    """Columns belong to their states: changing a token changes what comes after it and nothing before it.

    `read` gives (log-probabilities, values or None), [B, T], of its tokens; `tokens` is one reply of at least three
    tokens. With another last token every value must stay, since no state holds that token yet; with another token
    before it the last state's value and log-probability must move. A critic that says one value of every state is not
    judged. Three passes over one reply; the shapes are equal, so what must stay is bit-equal.
    """
    assert tokens.tokens_BT.shape[0] == 1 and int(tokens.reply_lengths_B) >= 3, tokens.lengths_B
    last = int(tokens.lengths_B) - 1

    def changed(place: int) -> Tokens:
        ids_BT = tokens.tokens_BT.clone()
        others = [token for token in ids_BT[0, : last + 1].tolist() if token != ids_BT[0, place]]
        assert others, "a text of one token repeated says nothing"
        ids_BT[0, place] = others[0]
        return Tokens(ids_BT, tokens.prompt_lengths_B, tokens.lengths_B)

    logprobs_BT, values_BT = read(tokens)
    end_logprobs_BT, end_values_BT = read(changed(last))
    mid_logprobs_BT, mid_values_BT = read(changed(last - 1))
    if not torch.equal(logprobs_BT[:, : last - 1], end_logprobs_BT[:, : last - 1]):
        raise RunStopped("log-probability of the wrong token: another last token changes those of the tokens before it")
    if mid_logprobs_BT[0, last - 1] == logprobs_BT[0, last - 1]:
        raise RunStopped("log-probability on the wrong state: another token before the last does not change the last's")
    if values_BT is None or end_values_BT is None or mid_values_BT is None:
        return
    inside_N = values_BT[tokens.mask_BT]
    if bool((inside_N == inside_N[0]).all()):
        return
    if not torch.equal(values_BT[:, :last], end_values_BT[:, :last]):
        raise RunStopped("value on the wrong state: a value sees the token it judges, it is read one token too late")
    if mid_values_BT[0, last - 1] == values_BT[0, last - 1]:
        raise RunStopped("value on the wrong state: a value does not see its own state, it is read one token too early")


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """Name -> SHA-256 of a tensor's bytes."""
    return {
        name: hashlib.sha256(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data).hexdigest()
        for name, tensor in tensors
    }


def joint_fingerprint(fingerprints: Mapping[str, str]) -> str:
    """One SHA-256 of a whole model's fingerprints."""
    text = "".join(f"{name}={fingerprints[name]};" for name in sorted(fingerprints))
    return hashlib.sha256(text.encode()).hexdigest()


def check_unchanged(what: str, before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """`what` is frozen: its fingerprints at the start of the run and now."""
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    if changed:
        raise RunStopped(f"{what} changed: {len(changed)} of {len(before)} tensors, the first is {changed[0]}")


def check_ranks_agree(found: Sequence[Mapping[str, str]]) -> None:
    """Fingerprints of what every rank holds and must hold alike: what learns, and the batch it will learn from."""
    for rank, other in enumerate(found):
        differ = sorted(name for name, own in found[0].items() if other[name] != own)
        if differ:
            raise RunStopped(
                f"rank {rank} no longer trains what rank 0 trains: {len(differ)} of {len(other)} tensors differ, the "
                f"first is {differ[0]}; run all ranks on machines of one kind, with the same versions"
            )


def check_finite(name: str, value: float, where: str) -> None:
    """Stop before a NaN or an infinity reaches the weights."""
    if not math.isfinite(value):
        raise RunStopped(f"{where}: {name} is {value}; nothing was changed by this step")
