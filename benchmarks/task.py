"""What our PPO benchmarks and the peers' share: one definition of prompts, tokens, reward, measures and settings.

Needs the standard library and vaderSentiment only, so that a peer's environment can import it (with this folder on
PYTHONPATH); nothing of Plaudit is used.

Two workloads are built on `openings.jsonl`, 64 openings of short texts that were written for this purpose and carry no
judgement (48 of split train, 16 of split validation, which are held out):

- W-PPO (ppo.py, peers/trl_ppo.py): 32 prompts of exactly 16 tokens and replies of exactly 48 tokens.
- learning (learning.py, peers/trl_learning.py): a reply of 24 tokens continues an opening as plain text, and is paid
  VADER's compound score (Hutto and Gilbert 2014) of the reply's text, in [−1, 1].

A reply must not end before its limit. So both sides add one token to the tokenizer, `NEVER`, for which the model has no
embedding: as end of turn (ours) or pad (TRL) it can never be sampled, and no logit is touched to get there.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

OPENINGS = Path(__file__).with_name("openings.jsonl")
NEVER = "<|never|>"

# Both workloads, both sides.
BATCH, MINIBATCH, MICRO_BATCH, EPOCHS = 32, 16, 8, 4
LORA_R, LORA_ALPHA = 16, 32
TEMPERATURE, GAMMA, LAM, CLIP_RANGE, VALUE_COEF = 1.0, 1.0, 0.95, 0.2, 0.1
# W-PPO.
PROMPT_TOKENS, REPLY_TOKENS = 16, 48
# Small, since a policy that moved far may sample `NEVER` after all where it has a row (prepared.py).
LEARNING_RATE = 3e-6
# Learning. β is per token, of the unwhitened score.
UPDATES, NEW_TOKENS, KL_COEF = 25, 24, 0.05
EVALUATE_EVERY, REPLIES_A_PROMPT, SHOWN = 2, 8, 3


def openings(split: str) -> list[dict[str, Any]]:
    """Rows of one split, train or validation: id, kind, split, prompt."""
    rows = [json.loads(line) for line in OPENINGS.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["split"] == split]


def add_never(tokenizer: Any) -> int:
    """Add NEVER as a special token to a transformers tokenizer; returns its id, the first one after all others."""
    before = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": [NEVER]})
    assert tokenizer.convert_tokens_to_ids(NEVER) == before, "the tokenizer knows this token already"
    return before


def ids_of(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text as it stands: no chat template, no token put before or after."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def fixed_prompts(tokenizer: Any, count: int, length: int) -> list[str]:
    """`count` different texts of exactly `length` tokens each: stretches of all openings, one after the other."""
    whole = ids_of(tokenizer, " ".join(row["prompt"] for split in ("train", "validation") for row in openings(split)))
    found: list[str] = []
    start = 0
    while len(found) < count:
        ids = whole[start : start + length]
        assert len(ids) == length, f"the openings give only {len(found)} prompts of {length} tokens"
        text = tokenizer.decode(ids)
        # Cut elsewhere where the pieces of a word would be joined otherwise when the text stands alone.
        if ids_of(tokenizer, text) == ids and text not in found:
            found.append(text)
        start += length // 2
    return found


class Positivity:
    """VADER's compound score of a reply, as it stands."""

    def __init__(self) -> None:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        self._analyzer = SentimentIntensityAnalyzer()

    def __call__(self, text: str) -> float:
        return float(self._analyzer.polarity_scores(text)["compound"])


def distinct_2(replies: Sequence[Sequence[int]]) -> float:
    """Different token 2-grams over all replies, divided by all 2-grams (distinct-2, Li et al. 2016)."""
    pairs = [pair for ids in replies for pair in pairwise(ids)]
    return len(set(pairs)) / max(1, len(pairs))


def evaluation_row(
    update: int, kl: float, prompts: Sequence[str], replies: Sequence[str], rewards: Sequence[float], tokenizer: Any
) -> dict[str, Any]:
    """One evaluation, from the held-out replies in prompt order (`prompts` are ids of openings, one a reply).

    reward: mean over replies, and `rewards_by_prompt` its parts; kl: nats a reply; distinct_2 and length are those of
    the tokens of the replies' texts; `replies` holds the first reply of a few prompts.
    """
    assert len(prompts) == len(replies) == len(rewards)
    ids = [ids_of(tokenizer, text) for text in replies]
    by_prompt: dict[str, list[float]] = {}
    for prompt, reward in zip(prompts, rewards, strict=True):
        by_prompt.setdefault(prompt, []).append(reward)
    first = dict(zip(reversed(prompts), reversed(replies), strict=True))
    return {
        "update": update,
        "reward": sum(rewards) / len(rewards),
        "kl": kl,
        "distinct_2": distinct_2(ids),
        "length": sum(map(len, ids)) / len(ids),
        "rewards_by_prompt": {prompt: sum(part) / len(part) for prompt, part in by_prompt.items()},
        "replies": {prompt: first[prompt] for prompt in list(by_prompt)[:SHOWN]},
    }


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def finish(found: dict[str, Any], out: Path | None, as_json: bool) -> None:
    """Write everything to `out`; print it without the evaluations' details, as JSON in one line where asked."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    shown = dict(found)
    if "evaluations" in found:
        hidden = ("rewards_by_prompt", "replies")
        rows = [{name: row[name] for name in row if name not in hidden} for row in found["evaluations"]]
        shown["evaluations"] = rows
    print(json.dumps(shown) if as_json else "\n".join(f"{name}: {value}" for name, value in shown.items()))
