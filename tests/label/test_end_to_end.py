"""The whole way without a person: three programs rank 120 items over HTTP, and a reward model learns from them."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from zlib import crc32

import numpy as np
import pytest
from annotators import Browser, served
from sqlalchemy import Engine

from conftest import tiny_stage
from plaudit.data.files import read_rankings
from plaudit.label.db.database import writing
from plaudit.label.people import make_invite
from plaudit.label.queue.items import Draft, add_items
from plaudit.records import Completion, Message, Prompt
from plaudit.stages.reward import loop as reward
from plaudit.train.run import Run

THINGS = ("a walk", "a cake", "a song", "the rain", "my shed", "the moon", "a train", "tea")
KINDS = ("It is great and lovely", "The price is good now", "I can not help with it")
"""Best to worst, as everybody sees it who looks closely."""


def drafts() -> list[Draft]:
    """120 items of three replies, in an order that says nothing: 80 to train on, 20 each to validate and to test."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(120):
        replies = [f"{kind} {THINGS[rng.integers(8)]} {number}." for kind in np.array(KINDS)[rng.permutation(3)]]
        asked = Message("user", f"Tell me about {THINGS[number % 8]}, {number}.")
        split = "train" if number < 80 else "validation" if number < 100 else "test"
        prompt = Prompt(f"p{number}", (asked,), "instruction", split)
        made.append(Draft("rank", prompt, tuple(map(Completion, replies)), ("sft",) * 3, overlap=3))
    return made


def annotator(seed: int, noise: float) -> Callable[[list[str]], dict[str, list[int]]]:
    """Ranks by what the reply begins with. The noise is of the person and the reply: who asks when, and in which order
    the replies are shown, changes nothing."""

    def seen(html: str) -> float:
        place = next(n for n, kind in enumerate(KINDS) if kind in html)
        return place + noise * np.random.default_rng([seed, crc32(html.encode())]).normal()

    def judge(shown: list[str]) -> dict[str, list[int]]:
        places = [seen(html) for html in shown]
        return {"ranks": [1 + sum(other < own for other in places) for own in places]}

    return judge


def test_three_annotators_over_http_train_a_reward_model_that_beats_chance(
    database: Callable[[], Engine],
    tmp_path: Path,
    tiny_run: Callable[..., Run],
    trained: Path,
    plaudit: Callable[..., SimpleNamespace],
) -> None:
    engine = database()
    where = engine.url.database
    assert add_items(engine, drafts()) == (120, 0)
    names = ("ann", "bo", "cy")
    with writing(engine) as connection:
        tokens = [make_invite(connection, name, "annotator") for name in names]

    def work(port: int, name: str, token: str, seed: int) -> int:
        browser = Browser(port)
        browser.take_invite(token, f"a long password of {name}")
        return browser.label_all(annotator(seed, noise=0.6))

    with served(engine) as port, ThreadPoolExecutor(3) as pool:
        assert list(pool.map(work, [port] * 3, names, tokens, range(3))) == [120] * 3

    done = plaudit("label", "export", "--database", where, "--to", tmp_path / "rankings.jsonl")
    assert done.code == 0, done.err
    rankings = read_rankings(tmp_path / "rankings.jsonl")
    assert len(rankings) == 360
    assert {ranking.annotator for ranking in rankings} == set(names)

    run = tiny_run(tmp_path / "run", trained)
    shutil.rmtree(run.folder.path / "reward")
    # Who was quicker decides the order of the ledger; training must not hear of it.
    lines = sorted(
        (tmp_path / "rankings.jsonl").read_text().splitlines(),
        key=lambda line: [json.loads(line)[key] for key in ("id", "annotator")],
    )
    (run.folder.path / "preferences" / "rankings.jsonl").write_text("".join(f"{line}\n" for line in lines))
    summary = reward.train(*tiny_stage("reward", run, epochs=1, rankings_per_micro_batch=4))
    assert summary["accuracy_ci"][0] > max(0.55, summary["length_baseline_accuracy"])
    assert summary["rankings_train"] >= 230

    told = plaudit("label", "stats", "--database", where, "--json")
    assert told.code == 0, told.err
    assert '"given": 360' in told.out


@pytest.mark.parametrize("noise", [0.0])
def test_an_annotator_without_noise_ranks_as_told(noise: float) -> None:
    """The judge above, by hand: the shown order does not matter."""
    judge = annotator(0, noise)
    assert judge(["<p>I can not help with it tea 1.</p>", "<p>It is great and lovely tea 1.</p>"]) == {"ranks": [2, 1]}
