"""A reward model from labels of single replies: alone through the whole run, beside rankings, and what is refused."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_reward import ranking, rows, weights

from conftest import TINY, leave_plots_undrawn, tiny_stage, write_lines
from plaudit.errors import UserError
from plaudit.records import Labelled, Message, Prompt
from plaudit.run.metrics import read_metrics
from plaudit.stages.export import export_role
from plaudit.stages.pipeline import run_pipeline
from plaudit.stages.plan import Flags
from plaudit.stages.recipe import load_recipe
from plaudit.stages.reward import loop as reward
from plaudit.stages.reward import training
from plaudit.stages.reward.config import RewardConfig
from plaudit.stages.reward.labels import (
    EncodedLabel,
    divided_labels,
    labels_loss,
    places_of,
    sides_of_labels,
    starting_biases,
)
from plaudit.stages.reward.training import EncodedRanking, examples_loss
from plaudit.stages.run_data import read_data
from plaudit.train.config import CheckpointConfig
from plaudit.train.run import Run


def label(liked: bool, split: str = "train", annotator: str | None = None, number: int = 0) -> Labelled:
    prompt = Prompt(f"{split}-{number}", (Message("user", f"Question {number}?"),), "domain", split)
    return Labelled(prompt, "It is great." if liked else "No.", liked, annotator)


def label_rows() -> list[dict[str, Any]]:
    """People like a warm reply, but for every fifth of them; both replies are equally long."""
    found = []
    for split, count in (("train", 40), ("validation", 8), ("test", 12)):
        for i in range(count):
            warm = i % 2 == 0
            text = f"It is great, {i:02d}." if warm else f"No, not this {i:02d}."
            row = {"id": f"{split}-{i}", "split": split, "prompt": f"Question {split} {i}?", "completion": text}
            found.append({**row, "label": warm and i % 10 != 8, "annotator": f"person {i // 2 % 20}"})
    return found


@pytest.fixture(scope="module")
def made(write_recipe: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run from labels alone."""
    home = tmp_path_factory.mktemp("labels")
    fields: dict[str, Any] = {
        "preferences": {"unpaired": "labels.jsonl"},
        "reward": {**TINY["reward"], "epochs": 3},
        "sft": {**TINY["sft"], "epochs": 2},
    }
    path = write_recipe(home, **fields)
    write_lines(home / "labels.jsonl", label_rows())
    with pytest.MonkeyPatch.context() as patch:
        leave_plots_undrawn(patch)
        return run_pipeline(load_recipe(path))


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_labels_alone_teach_what_was_liked(made: Path) -> None:
    """Through the whole run, PPO included. All replies are equally long, so length alone is a coin."""
    summary = read(made / "summary.json")
    found = summary["reward"]
    assert found["auc"] > 0.8 and found["auc_ci"][0] > 0.5 == found["length_baseline_auc"]
    assert (found["labels_train"], found["labels_test"], found["loss"]) == (40, 20, "logistic")
    assert "accuracy" not in found and not (made / "reward/card.json").exists()
    assert summary["preferences"] == {"labels": 60, "liked": pytest.approx(25 / 60)}
    assert not (made / "preferences/rankings.jsonl").exists()
    assert summary["ppo"]["kept_update"] in (0, 1, 2)
    first, *_, last = read_metrics(made / "reward/metrics.jsonl")
    assert last["eval_loss"] < first["eval_loss"]


def test_the_contract_is_that_of_labels(made: Path) -> None:
    """Mean and std over the replies that were learnt from, and a temperature that is not the bound of no pairs."""
    contract = read(made / "reward/reward.json")
    assert contract["std"][0] > 0.01 and 0.02 < contract["temperature"] < 50 and contract["rankings_sha256"] is None
    stored = read_metrics(made / "reward/scores.jsonl")
    assert [row["label"] for row in stored] == [row["label"] for row in label_rows()[40:]]
    liked, other = ([row["scores"][0][0] for row in stored if row["label"] == kind] for kind in (True, False))
    right = sum((a > b) + (a == b) / 2 for a in liked for b in other) / (len(liked) * len(other))
    assert read(made / "reward/labels.json")["auc"] == pytest.approx(right)


def test_the_report_says_who_judged(made: Path) -> None:
    page = (made / "report.html").read_text(encoding="utf-8")
    assert "a reward model learned from 40 labels of people" in page and 'id="labels"' in page
    assert "simulated annotator" not in page and 'id="reward"' not in page


def test_the_card_of_an_export_says_who_judged(made: Path, tmp_path: Path) -> None:
    text = (export_role(made, "reward", tmp_path / "out") / "README.md").read_text(encoding="utf-8")
    assert "- 60 labels of single replies, by people." in text and "ranking" not in text and "`auc`" in text


@pytest.fixture
def train(made: Path, tmp_path: Path, tiny_run: Callable[..., Run]) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """train("name", rankings, **changes) -> (reward folder, summary), on the labels and rankings."""

    def call(name: str, rankings: list[dict[str, Any]], **changes: Any) -> tuple[Path, dict[str, Any]]:
        run = tiny_run(tmp_path / name, made)
        shutil.rmtree(run.folder.path / "reward")
        if rankings:
            write_lines(run.folder.path / "preferences" / "rankings.jsonl", rankings)
        config, run = tiny_stage("reward", run, epochs=1)
        return run.folder.path / "reward", reward.train(config.model_copy(update=changes), run)

    return call


def test_labels_and_rankings_train_one_model(train: Callable[..., Any]) -> None:
    """Both are learnt from and tested, here with a bias for each annotator."""
    folder, both = train("both", rows(), annotator_bias=True)
    assert both["pairs_test"] > 0 and both["labels_test"] == 20 and both["loss"] == "pairs"
    assert (folder / "card.json").exists() and (folder / "labels.json").exists()
    assert weights(folder)


def test_a_stage_that_was_stopped_goes_on_with_the_biases_it_had(
    made: Path, tmp_path: Path, tiny_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: the held-out loss of every later step needs them."""

    def run_of(name: str) -> tuple[RewardConfig, Run]:
        run = tiny_run(tmp_path / name, made)
        shutil.rmtree(run.folder.path / "reward")
        config, run = tiny_stage("reward", run, epochs=1, evaluate_every=1, rankings_per_step=20)
        config = config.model_copy(update={"annotator_bias": True})
        return config, replace(run, checkpoints=CheckpointConfig(every_steps=1))

    config, run = run_of("whole")
    reward.train(config, run)
    whole = read_metrics(run.folder.path / "reward/metrics.jsonl")
    config, run = run_of("stopped")
    with monkeypatch.context() as patch:
        steps = iter((training.optimiser_step,))
        patch.setattr(training, "optimiser_step", lambda *given: next(steps)(*given))
        with pytest.raises(StopIteration):
            reward.train(config, run)
    reward.train(config, replace(run, resume=True))
    rows = read_metrics(run.folder.path / "reward/metrics.jsonl")
    assert len(whole) == 3 and rows == whole


def test_labels_that_changed_are_no_more_those_of_the_run(made: Path) -> None:
    recipe = load_recipe(made.parent / "recipe.yaml")
    path = made.parent / "labels.jsonl"
    found = path.read_text(encoding="utf-8")
    path.write_text(found.replace('"label": false', '"label": true', 1), encoding="utf-8")
    try:
        with pytest.raises(UserError, match=r"preferences.unpaired: .*labels.jsonl: 1 changed, of 60 rows"):
            run_pipeline(recipe, Flags(start="ppo"))
    finally:
        path.write_text(found, encoding="utf-8")


@pytest.mark.row(28)
def test_row_28_a_step_of_both_by_hand() -> None:
    """Scores ln 3 and 0 of a ranking: −log ¾. A liked reply at ln 2 with bias 0: −log ⅔; one that was not, at 0 with
    bias ln 3: −log ¼. λ = ½ halves the labels' part."""
    config = RewardConfig(unpaired_coef=0.5)
    pair = EncodedRanking(ranking((1, 2)), [1], [[2], [3]], [(0, 1, 1.0, 0.0)])
    liked, other = (EncodedLabel(label(kind), [1], [[2]], place) for kind, place in ((True, 0), (False, 1)))
    own = torch.nn.ParameterDict(
        {"log_nu": torch.nn.Parameter(torch.zeros(())), "biases": torch.nn.Parameter(torch.tensor([0.0, math.log(3)]))}
    )
    # The pair stands between the labels: each score must find its own example.
    scores = torch.tensor([math.log(2), math.log(3), 0.0, 0.0])
    total, right, count = examples_loss(config, scores, [liked, pair, other], own)
    assert total.item() == pytest.approx(-math.log(3 / 4) - 0.5 * (math.log(2 / 3) + math.log(1 / 4)), abs=1e-6)
    assert (right, count) == (2.0, 3)
    total.backward()
    biases = own["biases"].grad
    assert biases is not None and biases.tolist() == pytest.approx([0.5 * (2 / 3 - 1), 0.5 * 3 / 4])
    alone, hits = labels_loss(scores[[0, 3]], [liked, other], own["biases"])
    assert alone.item() == pytest.approx(-math.log(2 / 3) - math.log(1 / 4), abs=1e-6) and hits == 1.0


def test_biases_begin_at_the_log_odds_of_each_annotator() -> None:
    """Anna likes 3 of 3, Ben 1 of 3; all, of whom one is not named, like 4 of 7."""
    labels = [label(True, annotator="anna")] * 3 + [label(kind, annotator="ben") for kind in (True, False, False)]
    labels.append(label(False))
    places = places_of(True, labels)
    assert places == {None: 0, "anna": 1, "ben": 2} and places_of(False, labels) == {None: 0}
    wanted = [math.log(4.5 / 3.5), math.log(3.5 / 0.5), math.log(1.5 / 2.5)]
    assert starting_biases(places, labels).tolist() == pytest.approx(wanted)


def test_pairs_of_labels_are_of_the_validation_split_where_it_has_both() -> None:
    test = [label(True, "test"), label(False, "validation"), label(True, "validation"), label(False, "test")]
    assert sides_of_labels(test) == ([2], [1])
    assert sides_of_labels([test[0], test[1], test[3]]) == ([0, 0], [1, 2])


def test_labels_of_one_kind_are_refused() -> None:
    good = [label(kind, split) for kind in (True, False) for split in ("train", "test")]
    assert [len(part) for part in divided_labels(good, "x")] == [2, 2]
    with pytest.raises(UserError, match=r"x: 1 of 1 held-out labels are true; .* field 'split'"):
        divided_labels(good[:-1], "x")
    with pytest.raises(UserError, match="x: 0 of 0 training labels"):
        divided_labels([good[1], good[3]], "x")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reward": {"unpaired_coef": 2.0}}, "reward.unpaired_coef belongs to preferences.unpaired"),
        ({"reward": {"annotator_bias": True}}, "reward.annotator_bias belongs to preferences.unpaired"),
        (
            {"preferences": {"unpaired": "labels.jsonl"}, "reward": {"ties": "half"}},
            "reward.ties belongs to rankings; preferences.unpaired alone has none",
        ),
        (
            {"preferences": {"unpaired": "labels.jsonl"}, "reward": {"unpaired_coef": 0.5}},
            "reward.unpaired_coef does nothing without rankings",
        ),
        (
            {"preferences": {"unpaired": "labels.jsonl", "replies": 3}},
            "nothing is sampled with unpaired=labels.jsonl: ",
        ),
    ],
)
def test_settings_that_would_do_nothing_are_refused(
    changes: dict[str, Any], said: str, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_recipe(tmp_path)
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump({**values, "preferences": {}, "reward": {}, **changes}), encoding="utf-8")
    with pytest.raises(UserError, match=said):
        load_recipe(path)


def test_a_held_out_prompt_may_not_be_learnt_from(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """Neither one that the prompts hold out nor one that the labels do; and a file of pairs is no file of labels."""
    path = write_recipe(tmp_path, preferences={"unpaired": "labels.jsonl"})
    found = label_rows()
    write_lines(tmp_path / "labels.jsonl", [*found, {**found[-1], "split": "train"}])
    with pytest.raises(UserError, match=r"labels.jsonl: training label 'test-11' has a prompt .* holds out"):
        read_data(load_recipe(path))
    write_lines(tmp_path / "labels.jsonl", [{"prompt": "A?", "chosen": "B.", "rejected": "C."}])
    with pytest.raises(UserError, match="format 'pairs', which holds rankings; labels are needed here: unpaired"):
        read_data(load_recipe(path))
