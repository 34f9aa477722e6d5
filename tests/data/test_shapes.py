"""Rows as other people's files have them: read right, with what was taken for what, or refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from plaudit.data.audit.check import Audit
from plaudit.data.files import Reading, read_demonstrations, read_prompts, read_rankings
from plaudit.data.formats.reader import Reader
from plaudit.errors import UserError
from plaudit.records import Demonstration, Labelled, Message, Prompt, Ranking

Q = "What eats moss?"
TWO = {"prompt": Q, "answer_a": "Snails.", "answer_b": "Cats."}


def put(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def only(path: Path, row: dict[str, Any], **options: Any) -> tuple[Any, str]:
    """(the record, what was said)."""
    reader = Reader(put(path / "a.jsonl", row), **options)
    ((_, record),) = list(reader)
    return record, reader.describe()


def refusal(path: Path, row: dict[str, Any], **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        only(path, row, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("row", "ranks"),
    [
        ({**TWO, "winner": "a"}, (1, 2)),
        ({**TWO, "winner": "B"}, (2, 1)),
        ({**TWO, "preferred": "answer_b"}, (2, 1)),
        ({**TWO, "preferred": "tie"}, (1, 1)),
        ({**TWO, "preferred": "Antwort B"}, (2, 1)),
        ({**TWO, "winner": "tie (bothbad)"}, (1, 1)),
        ({**TWO, "better": "left"}, (1, 2)),
        ({**TWO, "chosen": "second"}, (2, 1)),
        ({**TWO, "label": "Cats."}, (2, 1)),
        ({**TWO, "winner": "m7", "model_a": "m7", "model_b": "m8"}, (1, 2)),
        ({**TWO, "winner": "model_b", "model_a": "m7", "model_b": "m8"}, (2, 1)),
        ({**TWO, "winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1}, (1, 1)),
        ({**TWO, "winner_model_a": "0", "winner_model_b": "1", "winner_tie": "0"}, (2, 1)),
        ({"Prompt": Q, "Answer 1": "Snails.", "Answer 2": "Cats.", "Winner": "1"}, (1, 2)),
        ({"question": Q, "responseLeft": "Snails.", "responseRight": "Cats.", "vote": "right"}, (2, 1)),
        ({"prompt": Q, "response_1": "Snails.", "response_2": "Cats.", "preferred": "response_1"}, (1, 2)),
    ],
)
def test_two_answers_and_a_verdict_are_a_ranking(row: dict[str, Any], ranks: tuple[int, int], tmp_path: Path) -> None:
    record, said = only(tmp_path, row)
    assert isinstance(record, Ranking) and record.ranks == ranks and "format winner (detected), rankings" in said
    assert (record.prompt.text, *(reply.text for reply in record.replies)) == (Q, "Snails.", "Cats.")
    assert record.sources == (("m7", "m8") if "model_a" in row else None)
    assert "ignored" not in said


def test_two_conversations_share_their_prompt(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": Q}]
    row: dict[str, Any] = {
        f"conversation_{side}": [*asked, {"role": "assistant", "content": text}]
        for side, text in (("a", "Snails."), ("b", "Cats."))
    }
    record, _ = only(tmp_path, {**row, "winner": "model_a"})
    assert record.prompt.messages == (Message("user", Q),) and record.replies[0].text == "Snails."
    row["conversation_b"][0] = {"role": "user", "content": "Else?"}
    assert "continue different prompts" in refusal(tmp_path, {**row, "winner": "a"})


@pytest.mark.parametrize("value", ["0", 0, "c", "", True, "a or b"])
def test_a_verdict_that_is_not_plain_is_refused(value: Any, tmp_path: Path) -> None:
    assert "'winner' must say which answer is better" in refusal(tmp_path, {**TWO, "winner": value})


def test_true_and_false_of_spreadsheets_and_people(tmp_path: Path) -> None:
    said = {
        "TRUE": True,
        "WAHR": True,
        "Vrai": True,
        " yes ": True,
        "👍": True,
        "FALSCH": False,
        "Falso": False,
        "👎": False,
        "SANT": True,
        "YANLIŞ": False,
        "IGAZ": True,
        "EPÄTOSI": False,
    }
    rows = [{"prompt": Q, "completion": f"Snail {i}.", "label": label} for i, label in enumerate(said)]
    found = [one.label for _, one in Reader(put(tmp_path / "labels.jsonl", *rows)) if isinstance(one, Labelled)]
    assert found == list(said.values())


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (TWO, "no one column says which of 'answer_a' and 'answer_b' is better"),
        ({**TWO, "answer_c": "Deer.", "winner": "a"}, "looks like an answer or a judgement"),
        ({"prompt": Q, "winner": "a"}, "column 'winner' looks like an answer or a judgement"),
        ({"prompt": Q, "completion": "Snails.", "rating": 1}, "column 'rating' looks like"),
        ({"prompt": Q, "messages": [], "chosen": "x"}, "ambiguous"),
        ({"prompt": Q, "input": "in winter", "completion": "Snails."}, "'input' is not read"),
        ({"post": Q, "chosen": "The snail.", "rejected": "The cat."}, "'post' seems to be it"),
        ({"prompt": Q, "completion": "Snails.", "label": "biology"}, "'label' must be true or false"),
        ({"instruction": Q, "input": "", "output": "<nooutput>"}, "stands for no reply"),
    ],
)
def test_what_would_be_lost_is_refused(row: dict[str, Any], says: str, tmp_path: Path) -> None:
    assert says in refusal(tmp_path, row)


def test_a_named_format_ignores_what_looks_like_a_judgement(tmp_path: Path) -> None:
    record, said = only(tmp_path, {"prompt": Q, "winner": "a"}, format="prompts")
    assert record == Prompt("1", (Message("user", Q),), "instruction", "train") and "ignored keys: 'winner' (1)" in said


@pytest.mark.parametrize(
    ("row", "prompt", "said"),
    [
        ({"question": Q}, Q, "'question' read as 'prompt'"),
        ({"input": Q}, Q, "'input' read as 'prompt'"),
        ({"instruction": Q, "input": ""}, Q, "'instruction' (and 'input') read as 'prompt'"),
        ({"instruction": Q, "input": "Briefly."}, f"{Q}\n\nBriefly.", "read as 'prompt'"),
    ],
)
def test_a_question_beside_two_replies_is_their_prompt(
    row: dict[str, Any], prompt: str, said: str, tmp_path: Path
) -> None:
    record, told = only(tmp_path, {**row, "chosen": "I think snails.", "rejected": "I think cats."})
    assert record.prompt.text == prompt and said in told
    assert [reply.text for reply in record.replies] == ["I think snails.", "I think cats."]


def test_labels_are_never_ideal_replies(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", *({"prompt": Q, "completion": "x", "label": label} for label in (True, 0)))
    reader = Reader(path)
    assert [record.label for _, record in reader if isinstance(record, Labelled)] == [True, False]
    assert "format unpaired (detected), labels" in reader.describe()
    for read in (read_demonstrations, read_rankings):
        with pytest.raises(
            UserError, match="delete the column 'label'; for the reward model name the file in preferences"
        ):
            read(path)
    assert len(read_prompts(path)) == 1  # a prompt that was judged twice is one prompt


def test_a_history_is_the_earlier_turns(tmp_path: Path) -> None:
    row = {"instruction": "And in winter?", "input": "", "output": "Less.", "history": [["How often?", "Weekly."]]}
    record, said = only(tmp_path, row)
    assert isinstance(record, Demonstration) and "ignored" not in said
    assert [message.content for message in record.prompt.messages] == ["How often?", "Weekly.", "And in winter?"]
    assert "'history' must be a list of [question, answer]" in refusal(tmp_path, {**row, "history": ["How often?"]})


@pytest.mark.parametrize(
    ("key", "turns"),
    [
        ("items", [{"from": "human", "value": Q}, {"from": "gpt", "value": "Snails."}]),
        ("conversations", [{"from": "user", "value": Q}, {"from": "chatgpt", "value": "Snails."}]),
        ("conversations", [{"role": "user", "content": Q}, {"role": "assistant", "content": "Snails."}]),
    ],
)
def test_kinds_of_sharegpt(key: str, turns: list[dict[str, str]], tmp_path: Path) -> None:
    record, _ = only(tmp_path, {"id": 7, key: turns})
    assert record == Demonstration(Prompt("7", (Message("user", Q),), "instruction", "train"), "Snails.")


ASKED = {"from": "human", "value": Q}
SAID = {name: {"from": "gpt", "value": text} for name, text in (("chosen", "Snails."), ("rejected", "Cats."))}
OPENAI = {name: {"role": "assistant", "content": turn["value"]} for name, turn in SAID.items()}


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [ASKED], **SAID},
        {"messages": [{"role": "user", "content": Q}], **OPENAI},
        {"prompt": Q, **OPENAI},
        {name: [ASKED, turn] for name, turn in SAID.items()},
        {"prompt": [ASKED], **{name: [turn] for name, turn in SAID.items()}},
    ],
)
def test_kinds_of_pairs_of_messages(row: dict[str, Any], tmp_path: Path) -> None:
    record, _ = only(tmp_path, row)
    assert isinstance(record, Ranking) and record.prompt.messages == (Message("user", Q),)
    assert [reply.text for reply in record.replies] == ["Snails.", "Cats."]


def test_ranked_answers_and_a_pair_with_its_messages(tmp_path: Path) -> None:
    answers = [{"answer": text, "model": text, "rank": rank} for text, rank in (("Cats.", 2.0), ("Snails.", 1.0))]
    record, said = only(tmp_path, {"prompt": Q, "answers": answers, "turns": 1})
    assert record.ranks == (2, 1) and record.sources == ("Cats.", "Snails.") and "'turns' (1)" in said
    chosen, rejected = (
        [{"role": "user", "content": Q}, {"role": "assistant", "content": text}] for text in ("Snails.", "Cats.")
    )
    record, said = only(tmp_path, {"prompt": Q, "chosen": chosen, "rejected": rejected, "messages": chosen})
    assert record.replies[0].text == "Snails." and "'messages' is 'chosen' again" in said


def test_null_is_absent_and_a_number_is_an_id(tmp_path: Path) -> None:
    row = {"id": 3, "kind": None, "split": None, "prompt": Q, "completion": "Snails.", "messages": None, "label": None}
    record, said = only(tmp_path, row)
    assert record == Demonstration(Prompt("3", (Message("user", Q),), "instruction", "train"), "Snails.")
    assert "format prompt-completion" in said
    assert "'completion'" in refusal(tmp_path, {"prompt": Q, "completion": None})


def test_no_input_is_no_input(tmp_path: Path) -> None:
    record, said = only(tmp_path, {"instruction": Q, "input": "<noinput>", "output": "Snails."})
    assert record.prompt.text == Q and "'input' '<noinput>' read as none" in said


def test_keys_that_are_not_used_are_named_with_their_count(tmp_path: Path) -> None:
    said: list[str] = []
    rows = [{"prompt": Q, "completion": "x", "source": "me"}, {"prompt": Q, "completion": "x", "output": ""}] * 2
    read_demonstrations(put(tmp_path / "a.jsonl", *rows), Reading(say=said.append))
    assert said[0].endswith("4 rows; ignored keys: 'output' (2), 'source' (2)")


def test_a_short_shared_prompt_warns(tmp_path: Path) -> None:
    audit = Audit()
    rows = [{"chosen": "I think snails.", "rejected": "I think cats."}]
    rows.append({"chosen": "The best month to sow peas is March.", "rejected": "The best month to sow peas is May."})
    audit.add(put(tmp_path / "a.jsonl", *rows))
    found = [p for p in audit.report()["problems"] if p["kind"] == "short shared prompt"]
    assert [(p["level"], p["count"], p["examples"][0]["text"]) for p in found] == [
        ("warning", 1, "the prompt is 'I think'")
    ]


GERMAN = {"Frage": Q, "Antwort A": "The large grey snail.", "Antwort B": "Cats do, I think.", "Besser": "A"}


@pytest.mark.parametrize(
    ("one", "other"), [("Antwort A", "Antwort B"), ("Réponse 1", "Réponse 2"), ("Ответ left", "Ответ right")]
)
def test_two_answers_in_any_language_are_not_lost(one: str, other: str, tmp_path: Path) -> None:
    row = {"prompt": Q, other: "Cats do, I think.", one: "The large grey snail."}
    said = refusal(tmp_path, row)
    assert f"columns {one!r} and {other!r} look like two answers" in said
    assert f"answer_a={one}, answer_b={other}, winner=THEIRS" in said
    assert "ignored keys" in only(tmp_path, row, format="prompts")[1]


def test_the_user_says_which_columns_are_answers_and_verdict(tmp_path: Path) -> None:
    columns = {"prompt": "Frage", "answer_a": "Antwort A", "answer_b": "Antwort B", "winner": "Besser"}
    record, said = only(tmp_path, GERMAN, columns=columns)
    assert isinstance(record, Ranking) and record.ranks == (1, 2) and "'Besser' read as 'winner'" in said
    assert [reply.text for reply in record.replies] == [GERMAN["Antwort A"], GERMAN["Antwort B"]]


def test_columns_that_differ_in_a_side_but_hold_no_sentences_are_only_ignored(tmp_path: Path) -> None:
    assert "ignored keys" in only(tmp_path, {"prompt": Q, "Tag 1": "moss", "Tag 2": "food"})[1]
