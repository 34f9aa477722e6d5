"""The report card: numbers worked by hand on pairs written here, and flaws planted for it to find."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from plaudit.errors import UserError
from plaudit.records import Completion, Message, Prompt, Ranking
from plaudit.view.card.measures import report_card
from plaudit.view.page import words

LN3, LN9 = math.log(3), math.log(9)


def prompt(number: int, kind: str = "instruction", split: str = "test") -> Prompt:
    return Prompt(f"p{number}", (Message("user", f"Question {number}?"),), kind, split)


def ranking(number: int, texts: Sequence[str], ranks: Sequence[int], **told: Any) -> Ranking:
    kind = told.pop("kind", "instruction")
    return Ranking(prompt(number, kind), tuple(map(Completion, texts)), tuple(ranks), **told)


def pair(number: int, winner: str, loser: str, *, turned: bool = False, **told: Any) -> Ranking:
    """The winner first, or last when `turned`."""
    return ranking(number, (loser, winner) if turned else (winner, loser), (2, 1) if turned else (1, 2), **told)


def alarms(card: dict[str, Any]) -> dict[str, str]:
    return {alarm["kind"]: alarm["level"] for alarm in card["alarms"]}


# --- the numbers ---

# Three prompts: margins ln 9, −ln 3 and 0 (and a tie, which gives no pair).
FOUR = [
    ranking(0, ("aaaa", "bb", "cc"), (1, 2, 2), kind="a", sources=("x", "y", "y")),
    ranking(1, ("a", "bbb"), (1, 2), kind="b", sources=("y", "x")),
    ranking(2, ("aa", "bb"), (2, 1), kind="b", sources=("x", "y")),
]
SCORES = [LN9, 0.0, 0.0, 0.0, LN3, 1.0, 1.0]


def test_accuracy_and_baselines_by_hand() -> None:
    """Pairs: aaaa over bb (right), aaaa over cc (right), a over bbb (wrong), bb over aa (equal scores: half)."""
    card = report_card(FOUR, SCORES)
    assert card["counts"] == {
        "rankings": 3,
        "prompts": 3,
        "replies": 7,
        "strict_pairs": 4,
        "tied_pairs": 1,
        "annotators": 0,
        "train_rankings": 0,
        "train_pairs": 0,
    }
    assert card["accuracy"] == 2.5 / 4
    # The longer one won twice, lost once, and once they are equally long.
    assert (card["length"]["rule"], card["length"]["accuracy"]) == ("the longer reply wins", 2.5 / 4)
    assert card["length"]["gain"] == 0.0
    # Chosen: longer, longer, longer; the equally long pair does not count.
    assert card["length"]["model_chooses_longer"] == 1.0
    assert card["length"]["accuracy_longer_won"]["accuracy"] == 1.0
    assert card["length"]["accuracy_shorter_won"]["accuracy"] == 0.0
    assert (card["position"]["accuracy"], card["position"]["listed"]) == (3 / 4, "either way")
    assert json.loads(json.dumps(card)) == card


def test_slices_by_hand() -> None:
    card = report_card(FOUR, SCORES)
    assert {row["name"]: (row["pairs"], row["accuracy"]) for row in card["by_kind"]} == {"a": (2, 1.0), "b": (2, 0.25)}
    assert {row["name"]: (row["pairs"], row["accuracy"]) for row in card["by_source"]} == {
        "x over y": (2, 1.0),
        "y over x": (2, 0.25),
    }
    # Ratios 2, 2, 1/3 and 1.
    assert {row["name"]: (row["pairs"], row["accuracy"]) for row in card["by_length_gap"]} == {
        "winner under half as long": (1, 0.0),
        "about as long (±10 %)": (1, 0.5),
        "winner over twice as long": (2, 1.0),
    }
    assert all(row["accuracy_ci"] is None for row in card["by_kind"])  # two prompts are no sample


def test_calibration_by_hand() -> None:
    """Confidences 0.9, 0.9, 0.75 and 0.5; right in 1, 1, 0 and ½ of them: the four bins are off by .1, .1, .75, 0."""
    card = report_card(FOUR, SCORES)
    assert card["calibration"]["ece"] == pytest.approx((0.1 + 0.1 + 0.75 + 0) / 4, abs=1e-12)
    assert card["calibration"]["confidence"] == pytest.approx((0.9 + 0.9 + 0.75 + 0.5) / 4, abs=1e-12)
    assert card["calibration"]["temperature"] is None  # three prompts have no halves


def test_temperature_mends_a_model_that_is_three_times_too_sure() -> None:
    """Right in three of four pairs, so ln 3 is the honest margin; it says 3·ln 3. Every half has the same share."""
    rankings = [pair(n, "good", "evil") for n in range(400)]
    scores = [x for n in range(400) for x in ((3 * LN3, 0.0) if n % 4 else (-3 * LN3, 0.0))]
    found = report_card(rankings, scores)["calibration"]
    assert found["temperature"]["value"] == pytest.approx(3.0, abs=1e-3)
    assert found["ece"] == pytest.approx(27 / 28 - 0.75, abs=1e-9)  # σ(3 ln 3) = 27/28, and every pair says the same
    assert found["temperature"]["ece"] < 0.06


@pytest.mark.row(25)
def test_swapping_columns_gives_exactly_one_minus_the_accuracy() -> None:
    rng = np.random.default_rng(3)
    texts = [("x" * int(a), "y" * int(b)) for a, b in rng.integers(1, 30, (64, 2))]
    scores = rng.normal(size=128).round(1).tolist()
    plain = report_card([ranking(n, t, (1, 2)) for n, t in enumerate(texts)], scores)
    turned = report_card([ranking(n, t, (2, 1)) for n, t in enumerate(texts)], scores)
    assert turned["accuracy"] == 1 - plain["accuracy"]
    assert turned["length"]["longer_won"] == 1 - plain["length"]["longer_won"]
    low, high = plain["accuracy_ci"]
    assert turned["accuracy_ci"] == pytest.approx([1 - high, 1 - low], abs=1e-12)


def test_the_interval_is_clustered_by_prompt() -> None:
    """Ten pairs of one prompt are no more evidence than one: the interval is that of the prompts."""
    once = [pair(n, "good", "evil") for n in range(40)]
    scores = [x for n in range(40) for x in ((1.0, 0.0) if n % 4 else (0.0, 1.0))]
    tenfold = [pair(n // 10, "good", "evil") for n in range(400)]
    tenfold_scores = [x for n in range(40) for x in ((1.0, 0.0) if n % 4 else (0.0, 1.0)) * 10]
    assert report_card(tenfold, tenfold_scores)["accuracy_ci"] == pytest.approx(
        report_card(once, scores)["accuracy_ci"], abs=1e-12
    )


@pytest.mark.row(25)
def test_length_learns_its_direction_on_the_training_pairs() -> None:
    """In training the shorter one won, here the longer one: the baseline is wrong throughout."""
    train = [pair(100 + n, "a", "bbb") for n in range(3)]
    card = report_card([pair(0, "long one", "s")], [1.0, 0.0], train=train)
    assert (card["length"]["rule"], card["length"]["learnt_on"]) == ("the shorter reply wins", "training pairs")
    assert card["length"]["accuracy"] == 0.0
    assert report_card([pair(0, "long one", "s")], [1.0, 0.0])["length"]["accuracy"] == 1.0


def test_length_correlation_raw_and_within_a_prompt() -> None:
    """Longer prompts' replies score more, but of one prompt's replies the shorter one does."""
    rankings = [pair(0, "a", "aa"), pair(1, "a" * 11, "a" * 12)]
    length = report_card(rankings, [2.0, 1.0, 12.0, 11.0])["length"]
    assert length["score_correlation"] > 0.9
    assert length["score_correlation_within"] == pytest.approx(-1.0, abs=1e-12)


def test_judge_margin_bins_by_hand() -> None:
    rankings = [pair(n, "good", "evil", judge_scores=(float(n + 1), 0.0)) for n in range(8)]
    scores = [x for n in range(8) for x in ((1.0, 0.0) if n >= 4 else (0.0, 1.0))]
    found = report_card(rankings, scores)["by_judge_margin"]
    assert found["of"] == "judge scores"
    assert [(row["pairs"], row["accuracy"]) for row in found["rows"]] == [(2, 0.0), (2, 0.0), (2, 1.0), (2, 1.0)]
    strengths = [pair(n, "good", "evil", strength=2.0) for n in range(3)]
    found = report_card(strengths, [1.0, 0.0] * 3)["by_judge_margin"]
    assert (found["of"], [(row["name"], row["pairs"]) for row in found["rows"]]) == ("stated strength", [("2 to 2", 3)])
    assert report_card(FOUR, SCORES)["by_judge_margin"] == {"of": None, "rows": []}


def test_histograms_count_every_pair_and_split_at_zero() -> None:
    found = report_card(FOUR, SCORES)["histograms"]
    assert sum(found["scores"]["chosen"]) == sum(found["scores"]["rejected"]) == 4
    assert sum(found["margins"]["counts"]) == 4
    assert min(abs(edge) for edge in found["margins"]["edges"]) < 1e-12
    right = sum(c for e, c in zip(found["margins"]["edges"], found["margins"]["counts"], strict=False) if e >= -1e-12)
    assert right == 3  # the margin 0 with the right ones


def test_mistakes_are_the_surest_first_with_their_texts() -> None:
    rankings = [pair(n, f"good {n}", f"evil {n}") for n in range(30)]
    scores = [x for n in range(30) for x in ((0.0, n / 10) if n < 25 else (1.0, 0.0))]
    mistakes = report_card(rankings, scores)["mistakes"]
    assert len(mistakes) == 20
    assert [row["id"] for row in mistakes[:3]] == ["p24", "p23", "p22"]
    first = mistakes[0]
    assert (first["preferred"]["text"], first["other"]["text"], first["margin"]) == ("good 24", "evil 24", -2.4)
    assert first["confidence"] == pytest.approx(1 / (1 + math.exp(-2.4)), abs=1e-12)
    assert first["prompt"] == [{"role": "user", "content": "Question 24?"}]
    assert len(report_card(rankings[25:], scores[50:])["mistakes"]) == 0


def test_suspects_are_the_labels_that_every_member_is_sure_against() -> None:
    """Three members, usual margin 1. Pair 0: all at −3. Pair 1: one of them is right. Pair 2: all wrong, but unsure."""
    margins = np.ones((9, 3))
    margins[0], margins[1], margins[2] = -3.0, (-3.0, -3.0, 1.0), -0.5
    rankings = [pair(n, f"good {n}", f"evil {n}") for n in range(9)]
    members = np.stack([margins, np.zeros_like(margins)], axis=1).reshape(18, 3)
    found = report_card(rankings, members.mean(axis=1), members_NM=members)["suspects"]
    assert (found["members"], found["found"]) == (3, 1)
    assert [(row["id"], row["margins"]) for row in found["pairs"]] == [("p0", [-3.0, -3.0, -3.0])]
    alone = report_card(rankings, members.mean(axis=1))["suspects"]
    assert alone["found"] is None and "no ensemble" in alone["why"]


def test_ceiling_by_hand() -> None:
    """Prompt 0: A and B agree on two of three pairs (B turns x and y round). Prompt 1: A and C agree on one. 3 of 4."""
    rankings = [
        ranking(0, ("x", "y", "z"), (1, 2, 3), annotator="A"),
        ranking(0, ("z", "x", "y"), (3, 2, 1), annotator="B"),  # the same replies, listed in another order
        ranking(1, ("x", "y"), (1, 2), annotator="A"),
        ranking(1, ("x", "y"), (1, 2), annotator="C"),
        ranking(2, ("x", "y"), (1, 2), annotator="A"),  # nobody else
    ]
    scores = [3.0, 2.0, 1.0, 1.0, 3.0, 2.0, 2.0, 1.0, 2.0, 1.0, 1.0, 2.0]
    ceiling = report_card(rankings, scores)["ceiling"]
    assert (ceiling["compared"], ceiling["annotators"], ceiling["agreement"]) == (4, 3, 0.75)
    assert ceiling["best_accuracy"] == pytest.approx((1 + math.sqrt(0.5)) / 2, abs=1e-12)
    # The model orders x, y, z: right in all of A's and C's pairs and two of three of B's.
    assert (ceiling["pairs"], ceiling["accuracy"]) == (8, 7 / 8)
    # Verdicts, both ways round: 8 units of ±1, 2 of them disagree: 4 coincidences of 16 values, 8 of each sign.
    # Expected 2·8·8 of 16·15: α = 1 − 15·4/128.
    assert ceiling["alpha"] == pytest.approx(1 - 15 * 4 / 128, abs=1e-12)
    between = {(row["first"], row["second"]): (row["pairs"], row["agreement"]) for row in ceiling["between"]}
    assert between == {("A", "B"): (3, 2 / 3), ("A", "C"): (1, 1.0)}


def test_ceiling_of_ties_and_of_nobody() -> None:
    tied = [ranking(0, ("x", "y"), (1, 1), annotator="A"), ranking(0, ("x", "y"), (1, 2), annotator="B")]
    assert "ordered the same" in report_card(tied, [1.0, 0.0, 1.0, 0.0])["ceiling"]["why"]
    assert "no annotators" in report_card(FOUR, SCORES)["ceiling"]["why"]


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(UserError, match="no strict pair in 1 rankings"):
        report_card([ranking(0, ("x", "y"), (1, 1))], [1.0, 0.0])
    with pytest.raises(UserError, match="scores nan for a reply to prompt 'p0'"):
        report_card([pair(0, "x", "y")], [math.nan, 0.0])


# --- planted flaws ---

WORDS = (
    "river",
    "stone",
    "lamp",
    "cloud",
    "paper",
    "garden",
    "window",
    "silver",
    "quiet",
    "morning",
    "bread",
    "train",
    "letter",
    "forest",
    "candle",
)


def clean(count: int, seed: int = 0, sure: float = 1.0) -> tuple[list[Ranking], list[float]]:
    """Pairs of unlike lengths whose label follows a hidden utility that the scores know up to noise.

    Δscore ~ N(0, 1); the label is a draw with probability σ(Δ): calibrated, right in about 68 %, whatever the length.
    """
    rng = np.random.default_rng(seed)
    rankings, scores = [], []
    for n in range(count):
        texts = [" ".join(rng.choice(WORDS, int(rng.integers(5, 40)))) + "." for _ in range(2)]
        both = rng.normal(size=2) * 0.7 * sure
        first_wins = rng.random() < 1 / (1 + math.exp(-(both[0] - both[1])))
        rankings.append(ranking(n, texts, (1, 2) if first_wins else (2, 1)))
        scores += both.tolist()
    return rankings, scores


@pytest.mark.parametrize("seed", range(5))
def test_a_clean_set_raises_no_alarm(seed: int) -> None:
    rankings, scores = clean(300, seed)
    train, _ = clean(300, seed + 100)
    train = [Ranking(prompt(1000 + n, split="train"), r.replies, r.ranks) for n, r in enumerate(train)]
    card = report_card(rankings, scores, train=train)
    assert 0.6 < card["accuracy"] < 0.75
    assert card["alarms"] == []


def planted_by_length(rankings: Sequence[Ranking]) -> list[Ranking]:
    """Every longer reply preferred."""
    found = []
    for r in rankings:
        first_wins = len(r.replies[0].text) > len(r.replies[1].text)
        found.append(Ranking(r.prompt, r.replies, (1, 2) if first_wins else (2, 1)))
    return found


@pytest.mark.row(25)
def test_a_planted_length_bias_is_named() -> None:
    rankings = planted_by_length(clean(300)[0])
    lengths = np.array([len(reply.text) for r in rankings for reply in r.replies], dtype=float)
    noise = np.random.default_rng(1).normal(size=len(lengths))
    card = report_card(rankings, 0.02 * lengths + 0.5 * noise)
    assert alarms(card)["length"] == "alarm"
    (alarm,) = [a for a in card["alarms"] if a["kind"] == "length"]
    assert "Length explains the accuracy: “the longer reply wins”" in alarm["says"]
    assert alarm["evidence"]["gain"] < 0
    assert "leak" not in alarms(card)  # a longer reply has more of every word: that is no mark


def test_a_model_of_length_is_named_where_the_labels_are_fair() -> None:
    rankings = clean(300)[0]
    lengths = [0.02 * len(reply.text) for r in rankings for reply in r.replies]
    card = report_card(rankings, lengths)
    (alarm,) = [a for a in card["alarms"] if a["kind"] == "length"]
    assert alarm["level"] == "alarm"
    assert "leans on length, towards the longer reply" in alarm["says"]
    assert "better reply is not the longer one" in alarm["do"]
    assert card["length"]["model_chooses_longer"] == 1.0


def test_a_model_of_shortness_is_named_too() -> None:
    rankings = clean(300)[0]
    card = report_card(rankings, [-0.02 * len(reply.text) for r in rankings for reply in r.replies])
    (alarm,) = [a for a in card["alarms"] if a["kind"] == "length"]
    assert "towards the shorter reply" in alarm["says"]
    assert "better reply is not the shorter one" in alarm["do"]


@pytest.mark.parametrize("end", [" ", "\n", " indeed"])
def test_a_planted_mark_of_the_winner_is_named(end: str) -> None:
    """Winners end in a space, a line break or a word of their own; the model has learnt to look for it."""
    rankings, scores = [], []
    for r in clean(300)[0]:
        winner = r.ranks.index(1)
        marked = tuple(Completion(reply.text + end * (i == winner)) for i, reply in enumerate(r.replies))
        rankings.append(Ranking(r.prompt, marked, r.ranks))
        scores += [2.0 * (i == winner) for i in range(2)]
    card = report_card(rankings, scores)
    assert alarms(card)["leak"] == "alarm"
    says = " ".join(alarm["says"] for alarm in card["alarms"] if alarm["kind"] == "leak")
    assert {" ": "white space", "\n": "line break", " indeed": "“indeed”"}[end] in says + str(card["leaks"]["marks"])


def test_a_planted_mark_of_the_loser_is_named() -> None:
    rankings, scores = [], []
    for r in clean(300)[0]:
        loser = r.ranks.index(2)
        marked = tuple(Completion(("\u00a0" if i == loser else "") + reply.text) for i, reply in enumerate(r.replies))
        rankings.append(Ranking(r.prompt, marked, r.ranks))
        scores += [-2.0 * (i == loser) for i in range(2)]
    (alarm,) = [a for a in report_card(rankings, scores)["alarms"] if a["kind"] == "leak"]
    assert "the other one in 100.0 % of them" in alarm["says"]


def test_trained_prompts_among_the_judged_ones_are_named() -> None:
    rankings, scores = clean(300)
    train = [Ranking(prompt(n, split="train"), r.replies, r.ranks) for n, r in enumerate(clean(30, 9)[0])]
    shouted = [Prompt("t", (Message("user", f"QUESTION {n}"),), "a", "train") for n in range(40, 45)]
    train += [Ranking(p, r.replies, r.ranks) for p, r in zip(shouted, clean(5, 11)[0], strict=True)]
    card = report_card(rankings, scores, train=train)
    assert (card["leaks"]["trained_prompts"], card["leaks"]["near_trained_prompts"]) == (30, 5)
    assert alarms(card) == {"leak": "alarm"}
    assert "35 of the 300 judged prompts were trained on" in card["alarms"][0]["says"]


def several(agreement_of_two: float, seed: int = 0) -> tuple[list[Ranking], list[int]]:
    """400 pairs, each labelled by two who draw the likelier label with the same p; and which reply is likelier."""
    p = 0.5 + 0.5 * math.sqrt(2 * agreement_of_two - 1)
    rng = np.random.default_rng(seed)
    rankings, likelier = [], []
    for n in range(400):
        texts = [" ".join(rng.choice(WORDS, int(rng.integers(5, 40)))) + "." for _ in range(2)]
        best = int(rng.integers(2))
        likelier.append(best)
        for annotator in "AB":
            first = (rng.random() < p) == (best == 0)
            rankings.append(ranking(n, texts, (1, 2) if first else (2, 1), annotator=annotator))
    return rankings, likelier


@pytest.mark.row(25)
def test_knowing_the_majority_is_above_people_and_knowing_the_labels_is_above_what_is_possible() -> None:
    rankings, likelier = several(0.65)
    taste = [x for best in likelier for _ in "AB" for x in ((1.0, 0.0) if best == 0 else (0.0, 1.0))]
    card = report_card(rankings, taste)
    assert card["ceiling"]["agreement"] == pytest.approx(0.65, abs=0.05)
    assert card["accuracy"] == pytest.approx(0.5 + 0.5 * math.sqrt(0.3), abs=0.04)
    assert alarms(card)["ceiling"] == "warning"
    labels = [float(rank == 1) for r in rankings for rank in r.ranks]
    card = report_card(rankings, labels)
    assert alarms(card)["ceiling"] == "alarm"
    assert "which is a leak" in card["alarms"][0]["says"]
    noisy = [x if np.random.default_rng(n).random() < 0.7 else 1 - x for n, x in enumerate(taste)]
    assert "ceiling" not in alarms(report_card(rankings, noisy))


def test_too_good_for_people_is_said_unless_a_program_ranked() -> None:
    rankings, scores = clean(300, sure=7.0)
    card = report_card(rankings, scores)
    assert card["accuracy"] > 0.85
    assert alarms(card) == {"too good": "warning"}
    assert "If people gave these labels" in card["alarms"][0]["says"]
    assert alarms(report_card(rankings, scores, simulated=True)) == {}


def test_a_model_that_knows_nothing_or_the_contrary_is_named() -> None:
    rankings, scores = clean(300)
    assert alarms(report_card(rankings, [-x for x in scores]))["swapped"] == "alarm"
    assert alarms(report_card(rankings, [1.5] * 600))["constant"] == "alarm"
    random = np.random.default_rng(5).normal(size=600)
    assert alarms(report_card(rankings, random))["chance"] == "warning"


def test_a_model_that_is_too_sure_is_named() -> None:
    rankings, scores = clean(300)
    card = report_card(rankings, [8 * x for x in scores])
    assert alarms(card) == {"calibration": "warning"}
    assert card["calibration"]["temperature"]["value"] == pytest.approx(8, rel=0.35)


def test_labels_by_place_are_named_but_not_where_the_file_names_the_winner_first() -> None:
    rankings, scores = clean(300)
    listed = [pair(n, *_in_order(r), turned=n % 5 == 0) for n, r in enumerate(rankings)]
    flat = [x for n, r in enumerate(rankings) for x in _scores_in_order(r, scores[2 * n : 2 * n + 2], n % 5 == 0)]
    assert alarms(report_card(listed, flat)) == {"position": "warning"}
    assert alarms(report_card(listed, flat, seen_in_order=False)) == {}
    listed = [pair(n, *_in_order(r)) for n, r in enumerate(rankings)]
    flat = [x for n, r in enumerate(rankings) for x in _scores_in_order(r, scores[2 * n : 2 * n + 2], False)]
    card = report_card(listed, flat)
    assert card["position"]["listed"] == "winner first" and card["alarms"] == []


def _in_order(r: Ranking) -> tuple[str, str]:
    return r.replies[r.ranks.index(1)].text, r.replies[r.ranks.index(2)].text


def _scores_in_order(r: Ranking, both: Sequence[float], turned: bool) -> list[float]:
    ordered = [both[r.ranks.index(1)], both[r.ranks.index(2)]]
    return ordered[::-1] if turned else ordered


def test_few_pairs_are_said_to_be_few() -> None:
    rankings, scores = clean(12)
    assert "few pairs" in alarms(report_card(rankings, scores))


def test_what_rests_on_an_interval_is_not_said_of_a_handful_of_prompts() -> None:
    """Two prompts of many pairs each, all won by the longer reply, listed first: by chance, for all that is known."""
    rankings = [ranking(n, ("aaaa", "aaa", "aa", "a"), (1, 2, 3, 4), annotator=who) for n in (0, 1) for who in "xy"]
    rankings.append(ranking(0, ("b", "bb"), (2, 1)))
    scores = [*([4.0, 3.0, 2.0, 1.0] * 4), 0.0, 1.0]
    card = report_card(rankings, scores)
    assert card["accuracy"] == 1 and card["accuracy_ci"] is card["position"]["accuracy_ci"] is None
    assert alarms(card) == {"few pairs": "warning"}
    assert "25 pairs of 2 prompts are too few for an interval" in card["alarms"][0]["says"]
    assert "(too few prompts for an interval)" in words("card/card.txt.j2", "numbers", card)
