"""One law for sampling and training: a key that would change what is sampled is not a key of PPO."""

import pytest
from pydantic import ValidationError

from plaudit.rollout.config import SamplingConfig
from plaudit.stages.ppo.config import PPOConfig


@pytest.mark.row(6)
@pytest.mark.parametrize("key", ["top_k", "top_p", "min_p", "min_new_tokens", "repetition_penalty", "no_repeat_ngram"])
def test_row_06_no_logits_processor_but_temperature(key: str) -> None:
    """A policy that is sampled under another law than it is trained under farms negative KL."""
    with pytest.raises(ValidationError, match=key):
        PPOConfig(**{key: 1})
    with pytest.raises(ValidationError, match=key):
        SamplingConfig(**{key: 1})
    assert SamplingConfig(temperature=0.7).temperature == 0.7
