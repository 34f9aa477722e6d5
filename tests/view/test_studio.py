"""The studio's server: who gets in, what it says of runs, and that its sums are those of the log."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.routing import APIRoute
from starlette.testclient import TestClient
from studio_kit import browser, many_updates, served

from conftest import tiny_rows
from plaudit.data.files import write_json, write_rows
from plaudit.run.metrics import read_metrics
from plaudit.view.inspect.whole import whole_reply
from plaudit.view.names import NAMES, name_of
from plaudit.view.studio import logs
from plaudit.view.studio.findings import findings, healthy
from plaudit.view.studio.replies import Replies, disagreement
from plaudit.view.studio.routes_ask import router as asking
from plaudit.view.studio.server import router
from plaudit.view.studio.session import Studio

PATHS = {
    "/api/runs": "/api/runs",
    "/api/runs/{name}/curves": "/api/runs/run/curves",
    "/api/runs/{name}/findings": "/api/runs/run/findings",
    "/api/runs/{name}/live": "/api/runs/run/live",
    "/api/runs/{name}/updates": "/api/runs/run/updates",
    "/api/runs/{name}/replies": "/api/runs/run/replies?update=1",
    "/api/runs/{name}/same": "/api/runs/run/same?source=validation&update=0&sample=1",
    "/api/runs/{name}/more": "/api/runs/run/more",
    "/api/runs/{name}/arena": "/api/runs/run/arena",
    "/api/me": "/api/me",
    "/api/runs/{name}/tokens/{update}/{sample}": "/api/runs/run/tokens/1/1",
}


@pytest.fixture
def studio(trained: Path) -> Studio:
    return Studio([trained], 4000)


@pytest.fixture
def signed_in(studio: Studio) -> Iterator[TestClient]:
    with browser(studio) as client:
        assert client.get(f"/open/{studio.token}").status_code == 303
        yield client


# --- who gets in ---


def test_the_link_opens_one_browser_once(studio: Studio) -> None:
    token = studio.token
    first, second = browser(studio), browser(studio)
    answer = first.get(f"/open/{token}")
    cookie = answer.headers["set-cookie"].lower()
    assert answer.status_code == 303 and "httponly" in cookie and "samesite=strict" in cookie
    assert first.get("/api/runs").status_code == 200
    assert second.get(f"/open/{token}").status_code == 403
    assert second.get("/api/runs").status_code == 401


@pytest.mark.parametrize("token", ["", "x", "é", "..%2f..", "None"])
def test_another_token_opens_nothing_and_uses_nothing_up(studio: Studio, token: str) -> None:
    client = browser(studio)
    assert client.get(f"/open/{token}").status_code in (403, 404)
    assert "set-cookie" not in client.get(f"/open/{token}").headers
    assert client.get(f"/open/{studio.token}").status_code == 303


def test_every_route_is_in_these_tests() -> None:
    """Those that only read; those that are posted to are in test_studio_asks.py."""
    routes = [route for route in (*router.routes, *asking.routes) if isinstance(route, APIRoute)]
    assert {route.path for route in routes if "GET" in route.methods} == {*PATHS, "/", "/open/{token}"}


@pytest.mark.parametrize("path", PATHS.values())
def test_nobody_gets_nothing(studio: Studio, path: str) -> None:
    client = browser(studio)
    for cookie in (None, "x", "é" * 43):
        client.cookies.clear()
        headers = {} if cookie is None else {"Cookie": f"{studio.cookie}={cookie}".encode()}
        answer = client.get(path, headers=headers)
        assert answer.status_code == 401 and set(answer.json()) == {"error", "fix"}


def test_the_page_without_a_session_says_nothing_of_any_run(studio: Studio) -> None:
    answer = browser(studio).get("/")
    assert answer.status_code == 401 and "door is closed" in answer.text and "studio.js" not in answer.text


def test_a_page_of_another_name_or_site_is_refused(signed_in: TestClient) -> None:
    assert signed_in.get("/api/runs", headers={"Host": "evil.example:4000"}).status_code == 400
    assert signed_in.post("/api/runs", headers={"Origin": "http://evil.example"}).status_code == 403


@pytest.mark.parametrize("name", ["..", "../..", "%2e%2e", "..%2f..%2fetc", "/etc", "nowhere", "run%00"])
def test_a_run_is_one_of_those_that_were_given(signed_in: TestClient, trained: Path, name: str) -> None:
    for rest in ("curves", "findings", "replies?update=1", "tokens/1/1", "live"):
        assert signed_in.get(f"/api/runs/{name}/{rest}").status_code == 404


def test_files_of_the_package_alone_are_served(signed_in: TestClient) -> None:
    for path in ("/static/../server.py", "/static/%2e%2e/server.py", "/static/shared/..%2f..%2frender.py"):
        assert signed_in.get(path).status_code == 404


def test_every_answer_forbids_scripts_from_elsewhere(signed_in: TestClient) -> None:
    for path in ("/", "/api/runs", "/static/studio.js", "/nowhere"):
        headers = signed_in.get(path).headers
        assert "script-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"


# --- what it says ---


def test_the_sums_of_the_tokens_are_the_numbers_of_the_log(trained: Path) -> None:
    """Of every update: each sum has an entry of its name in the log, and is equal to it."""
    rows = read_metrics(trained / "ppo/metrics.jsonl")
    assert len(rows) >= 2
    for row in rows:
        sums = whole_reply(trained, int(row["update"]), 1)["sums"]
        assert {"kl", "kl_per_token", "entropy", "length", "eos", "sampler_gap_mean", "explained_variance"} <= set(sums)
        for name, found in sums.items():
            assert found["logged"] == row[name]
            assert found["here"] == pytest.approx(row[name], rel=1e-5, abs=1e-6), (row["update"], name)


def test_a_card_says_how_far_a_run_is(signed_in: TestClient) -> None:
    (card,) = signed_in.get("/api/runs").json()
    assert card["state"] == "finished" and card["now"] is None and card["left_s"] is None
    assert {"proxy_sft", "proxy_ppo", "kl"} <= set(card["numbers"])


def test_a_run_whose_recipe_says_little_hides_no_other(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: old\n")
    client = browser(studio := Studio([tmp_path, trained], 4000))
    client.get(f"/open/{studio.token}")
    old, new = client.get("/api/runs").json()
    assert (old["state"], new["state"]) == ("stopped", "finished")


def test_what_is_left_is_the_mean_of_the_last_updates(trained: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "times.jsonl", [{"update": 1, "rollout": 2.0, "update_s": 1.0}])
    (tmp_path / "ppo").mkdir()
    shutil.move(tmp_path / "times.jsonl", tmp_path / "ppo/times.jsonl")
    status = {"state": "going on", "now": "ppo", "progress": "update 1 of 5"}
    assert logs._left(tmp_path, status) == pytest.approx(4 * 3.0)


def test_columns_have_a_place_for_every_row_and_the_first_model_only() -> None:
    rows = [{"step": 0, "eval_loss": 1.0}, {"step": 1, "loss": 2, "kind": "x"}, {"step": 1, "member": 1, "loss": 9}]
    assert logs.columns(rows) == {"step": [0, 1], "eval_loss": [1.0, None], "loss": [None, 2]}


def test_rows_are_read_from_the_byte_where_the_last_look_ended(tmp_path: Path) -> None:
    (tmp_path / "ppo").mkdir()
    log = tmp_path / "ppo/metrics.jsonl"
    log.write_text('{"update": 1}\n{"upd')
    rows, end = logs.new_rows(tmp_path, "ppo/metrics.jsonl", 0)
    assert rows == [{"update": 1}] and end == 14
    log.write_text('{"update": 1}\n{"update": 2}\n')
    assert logs.new_rows(tmp_path, "ppo/metrics.jsonl", end)[0] == [{"update": 2}]
    assert logs.new_rows(tmp_path, "ppo/nothing.jsonl", 0) == ([], 0)


def test_two_runs_of_one_name_have_two_addresses(trained: Path, tmp_path: Path) -> None:
    for parent in ("a", "b"):
        (tmp_path / parent / "run").mkdir(parents=True)
        shutil.copy(trained / "recipe.yaml", tmp_path / parent / "run")
    found = logs.known_runs([tmp_path / "a", tmp_path / "b"])
    assert found == {"run": tmp_path / "a/run", "run-2": tmp_path / "b/run"}


def test_a_finding_is_pinned_where_it_began_and_the_range_is_the_doctors(trained: Path, tmp_path: Path) -> None:
    """KL over 30 nats for the mean of three updates: 10, 20, 40, 50 is 36.7 at the seventh update and 23.3 before."""
    (tmp_path / "ppo").mkdir()
    shutil.copy(trained / "recipe.yaml", tmp_path)
    write_json(tmp_path / "manifest.json", {"stages": {}})
    kls = [0, 1, 5, 10, 20, 40, 50, 60, 60, 60]
    write_rows(tmp_path / "ppo/metrics.jsonl", [{"update": u, "kl": k, "score": 0.0} for u, k in enumerate(kls, 1)])
    (found,) = [one for one in findings(tmp_path) if one["name"] == "KL runaway"]
    assert (found["update"], found["column"], found["level"]) == (7, "kl", "symptom")
    assert healthy(tmp_path)["kl"] == (-0.5, 30.0)


def test_every_column_has_a_name_that_people_read(signed_in: TestClient) -> None:
    found = signed_in.get("/api/runs/run/curves").json()
    counters = {"update", "step", "member"}
    assert {name for log in found["logs"].values() for name in log["columns"]} - counters <= NAMES.keys()
    assert found["names"]["l_vf"] == "value loss (squared return)" and name_of("bound_polite") == "bound of polite"


def test_a_run_without_ppo_has_no_findings(trained: Path, tmp_path: Path) -> None:
    shutil.copy(trained / "recipe.yaml", tmp_path)
    assert findings(tmp_path) == []


def test_replies_are_searched_sorted_and_limited(trained: Path) -> None:
    replies = Replies(trained)
    every = replies.updates()["rollout"]
    rows = replies.table("rollout", every, "", "kl", True)["rows"]
    assert [row["kl"] for row in rows] == sorted((row["kl"] for row in rows), reverse=True)
    assert {row["prompt"] for row in rows} <= {row["prompt"] for row in tiny_rows()[0]}  # without the template
    word = rows[0]["reply"].strip()[:4].upper()
    found = replies.table("rollout", every, word, "score", False)
    assert 0 < found["count"] <= len(rows)
    assert all(word.casefold() in (row["prompt"] + row["reply"]).casefold() for row in found["rows"])
    assert replies.table("rollout", every, "no reply says this", "score", True) == {"rows": [], "count": 0}


def test_the_largest_critic_error_names_its_token(trained: Path) -> None:
    """The token that the table names is the one of the largest |return − value| of the reply, by the microscope."""
    replies = Replies(trained)
    for row in replies.rows("rollout", 1):
        tokens = whole_reply(trained, 1, row["sample"])["rows"]
        errors = [abs(token["raw_advantage"]) for token in tokens]
        assert errors[row["critic_error_token"] - 1] == max(errors) == pytest.approx(row["critic_error"], rel=1e-5)


def test_members_of_an_ensemble_disagree_and_other_sources_do_not(tmp_path: Path) -> None:
    """Columns of a function, an ensemble of two and an endpoint; what is watched has none. The members' (3, 30) and
    (1, 20) are (1, 1) and (0, 0.5) by their own moments: 0 and 0.25 apart from their mean."""
    sources = [{"function": "a.py:f"}, {"model": "m", "watch": True}, {"trained": True}, {"endpoint": "http://x"}]
    write_json(tmp_path / "reward/reward.json", {"mean": [1, 10], "std": [2, 20]})
    raw = torch.tensor([[9.0, 3.0, 30.0, 0.0], [5.0, 1.0, 20.0, 7.0]])

    def found(sources: list[dict[str, Any]], raw: torch.Tensor) -> dict[str, Any]:
        write_json(tmp_path / "recipe.yaml", {"ppo": {"rewards": sources}})
        return {name: column.tolist() for name, column in disagreement(tmp_path, raw).items()}

    assert found(sources, raw) == found([], raw[:, 1:3]) == {"disagreement": [0.0, 0.25]}
    assert found([{"trained": True}, {"function": "a.py:f"}], raw[:, :2]) == {}
    assert found([{"function": "a.py:f"}, {"endpoint": "http://x"}], raw[:, :2]) == found([], raw[:, :1]) == {}


def test_one_prompt_is_followed_over_all_updates(signed_in: TestClient, trained: Path) -> None:
    """A rollout's prompt by its tokens: every row that has its words is found, and no other."""
    replies = Replies(trained)
    looks = replies.updates()["validation"]
    path = "/api/runs/run/same?source={}&update={}&sample={}"
    rows = signed_in.get(path.format("validation", looks[0], 1)).json()
    assert [row["update"] for row in rows] == looks
    assert len({row["prompt"] for row in rows}) == 1
    every = [row for update in replies.updates()["rollout"] for row in replies.rows("rollout", update)]
    for asked in every:
        found = signed_in.get(path.format("rollout", asked["update"], asked["sample"])).json()
        same = [row for row in every if row["prompt"] == asked["prompt"]]
        assert [(row["update"], row["sample"]) for row in found] == [(row["update"], row["sample"]) for row in same]
    for refused in (path.format("validation", looks[0], 999), path.format("rollout", 1, 0), path.format("x", 1, 1)):
        assert signed_in.get(refused).status_code == 422


def test_the_calibration_is_that_of_the_report_card(signed_in: TestClient, trained: Path) -> None:
    card = json.loads((trained / "reward/card.json").read_text())["calibration"]
    assert signed_in.get("/api/runs/run/more").json()["calibration"] == {"bins": card["bins"], "ece": card["ece"]}


def test_every_reply_is_counted_in_the_histogram(trained: Path) -> None:
    found = Replies(trained).histogram()
    batch = len(Replies(trained).rows("rollout", 1))
    assert [sum(bins) for bins in found["counts"]] == [batch] * len(found["updates"])


@pytest.mark.parametrize("query", ["update=77", "update=x", "update=1&sort=nothing", "update=1&source=../../etc"])
def test_what_cannot_be_is_said_in_words(signed_in: TestClient, query: str) -> None:
    answer = signed_in.get(f"/api/runs/run/replies?{query}")
    assert answer.status_code == 422 and answer.json()["error"]


def test_a_thousand_updates_of_64_replies_open_in_a_second(trained: Path, tmp_path: Path) -> None:
    """Server time of what the first view asks for: cards, curves, and the replies of the last update."""
    run = many_updates(trained, tmp_path / "run", 1000)
    studio = Studio([run], 4000)
    with browser(studio) as client:
        client.get(f"/open/{studio.token}")
        client.get("/api/runs/run/replies?update=1")  # the tokenizer is loaded once
        started = time.process_time()
        assert len(client.get("/api/runs").json()) == 1
        assert len(client.get("/api/runs/run/curves").json()["logs"]["ppo/metrics.jsonl"]["columns"]["score"]) == 1000
        assert client.get("/api/runs/run/updates").json()["rollout"][-1] == 1000
        assert client.get("/api/runs/run/replies?update=1000").json()["count"] == 64
        assert time.process_time() - started < 1


def test_the_page_is_at_most_300_kb() -> None:
    from plaudit.label.web.shared.render import STATIC as SHARED
    from plaudit.view.studio.server import STATIC

    shared = [SHARED / name for name in ("base.css", "dom.js", "server.js", "numbers.js", "icon.svg")]
    own = [file for file in STATIC.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in [*own, *shared]) < 300_000


def test_live_rows_come_as_events_and_a_cut_log_is_said(trained: Path, tmp_path: Path) -> None:
    import httpx2

    run = many_updates(trained, tmp_path / "run", 3)
    log = run / "ppo/metrics.jsonl"
    with served(run) as (url, studio), httpx2.Client(base_url=url) as client:
        client.get(f"/open/{studio.token}")
        ends = {name: one["end"] for name, one in client.get("/api/runs/run/curves").json()["logs"].items()}
        assert ends["ppo/metrics.jsonl"] == log.stat().st_size
        at = json.dumps(ends)
        with client.stream("GET", "/api/runs/run/live", params={"at": at}, timeout=10) as stream:
            lines = (line for line in stream.iter_lines() if line.startswith(('data: {"log', "event: again")))
            with log.open("a") as handle:
                handle.write('{"update": 4, "score": 7.0}\n')
            began = time.monotonic()
            told: dict[str, Any] = json.loads(next(lines).removeprefix("data: "))
            assert time.monotonic() - began < 2
            assert (told["log"], told["rows"]) == ("ppo/metrics.jsonl", [{"update": 4, "score": 7.0}])
            log.write_text("")
            assert next(lines) == "event: again"
        assert client.get("/api/runs/run/live", params={"at": "[1]"}).status_code == 422
