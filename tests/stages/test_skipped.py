"""A run from rankings alone: the model is the SFT model as it is; and what is said of a policy that was not kept."""

import json
from collections.abc import Callable
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from conftest import CPU, TINY, write_lines
from plaudit.models.load import load_model
from plaudit.run.metrics import read_metrics


@pytest.fixture(scope="module")
def ran(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a run without SFT, which has ended."""
    from conftest import command, leave_plots_undrawn

    home = tmp_path_factory.mktemp("skipped")
    pairs = [{"prompt": f"Name {i}.", "chosen": "It is lovely.", "rejected": "No."} for i in range(40)]
    write_lines(home / "pairs.jsonl", pairs)
    values = {key: value for key, value in TINY.items() if key not in ("sft", "preferences")}
    values |= {"model": str(tiny_model()), "folder": str(home / "run"), "sft": {"skip": True}}
    values["data"] = {"prompts": "pairs.jsonl", "validation": 0.2, "test": 0.2}
    values["preferences"] = {"rankings": "pairs.jsonl"}
    values["reward"] = {**TINY["reward"], "epochs": 1}
    values["ppo"] = {**TINY["ppo"], "updates": 1}
    (home / "recipe.yaml").write_text(yaml.safe_dump(values))
    with pytest.MonkeyPatch.context() as patch:
        leave_plots_undrawn(patch)
        assert command("run", home / "recipe.yaml") == 0
    return home / "recipe.yaml"


def page(recipe: Path) -> str:
    return unescape((recipe.parent / "run/report.html").read_text(encoding="utf-8"))


def test_the_sft_model_is_the_model(ran: Path, tiny_model: Callable[..., Path]) -> None:
    run = ran.parent / "run"
    assert json.loads((run / "sft/summary.json").read_text())["skipped"] is True
    one, other = (load_model(str(path), torch.float32, CPU) for path in (tiny_model(), run / "sft/model"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_report_says_who_ranked_and_that_sft_was_left_out(ran: Path) -> None:
    said = " ".join(page(ran).split())
    assert "was left out: the model came as it is; people gave 40 rankings of replies to 40 prompts" in said
    assert "a simulated annotator" not in said
    assert "`plaudit label compare`" not in said and "plaudit label compare</code> asks them" in said
    summary = json.loads((ran.parent / "run/preferences/summary.json").read_text())
    assert (summary["rankings"], summary["prompts"]) == (40, 40)


def test_a_policy_that_was_not_kept_is_not_compared_with_itself(
    ran: Path, plaudit: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch, undrawn: None
) -> None:
    folder = ran.parent / "run"
    summary = json.loads((folder / "ppo/summary.json").read_text())
    (folder / "ppo/summary.json").write_text(json.dumps({**summary, "kept_update": 0}))
    assert plaudit("evaluate", ran).code == 0
    for row in read_metrics(folder / "evaluate/replies.jsonl"):
        assert row["ppo"] == row["sft"]
    done = plaudit("report", ran)
    assert done.code == 0, done.err
    assert "the policy that was kept is the SFT model" in done.out
    assert "kept" in done.out and "the SFT model (no update was better)" in done.out
    assert f"Next: plaudit doctor {folder}" in done.out and "--from ppo ppo.learning_rate=0.005" in done.out
    assert "there is nothing to compare: both columns are the same replies" in page(ran)
