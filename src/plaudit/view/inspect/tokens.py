"""One reply of a stored rollout, token by token: what PPO saw of each token and what it made of it.

Everything is read from ppo/rollouts; only r, the side of the clip and L_CLIP are computed here, by algo/losses.py as in
the training. The new log-probabilities are those of the last pass in which the reply was trained (`new_logprobs_BT`).
A rollout without them is shown as it was before the first step, where every ratio is 1, and that is said.

    plaudit inspect RUN [--step N] [--sample K] [--html PATH]
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plaudit.algo.losses import clipped_surrogate
from plaudit.errors import UserError
from plaudit.guard.arithmetic import BEHAVIOUR, Stored, sampler_slope
from plaudit.guard.sampler import sampler_gap
from plaudit.models.load import load_tokenizer, quiet_libraries
from plaudit.rewards.config import KINDS
from plaudit.rollout.stored import read_rollout, stored_rollouts
from plaudit.run.folder import read_recipe


@dataclass(frozen=True)
class TokenRow:
    """One reply token. `reward` is R_t, `advantage` Â_t as it was trained on, `raw_advantage` Â_t before whitening
    (return − value, None without a critic); `unclipped` r·Â, `clipped` clip(r)·Â, `l_clip` their minimum (with the dual
    clip where it is on). `side` says where the ratio fell, `cut` whether the clip took its gradient away."""

    number: int
    text: str
    old_logprob: float
    new_logprob: float
    ref_logprob: float
    kl: float
    reward: float
    value: float | None
    raw_advantage: float | None
    advantage: float
    ratio: float
    unclipped: float
    clipped: float
    l_clip: float
    side: str
    cut: bool


@dataclass(frozen=True)
class Inspection:
    """One reply of one update. `mean_l_clip` is over its own tokens; `share` is what it adds to L_CLIP of the whole
    update: the sum of its tokens' L_CLIP by the reply tokens of the update, `update_tokens`."""

    run: str
    update: int
    updates: tuple[int, int]
    sample: int
    samples: int
    prompt: str
    reply: str
    finished: bool
    raw_scores: tuple[float, ...]
    sources: tuple[str, ...]
    """What each raw score is of; a model with several members is named as often."""
    score: float
    clip: tuple[float, float]
    dual_clip: float | None
    gamma: float
    lam: float
    whitened: bool
    has_new: bool
    rows: tuple[TokenRow, ...]
    kl: float
    mean_l_clip: float
    share: float
    update_tokens: int
    sampler: str

    @property
    def telling(self) -> TokenRow:
        """The token to work by hand: of those whose gradient was cut the largest L_CLIP, else the largest of all."""
        return max([row for row in self.rows if row.cut] or self.rows, key=lambda row: abs(row.l_clip))


def inspect_run(folder: Path, step: int | None = None, sample: int = 1) -> Inspection:
    """Reply `sample` (from 1) of update `step` (None: the last one stored) of the run in `folder`.

    UserError where there is no rollout, or none of that number.
    """
    recipe = read_recipe(folder)
    files = stored_rollouts(folder)
    if not files:
        raise UserError(f"{folder}/ppo/rollouts holds no rollout: stage ppo writes one an update; run it first")
    update = max(files) if step is None else step
    if update not in files:
        raise UserError(f"--step {step}: no rollout of that update is here; there are {min(files)} to {max(files)}")
    tensors = read_rollout(files[update])
    samples = len(tensors["lengths_B"])
    if not 1 <= sample <= samples:
        raise UserError(f"--sample {sample}: update {update} has the replies 1 to {samples}")
    quiet_libraries()
    tokenizer = load_tokenizer(str(folder / "sft/model"))
    start, end = int(tensors["prompt_lengths_B"][sample - 1]), int(tensors["lengths_B"][sample - 1])
    ids = tensors["tokens_BT"][sample - 1, :end].tolist()
    ppo = recipe["ppo"]
    rows = token_rows(tensors, sample - 1, ppo, [token_text(tokenizer, token) for token in ids[start:]])
    total, update_tokens = sum(row.l_clip for row in rows), int(tensors["mask_BT"].sum())
    whitens = ppo.get("whiten_advantages")
    return Inspection(
        run=recipe["name"],
        update=update,
        updates=(min(files), max(files)),
        sample=sample,
        samples=samples,
        prompt=tokenizer.decode(ids[:start], skip_special_tokens=True),
        reply=tokenizer.decode(ids[start:], skip_special_tokens=True),
        finished=bool(tensors["finished_B"][sample - 1]),
        raw_scores=tuple(tensors["raw_scores_BM"][sample - 1].tolist()),
        sources=kinds_of_scores(ppo, tensors["raw_scores_BM"].shape[1]),
        score=tensors["scores_B"][sample - 1].item(),
        clip=clip_bounds(ppo),
        dual_clip=ppo.get("dual_clip"),
        gamma=ppo["gamma"],
        lam=ppo["lam"],
        whitened=ppo.get("advantages", "gae") == "gae" if whitens is None else whitens,
        has_new="new_logprobs_BT" in tensors,
        rows=rows,
        kl=sum(row.kl for row in rows),
        mean_l_clip=total / len(rows),
        share=total / update_tokens,
        update_tokens=update_tokens,
        sampler=_sampler(*(Stored(n, read_rollout(files[n]), ppo, {}) for n in (min(files), update))),
    )


def kinds_of_scores(ppo: Mapping[str, Any], columns: int) -> tuple[str, ...]:
    """The kind of source that each column of `raw_scores_BM` is of, by the recipe's section `ppo`: the run's own reward
    model has one a member, every other source one."""
    paid = [source for source in ppo.get("rewards") or [{"trained": True}] if not source.get("watch")]
    kinds = [next(kind for kind in KINDS if source.get(kind)) for source in paid]
    own = columns - sum(kind != "trained" for kind in kinds)
    return tuple(name for kind in kinds for name in [kind] * (own if kind == "trained" else 1))


def _sampler(first: Stored, stored: Stored) -> str:
    """How far from the policy the update's replies were sampled."""
    gap, _ = sampler_gap(*(stored.tensors[n] for n in ("sampler_logprobs_BT", stored.behaviour, "mask_BT")))
    slope = sampler_slope(first, stored)
    where = "" if slope is None else f", {slope} of the way to the reference"
    before = " of the update before" if stored.behaviour == BEHAVIOUR else ""
    return f"{gap:.2g} nats a token from the policy{before}{where}"


def clip_bounds(ppo: Mapping[str, Any]) -> tuple[float, float]:
    """(1 − ε, 1 + ε), or the recipe's own upper bound."""
    low, high = ppo["clip_range"], ppo.get("clip_range_high")
    return 1 - low, 1 + (low if high is None else high)


def token_rows(
    tensors: Mapping[str, Tensor], row: int, ppo: Mapping[str, Any], texts: Sequence[str]
) -> tuple[TokenRow, ...]:
    """Every reply token of row `row` of a rollout's tensors [B, T]; `texts` are its tokens, in order."""
    start, end = int(tensors["prompt_lengths_B"][row]) - 1, int(tensors["lengths_B"][row]) - 1
    assert len(texts) == end - start, (len(texts), start, end)

    def column(name: str) -> Tensor:
        return tensors[name][row : row + 1, start:end].double()

    old, advantage = column("old_logprobs_BT"), column("advantages_BT")
    new = column("new_logprobs_BT") if "new_logprobs_BT" in tensors else old
    ratio = (new - old).exp()
    low, high = clip_bounds(ppo)
    unclipped = ratio * advantage
    l_clip = clipped_surrogate(ratio, advantage, 1 - low, high - 1, ppo.get("dual_clip"))
    value = column("values_BT") if "values_BT" in tensors else None
    columns = {
        "old_logprob": old,
        "new_logprob": new,
        "ref_logprob": column("ref_logprobs_BT"),
        "kl": column("kl_BT"),
        "reward": column("rewards_BT"),
        "value": value,
        "raw_advantage": column("returns_BT") - value if value is not None and "returns_BT" in tensors else None,
        "advantage": advantage,
        "ratio": ratio,
        "unclipped": unclipped,
        "clipped": ratio.clamp(low, high) * advantage,
        "l_clip": l_clip,
        "cut": ~torch.isclose(l_clip, unclipped, rtol=1e-12, atol=0),
    }
    rows = []
    for i, text in enumerate(texts):
        numbers: dict[str, Any] = {name: None if x is None else x[0, i].item() for name, x in columns.items()}
        side = "below" if numbers["ratio"] < low else "above" if numbers["ratio"] > high else "inside"
        rows.append(TokenRow(number=i + 1, text=text, side=side, **numbers))
    return tuple(rows)


def token_text(tokenizer: Any, token: int) -> str:
    """A token as a person reads it: blanks visible, half a character as its id."""
    text = tokenizer.decode([token], skip_special_tokens=False)
    if not text or "\ufffd" in text:
        return f"<{token}>"
    return text.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")
