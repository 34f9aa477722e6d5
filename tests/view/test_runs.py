"""`plaudit status`, `compare` and `clean`."""

import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plaudit.data.files import write_json, write_rows
from plaudit.data.hashes import sha256
from plaudit.run.clean import reclaimable
from plaudit.view.compare import compare
from plaudit.view.status import status_of

Plaudit = Callable[..., SimpleNamespace]


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(trained, tmp_path / "runs/tiny"))


def test_status_of_runs(copied: Path, plaudit: Plaudit) -> None:
    whole = status_of(copied)
    assert (whole["state"], whole["now"]) == ("finished", None)
    assert whole["bytes"] == sum(file.stat().st_size for file in copied.rglob("*") if file.is_file())
    # PPO has not ended: killed after its first update, then going on in another process.
    manifest = json.loads((copied / "manifest.json").read_text())
    for stage in ("ppo", "evaluate", "report"):
        del manifest["stages"][stage]
    write_json(copied / "manifest.json", manifest)
    rows = (copied / "ppo/metrics.jsonl").read_text().splitlines()
    (copied / "ppo/metrics.jsonl").write_text(rows[0] + "\n")
    before = (copied / ".lock").read_bytes()
    found = status_of(copied)
    assert (found["state"], found["now"], found["progress"]) == ("stopped", "ppo", "update 1 of 2")
    assert found["ended"] == ["sft", "preferences", "reward"] and (copied / ".lock").read_bytes() == before
    with (copied / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (found,) = json.loads(plaudit("status", copied.parent, "--json").out)
        assert found["state"] == "going on"
        refused = plaudit("clean", copied, "--yes")
        assert refused.code == 2 and "is in use by another process" in refused.err
    assert "no run of Plaudit is here" in plaudit("status", copied / "sft").err


def test_a_recipe_that_says_little_has_a_status_too(tmp_path: Path, plaudit: Plaudit) -> None:
    """One written by hand, beside which lies what a stage of it logged."""
    (tmp_path / "ppo").mkdir()
    (tmp_path / "recipe.yaml").write_text("name: mine\nppo: {kl_coef: 0.1}\n")
    write_json(
        tmp_path / "manifest.json", {"stages": {name: {"seconds": 60.0} for name in ("sft", "preferences", "reward")}}
    )
    write_rows(tmp_path / "ppo/metrics.jsonl", [{"update": 3}])
    found = status_of(tmp_path)
    assert (found["state"], found["now"], found["progress"], found["minutes"]) == ("stopped", "ppo", "update 3", 3.0)
    (tmp_path / "recipe.yaml").write_text("name: mine\n")
    assert plaudit("status", tmp_path).code == 0


def finished(folder: Path, golds: list[float | None], texts: list[str]) -> Path:
    """As much of a finished run as a comparison reads: two prompts with two replies each."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(f"name: {folder.name}\nppo: {{kl_coef: {len(texts[0]) / 10}}}\n")
    (folder / "evaluate").mkdir()
    rows: list[dict[str, Any]] = []
    for place, (gold, text) in enumerate(zip(golds, texts, strict=True)):
        sft = {"text": "s", "finished": True, "gold": None if gold is None else 0.5}
        reply = {"text": text, "finished": place != 0, "gold": gold}
        rows.append({"id": str(place // 2), "prompt": f"p{place // 2}", "sft": sft, "ppo": reply})
    write_rows(folder / "evaluate/replies.jsonl", rows)
    write_json(folder / "summary.json", {"evaluate": {"kl": 1.0}, "ppo": {"updates": 2}, "seconds": {"sft": 60.0}})
    return folder


def test_two_runs_are_compared_prompt_by_prompt(tmp_path: Path, plaudit: Plaudit) -> None:
    one = finished(tmp_path / "one", [0.0, 0.2, 0.4, 0.6], ["a", "bb", "ccc", "dddd"])
    other = finished(tmp_path / "other", [0.5, 0.5, 0.5, 0.5], ["aaaa"] * 4)
    found = compare(one, other)
    assert found["recipe"] == ["ppo.kl_coef: 0.1 -> 0.4"]
    # Prompt 0: 0.1 against 0.5; prompt 1: 0.5 against 0.5. Two have no interval, six that differ alike have.
    gold = found["differences"]["gold score of PPO"]
    assert gold["difference"] == pytest.approx(0.2) and gold["ci"] is None
    assert found["differences"]["gold score gained over SFT"]["difference"] == pytest.approx(0.2)
    assert found["differences"]["characters a PPO reply"]["difference"] == pytest.approx((2.5 + 0.5) / 2)
    assert found["differences"]["PPO's replies that end"] == {"difference": 0.0, "ci": None}
    done = plaudit("compare", one, other)
    assert done.code == 0 and "The second minus the first, on 2 test prompts of both" in done.out
    six, others = (
        finished(tmp_path / "six", [0.0, 0.2] * 6, ["a"] * 12),
        finished(tmp_path / "7", [0.5] * 12, ["a"] * 12),
    )
    assert compare(six, others)["differences"]["gold score of PPO"]["ci"] == pytest.approx([0.4, 0.4])


def test_runs_without_gold_or_without_an_end(tmp_path: Path, plaudit: Plaudit) -> None:
    one = finished(tmp_path / "one", [None] * 4, ["a"] * 4)
    other = finished(tmp_path / "other", [0.5] * 4, ["a"] * 4)
    assert "gold score of PPO" not in compare(one, other)["differences"]
    (one / "summary.json").unlink()
    done = plaudit("compare", one, other)
    assert done.code == 2 and "the run has not ended" in done.err


def test_what_may_go_goes_and_comes_back(copied: Path, plaudit: Plaudit, tmp_path: Path) -> None:
    (copied / "sft/model.part-7").mkdir()
    (copied / "before/ppo").mkdir(parents=True)
    weights = copied / "reward/model/model.safetensors"
    before, size = sha256(weights), weights.stat().st_size
    listed = plaudit("clean", copied)
    assert "nothing was deleted" in listed.out and weights.is_file()
    assert [str(one.path.relative_to(copied)) for one in reclaimable(copied, rollouts=True, before=True)] == [
        "reward/model/model.safetensors",
        "ppo/rollouts",
        "before",
        "sft/model.part-7",
    ]
    assert plaudit("clean", copied, "--yes").code == 0
    assert not weights.exists() and not (copied / "sft/model.part-7").exists()
    assert (copied / "before/ppo").is_dir() and (copied / "ppo/rollouts").is_dir()
    manifest = json.loads((copied / "manifest.json").read_text())["stages"]
    assert "reward/model/model.safetensors" not in manifest["reward"]["files"]
    assert "reward/model/config.json" in manifest["reward"]["files"] and size > 0
    # An export, a report and a resume need nothing of it.
    done = plaudit("export", copied, "--role", "reward", "--to", tmp_path / "reward")
    assert done.code == 0, done.err
    assert sha256(tmp_path / "reward/model.safetensors") == before


def test_a_cleaned_run_goes_on(copied: Path, trained: Path, plaudit: Plaudit, undrawn: None) -> None:
    assert plaudit("clean", copied, "--rollouts", "--yes").code == 0
    done = plaudit("run", trained.parent / "recipe.yaml", f"folder={copied}", "--resume")
    assert done.code == 0, done.err
    done = plaudit("run", trained.parent / "recipe.yaml", f"folder={copied}", "--from", "evaluate")
    assert done.code == 0, done.err
