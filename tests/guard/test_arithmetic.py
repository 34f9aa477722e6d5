"""Rollouts that are made by hand: right ones, by every estimator, and the same with one number off."""

from typing import Any

import pytest
import torch
from torch import Tensor

from plaudit.algo import advantages as estimators
from plaudit.algo.masked import whiten
from plaudit.guard import arithmetic
from plaudit.guard.arithmetic import Stored

LENGTHS = torch.tensor([4, 1, 5, 3])
GAE = {"gamma": 0.9, "lam": 0.8}


def rollout(ppo: dict[str, Any], rewards_BT: Tensor | None = None) -> Stored:
    """Four replies behind prompts of two tokens, with advantages as the run computes them."""
    draw = torch.Generator().manual_seed(3)
    t = torch.arange(8)
    mask_BT = (t >= 1) & (t < 1 + LENGTHS[:, None])
    rewards_BT, values_BT = torch.randn(4, 8, generator=draw) if rewards_BT is None else rewards_BT, None
    beyond_B, finished_B = torch.randn(4, generator=draw), torch.tensor([True, False, True, False])
    tensors = {"mask_BT": mask_BT, "rewards_BT": rewards_BT * mask_BT, "finished_B": finished_B}
    tensors |= {"tokens_BT": torch.ones(4, 8, dtype=torch.long), "prompt_lengths_B": torch.full((4,), 2)}
    tensors |= {"lengths_B": LENGTHS + 2}
    match ppo["advantages"]:
        case "gae":
            values_BT = torch.randn(4, 8, generator=draw) * mask_BT
            bootstrap_B = torch.where(finished_B, 0.0, beyond_B)
            found_BT, returns_BT = estimators.gae(rewards_BT, values_BT, mask_BT, **GAE, bootstrap_B=bootstrap_B)
            tensors |= {"values_BT": values_BT, "returns_BT": returns_BT, "last_values_B": beyond_B}
        case "rloo":
            found_BT, _ = estimators.rloo(rewards_BT, mask_BT, group_size=2)
        case "grpo" | "dr_grpo":
            found_BT, _ = estimators.grpo(rewards_BT, mask_BT, group_size=2, scale_std=ppo["advantages"] == "grpo")
        case _:
            found_BT, _ = estimators.reinforce_plus_plus(rewards_BT, mask_BT, gamma=0.9)
    if ppo["whiten_advantages"]:
        found_BT, _ = whiten(found_BT, mask_BT)
    return Stored(3, tensors | {"advantages_BT": found_BT}, {**GAE, "replies_per_prompt": 2, **ppo}, {})


@pytest.mark.parametrize("whitens", [True, False])
@pytest.mark.parametrize(
    "estimator",
    ["gae", "rloo", "grpo", "dr_grpo", "reinforce_pp"],
)
def test_every_estimator_is_followed_and_a_number_that_is_off_is_found(estimator: str, whitens: bool) -> None:
    stored = rollout({"advantages": estimator, "whiten_advantages": whitens})
    assert arithmetic.advantages(stored) is None
    stored.tensors["advantages_BT"][2, 3] += 0.01
    found = arithmetic.advantages(stored)
    assert found is not None and found.name == "advantages do not follow" and found.level == "fault"


@pytest.mark.parametrize("apart", [0.0, 1e-6, 1e-5, 1e-4, 1e-3])
def test_rounding_that_a_group_of_nearly_equal_returns_blows_up_is_no_fault(apart: float) -> None:
    """Returns near 700: float32 knows them to 6e-5, so a group whose returns differ by little is mostly rounding."""
    rewards_BT = torch.full((4, 8), 700.123) / LENGTHS[:, None]
    rewards_BT[:, 2] += torch.tensor([0.0, 0.0, 700 * apart, 3.0])
    assert arithmetic.advantages(rollout({"advantages": "grpo", "whiten_advantages": False}, rewards_BT)) is None


def endings(finished: list[bool]) -> str | None:
    """What is said of four replies, 10 to 13, 6, 11 12 13 14 7 and 10 11 6, of which `finished` are said to have ended;
    6 and 7 end a turn."""
    rows = [[1, 2, 10, 11, 12, 13], [1, 6, 6], [1, 2, 11, 12, 13, 14, 7], [1, 2, 10, 11, 6]]
    tokens_BT = torch.tensor([row + [0] * (8 - len(row)) for row in rows])
    tensors = {"tokens_BT": tokens_BT, "finished_B": torch.tensor(finished)}
    tensors |= {"prompt_lengths_B": torch.full((4,), 2), "lengths_B": torch.tensor([len(row) for row in rows])}
    found = arithmetic.endings(Stored(3, tensors, {}, {}))
    return None if found is None else found.evidence.rpartition("; ")[2]


def test_a_model_may_end_its_replies_with_several_tokens_and_only_at_their_end() -> None:
    assert endings([False, True, True, True]) is None
    assert endings([False, False, False, False]) is None
    # The third reply has the 13 that the first one is said to end with amid its text.
    assert endings([True, True, True, True]) == "1 do not end at a token that ends others"
    # The last one is said to be cut, with the 6 that ends the second.
    assert endings([False, True, True, False]) == "1 do not end at a token that ends others"


def test_what_the_doctor_measures_of_a_rollout() -> None:
    """Replies 1 nat likelier than under the reference in each of their tokens: KL 4, 1, 5, 3; of one token repeated."""
    stored = rollout({"advantages": "rloo", "whiten_advantages": False})
    mask_BT = stored.tensors["mask_BT"]
    tensors = {**stored.tensors, "old_logprobs_BT": mask_BT * -1.0, "ref_logprobs_BT": mask_BT * -2.0}
    twice = {name: torch.cat([tensor, tensor]) for name, tensor in tensors.items()}
    found = arithmetic.measured(Stored(3, twice, {}, {}))
    # Variance of (4, 1, 5, 3) twice: (0.75² + 2.25² + 1.75² + 0.25²)·2/7 = 2.5, over eight replies.
    assert found == pytest.approx({"update": 3, "kl": 3.25, "kl_se": (2.5 / 8) ** 0.5, "repeated_trigrams": 7 / 24})
    assert "kl_se" not in arithmetic.measured(Stored(3, tensors, {}, {}))
