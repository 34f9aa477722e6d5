"""A run whose replies servers sample: the same numbers as in-process, resumed and replayed from what was stored."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_vllm import FakeVllm

from plaudit.errors import UserError
from plaudit.rollout import vllm
from plaudit.rollout.vllm import DRAWS, served_name
from plaudit.run.folder import finished_stages, sft_files
from plaudit.run.metrics import read_metrics
from plaudit.stages.recipe import load_recipe


@pytest.fixture(scope="module")
def served(
    trained: Path, write_recipe: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, FakeVllm]]:
    """The recipe of a run that has the stages before preferences of `trained`, and a server of its SFT model."""
    patch = pytest.MonkeyPatch()
    patch.setenv("NO_PROXY", "127.0.0.1")
    server = FakeVllm(trained / "sft/model", served_name(sft_files(trained), DRAWS))
    home = tmp_path_factory.mktemp("served")
    rollout = {"engine": "vllm", "urls": [server.url], "sampler_correction": "tis"}
    recipe = write_recipe(home, rollout=rollout, checkpoints={"every_steps": 1})
    yield recipe, server
    server.stop()
    patch.undo()


@pytest.fixture(scope="module")
def run(served: tuple[Path, FakeVllm], trained: Path) -> Path:
    """That run, from the rankings to the report."""
    from conftest import command

    recipe, _ = served
    assert command("run", recipe, "--from", "preferences", "--copy-from", trained) == 0
    return recipe.parent / "run"


def close(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        for key, value in expected.items():
            close(found[key], value)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)
    else:
        assert found == expected


def test_the_numbers_are_those_of_the_in_process_engine(run: Path, trained: Path) -> None:
    """Rankings, PPO's metrics and the evaluated replies; the correction's weights are 1 where both engines agree."""
    for log in ("preferences/rankings.jsonl", "ppo/metrics.jsonl", "ppo/evaluations.jsonl", "evaluate/replies.jsonl"):
        rows, expected = read_metrics(run / log), read_metrics(trained / log)
        assert len(rows) == len(expected)
        for row, other in zip(rows, expected, strict=True):
            close(row, {key: value for key, value in other.items() if not key.startswith("sampler_")})
    for row in read_metrics(run / "ppo/metrics.jsonl"):
        assert row["sampler_weight"] == pytest.approx(1.0, abs=1e-4)
        assert row["sampler_weight_cut"] == 0.0
        assert row["sampler_gap_mean"] < 1e-5
    assert not any((run / "policies").iterdir()), "adapters that nobody samples any more"


def test_a_replay_gives_every_file_again_without_a_server(
    run: Path, served: tuple[Path, FakeVllm], plaudit: Callable[..., SimpleNamespace]
) -> None:
    asked = len(served[1].sampled)
    done = plaudit("replay", run)
    assert done.code == 0 and "came out the same, bit for bit" in done.out
    assert len(served[1].sampled) == asked
    assert not [*run.parent.glob("run-replay-*")]


@pytest.mark.parametrize("which", ["an update's reply", "a reply of the last look"])
def test_a_replay_that_comes_out_otherwise_says_where(
    which: str, run: Path, plaudit: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    """What the sampler said of one token of the first update changes its correction, so what learns from it; another
    token of the last look, what is written of that."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    files = sorted((copy / "ppo/sampled").glob("*.json"))
    trained_on = {file.stem.rpartition("-")[2] for file in files if "rollout" in file.name}
    (last,) = (file for file in files if file.stem.rpartition("-")[2] not in trained_on)
    stored = last if "look" in which else next(file for file in files if "rollout-00000" in file.name)
    values = json.loads(stored.read_text(encoding="utf-8"))
    _, ids, logprobs = values["replies"][0]
    if stored == last:
        ids[0] = 5 if ids[0] != 5 else 6
    else:
        logprobs[0] -= 0.001
    stored.write_text(json.dumps(values), encoding="utf-8")
    done = plaudit("replay", copy)
    assert done.code == 3
    said = "files of PPO came out otherwise, the first is ppo/" if stored == last else "is not the one that was sampled"
    assert said in done.err


def test_a_run_without_its_server_stops_with_4_and_goes_on_from_what_is_stored(
    run: Path,
    served: tuple[Path, FakeVllm],
    plaudit: Callable[..., SimpleNamespace],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    trained: Path,
) -> None:
    """The server dies in the second update; the run that goes on takes the replies that are there, and leaves the
    files of the unbroken one."""
    recipe, server = served
    monkeypatch.setattr(vllm, "WAIT", 0.05)
    server.sampled.clear()
    looked = len(read_metrics(run / "ppo/validation/00000.jsonl"))
    server.fails, server.comes_back = looked + 4 + looked + 2, False
    changes = [f"folder={tmp_path / 'run'}"]
    done = plaudit("run", recipe, *changes, "--from", "ppo", "--copy-from", run)
    assert done.code == 4 and "start it with `plaudit launch vllm RECIPE`" in done.err
    begun = FakeVllm(trained / "sft/model", server.name)
    done = plaudit("run", recipe, *changes, f"rollout.urls=[{json.dumps(begun.url)}]", "--resume")
    begun.stop()
    assert done.code == 0, done.err
    known, found = (finished_stages(one)["ppo"]["files"] for one in (run, tmp_path / "run"))
    for file in known:
        if file.endswith((".safetensors", ".jsonl")) and file != "ppo/times.jsonl":
            assert found[file] == known[file], file


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": {"stages": {"ppo": None}}}, "lora.stages.ppo=null has not"),
        ({"quantise": "int8"}, "quantise=int8 has not"),
        ({"rounds": {"count": 2, "reference": "last", "start": "last"}}, "rounds.reference=last has not"),
        ({"ppo": {"sampling_copy": False}}, "ppo.sampling_copy=false has not"),
        ({"rollout": {"urls": ["http://127.0.0.1:1"]}}, "would do nothing beside engine=inprocess"),
    ],
)
def test_what_cannot_be_served_is_refused(
    changes: dict[str, Any], message: str, write_recipe: Any, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(write_recipe(tmp_path, **{"rollout": {"engine": "vllm"}, **changes}))
