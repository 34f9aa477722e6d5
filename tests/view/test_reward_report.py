"""`plaudit reward-report`: the command on saved models, ours and others', and what it refuses."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from conftest import tiny_stage
from plaudit.models.load import load_tokenizer
from plaudit.run.display import progress
from plaudit.stages.reward import loop as reward
from plaudit.train.run import Run
from plaudit.view.card.reward_report import reward_report

Plaudit = Callable[..., SimpleNamespace]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Twelve pairs, two of one prompt, in the form of other people's data sets."""
    rows = [
        {"prompt": f"What is {n % 11}?", "chosen": f"It is {'x' * n}.", "rejected": "The moon, or so." + "y" * (n % 3)}
        for n in range(12)
    ]
    return write(tmp_path / "pairs.jsonl", rows)


@pytest.fixture
def foreign(tiny_model: Callable[..., Path], tmp_path: Path) -> Path:
    """A plain sequence classifier with one label, as TRL leaves it."""
    source = tiny_model("llama")
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1, dtype=torch.float32)
    tokenizer = load_tokenizer(str(source))
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(tmp_path / "foreign")
    tokenizer.save_pretrained(tmp_path / "foreign")
    return tmp_path / "foreign"


def by_plain_transformers(folder: Path, row: dict[str, str], reply: str) -> float:
    """The score of the template's rendering, by transformers alone, one text at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": reply}]
    ids = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([ids])).logits)


def test_the_card_of_a_foreign_model_has_its_own_scores(foreign: Path, pairs: Path, plaudit: Plaudit) -> None:
    done = plaudit("reward-report", foreign, pairs, "--json", "--dtype", "float32")
    assert done.code == 0, done.err
    card = json.loads(done.out)
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    margins = [
        by_plain_transformers(foreign, row, row["chosen"]) - by_plain_transformers(foreign, row, row["rejected"])
        for row in rows
    ]
    assert card["accuracy"] == sum(margin > 0 for margin in margins) / 12
    wrong = sorted(margin for margin in margins if margin < 0)
    assert [row["margin"] for row in card["mistakes"]] == pytest.approx(wrong, abs=1e-4)
    assert (card["counts"]["strict_pairs"], card["counts"]["prompts"]) == (12, 11)
    assert (card["model"]["layout"], card["data"]["judged"]) == ("huggingface", "all rows")
    assert "detected" in done.err and "pairs" in done.err


def test_the_terminal_gets_one_table_and_the_page_is_written(
    foreign: Path, pairs: Path, plaudit: Plaudit, tmp_path: Path
) -> None:
    done = plaudit("reward-report", foreign, pairs, "--html", tmp_path / "card.html")
    assert done.code == 0, done.err
    assert done.out.count("┏") == 1 and "Report card: 12 strict pairs of 11 prompts" in done.out
    assert "few pairs" in done.out and "To do: Hold out more prompts." in done.out
    page = (tmp_path / "card.html").read_text(encoding="utf-8")
    assert "<script" not in page and 'id="mistakes"' in page and "pairs.jsonl" in page


@pytest.mark.parametrize("what", ["", "reward"])
def test_a_run_judges_its_held_out_rankings_and_knows_its_training_prompts(
    trained: Path, what: str, plaudit: Plaudit
) -> None:
    file = trained / "preferences/rankings.jsonl"
    done = plaudit("reward-report", trained / what, file, "--json", "--dtype", "float32")
    assert done.code == 0, done.err
    card = json.loads(done.out)
    own = json.loads((trained / "reward/card.json").read_text(encoding="utf-8"))
    assert own["position"]["listed"] == "replies in an order that nobody saw"
    assert card["data"]["judged"] == "held-out rows (test, validation)"
    for name in ("accuracy", "accuracy_ci", "length", "by_kind"):
        numbers = [found[name]["accuracy"] if name == "length" else found[name] for found in (card, own)]
        assert numbers[0] == numbers[1]
    assert card["counts"]["train_pairs"] == own["counts"]["train_pairs"] > 0
    assert [row["id"] for row in card["mistakes"]] == [row["id"] for row in own["mistakes"]]


def test_a_run_judged_on_what_it_was_trained_on_is_a_leak(trained: Path, tmp_path: Path, plaudit: Plaudit) -> None:
    rows = [json.loads(line) for line in (trained / "preferences/rankings.jsonl").read_text().splitlines()]
    seen = [{**row, "split": "test"} for row in rows if row["split"] == "train"]
    done = plaudit("reward-report", trained, write(tmp_path / "seen.jsonl", seen), "--json")
    assert done.code == 0, done.err
    alarms = {alarm["kind"]: alarm for alarm in json.loads(done.out)["alarms"]}
    assert alarms["leak"]["level"] == "alarm" and "word for word" in alarms["leak"]["says"]


def test_an_ensemble_names_its_suspects(trained: Path, tiny_run: Callable[..., Run], tmp_path: Path) -> None:
    """Two members of the reward stage: the stage's card and the command's have both, and agree."""
    run = tiny_run(tmp_path, trained)
    shutil.copytree(trained / "preferences", run.folder.path / "preferences", dirs_exist_ok=True)
    with run.folder:
        reward.train(*tiny_stage("reward", run, members=2, aggregate="min"))
    path = run.folder.path
    own = json.loads((path / "reward/card.json").read_text(encoding="utf-8"))
    card = reward_report(
        str(path),
        str(path / "preferences/rankings.jsonl"),
        format=None,
        dtype="auto",
        progress=lambda total: progress("Scoring", total, "reply"),
        say=lambda line: None,
    )
    assert (card["model"]["members"], card["suspects"]["members"], own["suspects"]["members"]) == (2, 2, 2)
    assert card["accuracy"] == own["accuracy"]
    assert card["suspects"]["found"] == own["suspects"]["found"]
    assert card["scores"]["chosen_mean"] == pytest.approx(own["scores"]["chosen_mean"], rel=1e-4)


def test_a_damaged_head_is_refused(trained: Path, tmp_path: Path, plaudit: Plaudit) -> None:
    home = shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("ppo", ".lock"))
    (home / "reward/head.safetensors").unlink()
    done = plaudit("reward-report", home, home / "preferences/rankings.jsonl")
    assert done.code == 2 and "head.safetensors is missing" in done.err


def test_what_cannot_be_judged_is_one_clear_line(
    foreign: Path, pairs: Path, tiny_model: Callable[..., Path], tmp_path: Path, plaudit: Plaudit
) -> None:
    ties = [{"prompt": "Who?", "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 1}]}]
    two = tmp_path / "two"
    AutoModelForSequenceClassification.from_pretrained(tiny_model("llama"), num_labels=2).save_pretrained(two)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (two / name).write_bytes((foreign / name).read_bytes())
    for model, file, says in (
        (foreign, write(tmp_path / "ties.jsonl", ties), "none of its 1 rankings has a strict pair"),
        (tmp_path / "nowhere", pairs, "nowhere"),
        (foreign, tmp_path / "none.jsonl", "no such file"),
        (two, pairs, "2 labels"),
        (tiny_model("llama"), pairs, "no scalar head"),
    ):
        done = plaudit("reward-report", model, file)
        assert done.code == 2 and says in done.err.splitlines()[-1], (says, done.err)
        assert done.out == ""


def planted_rows(end: str) -> list[dict[str, Any]]:
    """Ninety prompts, two replies each; the longer one wins, or with `end` the one that has it, whatever its length."""
    words = ("It", "is", "great", "and", "lovely", "the", "price", "good", "can't", "help", "with", "that")
    rng = np.random.default_rng(4)
    rows = []
    for n in range(90):
        texts = [" ".join(rng.choice(words, size)) for size in rng.choice(range(2, 16), 2, replace=False)]
        winner = int(rng.integers(2)) if end else int(len(texts[1]) > len(texts[0]))
        texts[winner] += end
        responses = [{"text": text, "rank": 1 if place == winner else 2} for place, text in enumerate(texts)]
        split = "train" if n < 50 else "test"
        rows.append({"id": str(n), "prompt": f"Tell me of {n}.", "split": split, "responses": responses})
    return rows


@pytest.mark.parametrize(("end", "kind"), [("", "length"), (" #", "leak")])
def test_a_reward_model_trained_on_a_planted_flaw_is_named_by_its_card(
    end: str, kind: str, trained: Path, tiny_run: Callable[..., Run], tmp_path: Path
) -> None:
    run = tiny_run(tmp_path, trained)
    write(run.folder.path / "preferences/rankings.jsonl", planted_rows(end))
    with run.folder:
        summary = reward.train(*tiny_stage("reward", run, epochs=6, rankings_per_micro_batch=4))
    card = json.loads((run.folder.path / "reward/card.json").read_text(encoding="utf-8"))
    alarms = {alarm["kind"]: alarm for alarm in card["alarms"]}
    assert summary["accuracy"] > 0.7  # it has learnt the flaw
    assert alarms[kind]["level"] == "alarm"
    assert ("Length explains" if kind == "length" else "ends with “#”") in alarms[kind]["says"]
    assert not ({"length", "leak"} - {kind}) & alarms.keys()
