"""Rewards that are functions or endpoints: matched by id, and every wrong answer stops with what was wrong."""

import json
import math
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from conftest import CPU, Answer, RewardServer, length_rows, score_lengths
from plaudit.errors import RunStopped, UserError
from plaudit.records import Completion, Message, Prompt
from plaudit.rewards import scorers
from plaudit.rewards.saved import load_reward_model
from plaudit.rewards.score import ScoreItem, matched
from plaudit.rewards.scorers import EndpointScorer, FunctionScorer

ITEMS = [
    ScoreItem(f"p{i}#0", Prompt(f"p{i}", (Message("user", f"Question {i}?"),), "domain", "train"), Completion("x" * i))
    for i in range(5)
]
LENGTHS = {f"p{i}#0": float(i) for i in range(5)}


# --- answers ---


def test_scores_are_matched_by_id_whatever_their_order() -> None:
    rows = [{"id": id, "score": score} for id, score in LENGTHS.items()]
    assert matched("r", ITEMS, rows[::-1]) == LENGTHS
    assert matched("r", ITEMS, dict(reversed(LENGTHS.items()))) == LENGTHS


def test_numbers_of_numpy_are_numbers() -> None:
    found = matched("r", ITEMS[:2], {"p0#0": np.float32(0.5), "p1#0": np.int64(3)})
    assert found == {"p0#0": 0.5, "p1#0": 3.0}
    assert {type(value) for value in found.values()} == {float}


WRONG: dict[str, tuple[Any, str]] = {
    "a missing id": ({"p0#0": 1.0}, r"gave 1 scores for 2 replies; there is none for id 'p1#0'"),
    "an unknown id": ({"p0#0": 1.0, "p9#0": 1.0}, r"answered for id 'p9#0', which it was not asked about"),
    "an id twice": ([{"id": "p0#0", "score": 1}, {"id": "p0#0", "score": 1}], r"answered twice for id 'p0#0'"),
    "nan": ({"p0#0": 1.0, "p1#0": math.nan}, r"the score of 'p1#0' is nan"),
    "infinity": ({"p0#0": -math.inf, "p1#0": 1.0}, r"the score of 'p0#0' is -inf"),
    "text": ({"p0#0": "0.5", "p1#0": 1.0}, r"the score of 'p0#0' is '0.5', not a number"),
    "a truth value": ({"p0#0": True, "p1#0": 1.0}, r"the score of 'p0#0' is 'True', not a number"),
    "null": ({"p0#0": None, "p1#0": 1.0}, r"not a number"),
    "bare numbers": ([1.0, 2.0], r"'1.0' is no score; write"),
    "rows without a score": ([{"id": "p0#0"}], r"is no score; write"),
    "nothing": (None, r"answered NoneType"),
    "one number": (3.0, r"answered float '3.0'; it must answer"),
    "one text": ("good", r"answered str 'good'"),
}


@pytest.mark.parametrize(("answer", "message"), WRONG.values(), ids=list(WRONG))
def test_a_wrong_answer_stops_the_run_and_is_named(answer: Any, message: str) -> None:
    with pytest.raises(RunStopped, match=f"^some reward: .*{message}"):
        matched("some reward", ITEMS[:2], answer)


# --- functions ---


def module(folder: Path, text: str, name: str = "rewards") -> str:
    (folder / f"{name}.py").write_text(text)
    return f"{folder / name}.py"


def test_a_function_gets_texts_with_ids(tmp_path: Path) -> None:
    path = module(
        tmp_path,
        "seen = []\ndef score(items):\n    seen.extend(items)\n"
        "    return {i['id']: len(i['completion']) for i in items}",
    )
    scorer = FunctionScorer(f"{path}:score")
    assert scorer.score(ITEMS) == LENGTHS
    seen = vars(scorer)["_function"].__globals__["seen"]
    assert seen[2] == {
        "id": "p2#0",
        "prompt": [{"role": "user", "content": "Question 2?"}],
        "completion": "xx",
        "finished": True,
    }


def test_an_installed_function_is_found_by_its_module() -> None:
    scorer = FunctionScorer("json:dumps")
    with pytest.raises(RunStopped, match="reward function json:dumps: answered str"):
        scorer.score(ITEMS)


def test_two_recipes_may_have_files_of_one_name_and_neighbours(tmp_path: Path) -> None:
    """A file is known by its path; a dataclass with postponed annotations in it works; it may import a neighbour."""
    found = []
    for value in (1, 2):
        home = tmp_path / str(value)
        home.mkdir()
        (home / f"neighbour{value}.py").write_text(f"VALUE = {value}\n")
        path = module(
            home,
            "from __future__ import annotations\nimport dataclasses\n"
            f"from neighbour{value} import VALUE\n"
            "@dataclasses.dataclass\nclass Row:\n    value: int = VALUE\n"
            "def score(items):\n    return {i['id']: Row().value for i in items}\n",
        )
        found.append(FunctionScorer(f"{path}:score"))
    assert [set(scorer.score(ITEMS).values()) for scorer in found] == [{1.0}, {2.0}]


FUNCTIONS = {
    "no name": ("rewards", r"'rewards': write MODULE:NAME, for example rewards:score"),
    "no module": (":score", r"write MODULE:NAME"),
    "unknown module": (
        "no_such_module_here:score",
        r"module 'no_such_module_here' cannot be imported \(ModuleNotFoundError.*put the file beside the recipe",
    ),
    "unknown name": ("json:scores", r"module 'json' has no 'scores'; it has .*dumps"),
    "no function": ("json:__name__", r"'__name__' is str, not a function"),
}


@pytest.mark.parametrize(("function", "message"), FUNCTIONS.values(), ids=list(FUNCTIONS))
def test_a_function_that_is_not_there_is_named(function: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        FunctionScorer(function)


@pytest.mark.parametrize("text", ["def score(:\n", "import no_such_thing\n", "1 / 0\n"])
def test_a_file_that_cannot_be_imported_is_named_and_leaves_nothing(tmp_path: Path, text: str) -> None:
    before = (list(sys.path), set(sys.modules))
    with pytest.raises(UserError, match=r"rewards\.py' cannot be imported \((SyntaxError|ModuleNotFound|ZeroDiv)"):
        FunctionScorer(f"{module(tmp_path, text)}:score")
    assert (list(sys.path), {name for name in sys.modules if name.startswith("plaudit_reward")}) == (
        before[0],
        {name for name in before[1] if name.startswith("plaudit_reward")},
    )


def test_a_function_that_raises_stops_the_run_with_its_reason(tmp_path: Path) -> None:
    path = module(tmp_path, "def score(items):\n    return {i['id']: i['text'] for i in items}")
    with pytest.raises(RunStopped, match=r"reward function .*rewards\.py:score raised KeyError: 'text'"):
        FunctionScorer(f"{path}:score").score(ITEMS)


# --- reward models that Plaudit saved ---


@pytest.mark.parametrize("folder", ["reward", "reward/model"], ids=["adapter", "merged"])
def test_a_saved_reward_model_scores_texts_as_transformers_does(folder: str, trained: Path) -> None:
    """Prompt, reply, end-of-turn token; normalised by its own mean and std; a cut reply has no end."""
    path = trained / folder
    scorer = load_reward_model(path, torch.float32, CPU, 2)
    model = AutoModelForSequenceClassification.from_pretrained(trained / "reward/model").eval()
    tokenizer = AutoTokenizer.from_pretrained(trained / "reward/model")
    items, wanted = [*ITEMS, replace(ITEMS[3], id="cut", completion=Completion("xxx", finished=False))], {}
    for item in items:
        turns = [message.as_json() for message in item.prompt.messages]
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text + item.completion.text, add_special_tokens=False)["input_ids"]
        ids += [tokenizer.eos_token_id] if item.completion.finished else []
        with torch.no_grad():
            raw = model(torch.tensor([ids])).logits.item()
        wanted[item.id] = (raw - model.config.plaudit_score_mean) / model.config.plaudit_score_std
    assert scorer.score(items) == pytest.approx(wanted, abs=1e-3)
    assert wanted["cut"] != pytest.approx(wanted["p3#0"], abs=1e-3)


def test_a_saved_reward_model_that_was_damaged_is_refused(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "reward/model", tmp_path / "model")
    with (tmp_path / "model/model.safetensors").open("r+b") as file:
        file.seek(-5, 2)
        file.write(b"x")
    with pytest.raises(UserError, match=r"model\.safetensors.*has not the bytes that it was saved with"):
        load_reward_model(tmp_path / "model", torch.float32, CPU, 2)


# --- endpoints, against a server that is really there ---


def backwards(body: dict[str, Any]) -> tuple[int, str]:
    return 200, json.dumps({"scores": length_rows(body)[::-1]})


def mapping(body: dict[str, Any]) -> tuple[int, str]:
    return 200, json.dumps({"scores": {row["id"]: row["score"] for row in length_rows(body)}})


def slow(body: dict[str, Any]) -> tuple[int, str]:
    time.sleep(0.6)
    return score_lengths(body)


def status(code: int) -> Answer:
    return lambda body: (code, "out of order")


def says(text: str) -> Answer:
    return lambda body: (200, text)


def asking(server: RewardServer, **settings: Any) -> EndpointScorer:
    return EndpointScorer(server.url, **{"timeout": 5.0, "retries": 2, "batch_size": 8, **settings})


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The back-off's waits, written down instead of waited."""
    found: list[float] = []
    monkeypatch.setattr(scorers.time, "sleep", found.append)
    return found


@pytest.mark.parametrize("answer", [score_lengths, backwards, mapping])
def test_an_endpoint_scores_by_id_in_batches(reward_server: RewardServer, answer: Answer) -> None:
    reward_server.answers = [answer]
    assert asking(reward_server, batch_size=2).score(ITEMS) == LENGTHS
    assert [len(body["items"]) for body, _ in reward_server.requests] == [2, 2, 1]
    assert reward_server.requests[1][0]["items"][0] == {
        "id": "p2#0",
        "prompt": [{"role": "user", "content": "Question 2?"}],
        "completion": "xx",
        "finished": True,
    }


def test_an_endpoint_that_fails_for_a_while_is_asked_again(reward_server: RewardServer, waits: list[float]) -> None:
    reward_server.answers = [status(500), status(429), status(503), score_lengths]
    assert asking(reward_server, retries=3).score(ITEMS) == LENGTHS
    assert waits == [0.5, 1.0, 2.0]
    assert len(reward_server.requests) == 4
    assert len({json.dumps(body) for body, _ in reward_server.requests}) == 1, "every attempt sends the same"


def test_an_endpoint_that_stays_down_stops_the_run(reward_server: RewardServer, waits: list[float]) -> None:
    reward_server.answers = [status(500)]
    with pytest.raises(RunStopped, match=r"/score: status 500: 'out of order'; given up after 3 attempts"):
        asking(reward_server).score(ITEMS)
    assert waits == [0.5, 1.0]


def test_an_endpoint_without_a_server_stops_the_run(waits: list[float]) -> None:
    scorer = EndpointScorer("http://127.0.0.1:9/score", timeout=2, retries=1, batch_size=8)
    with pytest.raises(RunStopped, match=r"reward endpoint http://127.0.0.1:9/score: ConnectError.*after 2 attempts"):
        scorer.score(ITEMS)


def test_a_slow_endpoint_times_out_and_may_recover(
    reward_server: RewardServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorers, "LONGEST_WAIT", 0.01)
    reward_server.answers = [slow, score_lengths]
    # The first answer comes too late; on a busy machine others may too, so there are many tries.
    assert asking(reward_server, timeout=0.2, retries=50).score(ITEMS) == LENGTHS
    reward_server.answers = [slow]
    with pytest.raises(RunStopped, match=r"no answer within 0.2 s; given up after 1 attempts"):
        asking(reward_server, timeout=0.2, retries=0).score(ITEMS)


@pytest.mark.parametrize("code", [301, 401, 404])
def test_another_status_is_not_tried_again(reward_server: RewardServer, code: int, waits: list[float]) -> None:
    reward_server.answers = [status(code), score_lengths]
    with pytest.raises(RunStopped, match=f"status {code}"):
        asking(reward_server).score(ITEMS)
    assert waits == []


ANSWERS: dict[str, tuple[Answer, str]] = {
    "no json": (says("<html>"), "the answer is no JSON .*<html>"),
    "no scores": (says('{"score": 1}'), "the answer has no key 'scores'"),
    "no object": (says("[1, 2]"), "the answer has no key 'scores'"),
    "too few": (lambda body: (200, json.dumps({"scores": length_rows(body)[:-1]})), "gave 4 scores for 5 replies"),
    "a foreign id": (
        lambda body: (200, json.dumps({"scores": [*length_rows(body), {"id": "who", "score": 1}]})),
        "answered for id 'who'",
    ),
    "an id twice": (
        lambda body: (200, json.dumps({"scores": length_rows(body) + length_rows(body)[:1]})),
        "twice for id 'p0#0'",
    ),
    "a key twice": (says('{"scores": {"p0#0": 1, "p0#0": 2}}'), "key 'p0#0' stands twice"),
    "nan": (
        lambda body: (200, json.dumps({"scores": [{**row, "score": math.nan} for row in length_rows(body)]})),
        "the score of 'p0#0' is nan",
    ),
}


@pytest.mark.parametrize(("answer", "message"), ANSWERS.values(), ids=list(ANSWERS))
def test_a_wrong_answer_of_an_endpoint_stops_at_once(
    reward_server: RewardServer, answer: Answer, message: str, waits: list[float]
) -> None:
    reward_server.answers = [answer, score_lengths]
    with pytest.raises(RunStopped, match=f"reward endpoint {reward_server.url}: .*{message}"):
        asking(reward_server).score(ITEMS)
    assert waits == []


def test_the_authorization_header_comes_from_the_environment(
    reward_server: RewardServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWARD_AUTH", "Bearer secret")
    asking(reward_server, auth_env="REWARD_AUTH").score(ITEMS)
    assert reward_server.requests[0][1]["Authorization"] == "Bearer secret"
    asking(reward_server).score(ITEMS)
    assert "Authorization" not in reward_server.requests[1][1]
    monkeypatch.delenv("REWARD_AUTH")
    with pytest.raises(UserError, match="the environment variable REWARD_AUTH is not set"):
        asking(reward_server, auth_env="REWARD_AUTH")
