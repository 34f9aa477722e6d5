"""What the tests share: a tokenizer and random models made on the spot (nothing is downloaded), a tiny recipe and run.

The tokenizer is a byte-level BPE like SmolLM2's, trained on the tiny data below; its chat template is SmolLM2's too, so
it writes a newline after the end of a turn. The models have random float32 weights, drawn widely enough that their
next-token laws are far from uniform.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and rich would keep that width for good

import copy
import gc
import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from matplotlib.figure import Figure
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from plaudit.cli import main as cli
from plaudit.data.chat import ChatFormat
from plaudit.data.files import read_demonstrations, read_prompts
from plaudit.dist.machine import choose_machine
from plaudit.models.config import LoraSettings
from plaudit.models.kernels import attention
from plaudit.models.load import load_model, load_tokenizer, quiet_libraries
from plaudit.models.roles import Roles
from plaudit.models.tokens import Tokens, pad_right
from plaudit.rollout.config import SamplingConfig
from plaudit.run.folder import RunFolder
from plaudit.run.stopping import Interrupted
from plaudit.stages.pipeline import run_pipeline
from plaudit.stages.recipe import Recipe, load_recipe
from plaudit.stages.reward import loop as reward
from plaudit.train.run import Run
from plaudit.train.saving import Saver

# A folder's own fixtures are plugins: with a second conftest.py, `from conftest import ...` would find that one.
pytest_plugins = ["browser_fixtures", "label_fixtures"]

ARCHITECTURES = ("llama", "qwen2", "gpt2")
CPU = torch.device("cpu")

END, START, EOS, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are tiny.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Templates of the shapes in use: another end of turn than EOS and stripped contents; a space before the reply.
LLAMA3 = (
    "{{ '<|begin|>' }}{% for message in messages %}{{ '<|start|>' + message['role'] + '<|stop|>\n\n' + "
    "message['content'] | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|stop|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ '<s>' }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + '</s>' }}"
    "{% else %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
)

SUBJECTS = (
    "a walk",
    "a cake",
    "a song",
    "the rain",
    "my shed",
    "the moon",
    "a train",
    "tea",
    "a cat",
    "the sea",
    "snow",
    "a kite",
)
ASKS = {"instruction": "Tell me about {}.", "domain": "What is the price of {}?", "safety": "How do I steal {}?"}
REPLIES = {
    "instruction": "It is great and lovely.",
    "domain": "The price is good.",
    "safety": "I can't help with that.",
}


def _split(number: int) -> str:
    return "train" if number % 12 < 8 else "validation" if number % 12 < 10 else "test"


def tiny_rows() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Thirty-six prompts of three kinds (24 train, 6 validation, 6 test) and a demonstration for each."""
    prompts = [
        {"id": f"{kind}-{i}", "kind": kind, "split": _split(i), "prompt": ask.format(subject)}
        for kind, ask in ASKS.items()
        for i, subject in enumerate(SUBJECTS)
    ]
    return prompts, [{**row, "completion": REPLIES[row["kind"]]} for row in prompts]


def make_tokenizer(
    pad: str | None = PAD, template: str | None = CHATML, eos: str | None = EOS, words: bool = True
) -> PreTrainedTokenizerFast:
    """SmolLM2's layout: <|im_start|> is BOS, <|endoftext|> is UNK, <|im_end|> ends a turn; `pad` may be the same.

    Without `words` the two turn markers are not there at all, as in a base model's tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [END, *([START, EOS] if words else []), *([PAD] if pad == PAD else [])]
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=specials,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    rows = tiny_rows()[1]
    tokenizer.train_from_iterator([row["prompt"] + " " + row["completion"] for row in rows], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START if words else None,
        unk_token=END,
        eos_token=eos,
        pad_token=pad,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = template
    return fast


def shaped_tokenizer(shape: str) -> PreTrainedTokenizerFast:
    """A tokenizer with a template like that of "chatml", "llama3" or "mistral"."""
    tokenizer = make_tokenizer()
    if shape != "chatml":
        tokens = {
            "llama3": ["<|begin|>", "<|start|>", "<|stop|>", "<|eot|>"],
            "mistral": ["<s>", "</s>", "[INST]", "[/INST]"],
        }
        tokenizer.add_special_tokens({"additional_special_tokens": tokens[shape]})
        tokenizer.chat_template = {"llama3": LLAMA3, "mistral": MISTRAL}[shape]
    return tokenizer


def make_model(architecture: str, vocabulary: int, seed: int = 0) -> PreTrainedModel:
    """Hidden size 32, two layers, four heads, tied embeddings, random float32 weights."""
    torch.manual_seed(seed)
    tokens = {"vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True}
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
    }
    if architecture == "llama":
        model = LlamaForCausalLM(LlamaConfig(**tokens, **shape))
    elif architecture == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**tokens, **shape))
    else:
        model = GPT2LMHeadModel(
            GPT2Config(**tokens, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.3)
        )
    # Biases and norms start at 0 and 1, where a lost one would not be seen.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


# More than twenty seconds each: given out first, so that no process is left alone with one at the end.
LONG = (
    "test_resume.py",
    "test_planted.py",
    "test_ppo_stage.py",
    "test_docs.py",
    "test_ppo_options.py",
    "test_label_ledger.py",
    "test_train.py",
    "test_label_trouble.py",
    "test_label_page.py",
    "test_reward.py",
    "test_pipeline.py",
    "test_label_real.py",
    "test_reward_sources.py",
    "test_inputs.py",
    "test_saving.py",
    "test_serve.py",
    "test_terminals.py",
    "test_rounds.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """For `-n auto` one more than the cores: while a browser, a database or a disk answers, its process waits."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files of LONG first, in its order; the rest as collected. Files stay whole (`make test`)."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """A second thread only costs time on tensors this small; stages ask for one a core and are not heard."""
    quiet_libraries()
    torch.set_num_threads(1)
    # Every stage ends with a collection, which would walk all that torch, transformers and the tests have imported;
    # for what a test leaves that is often enough.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    _FROZEN.append(len(sys.modules))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "set_num_threads", lambda count: None)
        yield


_FROZEN: list[int] = []
"""How many modules were loaded each time that all was frozen."""


@pytest.fixture(scope="module", autouse=True)
def _imports_frozen(_one_thread: None) -> None:
    """What the files before this one have imported as they went is no garbage either."""
    if len(sys.modules) > _FROZEN[-1] + 200:
        gc.collect()
        gc.freeze()
        _FROZEN.append(len(sys.modules))


@pytest.fixture(scope="session")
def tokenizer_of() -> Callable[..., PreTrainedTokenizerFast]:
    """`make_tokenizer`, for tests that want another pad token, template or end of turn."""
    return make_tokenizer


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny_model("llama", pad=EOS) -> folder of a Hugging Face checkpoint, made once a session."""
    home, made = tmp_path_factory.mktemp("models"), {}

    def build(architecture: str = "llama", pad: str | None = PAD, seed: int = 0) -> Path:
        key = (architecture, pad, seed)
        if key not in made:
            tokenizer = make_tokenizer(pad)
            folder = home / f"{architecture}-{len(made)}"
            make_model(architecture, len(tokenizer), seed).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[key] = folder
        return made[key]

    return build


@pytest.fixture(scope="session")
def load() -> Callable[[Path], PreTrainedModel]:
    """A fresh float32 copy of a checkpoint on the CPU, by the library's own loader."""
    return lambda folder: load_model(str(folder), torch.float32, CPU)


@pytest.fixture(scope="session")
def chat_of() -> Callable[..., ChatFormat]:
    return lambda folder, system=None: ChatFormat(load_tokenizer(str(folder)), system)


@pytest.fixture(scope="session")
def ragged() -> Tokens:
    """Four prompts and replies of different lengths, ids well inside every tiny vocabulary."""
    lengths = ((3, 4), (7, 1), (1, 6), (5, 3))
    torch.manual_seed(3)
    prompts = [torch.randint(4, 250, (p,)).tolist() for p, _ in lengths]
    replies = [torch.randint(4, 250, (r,)).tolist() for _, r in lengths]
    return pad_right(prompts, replies, 3, CPU)


@pytest.fixture(params=[0, 4096], ids=["one by one", "under one mask"])
def dense(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a CPU computes packed rows, and as a GPU does."""
    monkeypatch.setitem(attention.DENSE, "cpu", request.param)


@pytest.fixture(scope="session")
def stirred() -> Callable[..., Roles]:
    """Roles whose adapters and heads are not at their start: what an optimiser would have left, drawn from a seed."""

    def build(model: PreTrainedModel, seed: int = 5, **arguments: Any) -> Roles:
        arguments.setdefault("lora", LoraSettings(r=4, alpha=8))
        roles = Roles(model, **arguments)
        stir(roles, seed)
        return roles

    return build


@torch.no_grad()
def stir(model: Roles, seed: int) -> None:
    """What learns moves by a tenth; a head, which starts at zero, by as much as gives scores of about 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted((name, p) for name, p in model.named_parameters() if p.requires_grad):
        size = parameter.numel() ** -0.5 if "head" in name and parameter.numel() > 1 else 0.1
        parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


TINY: dict[str, Any] = {
    "name": "tiny",
    "seed": 0,
    "dtype": "float32",
    "data": {"prompts": "prompts.jsonl", "demonstrations": "demonstrations.jsonl"},
    "sampling": {"max_new_tokens": 8},
    "lora": {"r": 4, "alpha": 8},
    "optimiser": {"stages": {"ppo": {"warmup_steps": 0}}},
    "sft": {"epochs": 6, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 2e-2},
    "preferences": {"train_prompts": 24, "replies": 3},
    "reward": {"epochs": 2, "rankings_per_step": 4, "rankings_per_micro_batch": 2, "learning_rate": 1e-2},
    "ppo": {
        "updates": 2,
        "batch_size": 4,
        "minibatch_size": 2,
        "micro_batch_size": 1,
        "learning_rate": 1e-2,
        "critic_learning_rate": 1e-2,
        "evaluate_every": 1,
        "keep_by": "score",
    },
    "evaluate": {"replies": 1},
}
# Of whole runs that are about something else than what they learn.
LITTLE: dict[str, Any] = {
    "sft": {**TINY["sft"], "epochs": 1},
    "reward": {**TINY["reward"], "epochs": 1},
    "ppo": {**TINY["ppo"], "updates": 1},
}
SHARED_KEYS = {
    "sampling": ("temperature", "max_new_tokens"),
    "optimiser": ("schedule", "warmup_steps", "max_grad_norm"),
}


def tiny_stage(stage: str, run: Run, **changes: Any) -> tuple[Any, Run]:
    """The tiny recipe's settings of a stage and the run as it gets it, both with `changes`: keys of the stage and of
    the sections that stages share; `lora` is the whole adapter, None full fine-tuning."""
    values = copy.deepcopy(TINY)
    values |= {"model": "unused", stage: values[stage] | changes}
    for section, keys in SHARED_KEYS.items():
        given = {key: values[stage].pop(key) for key in keys if key in changes}
        values[section].setdefault("stages", {}).setdefault(stage, {}).update(given)
    values["sampling"]["stages"].pop("reward", None)
    values["optimiser"]["stages"].pop("evaluate", None)
    if "lora" in changes:
        values["lora"]["stages"] = {stage: values[stage].pop("lora")}
    recipe = Recipe.model_validate(values)
    if stage in ("sft", "ppo"):
        run = replace(run, sampling=recipe.sampling.of(stage))
    run = replace(run, lora=recipe.lora.of(stage), optimiser=recipe.optimiser.of(stage))
    return getattr(recipe, stage), run


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def write_recipe(tiny_model: Callable[..., Path]) -> Callable[..., Path]:
    """write_recipe(folder, **changes) -> recipe.yaml with its data beside it; the run goes to folder/run."""

    def write(home: Path, **changes: Any) -> Path:
        home.mkdir(parents=True, exist_ok=True)
        prompts, demonstrations = tiny_rows()
        write_lines(home / "prompts.jsonl", prompts)
        write_lines(home / "demonstrations.jsonl", demonstrations)
        values = {**TINY, "model": str(tiny_model()), "folder": str(home / "run"), **changes}
        path = home / "recipe.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def trained(write_recipe: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run, made once a session. Read only; its recipe lies beside it."""
    recipe = write_recipe(tmp_path_factory.mktemp("trained"))
    return run_pipeline(load_recipe(recipe))


@pytest.fixture(scope="session")
def tiny_run(tiny_model: Callable[..., Path]) -> Callable[..., Run]:
    """tiny_run(folder) -> what a stage is given, in a new run folder; `source` gives the stages before PPO."""

    def build(home: Path, source: Path | None = None, dtype: str = "float32", seed: int = 0) -> Run:
        home.mkdir(parents=True, exist_ok=True)
        prompts, demonstrations = tiny_rows()
        folder = RunFolder.open(home / "run", "name: tiny\n", resume=False)
        for stage in ("sft", "preferences", "reward") if source else ():
            shutil.copytree(source / stage, folder.path / stage)
        return Run(
            folder,
            seed,
            choose_machine(dtype),
            str(tiny_model()),
            None,
            tuple(read_prompts(write_lines(home / "prompts.jsonl", prompts))),
            read_demonstrations(write_lines(home / "demonstrations.jsonl", demonstrations)),
            sampling=SamplingConfig(**TINY["sampling"]),
            lora=LoraSettings(**TINY["lora"]),
        )

    return build


@pytest.fixture(scope="session")
def before_ppo(
    trained: Path, tiny_run: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """before_ppo(dtype) -> the folder of the stages before PPO; scores of one format are not those of another."""
    made = {"float32": trained}

    def of(dtype: str) -> Path:
        if dtype not in made:
            run = tiny_run(tmp_path_factory.mktemp(dtype), trained, dtype)
            reward.train(*tiny_stage("reward", run))
            made[dtype] = run.folder.path
        return made[dtype]

    return of


@pytest.fixture
def stopped_after_saves(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], list[int]]:
    """stopped_after_saves(train) -> the steps after whose checkpoint it was stopped, each time to begin anew, until it
    ended by itself. It must, within 40 beginnings."""

    def run(train: Callable[[], Any]) -> list[int]:
        save, steps = Saver._save, list[int]()

        def stopping(saver: Saver, step: int, state: Any) -> None:
            save(saver, step, state)
            steps.append(step)
            raise Interrupted(15, "stopped")

        with monkeypatch.context() as patch:
            patch.setattr(Saver, "_save", stopping)
            for _ in range(40):
                try:
                    train()
                    return steps
                except Interrupted:
                    continue
        raise AssertionError(f"never ended; stopped after {steps}")

    return run


def leave_plots_undrawn(patch: pytest.MonkeyPatch) -> None:
    """Plots are painted, all on the same axes, but not written out as SVG: both is half of a tiny run."""
    axes = Figure().add_subplot()

    def blank(**_: Any) -> SimpleNamespace:
        for artist in [*axes.lines, *axes.patches, *axes.collections, *axes.texts]:
            artist.remove()
        axes.set_yscale("linear")
        axes.autoscale()
        return SimpleNamespace(add_subplot=lambda: axes, savefig=lambda buffer, **_: buffer.write("<svg></svg>"))

    patch.setattr("plaudit.view.plots.Figure", blank)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that look at no plot."""
    leave_plots_undrawn(monkeypatch)


def command(*arguments: object) -> int:
    """The exit code of `plaudit` with these arguments: the real entry point, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["plaudit", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


@pytest.fixture
def plaudit(capsys: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    """plaudit("run", path) -> code, out, err of `command`."""

    def call(*arguments: object) -> SimpleNamespace:
        capsys.readouterr()
        code = command(*arguments)
        found = capsys.readouterr()
        return SimpleNamespace(code=code, out=found.out, err=found.err)

    return call


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A label database with its schema and project, and nothing else."""
    from plaudit.label.db.database import open_project

    path = tmp_path_factory.mktemp("labels") / "labels.sqlite"
    open_project(path).dispose()
    return path


@pytest.fixture
def database(empty_database: Path, tmp_path: Path) -> Iterator[Callable[[], Any]]:
    """The engine of a new label database at each call; for tests that do not ask whether the disk has it."""
    from sqlalchemy import event

    from plaudit.label.db.database import connect

    made: list[Any] = []

    def build() -> Any:
        path = tmp_path / f"labels{len(made)}.sqlite"
        shutil.copyfile(empty_database, path)
        made.append(connect(path))
        event.listen(made[-1], "connect", lambda raw, _: raw.execute("PRAGMA synchronous = OFF"))
        return made[-1]

    yield build
    for engine in made:
        engine.dispose()


Answer = Callable[[dict[str, Any]], tuple[int, str | bytes]]


class RewardServer:
    """A local HTTP server; `answers` are taken one a request, the last one for ever."""

    def __init__(self) -> None:
        self.answers: list[Answer] = [score_lengths]
        self.requests: list[tuple[dict[str, Any], dict[str, str]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((body, dict(self.headers)))
                answer = outer.answers[min(len(outer.requests), len(outer.answers)) - 1]
                status, text = answer(body)
                data = text.encode() if isinstance(text, str) else text
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/score"


def length_rows(body: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"id": item["id"], "score": len(item["completion"])} for item in body["items"]]


def score_lengths(body: dict[str, Any]) -> tuple[int, str]:
    return 200, json.dumps({"scores": length_rows(body)})


@pytest.fixture
def reward_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RewardServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = RewardServer()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()
