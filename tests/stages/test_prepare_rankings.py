"""What the rankings of a run lack is said before the first stage, not after preferences."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from conftest import write_lines
from plaudit.errors import UserError
from plaudit.stages import prepare as prepare_module
from plaudit.stages.prepare import prepare
from plaudit.stages.recipe import load_recipe


def pairs(*splits: str) -> list[dict[str, str]]:
    rows = [{"prompt": f"Name thing {i}.", "chosen": f"Thing {i}, gladly.", "rejected": "No."} for i in range(6)]
    return [{**row, **({"split": splits[i % len(splits)]} if splits else {})} for i, row in enumerate(rows)]


@pytest.fixture
def prepared(write_recipe: Callable[..., Path], tmp_path: Path) -> Callable[..., object]:
    def build(*changes: str, rows: list[dict[str, str]] | None = None) -> object:
        path = write_recipe(tmp_path)
        if rows is not None:
            write_lines(tmp_path / "pairs.jsonl", rows)
            values = yaml.safe_load(path.read_text())
            path.write_text(yaml.safe_dump({**values, "preferences": {"rankings": "pairs.jsonl"}}))
        run = prepare(load_recipe(path, changes))
        with run.folder:
            return run

    return build


@pytest.mark.parametrize(("splits", "learnt", "held"), [((), 6, 0), (("test",), 0, 6), (("validation",), 0, 6)])
def test_rankings_of_one_split(
    splits: tuple[str, ...], learnt: int, held: int, prepared: Callable[..., object], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"pairs.jsonl has {learnt} training and {held} held-out.*field 'split'"):
        prepared("data.split=rows", rows=pairs(*splits))
    assert not (tmp_path / "run").exists()


def test_rankings_of_both_splits(prepared: Callable[..., object]) -> None:
    assert prepared(rows=pairs("train", "test"))


def test_settings_that_the_rows_do_not_feed(prepared: Callable[..., object]) -> None:
    both = pairs("train", "test")
    with pytest.raises(UserError, match="soft_labels=true needs votes"):
        prepared("reward.soft_labels=true", rows=both)
    with pytest.raises(UserError, match="margin_coef needs rankings with a strength"):
        prepared("reward.margin_coef=0.5", rows=both)


def test_settings_that_no_annotator_feeds(prepared: Callable[..., object]) -> None:
    with pytest.raises(UserError, match="soft_labels=true needs votes, which only a file"):
        prepared("reward.soft_labels=true")
    with pytest.raises(UserError, match=r"margin_coef=0\.5 needs rankings with a strength"):
        prepared("reward.margin_coef=0.5")


def test_people_without_the_page_that_they_rank_on(
    prepared: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "missing_packages", lambda: ["fastapi"])
    with pytest.raises(UserError, match=r"annotator=human needs fastapi: pip install 'plaudit\[label\]'"):
        prepared("preferences.annotator=human")
    assert prepared()
