"""PPO's settings. What would do nothing beside another setting is refused, with both values named.

Each option's formula is in docs/ppo-maths.md, its effect in docs/ppo.md.
"""

from typing import Literal

from pydantic import Field, model_validator

from plaudit.algo.names import KLEstimator, MissingEos
from plaudit.config import AutoOrCount, StrictConfig
from plaudit.errors import UserError
from plaudit.guard.limits import WatchConfig
from plaudit.rewards.config import RewardSource, pays

Advantages = Literal["gae", "rloo", "grpo", "dr_grpo", "reinforce_pp"]
GROUPS: tuple[Advantages, ...] = ("rloo", "grpo", "dr_grpo")
CRITIC = ("critic", "critic_warmup", "critic_learning_rate", "value_coef", "value_clip")


class PPOConfig(StrictConfig):
    """PPO: a clipped surrogate, a KL penalty, and a critic or an estimator that needs none."""

    updates: int = Field(20, ge=1)
    """Rounds of sampling and training."""
    batch_size: int = Field(32, ge=1)
    """Replies sampled an update."""
    replies_per_prompt: int = Field(1, ge=1)
    """How many of them answer one prompt; must divide batch_size. RLOO and GRPO compare these with each other."""
    minibatch_size: int = Field(16, ge=1)
    """Replies in one optimiser step; must divide batch_size."""
    micro_batch_size: AutoOrCount = "auto"
    """Replies in one forward and backward pass, must divide minibatch_size; auto: as many as there is memory for.
    Changes memory, not the result."""
    micro_batch_tokens: int | None = Field(None, ge=1)
    """In its place a budget of tokens, padding included; a longer reply goes alone. Changes memory, not the result."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, one more forward pass."""
    epochs: int = Field(2, ge=1)
    """Passes over an update's replies."""
    learning_rate: float = Field(3e-4, gt=0)
    """Peak learning rate of AdamW for the policy: its adapter, or all its weights."""
    critic_learning_rate: float = Field(1e-3, gt=0)
    """The same for the critic: the value head, and its adapter where it has one of its own."""
    advantages: Advantages = "gae"
    """Estimator: gae has a critic; rloo, grpo, dr_grpo (grpo without dividing by the std of its group) and reinforce_pp
    (REINFORCE++) have none."""
    gamma: float = Field(1.0, gt=0, le=1)
    """γ: discount per token."""
    lam: float = Field(0.95, ge=0, le=1)
    """λ: GAE's trade of bias (0) against variance (1)."""
    whiten_advantages: bool | None = None
    """Advantages of an update to mean 0, std 1 over its reply tokens; null: with gae. reinforce_pp always does it."""
    clip_range: float = Field(0.2, gt=0)
    """ε: how far the ratio may move before its gain is cut off."""
    clip_range_high: float | None = Field(None, gt=0)
    """The same for a ratio above 1, where it differs; null is clip_range."""
    dual_clip: float | None = Field(None, gt=1)
    """A token of negative advantage costs at most this multiple of it; null is no limit."""
    target_kl: float | None = Field(None, gt=0)
    """An update ends before the step at which the approximate KL from the old policy is above this (nats a token)."""
    value_coef: float = Field(0.1, ge=0)
    """c1: weight of the value loss."""
    value_clip: float | None = Field(None, gt=0)
    """How far a value may move from its old one before its gradient is cut off; null is no limit."""
    critic: Literal["policy", "head", "own"] = "policy"
    """A value head on the policy whose loss reaches the policy's trunk (policy) or trains the head alone (head), or an
    adapter of its own that starts as the run's reward model, where it has one (own)."""
    critic_warmup: int = Field(0, ge=0)
    """Updates at the start in which the critic learns and the policy stands still."""
    entropy_coef: float = Field(0.0, ge=0)
    """c2: weight of the entropy bonus."""
    kl_coef: float = Field(0.1, ge=0)
    """β: KL penalty per token, in units of the whitened score."""
    kl_penalty: KLEstimator | Literal["loss"] = "k1"
    """The penalty in the reward of each token by an estimate of the KL (k1 has the KL's gradient; k2 and k3 are never
    negative), or as a loss of its own with the KL's gradient (loss; see ppo-maths.md)."""
    kl_target: float | None = Field(None, gt=0)
    """KL in nats a reply that β is moved towards, update by update; null leaves β at kl_coef."""
    kl_horizon: int = Field(10_000, ge=1)
    """Replies over which β moves: larger is slower."""
    ptx_coef: float = Field(0.0, ge=0)
    """Weight of the SFT loss on demonstrations that is added to each step (PTX)."""
    ptx_rows: int = Field(8, ge=1)
    """Demonstrations in one step of it."""
    score_scale: Literal["whiten", "running", "none"] = "whiten"
    """Scores of a batch to mean 0, std 1 (whiten; the std floored at a quarter of its first value), or divided by their
    running std without a shift (running), or as they are."""
    sigmoid_centred: bool = False
    """Each score becomes 4·σ(score − score of the SFT model's reply to the prompt), sampled once before training."""
    score_clip: float = Field(5.0, gt=0)
    """Scores are held in ± this before they are whitened."""
    missing_eos: MissingEos | Literal["bootstrap"] = "subtract"
    """What a reply that never ended meets: the penalty is subtracted from its score, replaces it, or neither (none); or
    neither, and it is worth V(s_T) beyond its last token, as one that the limit cut (bootstrap; needs a critic)."""
    missing_eos_penalty: float = Field(1.0, ge=0)
    """The size of that penalty, in units of the normalised score."""
    length_penalty: float = Field(0.0, ge=0)
    """Subtracted from the score for every token beyond length_free."""
    length_free: int = Field(0, ge=0)
    """Tokens of a reply that cost nothing."""
    evaluate_every: int = Field(5, ge=1)
    """Updates between two looks at the validation prompts."""
    evaluate_replies: int = Field(1, ge=1)
    """Replies to each validation prompt at a look."""
    kl_budget: float | None = Field(None, gt=0)
    """A policy farther than this from the reference (nats a reply, on validation prompts) is not kept. Empty: 10 where
    the score PPO is paid by chooses; no bound where a held-out score does, which says itself when it is too far."""
    keep_by: Literal["score", "held_out"] | None = None
    """The policy that is kept has the best validation score, or the best score that PPO is not paid by. Empty: the
    held-out score where there is one."""
    watch: WatchConfig = WatchConfig()
    """When a reward that is being gamed stops the run."""
    rewards: list[RewardSource] = Field(default=[])
    """What the policy is paid by, a weighted sum; empty is the run's own reward model alone."""
    sampling_copy: bool = True
    """Whether replies are sampled from a merged copy of the policy. Without it, through the policy itself: slower, and
    a whole model less in memory."""
    offload_reference: bool = False
    """Whether the reference of `lora.stages.ppo: null` lies in the CPU's memory but while it is asked: slower, and two
    bytes a parameter less on a GPU while it samples and trains."""

    def check_offload(self, device: str, *, full: bool) -> None:
        """UserError where there is no reference of its own to put elsewhere, or no elsewhere."""
        if self.offload_reference and not full:
            raise UserError(
                "ppo.offload_reference=true needs lora.stages.ppo=null: with an adapter the reference is the policy's "
                "own base; leave it out"
            )
        if self.offload_reference and device == "cpu":
            raise UserError(
                "ppo.offload_reference=true puts the reference into the CPU's memory, and this run computes there; "
                "leave it out"
            )

    @property
    def has_critic(self) -> bool:
        return self.advantages == "gae"

    @property
    def kl_estimator(self) -> KLEstimator:
        """The estimate that is logged, and is the penalty where that is in the reward."""
        return "k1" if self.kl_penalty == "loss" else self.kl_penalty

    @property
    def bootstrap(self) -> bool:
        """Whether a reply that the limit cut is worth V(s_T) beyond its last token."""
        return self.missing_eos == "bootstrap"

    @property
    def whitens_advantages(self) -> bool:
        """`whiten_advantages`, decided; REINFORCE++ does it itself."""
        return self.advantages == "gae" if self.whiten_advantages is None else self.whiten_advantages

    @property
    def steps_per_update(self) -> int:
        return self.epochs * (self.batch_size // self.minibatch_size)

    def check_ranks(self, count: int) -> None:
        """UserError when some of `count` processes would have nothing to do in any step."""
        size = 1 if self.micro_batch_size == "auto" else self.micro_batch_size
        if self.micro_batch_tokens is None and (parts := self.minibatch_size // size) < count:
            most = self.minibatch_size // count
            fix = f"ppo.micro_batch_size to at most {most}" if most else f"ppo.minibatch_size to at least {count}"
            raise UserError(
                f"ppo.micro_batch_size={self.micro_batch_size} makes {parts} micro-batches of "
                f"ppo.minibatch_size={self.minibatch_size}, and {count} processes are to share them: set {fix}, or "
                "start fewer processes"
            )

    @model_validator(mode="after")
    def _nothing_dead(self) -> "PPOConfig":
        """ValueError for what is not at its default, though another setting leaves it without effect."""
        no_coef = tuple(name for name in CRITIC if name != "value_coef")
        unpunished, no_value = self.missing_eos in ("none", "bootstrap"), self.has_critic and self.value_coef == 0
        for idle, beside, names, why in (
            (self.micro_batch_tokens is not None, "micro_batch_tokens", ("micro_batch_size",), "give one of them"),
            (not self.has_critic, "advantages", (*CRITIC, "lam"), "it has no critic"),
            (self.advantages in GROUPS, "advantages", ("gamma",), "it takes a reply's whole return"),
            (self.advantages == "reinforce_pp", "advantages", ("whiten_advantages",), "whitening is part of it"),
            (no_value, "value_coef", no_coef, "no critic learns"),
            (self.kl_coef == 0, "kl_coef", ("kl_penalty", "kl_target", "kl_horizon"), "there is no KL penalty"),
            (self.kl_target is None, "kl_target", ("kl_horizon",), "β does not move"),
            (self.ptx_coef == 0, "ptx_coef", ("ptx_rows",), "no demonstration is mixed in"),
            (
                unpunished and self.missing_eos_penalty != 0,
                "missing_eos",
                ("missing_eos_penalty",),
                "no reply is penalised",
            ),
            (self.length_penalty == 0, "length_penalty", ("length_free",), "no token costs anything"),
        ):
            if idle and (dead := self.given(*names)):
                shown = ", ".join(f"{name}={getattr(self, name)}" for name in dead)
                raise ValueError(f"{shown} would do nothing beside {beside}={getattr(self, beside)}: {why}")
        return self

    @model_validator(mode="after")
    def _possible(self) -> "PPOConfig":
        parts = [("replies_per_prompt", "batch_size"), ("minibatch_size", "batch_size")]
        for part, whole in parts + [("micro_batch_size", "minibatch_size")] * (self.micro_batch_size != "auto"):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(f"{part}={getattr(self, part)} does not divide {whole}={getattr(self, whole)}")
        name, replies = self.advantages, self.replies_per_prompt
        if self.bootstrap and not self.has_critic:
            raise ValueError(f"missing_eos=bootstrap needs a critic, and advantages={name} has none")
        if name in GROUPS and replies < 2:
            raise ValueError(
                f"advantages={name} compares the replies to one prompt: replies_per_prompt={replies} must be at least 2"
            )
        if self.offload_reference and self.critic == "own" and self.has_critic:
            raise ValueError(
                "critic=own and offload_reference=true exclude each other: that critic learns on the reference"
            )
        if self.critic_warmup >= self.updates:
            raise ValueError(f"critic_warmup={self.critic_warmup} leaves the policy none of updates={self.updates}")
        if self.target_kl is not None and self.steps_per_update == 1:
            raise ValueError(
                f"target_kl={self.target_kl} would do nothing: with epochs={self.epochs} and minibatch_size="
                f"{self.minibatch_size} an update has one step, before which the KL from the old policy is 0"
            )
        if self.kl_target is not None and self.kl_horizon < self.batch_size:
            raise ValueError(f"kl_horizon={self.kl_horizon} is less than batch_size={self.batch_size}")
        if self.rewards and not any(map(pays, self.rewards)):
            idle = "watch=true" if all(source.watch for source in self.rewards) else "watch=true or at_least"
            raise ValueError(f"rewards: every source has {idle}, so nothing pays; add `trained: true`")
        return self
