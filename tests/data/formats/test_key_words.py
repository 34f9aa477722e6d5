"""What would be lost without a word: an answer under a name of another language, a passage, a judgement of a reply."""

import json
from pathlib import Path
from typing import Any

import pytest

from plaudit.data.formats.reader import Reader
from plaudit.errors import UserError
from plaudit.records import Demonstration, Labelled, Message

Q, SNAILS, CATS = "What eats moss?", "The snail eats it.", "A cat eats it."
DONE = {"prompt": Q, "completion": SNAILS}
TALK = [{"role": "user", "content": Q}, {"role": "assistant", "content": "Snails."}]


def only(path: Path, *rows: dict[str, Any], **options: Any) -> tuple[Any, str]:
    (path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reader = Reader(path / "a.jsonl", **options)
    records = [record for _, record in reader]
    return records[0], reader.describe()


def refusal(path: Path, *rows: dict[str, Any], **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        only(path, *rows, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"prompt": Q, "antwort": "Ja"}, "antwort"),
        ({"prompt": Q, "gut": "Snails", "schlecht": "Cats"}, "gut"),
        ({"prompt": Q, "réponse": "Oui"}, "réponse"),
        ({"prompt": Q, "mejor": "Si", "peor": "No"}, "mejor"),
        ({"prompt": Q, "更好的回答": "蜗牛"}, "更好的回答"),
        ({"prompt": Q, "y_w": SNAILS, "y_l": CATS}, "y_w"),  # no known name, but it holds a sentence
        ({"prompt": Q, "gold": SNAILS}, "gold"),
        ({"prompt": Q, "turns": [{"role": "assistant", "content": SNAILS}]}, "turns"),
        ({**DONE, "liked": False}, "liked"),
        ({**DONE, "desirable": False}, "desirable"),
        ({**DONE, "helpfulness": 0}, "helpfulness"),
        ({"messages": TALK, "accepted": 0}, "accepted"),
        ({**DONE, "context": "Moss is a plant."}, "context"),
        ({"prompt": Q, "chosen": SNAILS, "rejected": CATS, "passage": "Moss is a plant."}, "passage"),
        ({"frage": Q, "chosen": SNAILS, "rejected": "The cat eats it."}, "frage"),
        ({"dialogue": [{"role": "user", "content": Q}], "chosen": SNAILS, "rejected": "The cat eats it."}, "dialogue"),
        ({"prompt": "Be a pirate.", "messages": TALK}, "prompt"),
        ({"prompt": "Be a pirate.", "question": "Why?", "chosen": SNAILS, "rejected": CATS}, "question"),
        ({"prompt": "Name the season in which this is pruned.", "input": "rose"}, "input"),
    ],
)
def test_what_would_be_lost_is_refused_by_name(row: dict[str, Any], key: str, tmp_path: Path) -> None:
    said = refusal(tmp_path, row)
    assert said.startswith(f"{tmp_path}/a.jsonl:1: ") and repr(key) in said and "name the format to ignore it" in said


def test_a_question_that_the_prompt_says_again_is_ignored(tmp_path: Path) -> None:
    row: dict[str, Any] = {"prompt": f"Answer in a word. {Q}", "question": Q, "chosen": SNAILS, "rejected": CATS}
    assert "ignored keys: 'question' (1)" in only(tmp_path, row)[1]
    row["prompt"] = [{"role": "user", "content": Q}]
    assert "ignored keys: 'question' (1)" in only(tmp_path, row)[1]


def test_a_pair_that_says_that_the_rejected_one_won_is_refused(tmp_path: Path) -> None:
    pair = {"prompt": Q, "chosen": SNAILS, "rejected": CATS}
    assert "'winner' 'rejected' says that 'chosen' is not" in refusal(tmp_path, {**pair, "winner": "rejected"})
    assert "ignored keys: 'status' (1)" in only(tmp_path, {**pair, "status": "rejected"})[1]


@pytest.mark.parametrize("key", ["conversation_id", "conversation_hash", "completion_tokens", "response_length"])
def test_what_tells_of_an_answer_is_none(key: str, tmp_path: Path) -> None:
    assert f"ignored keys: {key!r} (1)" in only(tmp_path, {"messages": TALK, key: "7"})[1]
    said = refusal(tmp_path, {"messages": TALK, "better_response_id": 0})
    assert "'better_response_id' looks like an answer or a judgement" in said


def test_an_empty_cell_of_the_first_row_hides_no_judgement_of_the_next(tmp_path: Path) -> None:
    said = refusal(tmp_path, {**DONE, "rating": None}, {**DONE, "rating": 5})
    assert ":2: column 'rating' looks like an answer or a judgement" in said
    assert ":2: field 'note' is not read" in refusal(
        tmp_path, {"prompt": Q, "note": "moss"}, {"prompt": "Why so?", "note": SNAILS}
    )


def test_what_tells_of_a_prompt_is_only_named(tmp_path: Path) -> None:
    row = {
        "prompt": Q,
        "topic": "moss",
        "level": 3,
        "source": "written by us",
        "day": "2026-11-29",
        "url": "https://x.org/a",
    }
    record, said = only(tmp_path, row)
    assert record.text == Q and "ignored keys: 'day' (1), 'level' (1), 'source' (1), 'topic' (1), 'url' (1)" in said
    messages = [{"role": "user", "content": Q}, {"role": "assistant", "content": SNAILS}]
    record, said = only(tmp_path, {"prompt": Q, "messages": messages})
    assert record.prompt.text == Q and "'prompt' (1)" in said


@pytest.mark.parametrize("key", ["system_prompt", "system_message"])
def test_a_system_message_by_another_name_is_one(key: str, tmp_path: Path) -> None:
    for row in (DONE, {"prompt": Q, "chosen": SNAILS, "rejected": CATS}):
        record, said = only(tmp_path, {**row, key: "Be brief."})
        assert record.prompt.messages == (Message("system", "Be brief."), Message("user", Q))
        assert f"{key!r} read as 'system'" in said


def test_dolly_has_its_passage(tmp_path: Path) -> None:
    row = {"instruction": Q, "context": "Moss is a plant.", "response": SNAILS, "category": "closed_qa"}
    record, _ = only(tmp_path, row)
    assert isinstance(record, Demonstration)
    assert (record.prompt.text, record.completion) == (f"{Q}\n\nMoss is a plant.", SNAILS)
    assert only(tmp_path, {**row, "context": None})[0].prompt.text == Q


@pytest.mark.parametrize("label", [True, False])
def test_a_conversation_that_was_judged_is_a_labelled_reply(label: bool, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": Q}, {"role": "assistant", "content": SNAILS}]
    turns = [{"from": "human", "value": Q}, {"from": "gpt", "value": SNAILS}]
    for row in (
        {"messages": messages, "label": label},
        {"messages": messages, "kto_tag": label},
        {"conversations": turns, "kto_tag": label},
    ):
        record, said = only(tmp_path, row)
        assert isinstance(record, Labelled) and "read as 'completion'" in said
        assert (record.prompt.text, record.completion, record.label) == (Q, SNAILS, label)
    assert isinstance(only(tmp_path, {"messages": messages, "label": 1}, format="messages")[0], Demonstration)


def test_a_missing_number_is_no_id_and_a_whole_one_has_no_point(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"id": [3.0, float("nan")], "prompt": [Q, "Why?"], "completion": [SNAILS, CATS]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")  # type: ignore[no-untyped-call]
    records = [record for _, record in Reader(tmp_path / "a.parquet")]
    assert [record.prompt.id for record in records if isinstance(record, Demonstration)] == ["3", "2"]


PAIR = {"prompt": Q, "chosen": SNAILS, "rejected": CATS}


@pytest.mark.parametrize(
    "beside", [{"preference": "tie"}, {"status": "Tie"}, {"is_tie": True}, {"label": 0}, {"swap": 1}]
)
def test_a_pair_that_says_it_is_none_is_refused(beside: dict[str, Any], tmp_path: Path) -> None:
    assert "says that 'chosen' is not the better one" in refusal(tmp_path, {**PAIR, **beside})
    assert only(tmp_path, {**PAIR, **beside}, format="pairs")[0].ranks == (1, 2)
    assert only(tmp_path, {**PAIR, "label": 1, "status": "swapped", "model": "tie"})[0].ranks == (1, 2)


def test_replies_that_begin_with_their_prompt_are_refused(tmp_path: Path) -> None:
    joined = {"prompt": Q, "chosen": f"{Q} {SNAILS}", "rejected": f"{Q} {CATS}"}
    assert "'chosen' and 'rejected' begin with the whole prompt: delete the column 'prompt'" in refusal(
        tmp_path, joined
    )
    assert "'completion' begin with the whole prompt" in refusal(tmp_path, {"prompt": Q, "completion": f"{Q} Yes."})
    del joined["prompt"]
    assert only(tmp_path, joined)[0].replies[0].text == SNAILS
    dialogue = f"\n\nHuman: {Q}\n\nAssistant:"
    row = {"prompt": dialogue, "chosen": f"{dialogue} {SNAILS}", "rejected": f"{dialogue} {CATS}"}
    record, said = only(tmp_path, row)
    assert (record.prompt.text, record.replies[1].text) == (Q, CATS) and "format hh" in said


def test_an_empty_reply_is_not_the_better_one(tmp_path: Path) -> None:
    assert "'chosen' has no reply" in refusal(tmp_path, {**PAIR, "chosen": " "})
    assert only(tmp_path, {**PAIR, "rejected": ""})[0].replies[1].text == ""


def test_values_of_other_kinds_are_refused_and_not_tripped_over(tmp_path: Path) -> None:
    assert "'messages' must be" in refusal(tmp_path, {"messages": 5, "prompt": ""})
    assert "is none of the messages" in refusal(tmp_path, {"messages": 5, "prompt": Q})
    assert only(tmp_path, {**DONE, "id": 10**400})[0].prompt.id == "1" + "0" * 400
