"""Texts that stand for something else are not learnt as texts."""

import json
from pathlib import Path
from typing import Any

import pytest

from plaudit.data.formats.reader import Reader
from plaudit.errors import UserError
from plaudit.records import Completion, Demonstration, Labelled, Message, Prompt, Ranking, preferences_of

Q, SNAILS, CATS = "What eats moss?", "The snail eats it.", "A cat eats it."


def only(path: Path, row: dict[str, Any]) -> tuple[Any, str]:
    (path / "a.jsonl").write_text(json.dumps(row) + "\n")
    reader = Reader(path / "a.jsonl")
    ((_, record),) = list(reader)
    return record, reader.describe()


def whole(reply: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": Q}, {"role": "assistant", "content": reply}]


def test_messages_in_a_cell_are_messages(tmp_path: Path) -> None:
    cells = ",".join('"' + json.dumps(whole(reply)).replace('"', '""') + '"' for reply in (SNAILS, CATS))
    (tmp_path / "a.csv").write_text(f"prompt,chosen,rejected\n{Q},{cells}\n")
    reader = Reader(tmp_path / "a.csv")
    ((_, ranking),) = list(reader)
    assert isinstance(ranking, Ranking) and ranking.prompt.messages == (Message("user", Q),)
    assert [reply.text for reply in ranking.replies] == [SNAILS, CATS]
    assert "'chosen' holds messages as JSON" in reader.describe()
    record, _ = only(tmp_path, {"prompt": json.dumps(whole(SNAILS)[:1]), "completion": "[1, 2]"})
    assert isinstance(record, Demonstration) and (record.prompt.text, record.completion) == (Q, "[1, 2]")


SHAREGPT = [{"from": "human", "value": Q}, {"from": "gpt", "value": SNAILS}]
CHOSEN, REJECTED = ({"role": "assistant", "content": reply} for reply in (SNAILS, CATS))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": json.dumps(whole(SNAILS))},
        {"conversations": json.dumps(SHAREGPT)},
        {"prompt": Q, "completion": json.dumps(SHAREGPT[1])},
        {"prompt": Q, "chosen": json.dumps(CHOSEN), "rejected": json.dumps(REJECTED)},
        {"chosen": json.dumps(SHAREGPT), "rejected": json.dumps([SHAREGPT[0], REJECTED])},
    ],
)
def test_any_messages_in_a_cell_are_messages(row: dict[str, str], tmp_path: Path) -> None:
    record, said = only(tmp_path, row)
    found = record.completion if isinstance(record, Demonstration) else record.replies[0].text
    assert (record.prompt.messages, found) == ((Message("user", Q),), SNAILS) and "holds messages as JSON" in said


def test_messages_in_a_field_of_texts_are_refused(tmp_path: Path) -> None:
    both = {"response_1": json.dumps([CHOSEN]), "response_2": json.dumps([REJECTED])}
    for row in ({"prompt": Q, **both, "preference_strength": 1}, {"instruction": Q, "output": json.dumps([CHOSEN])}):
        with pytest.raises(UserError, match=r"field '(response_1|output)' must be a .*string, found \["):
            only(tmp_path, row)


@pytest.mark.parametrize("printed", [str(whole(SNAILS)), f"array({whole(SNAILS)}, dtype=object)", str(whole(CATS)[0])])
def test_messages_as_python_prints_them_are_refused(printed: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'chosen' holds messages as Python prints them.*json.dumps"):
        only(tmp_path, {"prompt": Q, "chosen": printed, "rejected": CATS})


@pytest.mark.parametrize("text", ["nan", "NaN", "#NAME?", "#N/A", " #REF! "])
def test_a_cell_without_a_value_is_no_reply(text: str, tmp_path: Path) -> None:
    for row in ({"prompt": Q, "chosen": text, "rejected": CATS}, {"prompt": text, "completion": CATS}):
        with pytest.raises(UserError, match=r":1: field '(chosen|prompt)' .* stands for no text; write one or delete"):
            only(tmp_path, row)


def test_a_dialogue_as_prompt_is_its_turns(tmp_path: Path) -> None:
    asked = f"\n\nHuman: Hi.\n\nAssistant: Yes?\n\nHuman: {Q}\n\nAssistant:"
    record, said = only(tmp_path, {"prompt": asked, "response": f" {SNAILS}", "chosen": f" {SNAILS}", "rejected": CATS})
    turns = [("user", "Hi."), ("assistant", "Yes?"), ("user", Q)]
    assert [(message.role, message.content) for message in record.prompt.messages] == turns
    assert [reply.text for reply in record.replies] == [SNAILS, CATS]
    assert "'prompt' read as a dialogue of Human and Assistant; 'response' is 'chosen' again" in said
    answers = [{"answer": f" {text}", "rank": rank} for text, rank in ((CATS, 2.0), (SNAILS, 1.0))]
    record, _ = only(tmp_path, {"prompt": f"\n\nHuman: {Q}\n\nAssistant: ", "answers": answers})
    assert (record.prompt.text, record.ranks, record.replies[0].text) == (Q, (2, 1), CATS)
    record, _ = only(tmp_path, {"prompt": "Human: all too human?", "completion": CATS})
    assert record.prompt.text == "Human: all too human?"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_dialogue_of_other_line_ends(end: str, tmp_path: Path) -> None:
    asked = f"{end * 2}Human: Hi.{end * 2}Assistant: Yes?{end * 2}Human: {Q}{end * 2}Assistant:"
    record, _ = only(tmp_path, {"prompt": asked, "chosen": SNAILS, "rejected": CATS})
    assert [message.content for message in record.prompt.messages] == ["Hi.", "Yes?", Q]
    with pytest.raises(UserError, match="a dialogue without an empty line before each turn"):
        only(tmp_path, {"prompt": f"Human: {Q}{end}Assistant:", "chosen": SNAILS, "rejected": CATS})


@pytest.mark.parametrize(
    "head",
    [f"User: {Q}\nAssistant: ", f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n", f"[INST] {Q} [/INST] "],
)
def test_marks_of_who_speaks_are_no_prompt(head: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a mark of who speaks.*write messages with roles"):
        only(tmp_path, {"chosen": head + SNAILS, "rejected": head + CATS})


ODD = [
    "nan",
    "#NAME?",
    '[{"role": "assistant", "content": "x"}]',
    "[{'role': 'assistant', 'content': 'x'}]",
    "\n\nHuman: x\n\nAssistant:",
    f"{Q} {SNAILS}",
    "tie",
]


@pytest.mark.parametrize("text", ODD)
def test_what_we_write_is_read_as_it_was(text: str, tmp_path: Path) -> None:
    """The rows of our own files hold texts that were meant, whatever they look like."""
    for asked in (Q, text):
        prompt = Prompt("7", (Message("user", asked),), "garden", "test")
        ranking = Ranking(prompt, (Completion(text), Completion(CATS)), (1, 2))
        for record in (prompt, Demonstration(prompt, text), Labelled(prompt, text, False, "Ann"), ranking):
            assert only(tmp_path, record.as_json())[0] == record
        (pair,) = preferences_of(ranking)
        read = only(tmp_path, pair.as_json())[0]
        assert (read.prompt.messages, read.replies, read.ranks) == (prompt.messages, ranking.replies, (1, 2))


@pytest.mark.parametrize("text", ["nan", "#REF!", "#BEZUG!", "#¡VALOR!", "#N/D"])
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": Q, "answer_a": "{}", "answer_b": CATS, "winner": "a"},
        {"prompt": Q, "response_1": CATS, "response_2": "{}", "preference_strength": 1},
    ],
)
def test_no_answer_of_a_comparison_is_a_cell_without_a_value(row: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"field '(answer_a|response_2)' .* stands for no text; write one or delete"):
        only(tmp_path, {key: text if value == "{}" else value for key, value in row.items()})


def test_a_system_message_may_be_none_but_no_failed_formula(tmp_path: Path) -> None:
    record, said = only(tmp_path, {"system": "nan", "prompt": Q, "completion": CATS})
    assert record.prompt.messages == (Message("user", Q),) and "'system' 'nan' read as none" in said
    record, said = only(tmp_path, {"instruction": Q, "input": "<NA>", "output": CATS})
    assert record.prompt.text == Q and "'input' '<NA>' read as none" in said
    for row in ({"system": "#NAME?", "prompt": Q}, {"instruction": Q, "input": "#N/A", "output": CATS}):
        with pytest.raises(UserError, match="stands for no text"):
            only(tmp_path, row)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": Q, "chosen": f"['{SNAILS}']", "rejected": f'["{CATS}"]'},
        {"prompt": f"['{Q}']", "completion": CATS},
        {"prompt": json.dumps([Q])},
    ],
)
def test_a_list_that_became_a_text_is_refused(row: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds a list of one text, written as text: .*take the text out of the list"):
        only(tmp_path, row)
    for meant in ({"chosen": "['a']", "rejected": "It is ['a']."}, {"completion": "['a']"}):  # code answers so
        only(tmp_path, {"prompt": Q, **meant})
