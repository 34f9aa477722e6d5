"""The task of learning.py with TRL 1.12's PPOTrainer: same prompts, reward, batch, epochs, clip, λ, temperature, β.

Environment and what is done for TRL's sake: trl_ppo.py.

    PYTHONPATH=benchmarks venv-trl112/bin/python benchmarks/peers/trl_learning.py \\
        --model FOLDER --learning-rate 1e-4 --out trl-1e-4.json --json

TRL asks for a reward model with a score head, and hands it ids: `LexiconReward` has the shape of one, decodes the reply
and gives its score at every position. The critic is a whole model of the same base with a scalar head; TRL trains it
with the policy's learning rate. Its weights are float32 (in bfloat16 its small steps would be rounded away), computed
under TRL's bfloat16 autocast; the frozen base of the policy is bfloat16, its adapter float32. Score whitening is off;
advantages are whitened always, as in our default. The learning rate falls along the same cosine as ours.

Evaluation is this script's own: replies to the held-out openings at temperature 1, nothing cut from the law, with the
same random numbers every time; KL a reply is the mean of Σ log π − log π_ref over the sampled tokens.
"""

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from trl_ppo import Clock, arguments, build, peaks, scalar_model, tokenizer_of, versions

import task

ROWS = 64


class Lexicon(nn.Module):
    """In the place of a trunk: its last hidden state [B, T, 1] is the score of the reply, the last columns' text."""

    def __init__(self, tokenizer: Any, columns: int):
        super().__init__()
        self.tokenizer = tokenizer
        self.columns = columns
        self.positivity = task.Positivity()

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        texts = self.tokenizer.batch_decode(input_ids[:, -self.columns :], skip_special_tokens=True)
        scores_B = torch.tensor([self.positivity(text) for text in texts], device=input_ids.device)
        return SimpleNamespace(hidden_states=(scores_B[:, None, None].expand(*input_ids.shape, 1),))


class LexiconReward(nn.Module):
    """What TRL's get_reward asks of a reward model: a trunk under `base_model_prefix`, and `score`."""

    base_model_prefix = "model"

    def __init__(self, tokenizer: Any, columns: int):
        super().__init__()
        self.model = Lexicon(tokenizer, columns)
        self.score = nn.Identity()


@torch.no_grad()
def evaluate(policy: Any, tokenizer: Any, update: int, tokens: int, replies: int, seed: int) -> dict[str, Any]:
    """The policy on the held-out openings."""
    positivity = task.Positivity()
    rows = [row for row in task.openings("validation") for _ in range(replies)]
    texts: list[str] = []
    kl: list[float] = []
    # What is drawn here must not move what training draws.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for start in range(0, len(rows), ROWS):
            ids = [{"input_ids": task.ids_of(tokenizer, row["prompt"])} for row in rows[start : start + ROWS]]
            batch = tokenizer.pad(ids, return_tensors="pt")
            mask_BP = batch["attention_mask"]
            # As TRL does it: under a pad stands id 0, since the pad token has no embedding.
            prompts_BP = batch["input_ids"].masked_fill(mask_BP == 0, 0)
            whole_BT = policy.generate(
                input_ids=prompts_BP,
                attention_mask=mask_BP,
                max_new_tokens=tokens,
                do_sample=True,
                temperature=task.TEMPERATURE,
                top_k=0,
                top_p=1.0,
            )
            reply_BN = whole_BT[:, prompts_BP.shape[1] :]
            assert reply_BN.shape[1] == tokens
            inputs = {"input_ids": whole_BT, "attention_mask": torch.cat([mask_BP, torch.ones_like(reply_BN)], dim=1)}
            own_BN = _logprobs(policy, inputs, reply_BN)
            with policy.disable_adapter():
                ref_BN = _logprobs(policy, inputs, reply_BN)
            kl += (own_BN - ref_BN).sum(dim=1).tolist()
            texts += tokenizer.batch_decode(reply_BN, skip_special_tokens=True)
    rewards = [positivity(text) for text in texts]
    return task.evaluation_row(update, float(np.mean(kl)), [row["id"] for row in rows], texts, rewards, tokenizer)


def _logprobs(policy: Any, inputs: dict[str, Tensor], reply_BN: Tensor) -> Tensor:
    positions_BT = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
    logits_BNV = policy(**inputs, position_ids=positions_BT).logits[:, -reply_BN.shape[1] - 1 : -1].float()
    return torch.log_softmax(logits_BNV / task.TEMPERATURE, dim=-1).gather(2, reply_BN[:, :, None])[:, :, 0]


def main() -> None:
    parser = arguments(__doc__, updates=task.UPDATES)
    parser.add_argument("--tokens", type=int, default=task.NEW_TOKENS, help="shorter replies, for a look")
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--evaluate-every", type=int, default=task.EVALUATE_EVERY)
    parser.add_argument("--replies", type=int, default=task.REPLIES_A_PROMPT, help="an evaluation's, for each prompt")
    parser.add_argument("--label", default="TRL 1.12", help="what learning_compare.py calls this run and its like")
    parser.add_argument("--out", type=Path, help="write everything there, replies included")
    given = parser.parse_args()
    tokenizer = tokenizer_of(given.model)
    prompts = [task.ids_of(tokenizer, row["prompt"]) for row in task.openings("train")]
    rows: list[dict[str, Any]] = []

    def look(update: int) -> None:
        if update % given.evaluate_every == 0 or update == given.updates:
            policy = trainer.policy_model
            rows.append(evaluate(policy, tokenizer, update, given.tokens, given.replies, given.seed))

    clock = Clock(look)
    with tempfile.TemporaryDirectory() as home:
        trainer = build(
            given,
            tokenizer,
            prompts,
            clock,
            home,
            LexiconReward(tokenizer, given.tokens),
            scalar_model(given.model, torch.float32),
            response_length=given.tokens,
            kl_coef=task.KL_COEF,
            learning_rate=given.learning_rate,
            lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr_rate": 0.1},
        )
        trainer.train()
    found = {
        "label": given.label,
        "workload": "learning",
        "seed": given.seed,
        "learning_rate": given.learning_rate,
        "seconds": round(sum(clock.seconds), 1),
        "seconds_per_update": round(float(np.median(clock.seconds[1:] or clock.seconds)), 2),
        **peaks(),
        "versions": versions(),
        "evaluations": rows,
    }
    task.finish(found, given.out, given.json)


if __name__ == "__main__":
    main()
