"""`plaudit inspect`: the worked example's numbers through its own code, and real replies against plain arithmetic."""

import base64
import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from plaudit.algo.worked import worked_example
from plaudit.errors import UserError
from plaudit.view.inspect.tokens import inspect_run, token_rows, token_text
from plaudit.view.inspect.whole import as_json
from plaudit.view.studio.alone import reply_page

PPO = {"clip_range": 0.2, "gamma": 0.9, "lam": 0.95}


def one_token(old: float, new: float, advantage: float, value: float = 1.5, reward: float = 5.0) -> dict[str, Any]:
    """A rollout of one reply of one token behind a prompt of one."""
    column = lambda number: torch.tensor([[number, 0.0]], dtype=torch.float64)  # noqa: E731
    return {
        "prompt_lengths_B": torch.tensor([1]),
        "lengths_B": torch.tensor([2]),
        "old_logprobs_BT": column(math.log(old)),
        "new_logprobs_BT": column(math.log(new)),
        "ref_logprobs_BT": column(math.log(old)),
        "kl_BT": column(0.0),
        "rewards_BT": column(reward),
        "values_BT": column(value),
        "returns_BT": column(reward),
        "advantages_BT": column(advantage),
    }


def test_the_worked_example_goes_through_the_same_code() -> None:
    """By hand: Â = 5 − 1.5, r = 0.75/0.60, 1.25·3.5 = 4.375, 1.2·3.5 = 4.2, L_CLIP = 4.2, and the clip binds."""
    (row,) = token_rows(one_token(0.60, 0.75, 3.5), 0, PPO, ["x"])
    assert (row.value, row.reward) == (1.5, 5)
    for name, by_hand in (
        ("raw_advantage", 3.5),
        ("ratio", 1.25),
        ("unclipped", 4.375),
        ("clipped", 4.2),
        ("l_clip", 4.2),
    ):
        assert getattr(row, name) == pytest.approx(by_hand, abs=1e-12)
    assert (row.side, row.cut) == ("above", True)
    numbers = worked_example()
    assert (row.raw_advantage, row.ratio, row.unclipped, row.l_clip) == pytest.approx(
        (numbers.advantage, numbers.ratio, numbers.unclipped, numbers.l_clip), abs=1e-12
    )


@pytest.mark.parametrize(
    ("new", "advantage", "settings", "l_clip", "side", "cut"),
    [
        (0.60, 2.0, {}, 2.0, "inside", False),
        (0.66, 2.0, {}, 2.2, "inside", False),
        (0.75, -2.0, {}, -2.5, "above", False),  # a bad token that became likelier keeps its gradient
        (0.45, 2.0, {}, 1.5, "below", False),  # r = 0.75
        (0.45, -2.0, {}, -1.6, "below", True),
        (0.75, 2.0, {"clip_range_high": 0.3}, 2.5, "inside", False),
        (0.30, -2.0, {"clip_range": 0.6}, -1.0, "inside", False),
        (0.90, -2.0, {"dual_clip": 1.2}, -2.4, "above", True),  # r = 1.5: −3, held at 1.2·Â
    ],
)
def test_which_side_of_the_clip_a_token_fell_and_what_it_gives(
    new: float, advantage: float, settings: dict[str, float], l_clip: float, side: str, cut: bool
) -> None:
    (row,) = token_rows(one_token(0.60, new, advantage), 0, {**PPO, **settings}, ["x"])
    assert row.l_clip == pytest.approx(l_clip, abs=1e-12)
    assert (row.side, row.cut) == (side, cut)


def test_without_new_log_probabilities_every_ratio_is_1() -> None:
    tensors = one_token(0.60, 0.75, 3.5)
    del tensors["new_logprobs_BT"], tensors["values_BT"], tensors["returns_BT"]
    (row,) = token_rows(tensors, 0, PPO, ["x"])
    assert (row.ratio, row.l_clip, row.side, row.cut) == (1, 3.5, "inside", False)
    assert row.value is None and row.raw_advantage is None


@pytest.fixture
def moved(trained: Path, tmp_path: Path) -> Path:
    """The run with new log-probabilities beside the old ones of its second update."""
    folder = shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns(".lock"))
    file = folder / "ppo/rollouts/00002.safetensors"
    tensors = load_file(file)
    noise = 0.3 * torch.randn(tensors["mask_BT"].shape, generator=torch.Generator().manual_seed(1))
    tensors["new_logprobs_BT"] = tensors["old_logprobs_BT"] + noise * tensors["mask_BT"]
    save_file(tensors, file)
    return folder


def test_real_tokens_follow_the_formulas_in_plain_numbers(moved: Path) -> None:
    tensors = load_file(moved / "ppo/rollouts/00002.safetensors")
    count, cuts = 0, 0
    for sample in range(1, 5):
        found = inspect_run(moved, 2, sample)
        start, end = int(tensors["prompt_lengths_B"][sample - 1]), int(tensors["lengths_B"][sample - 1])
        assert len(found.rows) == end - start
        total = 0.0
        for row, t in zip(found.rows, range(start - 1, end - 1), strict=True):
            old, new, advantage, kl = (
                tensors[name][sample - 1, t].item()
                for name in ("old_logprobs_BT", "new_logprobs_BT", "advantages_BT", "kl_BT")
            )
            ratio = math.exp(new - old)
            l_clip = min(ratio * advantage, max(0.8, min(1.2, ratio)) * advantage)
            assert (row.old_logprob, row.new_logprob, row.kl) == pytest.approx((old, new, kl), abs=1e-9)
            assert (row.ratio, row.l_clip) == pytest.approx((ratio, l_clip), abs=1e-9)
            assert row.cut == ((ratio > 1.2 and advantage > 0) or (ratio < 0.8 and advantage < 0))
            total, cuts = total + l_clip, cuts + row.cut
        assert found.mean_l_clip == pytest.approx(total / len(found.rows), abs=1e-9)
        assert found.share == pytest.approx(total / tensors["mask_BT"].sum().item(), abs=1e-9)
        count += len(found.rows)
    assert count == found.update_tokens and cuts > 0


def test_scores_of_several_sources_are_named(trained: Path, tmp_path: Path, plaudit: Callable[..., Any]) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    tensors = load_file(folder / "ppo/rollouts/00002.safetensors")
    raw = tensors["raw_scores_BM"][0].item()
    assert f"Raw score {raw:.3f};" in plaudit("inspect", folder).out
    tensors["raw_scores_BM"] = torch.cat(
        [torch.full_like(tensors["raw_scores_BM"], 7), tensors["raw_scores_BM"]], dim=1
    )
    save_file(tensors, folder / "ppo/rollouts/00002.safetensors")
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["ppo"]["rewards"] = [{"function": "a.py:f"}, {"trained": True}]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert f"Raw score function 7.000, trained {raw:.3f};" in plaudit("inspect", folder).out


def test_the_tokens_spell_the_reply(trained: Path) -> None:
    found = inspect_run(trained)
    assert found.update == 2 and found.sample == 1 and found.has_new
    spelled = (
        "".join(row.text for row in found.rows if not row.text.startswith("<")).replace("·", " ").replace("⏎", "\n")
    )
    assert found.reply.strip() and all(part in spelled for part in re.findall(r"[a-z]+", found.reply))


def test_a_token_is_shown_so_that_it_can_be_read() -> None:
    def shown(text: str) -> str:
        return token_text(SimpleNamespace(decode=lambda ids, skip_special_tokens: text), 7)

    assert [shown(text) for text in (" a b", "\n\t", "", "\ufffd")] == ["·a·b", "⏎⇥", "<7>", "<7>"]


def test_numbers_that_are_not_there_are_said_to_be_missing(trained: Path, tmp_path: Path) -> None:
    for arguments, says in (((9, 1), "there are 1 to 2"), ((1, 5), "replies 1 to 4"), ((1, 0), "replies 1 to 4")):
        with pytest.raises(UserError, match=says):
            inspect_run(trained, *arguments)
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    with pytest.raises(UserError, match="holds no rollout"):
        inspect_run(tmp_path)


def test_rollouts_that_are_damaged_or_of_another_version_are_refused(moved: Path) -> None:
    file = moved / "ppo/rollouts/00002.safetensors"
    tensors = load_file(file)
    del tensors["raw_scores_BM"]
    save_file(tensors, file)
    with pytest.raises(UserError, match="raw_scores_BM is missing"):
        inspect_run(moved, 2)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        inspect_run(moved, 2)


def test_the_command_prints_every_token_and_writes_the_page(
    moved: Path, tmp_path: Path, plaudit: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    page = tmp_path / "reply.html"
    done = plaudit("inspect", moved, "--step", "2", "--sample", "3", "--html", page)
    found = inspect_run(moved, 2, 3)
    assert done.code == 0 and "update 2 (of 1 to 2), reply 3 of 4" in done.out
    for row in found.rows:
        assert re.search(rf"^ *{row.number} .*{re.escape(f'{row.ratio:.3f}')}", done.out, flags=re.MULTILINE)
    assert f"L_CLIP = {found.telling.l_clip:.4f}".replace("-", "−") in done.out
    text = page.read_text(encoding="utf-8")
    assert len(data_of(text)["rows"]) == len(found.rows) and data_of(text)["has_new"]
    assert text.count("<script") == 2 and not re.search(r"https?:|@import|url\(", text)
    stored = moved / "ppo" / "rollouts" / "00001.safetensors"
    save_file({name: x for name, x in load_file(stored).items() if name != "new_logprobs_BT"}, stored)
    done = plaudit("inspect", moved, "--step", "1", "--html", page)
    assert "r is 1" in done.out and not data_of(page.read_text(encoding="utf-8"))["has_new"]
    assert plaudit("inspect", moved, "--step", "7").code == 2


def data_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_hostile_texts_stay_texts(moved: Path) -> None:
    found = inspect_run(moved)
    attack = "</script><script>alert(1)</script><!--"
    rows = (replace(found.rows[0], text=attack), *found.rows[1:])
    page = reply_page(as_json(moved, replace(found, run=attack, prompt=attack, rows=rows)))
    assert "<script>alert" not in page and "<!--" not in page
    assert data_of(page)["prompt"] == data_of(page)["rows"][0]["text"] == attack


def test_the_page_runs_the_one_script_that_its_policy_names(moved: Path) -> None:
    page = reply_page(as_json(moved, inspect_run(moved)))
    script = re.search(r'<script type="module">(.*?)</script>', page, re.DOTALL)
    policy = re.search(r"script-src 'sha256-([^']+)';", page)
    assert script is not None and policy is not None
    assert base64.b64decode(policy[1]) == hashlib.sha256(script[1].encode()).digest()
    assert not re.search(r"^(import|export) ", script[1], re.MULTILINE)
