"""Kill it anywhere, resume it, and every later bit is the same: SHA-256 of what runs leave that were killed again and
again, against runs that were not."""

import hashlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_vllm import FakeVllm

from conftest import TINY
from plaudit.rollout.vllm import DRAWS, served_name
from plaudit.run.folder import sft_files
from plaudit.run.metrics import read_metrics

STAGES = ("sft", "preferences", "reward", "ppo", "evaluate")
# What holds seconds or memory, or where the run lies (megabytes: an adapter's file names the folder of its base).
TIMED = (
    "manifest.json",
    "environment.json",
    "times.json",
    "times.jsonl",
    "summary.json",
    "recipe.yaml",
)
SECONDS = (
    "tokens_per_second",
    "seconds_per_member",
    "pairs_per_second",
    "seconds_per_update",
    "megabytes_per_member",
)
PPO = {
    **TINY["ppo"],
    "updates": 4,
    "batch_size": 4,
    "minibatch_size": 2,
    "micro_batch_size": 1,
    "epochs": 2,
    "evaluate_every": 2,
    "kl_target": 0.5,
    "kl_horizon": 8,
    "score_scale": "running",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {**TINY["sft"], "epochs": 2},
    "reward": {**TINY["reward"], "epochs": 1, "members": 2, "rankings_per_step": 8},
    "preferences": TINY["preferences"],
    "ppo": PPO,
}
CHECKPOINTS = {"every_steps": 1}
KINDS = ("backward", "sample", "score", "step", "write", "fsync", "replace")


class Killer:
    """Runs and kills, through killing.py; `kills` counts what died, `where` names the event it died in."""

    def __init__(self, home: Path):
        home.mkdir()
        script = Path(__file__).with_name("killing.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.where: list[str] = []
        self.cpu_s: list[float] = []
        assert "ready" in self._line()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        assert text, "the warm process died"
        return json.loads(text)

    def run(self, recipe: Path, overrides: list[str], *options: str, **kill: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        told = {"recipe": str(recipe), "overrides": overrides, "options": options, **kill}
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()
        answer = self._line()
        self.cpu_s.append(answer["cpu_s"])
        if answer["signal"] == 9:
            self.where.append(answer["events"][-1] if answer["events"] else "start")
        return answer

    def until_done(self, recipe: Path, overrides: list[str], draw: Callable[[], dict[str, Any]], most: int) -> int:
        """Resume and kill, `draw` saying where, at most `most` times, then let it end; the number of kills."""
        kills = 0
        while True:
            answer = self.run(recipe, overrides, "--resume", **(draw() if kills < most else {}))
            if answer["signal"] == 9:
                kills += 1
                continue
            assert answer["code"] == 0, answer["said"]
            return kills

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def killer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killer]:
    made = Killer(tmp_path_factory.mktemp("killer") / "home")
    yield made
    made.close()


def left(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of all that a seed decides: weights, optimiser, metrics, replies, rollouts, state."""
    found = {}
    for stage in STAGES:
        saved = folder / stage / "checkpoints"
        steps = sorted(one.name for one in saved.iterdir() if one.name.isdigit())
        for file in sorted((folder / stage).rglob("*")):
            older = saved in file.parents and any(step in file.parts for step in steps[:-1])
            inner = saved in file.parents and file.name == "manifest.json"  # it lists times.json
            if file.is_file() and file.name not in TIMED and not older and not inner:
                # An adapter names the folder of its base, which may be of the round before.
                run = folder.parent if folder.name.startswith("round-") else folder
                there = file.read_bytes().replace(str(run).encode(), b"RUN")
                found[str(file.relative_to(folder))] = hashlib.sha256(there).hexdigest()
        summary = json.loads((folder / stage / "summary.json").read_text())
        exact = {name: value for name, value in summary.items() if name not in SECONDS}
        found[f"{stage}/summary.json"] = hashlib.sha256(json.dumps(exact, sort_keys=True).encode()).hexdigest()
    return found


def same(folder: Path, unbroken: Path, stages: tuple[str, ...] = STAGES) -> None:
    ours, theirs = (
        {name: found for name, found in left(one).items() if name.startswith(stages)} for one in (folder, unbroken)
    )
    different = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
    assert different == []
    for kind in ("state.json", "tensors-0000.safetensors", "metrics.jsonl", "model.safetensors"):
        assert any(name.startswith("ppo/") and name.endswith(kind) for name in ours), kind


@pytest.fixture(scope="module")
def unbroken(
    killer: Killer, write_recipe: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """The folder of a whole run that nobody killed, and its events. A critic on the policy."""
    home = tmp_path_factory.mktemp("unbroken")
    recipe = write_recipe(home, **SETTINGS, checkpoints=CHECKPOINTS)
    answer = killer.run(recipe, [])
    assert answer["code"] == 0, answer["said"]
    return home / "run", answer["events"]


OWN = "ppo.critic=own"


def from_ppo_on(unbroken: Path, to: Path) -> Path:
    """A copy of a run whose PPO stage has not begun."""
    shutil.copytree(unbroken, to, ignore=shutil.ignore_patterns(".lock", "ppo", "evaluate"))
    manifest = json.loads((to / "manifest.json").read_text())
    kept = {name: entry for name, entry in manifest["stages"].items() if name in STAGES[:3]}
    (to / "manifest.json").write_text(json.dumps({"stages": kept}))
    return to


def kill_all_over(
    killer: Killer,
    unbroken: tuple[Path, list[str]],
    home: Path,
    seed: int,
    whole: int,
    own: int,
    first: tuple[str, ...] = ("backward",),
) -> list[str]:
    """A whole run killed in each of the events `first`, which no draw is sure to hit, and about `whole` times more, and
    one with a critic of its own about `own` times; where they died."""
    folder, events = unbroken
    recipe, drawn = folder.parent / "recipe.yaml", random.Random(seed)
    died = len(killer.where)

    def draw(gap: int) -> Callable[[], dict[str, Any]]:
        return lambda: {"kill_at": drawn.randint(1, gap)}

    overrides = [f"folder={home / 'whole'}"]
    for number, name in enumerate(first):
        killer.run(recipe, overrides, *["--resume"][:number], kill_in=name)
    killer.until_done(recipe, overrides, draw(2 * len(events) // whole), 2 * whole)
    same(home / "whole", folder)

    plain, broken = from_ppo_on(folder, home / "plain"), from_ppo_on(folder, home / "broken")
    answer = killer.run(recipe, [f"folder={plain}", OWN], "--resume")
    assert answer["code"] == 0, answer["said"]
    killer.until_done(recipe, [f"folder={broken}", OWN], draw(2 * len(answer["events"]) // own), 2 * own)
    same(broken, plain)
    assert (broken / "ppo/critic/adapter_model.safetensors").is_file()
    where = killer.where[died:]
    cost = f"{len(killer.cpu_s)} processes, {sum(killer.cpu_s):.0f} s of a core so far"
    print(f"{len(where)} kills: { {name: where.count(name) for name in sorted(set(where))} }; {cost}")
    return where


@pytest.mark.row(27)
def test_row_27_killed_anywhere_a_run_ends_as_the_unbroken_one(
    killer: Killer, unbroken: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """Row 27: with an adaptive KL coefficient, a running scale, accumulation, a shared critic and one of its own; and
    the coefficient and the scale do move."""
    died = kill_all_over(killer, unbroken, tmp_path, seed=1, whole=8, own=7)
    assert len(died) >= 20, died
    assert "backward" in died and {"write", "fsync", "replace"} & set(died), "in a gradient, and in a save"
    coefs = [row["kl_coef"] for row in read_metrics(unbroken[0] / "ppo/metrics.jsonl")]
    assert len(set(coefs)) == len(coefs) == PPO["updates"]
    for folder in ("whole", "broken"):
        rows = read_metrics(tmp_path / folder / "ppo/metrics.jsonl")
        assert [row["update"] for row in rows] == [1, 2, 3, 4], "a step is missing or stands twice"
        assert [row["update"] for row in read_metrics(tmp_path / folder / "ppo/times.jsonl")] == [1, 2, 3, 4]


@pytest.mark.row(27)
def test_row_27_killed_while_servers_sample_the_next_update_it_ends_as_the_unbroken_one(
    killer: Killer, unbroken: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """`rollout.lag: 1`: in a training under way of which replies are asked for, between these and the checkpoint that
    counts on them, and anywhere else in PPO; what servers sampled is compared too."""
    folder, drawn = unbroken[0], random.Random(4)
    server = FakeVllm(folder / "sft/model", served_name(sft_files(folder), DRAWS))
    served = f"rollout={{engine: vllm, urls: ['{server.url}'], sampler_correction: tis, lag: 1}}"
    runs = {name: [f"folder={from_ppo_on(folder, tmp_path / name)}", served] for name in ("plain", "broken")}
    recipe = folder.parent / "recipe.yaml"
    try:
        answer = killer.run(recipe, runs["plain"], "--resume")
        assert answer["code"] == 0, answer["said"]
        died, most = len(killer.where), len(answer["events"]) // 4
        killer.run(recipe, runs["broken"], "--resume", kill_in="backward")  # which no draw is sure to hit
        killer.until_done(recipe, runs["broken"], lambda: {"kill_at": drawn.randint(1, most)}, 12)
    finally:
        server.stop()
    # Evaluation keeps replies as servers bring them, in any order.
    same(tmp_path / "broken", tmp_path / "plain", STAGES[:4])
    where = killer.where[died:]
    assert len(where) >= 6 and "backward" in where, where
    rows = read_metrics(tmp_path / "broken/ppo/metrics.jsonl")
    assert [(row["update"], row["lag"]) for row in rows] == [(1, 0), (2, 1), (3, 1), (4, 1)]


def kill_in_a_round(
    killer: Killer,
    unbroken: tuple[Path, list[str]],
    home: Path,
    kills: int,
    changes: str = "{count: 2}",
    first: str = "",
) -> list[str]:
    """A second round of the unbroken run, and one that is killed about `kills` times, and before them where `first`
    happens first; where that died."""
    recipe, drawn, died = unbroken[0].parent / "recipe.yaml", random.Random(kills), len(killer.where)
    runs = {name: [f"folder={home / name}", f"rounds={changes}"] for name in ("plain", "broken")}
    for name in runs:
        shutil.copytree(unbroken[0], home / name, ignore=shutil.ignore_patterns(".lock"))
    answer = killer.run(recipe, runs["plain"], "--resume")
    assert answer["code"] == 0, answer["said"]
    gap = 2 * len(answer["events"]) // kills
    if first:
        killer.run(recipe, runs["broken"], "--resume", kill_at=answer["events"].index(first) + 1)
    killer.until_done(recipe, runs["broken"], lambda: {"kill_at": drawn.randint(1, gap)}, 2 * kills)
    same(home / "broken/round-2", home / "plain/round-2")
    same(home / "broken", home / "plain")
    return killer.where[died:]


def test_a_round_killed_between_and_in_its_steps_ends_as_the_unbroken_one(
    killer: Killer, unbroken: tuple[Path, list[str]], tmp_path: Path
) -> None:
    assert len(kill_in_a_round(killer, unbroken, tmp_path, 3)) >= 3


@pytest.mark.slow
def test_rounds_killed_all_over(killer: Killer, unbroken: tuple[Path, list[str]], tmp_path: Path) -> None:
    ways = {"sample": "{count: 2}", "backward": "{count: 2, start: last, reference: last, earlier: 0.5}"}
    for first, changes in ways.items():
        died = kill_in_a_round(killer, unbroken, tmp_path / first, 20, changes, first)
        assert len(died) >= 20 and died[0] == first, died


@pytest.mark.slow
def test_two_hundred_kills(killer: Killer, unbroken: tuple[Path, list[str]], tmp_path: Path) -> None:
    died: list[str] = []
    seed = 100
    while len(died) < 200:
        died += kill_all_over(killer, unbroken, tmp_path / str(seed), seed=seed, whole=15, own=15, first=KINDS)
        seed += 1
    assert set(KINDS) <= set(died)


def test_the_events_are_what_they_are_said_to_be(unbroken: tuple[Path, list[str]]) -> None:
    """The injector sees every part of every stage: else a kill there would prove nothing."""
    folder, events = unbroken
    ppo = PPO["updates"] * PPO["epochs"] * PPO["batch_size"]
    assert events.count("backward") >= ppo
    saved = [row["stage"] for row in read_metrics(folder / "saves.jsonl")]
    steps = {stage: saved.count(stage) for stage in STAGES}
    assert min(steps.values()) >= 2, steps
    assert events.count("step") == steps["sft"] + steps["reward"] + PPO["updates"] * PPO["epochs"] * 2
    assert events.count("write") >= 3 * sum(steps.values())  # state, times, manifest
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["checkpoints"]["every_steps"] == 1
