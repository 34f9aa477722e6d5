"""Two answers and a verdict: the better one is the one that was meant, and what could mean either is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from plaudit.data.formats.reader import Reader
from plaudit.errors import UserError
from plaudit.records import Message, Ranking

Q, SNAILS, CATS = "What eats moss?", "The snail eats it.", "A cat eats it."
TWO = {"prompt": Q, "answer_a": SNAILS, "answer_b": CATS}
ZERO = {"prompt": Q, "answer_0": SNAILS, "answer_1": CATS}
ONE = {"prompt": Q, "response_1": SNAILS, "response_2": CATS}


def read(path: Path, row: dict[str, Any], **options: Any) -> Ranking:
    (path / "a.jsonl").write_text(json.dumps(row) + "\n")
    ((_, record),) = list(Reader(path / "a.jsonl", **options))
    assert isinstance(record, Ranking)
    return record


def refusal(path: Path, row: dict[str, Any], **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(path, row, **options)
    assert str(caught.value).startswith(f"{path}/a.jsonl:1: ")
    return str(caught.value)


@pytest.mark.parametrize(
    ("row", "ranks"),
    [
        ({**ZERO, "winner": 0}, (1, 2)),
        ({**ZERO, "winner": 1}, (2, 1)),
        ({**ZERO, "winner": "1.0"}, (2, 1)),
        ({**ONE, "winner": 1.0}, (1, 2)),
        ({**ONE, "choice": "2"}, (2, 1)),
        ({**TWO, "verdict": "[[B]]"}, (2, 1)),
        ({**TWO, "winner": "Response A is slightly better"}, (1, 2)),
        ({**TWO, "winner": "both are equally good"}, (1, 1)),
        ({**TWO, "winner": "b", "worse": "a"}, (2, 1)),
    ],
)
def test_the_verdict_is_read_as_it_is_meant(row: dict[str, Any], ranks: tuple[int, int], tmp_path: Path) -> None:
    ranking = read(tmp_path, row)
    assert (ranking.ranks, [reply.text for reply in ranking.replies]) == (ranks, [SNAILS, CATS])


@pytest.mark.parametrize(
    ("row", "says"),
    [
        # In half of the files 1 is the first answer, in the others the second.
        ({**TWO, "preferred": 1}, "the number 1: is it counted from 0 or from 1"),
        ({**TWO, "preferred": "2"}, "is it counted from 0 or from 1"),
        ({**ONE, "preference": 1}, "an answer's, or how much one is better"),
        ({**ONE, "preference": -2}, "preference_strength=preference"),
        ({**ONE, "winner": -2}, "found -2"),
        ({**ONE, "winner": 0}, "found 0"),
        ({**ZERO, "winner": 2}, "found 2"),
        ({**ONE, "winner": 1, "preference_strength": 2}, "fit strength and winner: ambiguous"),
        ({**TWO, "worse": "a"}, "('worse' names the worse one); say which does"),
        ({**TWO, "worst answer": "a"}, "names the worse one"),
        ({**TWO, "verdict": "not a"}, "'verdict' must say which"),
        ({**TWO, "verdict": "A is worse"}, "'verdict' must say which"),
        ({**TWO, "verdict": "a, no tie"}, "'verdict' must say which"),
        ({**TWO, "verdict": "tie (a)"}, "'verdict' must say which"),
        ({**TWO, "verdict": "A<B"}, "'verdict' must say which"),
        ({**ONE, "verdict": "2 is a better one"}, "'verdict' must say which"),
        ({**TWO, "winner": "b", "model_a": "b", "model_b": "a"}, "names one answer and says the other one"),
        ({"prompt": Q, "answer_1": "2", "answer_2": "1", "winner": "1"}, "names one answer and says the other one"),
        ({**ZERO, "better_response_id": 1, "safer_response_id": 0}, "('better_response_id', 'safer_response_id' may)"),
    ],
)
def test_a_verdict_that_may_mean_the_other_answer_is_refused(row: dict[str, Any], says: str, tmp_path: Path) -> None:
    assert says in refusal(tmp_path, row)


def test_the_user_says_what_a_number_counts_from(tmp_path: Path) -> None:
    row = {**TWO, "preferred": 1}
    columns = {"answer_0": "answer_a", "answer_1": "answer_b"}
    assert read(tmp_path, row, columns=columns).ranks == (2, 1)
    columns = {"answer_1": "answer_a", "answer_2": "answer_b"}
    assert read(tmp_path, row, columns=columns).ranks == (1, 2)


def test_what_is_told_of_an_answer_is_no_answer(tmp_path: Path) -> None:
    """PKU-SafeRLHF's columns: two judgements, of which the user says which one counts."""
    safe = {"is_response_0_safe": True, "is_response_1_safe": False}
    row = {"prompt": Q, "response_0": SNAILS, "response_1": CATS, **safe, "better_response_id": 1}
    row["safer_response_id"] = 0
    assert read(tmp_path, row, columns={"winner": "better_response_id"}).ranks == (2, 1)
    assert read(tmp_path, row, columns={"winner": "safer_response_id"}).ranks == (1, 2)


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def test_conversations_of_other_forms(tmp_path: Path) -> None:
    parts = [{"role": turn["role"], "content": [{"type": "text", "text": turn["content"]}]} for turn in talk(Q, SNAILS)]
    turns = [{"from": "human", "value": Q}, {"from": "gpt", "value": CATS}]
    ranking = read(tmp_path, {"winner": "model_a", "conversation_a": parts, "conversation_b": turns})
    assert ranking.prompt.messages == (Message("user", Q),)
    assert [reply.text for reply in ranking.replies] == [SNAILS, CATS]
    # The texts of the turns as a list in a cell, as a CSV of arena battles has them.
    cells = {"prompt": ["Hi.", Q], "response_a": ["Yes?", SNAILS], "response_b": ["Yes?", CATS]}
    row = {**{key: json.dumps(value) for key, value in cells.items()}, "winner": "b"}
    ranking = read(tmp_path, row)
    assert [message.content for message in ranking.prompt.messages] == ["Hi.", "Yes?", Q]
    assert ([reply.text for reply in ranking.replies], ranking.ranks) == ([SNAILS, CATS], (2, 1))
    row["response_b"] = json.dumps(["No?", CATS])
    assert "continue different prompts" in refusal(tmp_path, row)
    row["response_b"] = json.dumps([CATS])
    assert "'response_b' has 1 turns where 'prompt' has 2" in refusal(tmp_path, row)
    for lost in (["Yes?", None], [None], []):  # the list itself would be learnt as the reply
        assert "'response_b'" in refusal(tmp_path, {**row, "response_b": json.dumps(lost)})


def test_a_conversation_keeps_the_turns_before_the_prompt(tmp_path: Path) -> None:
    both = {"conversation_a": talk("Hi.", "Yes?", Q, SNAILS), "conversation_b": talk("Hi.", "Yes?", Q, CATS)}
    ranking = read(tmp_path, {"prompt": Q, **both, "winner": "a"})
    assert [message.content for message in ranking.prompt.messages] == ["Hi.", "Yes?", Q]
    assert "do not continue the field 'prompt'" in refusal(tmp_path, {"prompt": "Why?", **both, "winner": "a"})
    short = {"conversation_a": talk("Hi.", "Yes?", SNAILS), "conversation_b": talk("Hi.", "Yes?", CATS)}
    assert "'conversation_a' must end with an assistant message" in refusal(tmp_path, {**short, "winner": "a"})
    both["conversation_b"][-1]["tool_calls"] = [{"name": "f"}]  # type: ignore[assignment]
    assert "the key 'tool_calls', which a text cannot hold" in refusal(tmp_path, {"prompt": Q, **both, "winner": "a"})


@pytest.mark.parametrize("prompt", [5, {"text": Q}, "  ", [5], [{"role": "user"}]])
def test_a_prompt_that_is_none_is_refused_beside_conversations(prompt: Any, tmp_path: Path) -> None:
    both = {"conversation_a": talk(Q, SNAILS), "conversation_b": talk(Q, CATS)}
    if prompt == "  ":
        assert read(tmp_path, {"prompt": prompt, **both, "winner": "a"}).prompt.text == Q
    else:
        assert refusal(tmp_path, {"prompt": prompt, **both, "winner": "a"})
