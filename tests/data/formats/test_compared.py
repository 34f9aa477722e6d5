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
