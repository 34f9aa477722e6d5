"""Comparisons of Label Studio, of OpenAI and of summaries: who won, with the prompt that they were about."""

import json
from pathlib import Path
from typing import Any

import pytest

from plaudit.data.files import read_rankings
from plaudit.data.formats.reader import Reader
from plaudit.errors import UserError


def task(*selected: str | None, data: Any = None, cancelled: bool = False) -> dict[str, Any]:
    results = [[{"type": "pairwise", "value": {"selected": side}}] if side else [] for side in selected]
    annotations = [{"id": i, "was_cancelled": cancelled, "result": result} for i, result in enumerate(results)]
    return {
        "id": 7,
        "data": data or {"prompt": "A tree?", "answer1": "Oak.", "answer2": "Ivy."},
        "annotations": annotations,
    }


def summary(**more: Any) -> dict[str, Any]:
    info = {"id": "t3_x", "post": "It rained.", "title": "Rain", "subreddit": "weather"}
    both = [{"text": "Rain.", "policy": "sup1"}, {"text": "Sun.", "policy": "ref"}]
    return {"info": info, "summaries": both, "choice": 1, "worker": "w9", "batch": "b", "split": "valid1", **more}


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("selected", "ranks"),
    [(("right",), (2, 1)), (("left", "left", "right"), (1, 2)), (("left", "right"), (1, 1)), (("left", None), (1, 2))],
)
def test_every_annotation_of_a_task_is_a_vote(
    tmp_path: Path, selected: tuple[str, ...], ranks: tuple[int, int]
) -> None:
    path = tmp_path / "export.json"
    path.write_text(json.dumps([task(*selected)]), encoding="utf-8")
    (ranking,) = read_rankings(path)
    assert [reply.text for reply in ranking.replies] == ["Oak.", "Ivy."]
    assert (ranking.ranks, ranking.prompt.messages[0].content) == (ranks, "A tree?")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (task(None), "no annotation of the task says left or right"),
        (task("left", cancelled=True), "no annotation of the task says left or right"),
        (task("left", data={"text": "A tree?"}), "has not two answers"),
        (summary(choice=2), "'choice' of 0 or 1; found the choice 2"),
        (summary(choice=True), "'choice' of 0 or 1"),
        (summary(summaries=[{"text": "a"}]), "two 'summaries'"),
        (summary(info={"title": "Rain"}), "neither 'post' nor 'article'"),
    ],
)
def test_what_says_nothing_is_refused(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        list(Reader(written(tmp_path / "rows.jsonl", row)))


def test_a_comparison_of_summaries(tmp_path: Path) -> None:
    article = summary(info={"article": "Long."}, choice=0, split="train", worker=None)
    post, news = read_rankings(written(tmp_path / "rows.jsonl", summary(), article))
    assert post.prompt.messages[0].content == "SUBREDDIT: r/weather\n\nTITLE: Rain\n\nPOST: It rained.\n\nTL;DR:"
    assert (post.ranks, post.annotator, post.prompt.split) == ((2, 1), "w9", "validation")
    assert (news.prompt.messages[0].content, news.ranks) == ("Article: Long.\n\nTL;DR:", (1, 2))
    assert news.prompt.split == "train"


def outputs(**asked: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Rain?"}]
    said = [[{"role": "assistant", "content": text}] for text in ("Yes, take a coat.", "Yes.")]
    both = {"preferred_output": said[0], "non_preferred_output": said[1]}
    return {"input": {"messages": messages, "tools": [], "parallel_tool_calls": True, **asked}, **both}


def test_preferred_and_non_preferred_outputs_are_pairs(tmp_path: Path) -> None:
    (ranking,) = read_rankings(written(tmp_path / "openai.jsonl", outputs()))
    assert [(message.role, message.content) for message in ranking.prompt.messages] == [
        ("system", "Be kind."),
        ("user", "Rain?"),
    ]
    assert ([reply.text for reply in ranking.replies], ranking.ranks) == (["Yes, take a coat.", "Yes."], (1, 2))
    for asked, says in (
        ({"messages": "Rain?"}, "no object with 'messages'"),
        ({"tools": [{"type": "function"}]}, "tools"),
    ):
        with pytest.raises(UserError, match=says):
            read_rankings(written(tmp_path / "bad.jsonl", outputs(**asked)))


def test_two_questions_of_a_task_are_no_votes_for_one_another(tmp_path: Path) -> None:
    row = task("left")
    row["annotations"][0]["result"] = [
        {"from_name": name, "type": "pairwise", "value": {"selected": side}}
        for name, side in (("safe", "right"), ("helpful", "left"))
    ]
    with pytest.raises(UserError, match="the task asks 2 questions, 'helpful', 'safe'"):
        list(Reader(written(tmp_path / "rows.jsonl", row)))


def test_the_flat_export_of_label_studio(tmp_path: Path) -> None:
    row = {"id": 1, "prompt": "A tree?", "answer1": "Oak.", "answer2": "Ivy.", "pairwise": "right", "annotator": 4}
    (ranking,) = read_rankings(written(tmp_path / "rows.jsonl", {**row, "lead_time": 3.2}))
    assert (ranking.ranks, ranking.annotator) == ((2, 1), "4")


def helpsteer3(preference: int) -> dict[str, Any]:
    asked = [{"role": "user", "content": "A tree?"}]
    return {"context": asked, "response1": "Oak.", "response2": "Ivy.", "overall_preference": preference}


def shp(labels: int) -> dict[str, Any]:
    return {"history": "A tree?", "human_ref_A": "Oak.", "human_ref_B": "Ivy.", "labels": labels, "score_A": 3}


def webgpt(first: float, second: float) -> dict[str, Any]:
    both = {"answer_0": "Oak.", "answer_1": "Ivy.", "score_0": first, "score_1": second}
    return {"question": {"full_text": "A tree?"}, **both, "quotes_0": {"title": []}}


@pytest.mark.parametrize(
    ("row", "ranks"),
    [
        # As the cards of the three sets say.
        (helpsteer3(-3), (1, 2)),
        (helpsteer3(1), (2, 1)),
        (helpsteer3(0), (1, 1)),
        (shp(1), (1, 2)),
        (shp(0), (2, 1)),
        (webgpt(0.5, -0.5), (1, 2)),
        (webgpt(-0.25, 0.25), (2, 1)),
        (webgpt(0, 0), (1, 1)),
    ],
)
def test_a_verdict_that_is_a_number_of_its_own_meaning(
    row: dict[str, Any], ranks: tuple[int, int], tmp_path: Path
) -> None:
    (ranking,) = read_rankings(written(tmp_path / "rows.jsonl", row))
    assert [reply.text for reply in ranking.replies] == ["Oak.", "Ivy."]
    assert (ranking.ranks, ranking.prompt.text) == (ranks, "A tree?")


@pytest.mark.parametrize("row", [shp(2), {**webgpt(1, 0), "score_0": None}, helpsteer3("better")])  # type: ignore[arg-type]
def test_such_a_number_that_is_none_is_refused(row: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be"):
        list(Reader(written(tmp_path / "rows.jsonl", row)))
