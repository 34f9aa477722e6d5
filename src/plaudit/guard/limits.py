"""The limits beyond which a run is not healthy: one set, read by the watch that stops it, by the doctor and the report.

What a user may move is the recipe's section `ppo.watch`; the others are constants, each with its reason.
"""

from collections.abc import Mapping

from pydantic import Field

from plaudit.config import StrictConfig

Row = Mapping[str, float]
"""One line of ppo/metrics.jsonl or ppo/evaluations.jsonl: column -> number."""


class WatchConfig(StrictConfig):
    """When to stop PPO because its reward is being gamed; the doctor holds a run against the same limits."""

    enabled: bool = True
    """Whether the watch may stop the run; the policy that is kept is chosen by the evaluations either way."""
    patience: int = Field(3, ge=1)
    """Evaluations in a row that must all show it."""
    max_repetition: float = Field(2.0, gt=1)
    """Repeated 3-grams within replies as a multiple of the SFT model's (shares below 0.1 never count)."""
    min_variety: float = Field(0.6, gt=0, lt=1)
    """Distinct 2-grams over all replies of an evaluation as a share of the SFT model's."""
    min_entropy: float = Field(0.25, gt=0, lt=1)
    """The entropy as a share of the SFT model's."""
    max_kl: float = Field(30.0, gt=0)
    """Nats a reply from the reference above which the policy has run away; stops only without a held-out score."""
    max_length_change: float = Field(2.0, gt=1)
    """The same: the length of a reply over the SFT model's, or under it, by this factor."""


# A healthy run keeps more than half of its entropy; at a quarter a prompt's replies are nearly one text. A run that
# nothing held back fell from 0.83 distinct 2-grams to 0.11 while its gold score rose, for all its replies had become
# one (docs/benchmarks.md). No task that SFT has learnt needs replies twice as long.

TOLERANCE = 2.0
"""Standard errors by which the held-out score must have fallen, and the proxy risen, to count."""
SMALLEST_CHANGE = 0.02
"""A change of either score below this never counts, however small its standard error is."""
REPEATS_THAT_NEVER_COUNT = 0.1
"""Share of repeated 3-grams: three of a reply of thirty tokens."""
KL_BUDGET = 10.0
"""Nats a reply from the reference up to which a score that PPO is paid by is trusted, unless ppo.kl_budget is given."""

WINDOW = 3
"""Updates whose mean is judged: one batch is too few replies, and a fault must not go on for long."""
LONG = 10
"""Updates after which a critic must explain something, and a clip fraction of 0 is no accident."""
NEGATIVE_KL = -0.5
"""Nats a reply. The KL is never negative; its estimate from 32 replies strays by some tenths while it is near 0."""
NEGATIVE_KL_ERRORS = 4
"""Standard errors below 0 that are no chance in a single stored rollout."""
ENTROPY_MORE = 2.0
"""Times the first entropy: the policy is being pushed towards noise."""
ENDING = 0.5
"""Share of replies that end by themselves; below it the score mostly judges cut texts."""
SPREAD_LEFT = 0.05
"""Share of the first spread of the scores; below it only noise is left to learn from."""
SPREAD_MOST = 5.0
"""Normalised scores of SFT replies have a spread of 1."""
CLIPPED_MOST = 0.3
"""Share of clipped tokens; papers and our runs stay below 0.1. At 0.3 the update mostly works against its own bound."""
APPROX_KL_MOST = 0.05
"""Nats a token that one update moves the policy; ours move it by 0.002 to 0.01, and 0.02 is a usual early stop."""
GRAD_NORM_GROWTH = 10.0
"""Times the mean of the first updates, and that far above ppo.max_grad_norm."""
STANDS_STILL = 1e-7
"""Nats a token: an update that moves the policy by less than this moved nothing but rounding."""
GAP_MOST = 0.1
"""Nats a token between sampler and trainer: bf16 shows 0.05, and the run stops at 0.15."""
