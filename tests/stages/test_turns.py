"""The template against the rows, before the first stage; and the day that a run began on, later."""

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import normalizers
from transformers.utils import chat_template_utils

from conftest import CHATML, LITTLE, make_model, make_tokenizer, write_lines
from plaudit.data.chat import ChatFormat
from plaudit.data.table import DemonstrationTable
from plaudit.errors import UserError
from plaudit.models.load import load_tokenizer
from plaudit.records import Demonstration, Message, Prompt
from plaudit.rewards.saved import files_of, template_hash
from plaudit.run.display import console
from plaudit.stages import turns
from plaudit.stages.pipeline import run_pipeline
from plaudit.stages.plan import Flags
from plaudit.stages.prepare import prepare
from plaudit.stages.recipe import load_recipe
from plaudit.stages.run_data import RunData

DATED = "{{ 'Today: ' + strftime_now('%d %b %Y') + '\n' }}" + CHATML
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def model_with(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], str]:
    """model_with(template) -> a folder of a tiny model whose tokenizer has it."""

    def build(template: Any) -> str:
        folder = tmp_path_factory.mktemp("models") / "model"
        tokenizer = make_tokenizer(template=template)
        make_model("llama", len(tokenizer)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return build


def on(day: dt.date, patch: pytest.MonkeyPatch) -> None:
    """That day, as templates and runs see it."""

    class Clock(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> "Clock":
            return cls(day.year, day.month, day.day)

    class Today(dt.date):
        @classmethod
        def today(cls) -> "Today":
            return cls(day.year, day.month, day.day)

    patch.setattr(chat_template_utils, "datetime", Clock)
    patch.setattr(turns.dt, "date", Today)


def rows_with(path: Path, number: int, **changes: Any) -> None:
    """The rows of a file with one of them changed."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows[number] |= changes
    write_lines(path, rows)


def refusal(recipe: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as refused:
        prepare(load_recipe(recipe, overrides))
    return str(refused.value)


@pytest.mark.row(33)
def test_row_33_a_run_goes_on_with_the_day_it_began_on(
    write_recipe: Write,
    model_with: Callable[[Any], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undrawn: None,
) -> None:
    """SFT one day, the reward model the next: nothing is refused, and every export has the first day
    in its own template. The reward model is taken a year later."""
    recipe = write_recipe(tmp_path, model=model_with(DATED), **LITTLE)
    with monkeypatch.context() as patch:
        on(dt.date(2026, 3, 7), patch)
        run_pipeline(load_recipe(recipe), Flags(only=("sft",)))
    assert yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())["data"]["template_kwargs"] == {
        "strftime_now": "2026-03-07"
    }
    on(dt.date(2026, 3, 8), monkeypatch)
    run_pipeline(load_recipe(recipe), Flags(resume=True))
    on(dt.date(2027, 3, 8), monkeypatch)
    for folder in ("sft/model", "reward/model", "ppo/model"):
        tokenizer = load_tokenizer(str(tmp_path / "run" / folder))
        turns_ = [{"role": "user", "content": "Hi"}]
        assert tokenizer.apply_chat_template(turns_, tokenize=False).startswith("Today: 07 Mar 2026\n"), folder
    found = files_of(tmp_path / "run/reward", tmp_path / "run/sft/model")
    assert found.contract.template_sha256 == template_hash(ChatFormat(load_tokenizer(str(tmp_path / "run/sft/model"))))


def test_a_pinned_day_is_every_runs(write_recipe: Write, model_with: Callable[[Any], str], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, model=model_with(DATED))
    run = prepare(load_recipe(recipe, ["data.template_kwargs={strftime_now: 2025-12-24}"]))
    chat = run.chat(run.model)
    assert "Today: 24 Dec 2025\n" in chat.tokenizer.decode(chat.prompt_ids(run.prompts[0].messages))
    run.folder.__exit__(None, None, None)


def test_a_template_file_is_part_of_what_a_stage_was_made_with(write_recipe: Write, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    (tmp_path / "own.jinja").write_text(CHATML.replace("You are tiny.", "' + tone + '"), encoding="utf-8")
    settings = ["data.chat_template=own.jinja", "data.template_kwargs={tone: kind}"]
    with (run := prepare(load_recipe(recipe, settings))).folder:
        chat = run.chat(run.model)
        assert "kind" in chat.tokenizer.decode(chat.prompt_ids(run.prompts[0].messages))
    (tmp_path / "own.jinja").write_text(CHATML.replace("You are tiny.", "' + tone + '!"), encoding="utf-8")
    with (again := prepare(load_recipe(recipe, settings))).folder:
        assert again.made_with["data"]["chat_template"] != run.made_with["data"]["chat_template"]


SYSTEM = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hm?"}]


@pytest.mark.parametrize("number", [0, 35], ids=["train", "test"])
@pytest.mark.parametrize("file", ["prompts.jsonl", "demonstrations.jsonl"])
def test_a_role_that_the_template_refuses_is_found_with_its_row(
    file: str, number: int, write_recipe: Write, model_with: Callable[[Any], str], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, model=model_with(NO_SYSTEM + CHATML))
    rows_with(tmp_path / file, number, id="odd", prompt=SYSTEM)
    said = refusal(recipe)
    assert f"{tmp_path / file}: row 'odd': " in said
    assert "refuses the turns system, user: System role not supported" in said
    assert not (tmp_path / "run").exists()


def test_a_role_in_peoples_rankings_is_found_too(
    write_recipe: Write, model_with: Callable[[Any], str], tmp_path: Path
) -> None:
    pairs = [
        {"split": s, "prompt": f"Name {s} {i}.", "chosen": "A tree.", "rejected": "No."}
        for s in ("train", "test")
        for i in range(4)
    ]
    recipe = write_recipe(tmp_path, model=model_with(NO_SYSTEM + CHATML), preferences={"rankings": "pairs.jsonl"})
    write_lines(tmp_path / "pairs.jsonl", [*pairs, {**pairs[0], "id": "odd", "prompt": SYSTEM}])
    assert f"{tmp_path / 'pairs.jsonl'}: row 'odd': " in refusal(recipe)


def test_a_template_that_strips_makes_two_replies_one(
    write_recipe: Write, model_with: Callable[[Any], str], tmp_path: Path
) -> None:
    pair = {"split": "train", "prompt": "Name one.", "chosen": "Yes.", "rejected": "Yes.\n"}
    right = [
        {"split": split, "prompt": f"Name {split}.", "chosen": "Yes.", "rejected": "No."} for split in ("train", "test")
    ]
    recipe = write_recipe(
        tmp_path,
        model=model_with(CHATML.replace("message['content']", "message['content'] | trim")),
        preferences={"rankings": "pairs.jsonl"},
    )
    write_lines(tmp_path / "pairs.jsonl", [pair, *right])
    assert "row '1': replies 1 and 2 (of a pair: chosen and rejected)" in refusal(recipe)


def test_a_thought_in_a_demonstration_that_the_template_cuts(
    write_recipe: Write, model_with: Callable[[Any], str], tmp_path: Path
) -> None:
    cuts = CHATML.replace("message['content'] +", "message['content'].split('</think>')[-1] +")
    recipe = write_recipe(tmp_path, model=model_with(cuts))
    rows_with(tmp_path / "demonstrations.jsonl", 3, id="thought", completion="<think>\nHm.\n</think>\n\nYes.")
    said = refusal(recipe)
    assert "row 'thought': a reply holds '</think>'" in said
    assert "data.chat_template" in said


def test_earlier_turns_that_cannot_be_learnt_are_found_before_sft(
    write_recipe: Write, model_with: Callable[[Any], str], tmp_path: Path
) -> None:
    forgets = CHATML.replace(
        "message['content'] + '<|im_end|>'",
        "(message['content'] if loop.last or message['role'] != 'assistant' else '...') + '<|im_end|>'",
    )
    recipe = write_recipe(tmp_path, model=model_with(forgets))
    asked = [
        {"role": "user", "content": "A?"},
        {"role": "assistant", "content": "B."},
        {"role": "user", "content": "C?"},
    ]
    rows_with(tmp_path / "demonstrations.jsonl", 3, id="long", prompt=asked)
    assert "row 'long': " in refusal(recipe, "sft.learn=all")


def test_ignored_keys_of_messages_are_counted_in_a_run(
    write_recipe: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path)
    asked = [{"role": "user", "content": "Hm?", "name": "Ann"}]
    rows_with(tmp_path / "prompts.jsonl", 3, prompt=asked)
    said = refusal(recipe)
    assert f"{tmp_path / 'prompts.jsonl'}:4: field 'prompt': a message has the key 'name'" in said
    assert "data.ignore_message_keys" in said
    with prepare(load_recipe(recipe, ["data.ignore_message_keys=[name]"])).folder:
        assert "ignored in messages: 'name' (1)" in capsys.readouterr().out


def test_a_tokenizer_that_folds_case_makes_two_replies_one(
    write_recipe: Write, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("models") / "model"
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    make_model("llama", len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    recipe = write_recipe(tmp_path, model=str(folder), preferences={"rankings": "pairs.jsonl"})
    pair = {"prompt": "Name one.", "chosen": "A tree.", "rejected": "A Tree."}
    held_out = {"prompt": "Name another.", "chosen": "A tree.", "rejected": "No.", "split": "test"}
    write_lines(tmp_path / "pairs.jsonl", [{**pair, "rejected": "a tree"}, {**pair, "id": "same"}, held_out])
    assert "row 'same': replies 1 and 2" in refusal(recipe)


def test_rows_longer_than_the_model_was_trained_on_are_counted(write_recipe: Write, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    model = make_model("llama", len(tokenizer))
    model.config.max_position_embeddings = 64
    model.save_pretrained(tmp_path / "short")
    tokenizer.save_pretrained(tmp_path / "short")
    recipe = write_recipe(tmp_path, model=str(tmp_path / "short"))
    rows_with(tmp_path / "prompts.jsonl", 0, prompt="Tell me about " + ", ".join(["a walk"] * 20))
    with console.capture() as shown, prepare(load_recipe(recipe)).folder:
        pass
    assert "1 of the rows have more tokens than the 64 positions it was trained on" in " ".join(shown.get().split())


def test_texts_that_the_tokenizer_cannot_write_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = make_tokenizer()
    rows = [
        Demonstration(Prompt(str(i), (Message("user", "Hm?"),), "kind", "train"), reply)
        for i, reply in enumerate(("It is fine.", "all is well.", "Olé!", "so it is."))
    ]
    data = RunData([], DemonstrationTable.of(rows), {}, None, None)
    turns.say_changed(ChatFormat(tokenizer), data)
    assert capsys.readouterr().out == ""
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    turns.say_changed(ChatFormat(tokenizer), data)
    said = " ".join(capsys.readouterr().out.split())
    assert "changes 50% of the replies" in said and "('It is fine.' becomes 'it is fine.')" in said
