"""What the studio is asked to do: the arena's choices and chosen replies as labels, and who may ask."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from starlette.testclient import TestClient
from studio_kit import Answers, browser, let_in

from plaudit.label.db import ledger
from plaudit.label.db.database import connect, snapshot
from plaudit.view.studio.routes_ask import router
from plaudit.view.studio.session import Labels, Studio

QUESTION = {"prompt": "Tell me about a train.", "policies": ["SFT", "PPO"]}
POSTS: dict[str, dict[str, Any]] = {
    "/api/runs/{name}/arena": QUESTION,
    "/api/runs/{name}/arena/choice": {"match": "x", "best": [0]},
    "/api/runs/{name}/label": {"chosen": [{"source": "rollout", "update": 1, "sample": 1}]},
}


@pytest.fixture
def studio(trained: Path, empty_database: Path, tmp_path: Path) -> Studio:
    made = Studio([trained], 4000, Labels(connect(shutil.copy(empty_database, tmp_path)), "ann"))
    made.models = Answers()  # type: ignore[assignment]
    return made


@pytest.fixture
def client(studio: Studio) -> TestClient:
    return let_in(studio)


def labelled(studio: Studio) -> Any:
    assert studio.labels is not None
    with snapshot(studio.labels.engine) as connection:
        return ledger.read(connection)


# --- who may ask ---


def test_every_post_is_in_these_tests() -> None:
    routes = [route for route in router.routes if isinstance(route, APIRoute) and "POST" in route.methods]
    assert {route.path for route in routes} == set(POSTS)


@pytest.mark.parametrize("path", POSTS)
def test_a_post_needs_the_session_its_token_and_this_site(studio: Studio, client: TestClient, path: str) -> None:
    body, path = POSTS[path], path.replace("{name}", "run")
    token = client.headers.pop("X-CSRF-Token")
    for headers in ({}, {"X-CSRF-Token": "x"}, {"X-CSRF-Token": studio.session}):
        assert client.post(path, json=body, headers=headers).status_code == 403
    for elsewhere in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        assert client.post(path, json=body, headers={"X-CSRF-Token": token, **elsewhere}).status_code == 403
    nobody = browser(studio)
    assert nobody.post(path, json=body, headers={"X-CSRF-Token": token}).status_code == 401
    assert nobody.post(path, json={"wrong": 1}).status_code == 401
    assert labelled(studio).items == ()


@pytest.mark.parametrize("name", ["..", "%2e%2e", "..%2f..%2fetc", "nowhere"])
def test_only_runs_that_were_given_can_be_asked(client: TestClient, name: str) -> None:
    for path, body in POSTS.items():
        assert client.post(path.replace("{name}", name), json=body).status_code in (404, 405)


@pytest.mark.parametrize(
    "body",
    [
        {**QUESTION, "policies": ["../../secret"]},
        {**QUESTION, "policies": []},
        {**QUESTION, "prompt": ""},
        {**QUESTION, "prompt": "x" * 20_001},
        {**QUESTION, "max_new_tokens": 10**9},
        {**QUESTION, "folder": "/etc"},
    ],
)
def test_questions_that_cannot_be_are_refused(client: TestClient, body: dict[str, Any]) -> None:
    answer = client.post("/api/runs/run/arena", json=body)
    assert answer.status_code == 422 and answer.json()["error"]


# --- the arena ---


def asked(client: TestClient) -> dict[str, Any]:
    answer = client.post("/api/runs/run/arena", json=QUESTION)
    assert answer.status_code == 200
    return dict(answer.json())


def choose(client: TestClient, match: str, best: list[int], store: bool = True) -> Any:
    return client.post("/api/runs/run/arena/choice", json={"match": match, "best": best, "store": store})


def test_names_and_scores_come_with_the_choice_and_the_choice_is_a_label(studio: Studio, client: TestClient) -> None:
    found = asked(client)
    assert all(set(reply) == {"text", "finished"} for reply in found["replies"])
    told = choose(client, found["match"], [1]).json()
    assert told["stored"] is True
    assert sorted(reply["policy"] for reply in told["replies"]) == ["PPO", "SFT"]
    assert [reply["text"] for reply in told["replies"]] == [reply["text"] for reply in found["replies"]]
    data = labelled(studio)
    (item,), (label,) = data.items, data.labels
    assert [reply.source for reply in item.replies] == [reply["policy"] for reply in told["replies"]]
    assert item.messages[0].content == QUESTION["prompt"] and label.ranks == (2, 1)
    assert [person.name for person in data.people if person.id == label.person] == ["ann"]
    assert choose(client, found["match"], [0]).status_code == 409


def test_a_look_without_a_choice_stores_nothing(studio: Studio, client: TestClient) -> None:
    assert choose(client, asked(client)["match"], []).json()["stored"] is None
    assert choose(client, asked(client)["match"], [0], store=False).json()["stored"] is None
    assert labelled(studio).items == ()


def test_without_a_label_database_it_is_said_how_to_open_one_and_the_match_stays(client: TestClient) -> None:
    studio = client.app.state.studio  # type: ignore[attr-defined]
    found, studio.labels = asked(client), None
    assert client.get("/api/me").json()["labels"] is False
    answer = choose(client, found["match"], [0])
    assert answer.status_code == 409 and "--labels" in answer.json()["fix"]
    assert choose(client, found["match"], [0], store=False).status_code == 200


# --- send to labelling ---


def send(client: TestClient, *rows: tuple[str, int, int]) -> Any:
    chosen = [dict(zip(("source", "update", "sample"), row, strict=True)) for row in rows]
    return client.post("/api/runs/run/label", json={"chosen": chosen})


def test_replies_to_one_prompt_are_ranked_and_one_alone_is_improved(studio: Studio, client: TestClient) -> None:
    """The looks have one prompt a number: two of the first are one item, one of the second another."""
    sent = (("validation", 0, 1), ("validation", 1, 1), ("validation", 1, 2))
    assert send(client, *sent).json() == {"added": 2, "known": 0}
    assert send(client, *sent).json() == {"added": 0, "known": 2}
    rows = studio.replies_of("run")
    ranked, improved = sorted(labelled(studio).items, key=lambda item: item.task)
    assert (ranked.task, improved.task) == ("rank", "write")
    assert [reply.text for reply in ranked.replies] == [rows.row("validation", look, 1)["reply"] for look in (0, 1)]
    assert [reply.source for reply in ranked.replies] == ["run, update 0", "run, update 1"]


def test_the_prompt_of_a_rollout_is_the_conversation_that_became_its_tokens(
    studio: Studio, client: TestClient, trained: Path
) -> None:
    assert send(client, ("rollout", 1, 1), ("rollout", 2, 1)).json()["added"] >= 1
    shown = {studio.replies_of("run").row("rollout", update, 1)["prompt"] for update in (1, 2)}
    for item in labelled(studio).items:
        assert [message.role for message in item.messages] == ["user"]
        assert any(item.messages[0].content in prompt for prompt in shown)


def test_a_prompt_that_is_nowhere_any_more_is_refused(studio: Studio, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for part in ("sft", "ppo"):
        shutil.copytree(trained / part, run / part)
    recipe = (trained / "recipe.yaml").read_text().replace("prompts.jsonl", "moved.jsonl")
    (run / "recipe.yaml").write_text(recipe)
    studio.folders = [run]
    answer = send(let_in(studio), ("rollout", 1, 1))
    assert answer.status_code == 422 and "has moved" in answer.json()["error"]
    assert send(let_in(Studio([run], 4000)), ("rollout", 1, 1)).status_code == 409
