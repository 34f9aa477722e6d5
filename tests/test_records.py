"""The records: pairs of a ranking by hand, and the JSON that other tools read."""

from dataclasses import FrozenInstanceError

import pytest

from plaudit.records import Completion, Demonstration, Message, Preference, Prompt, Ranking, preferences_of

PROMPT = Prompt("p1", (Message("system", "Be kind."), Message("user", "Hello?")), "instruction", "train")
MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello?"}]


def ranking(*ranks: int) -> Ranking:
    return Ranking(PROMPT, tuple(Completion(f"reply {i}") for i in range(len(ranks))), ranks)


@pytest.mark.parametrize(
    ("ranks", "pairs"),
    [
        ((1, 2), [(0, 1)]),
        ((2, 1), [(1, 0)]),
        ((1, 1), []),
        ((1, 2, 3), [(0, 1), (0, 2), (1, 2)]),
        ((3, 1, 2), [(1, 0), (2, 0), (1, 2)]),
        ((1, 1, 3), [(0, 2), (1, 2)]),
        ((1, 2, 2), [(0, 1), (0, 2)]),
        ((2, 2, 2, 2), []),
    ],
)
def test_pairs_are_winner_first_and_ties_give_none(ranks: tuple[int, ...], pairs: list[tuple[int, int]]) -> None:
    assert ranking(*ranks).pairs() == pairs


@pytest.mark.row(24)
def test_row24_a_strict_ranking_of_k_replies_has_k_choose_2_pairs() -> None:
    assert len(ranking(4, 2, 1, 3).pairs()) == 6
    assert len(ranking(*range(1, 10)).pairs()) == 36


def test_preferences_of_a_ranking_hold_the_texts_of_its_pairs() -> None:
    found = preferences_of(ranking(2, 1, 2))
    assert [(p.chosen.text, p.rejected.text) for p in found] == [("reply 1", "reply 0"), ("reply 1", "reply 2")]
    assert {p.prompt for p in found} == {PROMPT}


def test_the_text_of_a_prompt_is_its_last_user_turn() -> None:
    turns = (Message("user", "one"), Message("assistant", "two"), Message("user", "three"))
    assert Prompt("p", turns, "domain", "test").text == "three"


def test_a_prompt_as_json() -> None:
    assert PROMPT.as_json() == {"id": "p1", "kind": "instruction", "split": "train", "prompt": MESSAGES}


def test_a_ranking_as_json_keeps_the_order_of_the_replies_and_whether_they_ended() -> None:
    made = Ranking(PROMPT, (Completion("cut", finished=False), Completion("whole")), (2, 1))
    assert made.as_json() == {
        "id": "p1",
        "kind": "instruction",
        "split": "train",
        "prompt": MESSAGES,
        "responses": [
            {"text": "cut", "finished": False, "rank": 2},
            {"text": "whole", "finished": True, "rank": 1},
        ],
    }


def test_a_ranking_with_more_replies_than_ranks_is_not_written() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Ranking(PROMPT, (Completion("a"), Completion("b")), (1,)).as_json()


def test_a_preference_as_json_is_the_conversational_form_of_the_ecosystem() -> None:
    assert Preference(PROMPT, Completion("yes"), Completion("no")).as_json() == {
        "prompt": MESSAGES,
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }


def test_records_cannot_be_changed() -> None:
    for record, name in ((PROMPT, "split"), (Completion("a"), "text"), (Demonstration(PROMPT, "a"), "completion")):
        with pytest.raises(FrozenInstanceError):
            setattr(record, name, "other")
