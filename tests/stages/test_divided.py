"""How the rows of a recipe's files are divided, and that files with other columns and several rankings are read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import tiny_rows, write_lines
from plaudit.data.splits import split_of
from plaudit.errors import UserError
from plaudit.stages.recipe import load_recipe
from plaudit.stages.run_data import RunData, read_data

Read = Callable[..., RunData]


@pytest.fixture
def read(write_recipe: Callable[..., Path], tmp_path: Path) -> Read:
    """read(files={name: rows}, **sections) -> the rows of the tiny recipe with these changes."""

    def build(files: dict[str, list[dict[str, Any]]], *overrides: str, **changes: Any) -> RunData:
        path = write_recipe(tmp_path)
        for name, rows in files.items():
            write_lines(tmp_path / name, rows)
        values = yaml.safe_load(path.read_text())
        for section, keys in changes.items():
            values[section] = {**values.get(section, {}), **keys} if keys is not None else {}
        path.write_text(yaml.safe_dump(values))
        return read_data(load_recipe(path, overrides))

    return build


def without(rows: list[dict[str, str]], *keys: str) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key not in keys} for row in rows]


def unsplit() -> dict[str, list[dict[str, str]]]:
    prompts, demonstrations = tiny_rows()
    return {"prompts.jsonl": without(prompts, "split"), "demonstrations.jsonl": without(demonstrations, "split")}


def test_rows_without_splits_are_divided_by_their_prompts(read: Read, capsys: pytest.CaptureFixture[str]) -> None:
    data = read(unsplit(), "data.validation=0.2", "data.test=0.2")
    assert {prompt.split for prompt in data.prompts} == {"train", "validation", "test"}
    for row in [*data.prompts, *(demonstration.prompt for demonstration in data.demonstrations)]:
        assert row.split == split_of(row.messages, 0.2, 0.2)
    counts = [sum(prompt.split == split for prompt in data.prompts) for split in ("train", "validation", "test")]
    said = "(data.split): {} train, {} validation, {} test".format(*counts)
    assert said in capsys.readouterr().out and sum(counts) == 36


def test_a_file_of_prompts_and_of_ideal_replies_is_told_once(read: Read, capsys: pytest.CaptureFixture[str]) -> None:
    data = read({"both.jsonl": tiny_rows()[1]}, "data.prompts=both.jsonl", "data.demonstrations=both.jsonl")
    assert len(data.prompts) > 0 and len(data.demonstrations) > 0
    assert capsys.readouterr().out.count("both.jsonl: format prompt-completion (detected)") == 1


def test_splits_that_rows_name_stay_unless_auto_is_asked_for(read: Read) -> None:
    named = read({})
    assert [prompt.split for prompt in named.prompts] == [row["split"] for row in tiny_rows()[0]]
    asked = read({}, "data.split=auto", "data.validation=0.2", "data.test=0.2")
    assert [prompt.split for prompt in asked.prompts] == [split_of(p.messages, 0.2, 0.2) for p in named.prompts]
    with pytest.raises(UserError, match=r"data.test does nothing: .*prompts.jsonl names splits"):
        read({}, "data.test=0.3")
    with pytest.raises(UserError, match=r"no prompt has split 'validation'.*data.split=auto"):
        read(unsplit(), "data.split=rows")
    rows = unsplit()
    with pytest.raises(UserError, match=r"no prompt has split '.*'.*1 are too few for it: add rows, or name the split"):
        read({**rows, "prompts.jsonl": rows["prompts.jsonl"][:1]})


def test_peoples_pairs_without_splits_go_where_their_prompts_are(read: Read) -> None:
    prompts = tiny_rows()[0]
    known = [{"prompt": row["prompt"], "chosen": "Yes, gladly.", "rejected": "No."} for row in prompts]
    new = [{"prompt": f"Name thing {i}.", "chosen": "Gladly.", "rejected": "No."} for i in range(40)]
    data = read({"pairs.jsonl": known + new}, preferences=None, reward={})
    assert data.rankings is None
    data = read({"pairs.jsonl": known + new}, "preferences.rankings=pairs.jsonl", preferences=None)
    assert data.rankings is not None
    assert [r.prompt.split for r in data.rankings[:36]] == [row["split"] for row in prompts]
    assert {r.prompt.split for r in data.rankings[36:]} == {"train", "validation"}


def test_several_files_of_rankings_and_columns_of_other_names(read: Read, tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_text(
        "Asked,Good,Bad\n" + "".join(f"Name thing {i}.,Gladly.,No.\n" for i in range(40)), encoding="utf-8"
    )
    pairs = [{"prompt": f"Say word {i}.", "chosen": "Word.", "rejected": "No."} for i in range(40)]
    columns = {"more.csv": {"prompt": "Asked", "chosen": "Good", "rejected": "Bad"}}
    files = {"pairs.jsonl": pairs, **unsplit()}
    data = read(files, "preferences={rankings: [pairs.jsonl, more.csv]}", data={"columns": columns})
    assert data.rankings is not None and len(data.rankings) == 80
    assert data.rankings[40].replies[0].text == "Gladly."
    with pytest.raises(UserError, match=r"data.columns.*'asked' is none of"):
        read(files, data={"columns": {"pairs.jsonl": {"asked": "Asked"}}})


def test_rankings_alone_are_enough_without_sft(read: Read) -> None:
    pairs = [{"prompt": f"Say word {i}.", "chosen": "Word.", "rejected": "No."} for i in range(60) for _ in range(2)]
    changes = {"data": {"prompts": "pairs.jsonl", "demonstrations": None}, "preferences": None}
    files, rankings = {"pairs.jsonl": pairs}, "preferences.rankings=pairs.jsonl"
    with pytest.raises(UserError, match=r"'data.demonstrations' is missing.*sft.skip=true"):
        read(files, rankings, **changes)
    data = read(files, rankings, "sft={skip: true}", **changes)
    assert len(data.prompts) == 60 and len(data.demonstrations) == 0 and len(data.rankings or ()) == 120
    with pytest.raises(UserError, match=r"sft.epochs would do nothing with sft.skip=true"):
        read(files, rankings, "sft={skip: true, epochs: 2}", **changes)
