"""PPO by hand: sample, score, advantages, clip, step. Ten updates of a tiny model in a few seconds on any CPU.

    python docs/ppo_by_hand.py

The model is random and its alphabet is its vocabulary, so nothing is downloaded. What pays is one line, `score`: a
reply earns its vowels. Watch the replies as the score rises: they become what was paid for, not what was meant.
Everything else is what a real run does, with the library's own functions; `plaudit ppo` adds checks, checkpoints,
micro-batches and options.

Names carry their shapes: B replies, T columns. Column t describes the state after token t and the action, token t+1;
the mask is True where that action is a reply token.
"""

import copy

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from plaudit import rng
from plaudit.algo.advantages import gae
from plaudit.algo.losses import ppo_loss
from plaudit.algo.masked import whiten
from plaudit.algo.rewards import kl_estimate, token_rewards, whiten_scores
from plaudit.models.config import LoraSettings
from plaudit.models.load import quiet_libraries
from plaudit.models.roles import Roles
from plaudit.models.rounding import Rounding
from plaudit.models.tokens import Tokens, pad_right
from plaudit.rollout.inprocess import InProcessEngine

ALPHABET = "abcdefghijklmnopqrstuvwxyz .,!?-"
PAD, END = len(ALPHABET), len(ALPHABET) + 1
PROMPTS = ["sing ?", "hum a tune ?", "what is dusk ?", "tell me of rain ?"]

UPDATES, EPOCHS, REPLIES, LONGEST = 10, 4, 64, 12
GAMMA, LAM = 1.0, 0.95  # discount, and GAE's trade of bias for variance
CLIP_RANGE, KL_COEF = 0.2, 0.05
VALUE_COEF, ENTROPY_COEF = 0.1, 0.0


def tiny_model() -> LlamaForCausalLM:
    """Two layers of random weights, drawn widely, so that its replies are far from uniform noise."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=END + 1, eos_token_id=END, pad_token_id=PAD, initializer_range=0.2, **sizes)
    return LlamaForCausalLM(config).eval()


def score(reply: list[int]) -> float:
    """What is rewarded: vowels, each a twelfth. In a real run a model that learnt from people's rankings says it."""
    return sum(ALPHABET[i] in "aeiou" for i in reply if i < PAD) / LONGEST


def sample(roles: Roles, engine: InProcessEngine, update: int) -> tuple[Tokens, torch.Tensor]:
    """B replies of the policy as it is now, and their scores."""
    # The engine decodes with a copy of the policy in which the adapter is merged into the base. In bfloat16 a small
    # adapter would be rounded away, so sums are rounded at random; here, in float32, as they are.
    engine.load_weights(roles.merged_weights("policy", Rounding(0, "ppo", update)))
    prompts = [[ALPHABET.index(letter) for letter in PROMPTS[i % len(PROMPTS)]] for i in range(REPLIES)]
    # One uniform number a token, fixed by (seed, stage, update, reply, position): runs can be repeated and resumed.
    uniforms = rng.uniforms(0, "ppo", update, list(range(REPLIES)), LONGEST)
    replies = [sampled.ids for sampled in engine.generate(prompts, uniforms)]
    return pad_right(prompts, replies, PAD, torch.device("cpu")), torch.tensor([score(reply) for reply in replies])


def update_policy(roles: Roles, optimiser: torch.optim.Optimizer, tokens: Tokens, scores_B: torch.Tensor) -> float:
    """One PPO update on sampled replies; returns the KL from the reference, in nats a reply."""
    mask_BT = tokens.mask_BT
    count = float(mask_BT.sum())  # every mean below is over these tokens

    # What the policy thought when it sampled, and what the frozen model thinks: both stay fixed during the update.
    with torch.no_grad():
        old = roles(tokens, "policy", frozenset({"logprobs", "values"}))
        reference = roles(tokens, "reference", frozenset({"logprobs"}))

    # Scores are brought to mean 0 and standard deviation 1, so that the learning rate need not know their scale.
    # A score arrives at its reply's last token; every token pays for leaving the reference.
    scores_B = whiten_scores(scores_B, floor=0.1)[0]
    kl_BT = kl_estimate(old.logprobs_BT, reference.logprobs_BT) * mask_BT
    rewards_BT = token_rewards(scores_B, kl_BT, mask_BT, KL_COEF)

    # How much better was each token than the critic expected? The returns are what the critic should have said.
    advantages_BT, returns_BT = gae(rewards_BT, old.values_BT, mask_BT, gamma=GAMMA, lam=LAM)
    advantages_BT = whiten(advantages_BT, mask_BT)[0]

    for _ in range(EPOCHS):
        new = roles(tokens, "policy", frozenset({"logprobs", "values"}))
        # The clipped surrogate: the ratio π/π_old may earn nothing beyond 1 ± CLIP_RANGE. In the first epoch it is 1.
        terms = ppo_loss(
            logprobs_BT=new.logprobs_BT,
            old_logprobs_BT=old.logprobs_BT,
            advantages_BT=advantages_BT,
            values_BT=new.values_BT,
            returns_BT=returns_BT,
            entropy_BT=new.entropy_BT,
            mask_BT=mask_BT,
            count=count,
            clip_range=CLIP_RANGE,
            value_coef=VALUE_COEF,
            entropy_coef=ENTROPY_COEF,
        )
        optimiser.zero_grad()
        terms.loss.backward()
        torch.nn.utils.clip_grad_norm_(roles.trainable().values(), 1.0)
        optimiser.step()
    return float(kl_BT.sum() / len(scores_B))


def main() -> list[float]:
    """Ten updates; returns the mean score of each one's replies."""
    quiet_libraries()
    torch.set_num_threads(1)  # a second thread only costs time on tensors this small
    model = tiny_model()
    engine = InProcessEngine(copy.deepcopy(model), eos_id=END)
    # One frozen base: without an adapter it is the reference, with one the policy; the critic is a head on the policy.
    roles = Roles(model, trained="policy", lora=LoraSettings(r=8, alpha=16), value_gradient=True)
    optimiser = torch.optim.AdamW(roles.trainable().values(), lr=1e-2, weight_decay=0.0)
    means = []
    for update in range(UPDATES):
        tokens, scores_B = sample(roles, engine, update)
        kl = update_policy(roles, optimiser, tokens, scores_B)
        means.append(scores_B.mean().item())
        print(f"update {update:2}   score {means[-1]:.3f}   KL {kl:5.2f} nats a reply   {text(tokens)!r}")
    return means


def text(tokens: Tokens) -> str:
    """The first reply, to be read."""
    return "".join(ALPHABET[i] for i in tokens.replies[0] if i < PAD)


if __name__ == "__main__":
    main()
