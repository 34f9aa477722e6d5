"""The whole way without a person: three programs rank 120 items over HTTP, and a reward model learns from them."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from annotators import Browser, served
from sqlalchemy import Engine

from conftest import TINY
from plaudit.data.files import read_rankings
from plaudit.label.db.database import writing
from plaudit.label.db.people import make_invite
from plaudit.label.queue.items import Draft, add_items
from plaudit.records import Completion, Message
from plaudit.stages.reward import loop as reward
from plaudit.stages.reward.config import RewardConfig
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
        split = "train" if number < 80 else "validation" if number < 100 else "test"
        made.append(
            Draft(
                "rank",
                (Message("user", f"Tell me about {THINGS[number % 8]}, {number}."),),
                tuple(map(Completion, replies)),
                ("sft",) * 3,
                prompt_id=f"p{number}",
                split=split,
                overlap=3,
            )
        )
    return made


def annotator(seed: int, noise: float) -> Callable[[list[str]], dict[str, list[int]]]:
    """Ranks by what the reply begins with, with noise."""
    rng = np.random.default_rng(seed)

    def judge(shown: list[str]) -> dict[str, list[int]]:
        place = [next(n for n, kind in enumerate(KINDS) if kind in html) for html in shown]
        seen = np.array(place) + rng.normal(0, noise, len(shown))
        return {"ranks": [1 + int((seen < own).sum()) for own in seen]}

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
    counts: dict[str, int] = {}

    def work(port: int, name: str, token: str, seed: int) -> None:
        browser = Browser(port)
        browser.take_invite(token, f"a long password of {name}")
        counts[name] = browser.label_all(annotator(seed, noise=0.6))

    with served(engine) as port:
        threads = [
            threading.Thread(target=work, args=(port, name, token, seed))
            for seed, (name, token) in enumerate(zip(names, tokens, strict=True))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert counts == dict.fromkeys(names, 120)

    done = plaudit("label", "export", "--database", where, "--to", tmp_path / "rankings.jsonl")
    assert done.code == 0, done.err
    rankings = read_rankings(tmp_path / "rankings.jsonl")
    assert len(rankings) == 360
    assert {ranking.annotator for ranking in rankings} == set(names)

    run = tiny_run(tmp_path / "run", trained)
    shutil.rmtree(run.folder.path / "reward")
    shutil.copyfile(tmp_path / "rankings.jsonl", run.folder.path / "preferences" / "rankings.jsonl")
    summary = reward.train(RewardConfig(**{**TINY["reward"], "epochs": 1}), run)
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
