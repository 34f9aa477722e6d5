"""The lesson as a file: one page, nothing fetched, texts of models harmless, what it says of runs true."""

import html
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import tiny_rows
from plaudit.errors import UserError
from plaudit.guard.arithmetic import FAULTS
from plaudit.rollout.stored import read_rollout, stored_rollouts
from plaudit.view.lesson import write
from plaudit.view.lesson.write import lesson_page, replies_of
from plaudit.view.page import embedded

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def page() -> str:
    return lesson_page()


def data_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_it_is_one_file_that_fetches_nothing(page: str) -> None:
    assert "default-src 'none'" in page
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"', page)
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|EventSource|import)\(", page)
    assert len(page.encode()) < 300_000


def test_a_text_of_a_model_cannot_leave_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = "</script><script>alert(1)</script><!--"
    reply = {"prompt": hostile, "tokens": [hostile, "]]>"], "score": 1.0, "kl": [0.0, 0.1], "values": [0.0, 0.1]}
    monkeypatch.setattr(write, "replies_of", lambda run: [reply])
    monkeypatch.setattr(write, "read_recipe", lambda run: {"name": hostile})
    page = lesson_page(Path("run"))
    assert "<script>alert(1)" not in page and "<!--" not in page
    assert data_of(page)["replies"] == [reply]


def test_the_replies_of_a_run_are_what_it_stored(trained: Path) -> None:
    found = replies_of(trained)
    files = stored_rollouts(trained)
    tensors = read_rollout(files[max(files)])
    assert {reply["prompt"] for reply in found} <= {row["prompt"] for row in tiny_rows()[0]}  # without the template
    for row, reply in enumerate(found):
        length = int(tensors["lengths_B"][row] - tensors["prompt_lengths_B"][row])
        assert len(reply["tokens"]) == len(reply["kl"]) == len(reply["values"]) == length
        assert reply["score"] == pytest.approx(tensors["scores_B"][row].item())
        assert sum(reply["kl"]) == pytest.approx(tensors["kl_BT"][row].sum().item(), abs=1e-4)


def test_a_run_without_rollouts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no rollout"):
        replies_of(tmp_path)


def test_the_command_writes_the_page_of_a_run(trained: Path, tmp_path: Path, plaudit: Any) -> None:
    done: SimpleNamespace = plaudit("lesson", "--run", trained, "--to", tmp_path / "page.html")
    assert done.code == 0
    assert len(data_of((tmp_path / "page.html").read_text())["replies"]) == len(replies_of(trained))


def test_there_are_ten_questions_with_one_right_answer_each(page: str) -> None:
    questions = data_of(page)["questions"]
    assert len(questions) == 10
    assert all(0 <= one["right"] < len(one["answers"]) and one["why"] for one in questions)


def test_the_planted_mistakes_are_those_that_the_doctor_names(page: str) -> None:
    """By the doctor's page: the sign of the KL pays tokens for leaving, a late score lies at the wrong token."""
    runs = data_of(page)["broken"]["runs"]
    named = {key: {one["name"] for one in run["doctor"] if one["level"] == "fault"} for key, run in runs.items()}
    assert set(runs) == {"right", "no_kl", "flipped_kl", "shifted_values", "late_score"}
    assert named["right"] == named["no_kl"] == set()
    assert "score at the wrong token" in named["late_score"]
    assert named["flipped_kl"] and named["shifted_values"]
    assert {name for names in named.values() for name in names} <= set(FAULTS)


def test_the_page_of_the_docs_is_the_one_that_the_command_writes(page: str) -> None:
    assert (ROOT / "docs/lesson.html").read_text(encoding="utf-8") == page, "run: plaudit lesson --to docs/lesson.html"


def test_the_glossary_is_that_of_the_docs_and_every_link_leads_to_a_place(page: str) -> None:
    meanings = (ROOT / "docs/glossary.md").read_text(encoding="utf-8").replace("\\", "")
    found = re.findall(r'<dt id="g-[a-z]+">(.*?)</dt><dd>(.*?)</dd>', page)
    assert len(found) == 14
    assert all(
        f"| {html.unescape(term)} | {html.unescape(meaning)} |" in meanings.replace("`", "") for term, meaning in found
    )
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(re.findall(r'id="([^"]+)"', page))


def test_what_is_embedded_holds_no_markup() -> None:
    assert "<" not in embedded({"a": "<b>&"}) and json.loads(embedded({"a": "<b>&"})) == {"a": "<b>&"}
