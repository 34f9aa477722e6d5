"""A base that two ranks hold together: SFT goes on after a signal, and PPO, whose replies a server samples, leaves the
numbers of one process that holds it all and samples for itself, and the bits of two ranks that each do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import two_ranks
from alike import alike
from fake_vllm import FakeVllm
from safetensors.torch import load_file
from test_fsdp import UNEVEN

from plaudit.rollout.vllm import DRAWS, served_name
from plaudit.run.folder import MANIFEST, sft_files

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def both(trained: Path, write_recipe: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every case in `one` process, `held` by two ranks and `whole` on each of two, and what was
    printed."""
    home = tmp_path_factory.mktemp("held")
    for name in ("one", "held", "whole"):
        two_ranks.prepare(home / name, trained)
    for case in two_ranks.CASES:
        two_ranks.train(home / "one", case)
    for case in (*two_ranks.CASES, two_ranks.STOPPED):
        shutil.copy(trained / MANIFEST, home / "held" / case / "run" / MANIFEST)
    write_recipe(home / "held", sft={**UNEVEN, "epochs": 2})
    server = FakeVllm(trained / "sft/model", served_name(sft_files(trained), DRAWS))
    (home / "held/served.json").write_text(json.dumps({"engine": "vllm", "urls": [server.url]}))
    try:
        for rank, (code, printed) in enumerate(two_ranks.pair("held", home / "held")):
            assert code == 0, printed
            (home / f"printed-{rank}.txt").write_text(printed)
    finally:
        server.stop()
    return home


@pytest.mark.row(10, 14)
@pytest.mark.parametrize("case", two_ranks.CASES)
def test_ppo_on_a_base_that_two_ranks_hold_leaves_the_numbers_of_one(case: str, both: Path) -> None:
    alike(both / "one" / case, both / "held" / case)


@pytest.mark.parametrize("case", two_ranks.CASES)
def test_holding_the_base_together_changes_no_bit(case: str, both: Path) -> None:
    """Of two ranks: so what parts them from one process is the order in which two ranks add, and nothing else."""
    held, whole = both / "held" / case, both / "whole" / case
    tensors = sorted(file.relative_to(whole) for file in whole.rglob("*.safetensors"))
    assert sum("rollouts" in file.parts for file in tensors) == 3
    for file in tensors:
        found, expected = load_file(held / file), load_file(whole / file)
        assert found.keys() == expected.keys(), file
        assert [name for name in expected if not torch.equal(found[name], expected[name])] == [], file
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert (held / "run/ppo" / name).read_bytes() == (whole / "run/ppo" / name).read_bytes(), name


def test_ppo_on_such_a_base_goes_on_after_a_signal_as_if_there_had_been_none(both: Path) -> None:
    plain, stopped = both / "held" / next(iter(two_ranks.CASES)), both / "held" / two_ranks.STOPPED
    for rank in range(2):
        assert "left by 15: ppo is saved" in (both / f"printed-{rank}.txt").read_text()
        state, other = (load_file(home / f"state-{rank}.safetensors") for home in (plain, stopped))
        assert state.keys() == other.keys()
        assert all(torch.equal(state[name], other[name]) for name in state)
    for name in ("metrics.jsonl", "evaluations.jsonl", "adapter/adapter_model.safetensors"):
        assert (stopped / "run/ppo" / name).read_bytes() == (plain / "run/ppo" / name).read_bytes(), name


def test_sft_on_such_a_base_goes_on_after_a_signal_as_if_there_had_been_none(both: Path) -> None:
    """Of two ranks of one machine, `node` is `all`."""
    two, stopped = (both / "held" / name / "sft" for name in ("two", "sft-stopped"))
    for rank in range(2):
        assert "left by 15: sft is saved" in (both / f"printed-{rank}.txt").read_text()
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors", "model/model.safetensors"):
        assert (stopped / name).read_bytes() == (two / name).read_bytes(), name
