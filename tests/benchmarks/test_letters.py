"""The language of the benchmarks of defences and rounds: what its replies are worth, and the fits over the KL."""

import numpy as np
import pytest
import torch

import defence
import letters


def test_what_a_reply_is_worth_and_looks_like() -> None:
    assert letters.gold("length", "aeiouaeio") == 1.0
    assert letters.gold("length", "aeioubbbbbb") == pytest.approx(0.9)  # eleven letters, two too many
    assert letters.gold("phrase", "sirsir") == 0.0  # one vowel, and two times a tenth
    assert letters.perceived("phrase", "a sir", 0.0) == pytest.approx(0.4 - 0.1 + 0.4)
    assert letters.perceived("length", "abc", 1.0) == pytest.approx(0.2 + 3 * 0.06 + 0.3)
    assert letters.perceived("marker", "a!", -1.0) == pytest.approx(0.2 - 0.1 + 0.3)
    assert letters.perceived("marker", "a", -1.0) == pytest.approx(0.2 - 0.3)


def test_a_reply_ends_at_its_first_end() -> None:
    ids = torch.tensor([[0, letters.END, 1, letters.END], [0, 1, 2, 3]])
    replies = letters.replies_of(ids)
    assert replies.mask_BT.tolist() == [[True, True, False, False], [True] * 4]
    assert replies.texts == ["a", "abcd"]


def test_a_policy_begins_as_its_reference_and_learns_what_pays() -> None:
    policy = letters.Policy(0)
    replies = policy.sample(64, [1])
    own, reference = (policy.logprobs(replies, reference=on)[0] for on in (False, True))
    assert torch.equal(own, reference)
    # The law that is sampled is the law whose log-probabilities are given: the mean surprise is the entropy.
    many = policy.sample(4000, [2])
    logprobs_BT, entropy_BT = policy.logprobs(many)
    assert -logprobs_BT.sum().item() / 4000 == pytest.approx(entropy_BT.sum().item() / 4000, rel=0.03)

    def vowels(replies: letters.Replies) -> torch.Tensor:
        return torch.tensor([float(sum(letter in "aeiou" for letter in said)) for said in replies.texts])

    letters.learn(policy, vowels, 0.0, 8, 0)
    assert vowels(policy.sample(64, [1])).mean() > vowels(replies).mean() + 1


@pytest.mark.parametrize("form", ["d(a - b d)", "d(a - b ln d)"])
def test_the_fits_find_what_made_the_curve(form: str) -> None:
    alpha, beta = 0.4, 0.09
    looks = [{"kl": 0.0, "gold": 0.2}]
    for d in np.linspace(0.5, 6, 12):
        away = alpha - beta * (d if "ln" not in form else np.log(d))
        looks.append({"kl": float(d**2), "gold": float(0.2 + d * away)})
    assert defence.fits([{"looks": looks}])[form] == pytest.approx([alpha, beta, 1.0])
