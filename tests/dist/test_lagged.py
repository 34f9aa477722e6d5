"""Two ranks whose replies a server samples an update ahead (`rollout.lag: 1`) leave the numbers of one process."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import two_ranks
from alike import alike
from fake_vllm import FakeVllm
from safetensors.torch import load_file

from plaudit.rollout.vllm import DRAWS, served_name
from plaudit.run.folder import MANIFEST, sft_files
from plaudit.run.metrics import read_metrics

pytestmark = pytest.mark.slow


@pytest.mark.row(10, 14)
def test_two_ranks_with_a_lag_leave_the_numbers_of_one_and_go_on_after_a_signal(trained: Path, tmp_path: Path) -> None:
    case, server = next(iter(two_ranks.CASES)), FakeVllm(trained / "sft/model", served_name(sft_files(trained), DRAWS))
    rollout = {"engine": "vllm", "urls": [server.url], "sampler_correction": "tis", "lag": 1}
    for name in ("one", "two"):
        two_ranks.prepare(tmp_path / name, trained)
        (tmp_path / name / "served.json").write_text(json.dumps(rollout))
        for one in (case, two_ranks.STOPPED):
            shutil.copy(trained / MANIFEST, tmp_path / name / one / "run" / MANIFEST)
    try:
        two_ranks.train(tmp_path / "one", case)
        done = two_ranks.pair("lagged", tmp_path / "two")
    finally:
        server.stop()
    assert [code for code, _ in done] == [0, 0], done
    one, two, stopped = tmp_path / "one" / case, tmp_path / "two" / case, tmp_path / "two" / two_ranks.STOPPED
    assert [row["lag"] for row in read_metrics(two / "run/ppo/metrics.jsonl")] == [0, 1, 1]
    alike(one, two)
    for rank, (_, printed) in enumerate(done):
        assert "left by 15: ppo is saved" in printed
        state, other = (load_file(home / f"state-{rank}.safetensors") for home in (two, stopped))
        assert state.keys() == other.keys()
        assert all(torch.equal(state[name], other[name]) for name in state)
    for name in ("metrics.jsonl", "evaluations.jsonl", "adapter/adapter_model.safetensors"):
        assert (stopped / "run/ppo" / name).read_bytes() == (two / "run/ppo" / name).read_bytes(), name
