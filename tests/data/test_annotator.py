"""The simulated annotator: what its taste must not be, and its rankings by hand."""

from collections.abc import Sequence

import numpy as np
import pytest

from plaudit.data.annotator import Annotator, declined, declines, simulated_annotator, words
from plaudit.records import Completion, Message, Prompt


def prompt(kind: str = "instruction", text: str = "Tell me something.") -> Prompt:
    return Prompt("p", (Message("user", text),), kind, "train")


def completions(*texts: str) -> tuple[Completion, ...]:
    return tuple(map(Completion, texts))


@pytest.fixture(scope="module")
def annotator() -> Annotator:
    return simulated_annotator(noise=0.0, tie_margin=0.0, seed=0)


class Fixed:
    """Stands for VADER: a reply's one word says its warmth, "w37" is spelled by letters since only words are read."""

    def __init__(self, warmth: dict[str, float]):
        self.warmth = warmth

    def polarity_scores(self, text: str) -> dict[str, float]:
        return {"compound": self.warmth[text]}


def ranks(utilities: Sequence[float], tie_margin: float, noise: float = 0.0, seed: int = 0, sample: int = 0) -> list:
    names = [chr(ord("a") + i) for i in range(len(utilities))]
    judge = Annotator(Fixed(dict(zip(names, utilities, strict=True))), noise, tie_margin, seed)
    return list(judge.rank(prompt(), completions(*names), sample).ranks)


# --- words and refusals ---


def test_only_words_are_read() -> None:
    assert words("GREAT!!! It’s 100 % sure - isn't it? 🎉") == ["great", "it's", "sure", "isn't", "it"]


@pytest.mark.parametrize(
    "text",
    [
        "I can't help with that.",
        "I can’t help with that.",
        "I CANNOT do this",
        "I can not tell you.",
        "Sorry, I couldn't say.",
        "I won't explain it.",
        "I will not explain it.",
        "I'm not able to do so",
        "I am unable to do so",
        "I'm not going to do it",
        "I'd rather not.",
        "I'm not comfortable with this",
    ],
)
def test_refusals_are_seen(text: str) -> None:
    assert declines(text)


@pytest.mark.parametrize(
    "text", ["", "I can help with that.", "Sure, cannots are fun.", "You will notice.", "Of course!", "No, do this."]
)
def test_what_is_no_refusal_is_none(text: str) -> None:
    assert not declines(text)


# --- the utility is none of: punctuation, capitals, repetition ---


@pytest.mark.parametrize("loud", ["GREAT!!!", "Great.", "great 🎉🎉", "«great»", "great :-)", "*great*", "GREAT?!?!"])
def test_punctuation_capitals_and_emoji_do_not_count(annotator: Annotator, loud: str) -> None:
    assert annotator.utility(prompt(), loud) == annotator.utility(prompt(), "great") > 0


def test_a_word_counts_once(annotator: Annotator) -> None:
    once = annotator.utility(prompt(), "happy")
    assert annotator.utility(prompt(), "happy happy happy") == once
    assert annotator.utility(prompt(), "Happy! HAPPY, happy " * 30) == once
    assert annotator.utility(prompt(), "a happy day, a happy day") == annotator.utility(prompt(), "a happy day")


def test_warmth_is_what_counts(annotator: Annotator) -> None:
    """A second warm word adds, a negation turns, plain words and length are nothing, and the scale is [−1, 1]."""
    utility = [
        annotator.utility(prompt(), text)
        for text in ("terrible and sad", "not happy", "the table has four legs", "happy", "happy and wonderful")
    ]
    assert utility[2] == 0
    assert -1 <= utility[0] < utility[1] < 0 < utility[3] < utility[4] <= 1


def test_a_reply_without_words_has_no_warmth(annotator: Annotator) -> None:
    for text in ("", "...", "42"):
        assert annotator.utility(prompt(), text) == 0


def test_harm_costs_more_than_any_warmth_unless_the_reply_declines(annotator: Annotator) -> None:
    for text in ("happy", "the table has four legs", ""):
        assert annotator.utility(prompt("safety"), text) == pytest.approx(annotator.utility(prompt(), text) - 2)
    refusal = "I can't help with that, but I am happy to talk."
    assert annotator.utility(prompt("safety"), refusal) == annotator.utility(prompt("domain"), refusal)
    cold = "I can't help with that terrible, sad, horrible, evil, hateful, awful, cruel thing."
    assert annotator.utility(prompt("safety"), cold) > annotator.utility(prompt("safety"), "happy and wonderful")


def test_only_safety_prompts_ask_for_a_refusal(annotator: Annotator) -> None:
    assert annotator.utility(prompt("domain"), "happy") == annotator.utility(prompt("instruction"), "happy")


# --- ranks by hand ---


@pytest.mark.parametrize(
    ("utilities", "expected"),
    [
        ([0.5, 0.1, 0.9, -0.3], [2, 3, 1, 4]),
        ([0.9, 0.5], [1, 2]),
        ([0.5, 0.5, 0.1], [1, 1, 3]),
        ([0.1, 0.5, 0.1, 0.5], [3, 1, 3, 1]),
        ([0.9, 0.2, 0.2, 0.2, 0.1], [1, 2, 2, 2, 5]),
        ([0.3], [1]),
        ([0.2, 0.2, 0.2], [1, 1, 1]),
    ],
)
def test_without_noise_ranks_are_competition_ranks_of_the_utility(utilities: list[float], expected: list[int]) -> None:
    assert ranks(utilities, tie_margin=0.0) == expected


@pytest.mark.parametrize(
    ("utilities", "margin", "expected"),
    [
        # a–b–c: b is within 0.1 of a, c within 0.1 of b but not of a, the best of the group.
        ([0.50, 0.43, 0.36], 0.1, [1, 1, 3]),
        ([0.36, 0.50, 0.43], 0.1, [3, 1, 1]),
        # Then c opens a group of its own, and d hangs on it.
        ([0.50, 0.43, 0.36, 0.29, 0.22], 0.1, [1, 1, 3, 3, 5]),
        # Exactly the margin is still a tie.
        ([0.75, 0.5, 0.25], 0.25, [1, 1, 3]),
        ([0.9, 0.5], 0.1, [1, 2]),
        ([0.9, -1.9], 3.0, [1, 1]),
    ],
)
def test_ties_hang_on_the_best_member_of_the_group(utilities: list[float], margin: float, expected: list[int]) -> None:
    assert ranks(utilities, tie_margin=margin) == expected


def test_the_ranking_keeps_prompt_and_replies() -> None:
    judge = Annotator(Fixed({"a": 0.1, "b": 0.9}), 0.0, 0.0, 0)
    made = judge.rank(prompt("domain"), completions("a", "b"), 3)
    assert (made.prompt, made.replies, made.ranks) == (prompt("domain"), completions("a", "b"), (2, 1))


def test_with_vader_a_warm_reply_wins(annotator: Annotator) -> None:
    found = annotator.rank(prompt(), completions("the table has four legs", "what a lovely day", "this is awful"), 0)
    assert found.ranks == (2, 1, 3)


# --- noise ---


def test_noise_depends_on_seed_and_sample_alone() -> None:
    """With equal utilities the noise decides: the same order for any prompt, another for another seed or sample."""
    flat = [0.0] * 6
    first = ranks(flat, 0.0, noise=1.0, seed=1, sample=2)
    assert ranks([0.7] * 6, 0.0, noise=1.0, seed=1, sample=2) == first
    assert ranks(flat, 0.0, noise=1.0, seed=1, sample=2) == first
    orders = {tuple(ranks(flat, 0.0, noise=1.0, seed=seed, sample=s)) for seed in range(4) for s in range(4)}
    assert len(orders) == 16


def test_noise_is_gaussian_with_the_stated_std() -> None:
    """Two replies 0.1 apart, noise 0.1 on each: the better one wins with probability Φ(0.1/(0.1·√2)) = 0.7602."""
    wins = sum(ranks([0.1, 0.0], 0.0, noise=0.1, sample=sample) == [1, 2] for sample in range(4000))
    assert wins / 4000 == pytest.approx(0.7602, abs=4 * np.sqrt(0.7602 * 0.2398 / 4000))


def test_noise_does_not_favour_a_place() -> None:
    """Row 25, no leak by position: of two equal replies the first one wins half of 4,000 times, ± 4 · 0.0079."""
    wins = sum(ranks([0.0, 0.0], 0.0, noise=0.1, sample=sample) == [1, 2] for sample in range(4000))
    assert wins / 4000 == pytest.approx(0.5, abs=4 * 0.0079)


def test_noise_makes_fewer_ties_than_it_breaks() -> None:
    assert ranks([0.0, 0.0], 0.0, noise=0.1) in ([1, 2], [2, 1])
    assert ranks([0.0, 0.0], 10.0, noise=0.1) == [1, 1]


def test_a_reply_that_was_sampled_twice_does_not_beat_itself() -> None:
    """Whatever the noise: a ranking in which it does is refused where it is read."""
    judge = Annotator(Fixed({"a": 0.0, "b": 0.1}), 1.0, 0.0, 0)
    found = [judge.rank(prompt(), completions("a", "b", "a"), sample).ranks for sample in range(40)]
    assert {*found} == {(1, 3, 1), (2, 1, 2)}


def test_declining_is_a_reward_of_one() -> None:
    items = [{"id": "a", "completion": "I can't help with that."}, {"id": "b", "completion": "Sure!"}]
    assert declined(items) == {"a": 1.0, "b": 0.0}
