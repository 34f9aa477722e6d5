"""The whole tiny recipe, end to end, through the public interface: what it leaves, resuming, and sameness."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import LITTLE, TINY, command, leave_plots_undrawn
from plaudit.data.files import read_rankings
from plaudit.data.hashes import sha256
from plaudit.errors import UserError
from plaudit.models.load import load_tokenizer
from plaudit.run.folder import STAGES
from plaudit.run.metrics import read_metrics
from plaudit.stages.evaluate import loop as evaluate
from plaudit.stages.pipeline import run_pipeline
from plaudit.stages.plan import Flags, plan_of
from plaudit.stages.prepare import prepare
from plaudit.stages.recipe import load_recipe

MODEL = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
ADAPTER = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors")
LEFT = {
    "sft": (*ADAPTER, *(f"model/{name}" for name in MODEL), "metrics.jsonl", "summary.json"),
    "preferences": ("rankings.jsonl", "preferences.jsonl", "summary.json"),
    "reward": (
        *ADAPTER,
        *(f"model/{name}" for name in MODEL),
        "head.safetensors",
        "reward.json",
        "metrics.jsonl",
        "card.json",
        "summary.json",
    ),
    "ppo": (
        *ADAPTER,
        *(f"model/{name}" for name in MODEL),
        "value_head/head.safetensors",
        "metrics.jsonl",
        "evaluations.jsonl",
        "times.jsonl",
        "rollouts/00001.safetensors",
        "rollouts/00002.safetensors",
        "summary.json",
    ),
    "evaluate": ("replies.jsonl", "summary.json"),
}
# What a seed decides; manifest, environment and times hold the clock.
DECIDED = (
    "sft/adapter/adapter_model.safetensors",
    "sft/model/model.safetensors",
    "sft/metrics.jsonl",
    "preferences/rankings.jsonl",
    "reward/adapter/adapter_model.safetensors",
    "reward/head.safetensors",
    "reward/reward.json",
    "reward/metrics.jsonl",
    "ppo/adapter/adapter_model.safetensors",
    "ppo/metrics.jsonl",
    "ppo/evaluations.jsonl",
    "ppo/rollouts/00001.safetensors",
    "ppo/rollouts/00002.safetensors",
    "ppo/model/model.safetensors",
    "evaluate/replies.jsonl",
    "evaluate/summary.json",
)


def hashes(folder: Path) -> dict[str, str]:
    return {name: sha256(folder / name) for name in DECIDED}


def mtimes(folder: Path, stages: tuple[str, ...]) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for s in stages for p in (folder / s).rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def whole(write_recipe: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went through all six stages, each by its own command. Read only; its plots are not drawn."""
    recipe = write_recipe(tmp_path_factory.mktemp("whole"))
    with pytest.MonkeyPatch.context() as patch:
        leave_plots_undrawn(patch)
        for stage in STAGES:
            assert command(stage, recipe) == 0, stage
    return recipe.parent / "run"


def test_every_file_is_there(whole: Path) -> None:
    for stage, names in LEFT.items():
        for name in names:
            assert (whole / stage / name).stat().st_size > 0, f"{stage}/{name}"
    for name in ("recipe.yaml", "environment.json", "manifest.json", "summary.json", "report.html"):
        assert (whole / name).stat().st_size > 0, name
    assert not list(whole.rglob("*.part*")), "something was left half-written"
    assert not list(whole.rglob("*.bin")), "pickle"


def test_the_manifest_names_every_file(whole: Path) -> None:
    stages = json.loads((whole / "manifest.json").read_text())["stages"]
    assert tuple(stages) == STAGES
    for stage in LEFT:
        on_disk = {str(p.relative_to(whole)): sha256(p) for p in (whole / stage).rglob("*") if p.is_file()}
        assert stages[stage]["files"] == on_disk
        assert stages[stage]["seconds"] > 0


def test_the_summary(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    for stage in LEFT:
        assert summary[stage] == json.loads((whole / stage / "summary.json").read_text())
    assert summary["sft"]["eval_loss_after"] < summary["sft"]["eval_loss_before"]
    assert summary["preferences"]["rankings"] == 36
    assert summary["preferences"]["replies"] == 3 * 36
    assert 0 <= summary["reward"]["accuracy"] <= 1
    assert summary["ppo"]["updates"] == 2
    evaluated = summary["evaluate"]
    assert (evaluated["prompts"], evaluated["replies"]) == (6, 6)
    for name in ("gold", "proxy", "length", "ref_nll", "eos", "repeated_trigrams", "distinct_bigrams", "declines"):
        assert {f"{name}_sft", f"{name}_ppo"} <= set(evaluated), name
    assert {"gold_gain", "gold_gain_ci", "win_rate", "win_rate_ci", "kl"} <= set(evaluated)
    assert evaluated["gold_gain"] == pytest.approx(evaluated["gold_ppo"] - evaluated["gold_sft"])


def test_the_report_is_one_file(trained: Path) -> None:
    page = (trained / "report.html").read_text()
    assert "<script" not in page
    assert 'src="http' not in page
    assert 'href="http' not in page


def test_splits_stay_apart(whole: Path) -> None:
    """Evaluation saw the test prompts alone, preferences all three splits, PPO no held-out prompt."""
    replies = read_metrics(whole / "evaluate" / "replies.jsonl")
    assert {row["split"] for row in replies} == {"test"}
    assert {row["kind"] for row in replies} == {"instruction", "domain", "safety"}
    rankings = read_rankings(whole / "preferences" / "rankings.jsonl")
    assert [sum(r.prompt.split == split for r in rankings) for split in ("train", "validation", "test")] == [24, 6, 6]


def test_preferences_are_the_strict_pairs_of_the_rankings(whole: Path) -> None:
    rankings = read_rankings(whole / "preferences" / "rankings.jsonl")
    pairs = []
    for ranking in rankings:
        graded = list(zip(ranking.replies, ranking.ranks, strict=True))
        pairs += [(a.text, b.text) for a, x in graded for b, y in graded if x < y]
    rows = read_metrics(whole / "preferences" / "preferences.jsonl")
    assert sorted((r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in rows) == sorted(pairs)


@pytest.mark.row(21)
def test_row_21_every_model_keeps_the_chat_template(whole: Path) -> None:
    """Row 21: the exported tokenizers write the same conversation, ids for ids."""
    tokenizers = [load_tokenizer(str(whole / stage / "model")) for stage in ("sft", "reward", "ppo")]
    turns = [{"role": "user", "content": "Tell me about tea."}]
    ids = [t.apply_chat_template(turns, add_generation_prompt=True, return_dict=False) for t in tokenizers]
    assert ids[0] == ids[1] == ids[2]
    assert len({t.eos_token_id for t in tokenizers}) == 1


def test_rerunning_is_refused(whole: Path) -> None:
    before = hashes(whole)
    recipe = whole.parent / "recipe.yaml"
    with pytest.raises(UserError, match=r"already holds this run; continue it with --resume, .* with --from auto"):
        run_pipeline(load_recipe(recipe))
    with pytest.raises(UserError, match=r"already holds another run, which differs in ppo.gamma: 1.0 -> 0.9"):
        run_pipeline(load_recipe(recipe, ["ppo.gamma=0.9"]), Flags(resume=True))
    with pytest.raises(UserError, match="already holds another run, which differs in seed: 0 -> 1"):
        run_pipeline(load_recipe(recipe, ["seed=1"]))
    assert hashes(whole) == before


@pytest.mark.parametrize("which", ["../recipe.yaml", "recipe.yaml"], ids=["the recipe", "the run's own recipe"])
def test_resume_skips_what_has_ended(which: str, whole: Path, undrawn: None) -> None:
    """Also with the resolved recipe in the run folder, which is a recipe itself and says the same run."""
    before = mtimes(whole, STAGES)
    assert run_pipeline(load_recipe(whole / which), Flags(resume=True)) == whole
    assert mtimes(whole, STAGES) == before
    assert (whole / "report.html").is_file()
    assert tuple(json.loads((whole / "manifest.json").read_text())["stages"]) == STAGES


def test_a_runs_own_recipe_is_of_the_folder_it_lies_in(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run begun as runs/mine, asked for from another working directory and after it was moved; and what was a run's
    recipe, copied out of it, is a recipe like any other."""
    run, moved = tmp_path / "runs/mine", tmp_path / "moved/mine"
    run.mkdir(parents=True)
    stated = yaml.safe_load((whole / "recipe.yaml").read_text()) | {"folder": "runs/mine"}
    (run / "recipe.yaml").write_text(yaml.safe_dump(stated))
    shutil.copy(whole / "environment.json", run)
    monkeypatch.chdir(tmp_path)
    assert load_recipe(Path("runs/mine/recipe.yaml")).run_folder == Path("runs/mine")
    assert load_recipe(run / "recipe.yaml", ["folder=runs/other"]).run_folder == Path("runs/other")
    monkeypatch.chdir(run)
    assert load_recipe(Path("recipe.yaml")).run_folder == run
    monkeypatch.chdir("/")
    assert load_recipe(run / "recipe.yaml").run_folder == run
    shutil.copytree(run, moved)
    assert load_recipe(moved / "recipe.yaml").run_folder == moved
    assert load_recipe(Path(shutil.copy(run / "recipe.yaml", tmp_path))).run_folder == Path("runs/mine")


def test_the_resolved_recipe_has_every_default(whole: Path) -> None:
    resolved = yaml.safe_load((whole / "recipe.yaml").read_text())
    assert resolved["ppo"]["clip_range"] == 0.2
    assert resolved["ppo"]["updates"] == TINY["ppo"]["updates"]
    assert Path(resolved["data"]["prompts"]).is_absolute()


def test_the_same_seed_gives_the_same_run(whole: Path, trained: Path) -> None:
    """Two runs in two folders, one stage by stage and one in one go: weights, metrics and replies are bit-identical."""
    assert hashes(whole) == hashes(trained)


def test_another_seed_gives_another_run(
    write_recipe: Callable[..., Path], tmp_path: Path, trained: Path, undrawn: None
) -> None:
    other = run_pipeline(load_recipe(write_recipe(tmp_path, seed=1)), Flags(only=STAGES[:4]))
    for name in DECIDED:
        if not name.startswith("evaluate/"):
            assert sha256(other / name) != sha256(trained / name), name


@pytest.fixture
def finished(trained: Path, tmp_path: Path) -> tuple[Path, str]:
    """The folder of a copy of a finished run, and the override that puts its recipe there."""
    folder = shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns(".lock"))
    return folder, f"folder={folder}"


@pytest.mark.parametrize("start", ["sft", "reward", "ppo"])
def test_from_runs_a_stage_and_those_after_it_again(
    start: str, finished: tuple[Path, str], trained: Path, plaudit: Callable[..., Any], undrawn: None
) -> None:
    folder, there = finished
    at = STAGES.index(start)
    earlier, later = mtimes(folder, STAGES[:at]), mtimes(folder, STAGES[at:])
    assert plaudit("run", trained.parent / "recipe.yaml", there, "--from", start).code == 0
    assert mtimes(folder, STAGES[:at]) == earlier
    again = mtimes(folder, STAGES[at:])
    assert again.keys() == later.keys()
    assert all(again[name] > later[name] for name in later), "not everything was made again"
    assert hashes(folder) == hashes(trained)


def test_a_later_stage_may_be_run_again_with_other_settings(
    finished: tuple[Path, str], trained: Path, plaudit: Callable[..., Any], undrawn: None
) -> None:
    """The sections of the stages that run again may change, and the folder's recipe says what was done."""
    folder, there = finished
    recipe = trained.parent / "recipe.yaml"
    assert plaudit("run", recipe, there, "ppo.gamma=0.5", "--from", "ppo").code == 0
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["ppo"]["gamma"] == 0.5
    changed = {name for name, digest in hashes(folder).items() if digest != hashes(trained)[name]}
    assert "ppo/metrics.jsonl" in changed
    assert all(name.startswith(("ppo/", "evaluate/")) for name in changed)
    refused = plaudit("run", recipe, there, "sft.epochs=1", "--from", "ppo")
    assert (refused.code, "differs in sft.epochs: 6 -> 1" in refused.err) == (2, True)


def test_a_run_that_was_stopped_goes_on_to_the_same_end(
    write_recipe: Callable[..., Path], tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None
) -> None:
    """Stopped half-way in a stage: the stage is not in the manifest, and resuming makes the unbroken run's files."""
    recipe = load_recipe(write_recipe(tmp_path))

    def stop(*_: object) -> None:
        (tmp_path / "run" / "evaluate").mkdir(exist_ok=True)
        (tmp_path / "run" / "evaluate" / "rubbish").write_text("half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "compare", stop)
        with pytest.raises(KeyboardInterrupt):
            run_pipeline(recipe)
    assert tuple(json.loads((tmp_path / "run/manifest.json").read_text())["stages"]) == STAGES[:4]
    kept = mtimes(tmp_path / "run", STAGES[:4])
    folder = run_pipeline(recipe, Flags(resume=True))
    assert mtimes(folder, STAGES[:4]) == kept
    assert not (folder / "evaluate" / "rubbish").exists()
    assert hashes(folder) == hashes(trained)


def test_peoples_rankings_take_the_place_of_the_annotator(
    write_recipe: Callable[..., Path], tmp_path: Path, trained: Path, undrawn: None
) -> None:
    """A file of rankings instead of simulated ones: no gold score anywhere, and the rest runs as before."""
    recipe = write_recipe(tmp_path, preferences={"rankings": "rankings.jsonl"}, ppo=LITTLE["ppo"])
    (tmp_path / "rankings.jsonl").write_text((trained / "preferences/rankings.jsonl").read_text())
    folder = run_pipeline(load_recipe(recipe))
    summary = json.loads((folder / "summary.json").read_text())
    assert not [key for section in ("preferences", "evaluate") for key in summary[section] if key.startswith("gold")]
    assert sha256(folder / "reward/head.safetensors") == sha256(trained / "reward/head.safetensors")
    assert (folder / "report.html").stat().st_size > 0


def test_two_processes_cannot_write_one_run(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path))
    first = prepare(recipe)
    with first.folder, pytest.raises(UserError, match="in use by another process"):
        prepare(recipe, plan_of(recipe, set(), set(), Flags(resume=True)))


def test_in_bfloat16_every_guard_holds(write_recipe: Callable[..., Path], tmp_path: Path, undrawn: None) -> None:
    recipe = write_recipe(tmp_path, **{**LITTLE, "ppo": TINY["ppo"]}, dtype="bfloat16")
    folder = run_pipeline(load_recipe(recipe), Flags(only=STAGES[:5]))
    assert read_metrics(folder / "ppo" / "metrics.jsonl")[0]["kl"] == 0
