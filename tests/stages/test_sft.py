"""The SFT stage's own promises: packing, full fine-tuning, schedules, rules for what is too long, the best is kept."""

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from conftest import tiny_rows, tiny_stage, write_lines
from plaudit.data.files import read_demonstrations
from plaudit.errors import UserError
from plaudit.models import recompute
from plaudit.models.kernels import attention
from plaudit.models.kernels.attention import Layout
from plaudit.run.metrics import read_metrics
from plaudit.stages.pipeline import run_pipeline
from plaudit.stages.plan import Flags
from plaudit.stages.prepare import prepare
from plaudit.stages.recipe import load_recipe
from plaudit.stages.sft import loop as sft
from plaudit.stages.sft.loop import SFTConfig
from plaudit.train.optimiser import schedule_of
from plaudit.train.run import Run

ONE = {"epochs": 1, "learning_rate": 1e-3, "warmup_steps": 1}
TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello there."},
    {"role": "user", "content": "Tell me about tea."},
]


def train(run: Run, **changes: Any) -> tuple[Path, dict[str, Any]]:
    summary = sft.train(*tiny_stage("sft", run, **{"samples": 0, **changes}))
    return run.folder.path / "sft", summary


def adapter(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def apart(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)


def with_rows(run: Run, home: Path, rows: list[dict[str, Any]]) -> Run:
    path = write_lines(home / "other.jsonl", rows)
    return Run(run.folder, run.seed, run.machine, run.model, run.system, run.prompts, read_demonstrations(path))


Make = Callable[..., Run]


def shipped() -> list[str]:
    with as_file(files("plaudit.recipes")) as home:
        return sorted(path.name for path in home.glob("*.yaml"))


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_trains(name: str, tmp_path: Path, tiny_model: Callable[..., Path]) -> None:
    """Built, checked as a run is, and its SFT stage run on a tiny model."""
    overrides = ["sft.max_steps=3", "sampling.max_new_tokens=4", "dtype=float32"]
    with as_file(files("plaudit.recipes")) as home:
        recipe = load_recipe(home / name, [*overrides, f"model={tiny_model()}", f"folder={tmp_path / 'run'}"])
        run_pipeline(recipe, Flags(only=("sft",)))
    summary = json.loads((tmp_path / "run" / "sft" / "summary.json").read_text())
    assert summary["layout"] == "packed"
    assert summary["steps"] == 3
    if recipe.sft.mixture:
        assert set(summary["kinds"]) == {source.kind for source in recipe.sft.mixture}
    assert all(part["eval_loss_after"] is not None for part in summary["kinds"].values())


def test_packing_changes_nothing_but_the_layout(
    tmp_path: Path, tiny_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, summary = train(tiny_run(tmp_path / "packed"), **ONE)
    monkeypatch.setattr(sft, "prepare_attention", lambda model: Layout("padded", "the test says so"))
    padded, other = train(tiny_run(tmp_path / "padded"), **ONE)
    assert (summary["layout"], other["layout"]) == ("packed", "padded: the test says so")
    assert apart(adapter(packed), adapter(padded)) < 1e-5
    assert summary["eval_loss_after"] == pytest.approx(other["eval_loss_after"], rel=1e-5)
    assert summary["tokens"] == other["tokens"]


def test_a_model_that_cannot_be_packed_is_padded_and_says_so(
    tmp_path: Path, tiny_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "use_packed_attention", lambda model: "its tokens see other examples of the row")
    folder, summary = train(tiny_run(tmp_path / "padded"), **ONE)
    assert summary["layout"] == "padded: its tokens see other examples of the row"
    monkeypatch.undo()
    assert apart(adapter(folder), adapter(train(tiny_run(tmp_path / "packed"), **ONE)[0])) < 1e-5


def test_gradient_checkpointing_changes_nothing(
    tmp_path: Path, tiny_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = train(tiny_run(tmp_path / "plain"), **ONE)
    calls, checkpoint = [], recompute.checkpoint
    monkeypatch.setattr(recompute, "checkpoint", lambda *a, **k: (calls.append(1), checkpoint(*a, **k))[1])
    again, _ = train(tiny_run(tmp_path / "again"), **ONE, gradient_checkpointing=True)
    assert apart(adapter(plain), adapter(again)) < 1e-6
    assert calls, "no layer was recomputed"


def test_full_fine_tuning_learns_every_weight(
    tmp_path: Path, tiny_run: Make, load: Callable[[Path], PreTrainedModel]
) -> None:
    run = tiny_run(tmp_path)
    folder, summary = train(run, epochs=4, learning_rate=3e-3, lora=None)
    assert summary["eval_loss_after"] < 0.5 * summary["eval_loss_before"]
    before, after = (dict(load(path).named_parameters()) for path in (Path(run.model), folder / "model"))
    assert summary["trainable_parameters"] == sum(tensor.numel() for tensor in before.values())
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert not (folder / "adapter").exists()


def test_full_fine_tuning_has_the_models_own_gradient(
    tmp_path: Path, tiny_run: Make, load: Callable[[Path], PreTrainedModel]
) -> None:
    """One plain gradient step of SGD's direction: AdamW's first step is lr·sign(g), so signs must agree."""
    run = tiny_run(tmp_path)
    folder, _ = train(run, epochs=1, batch_size=24, learning_rate=1e-3, warmup_steps=0, lora=None)
    chat, model = run.chat(run.model), load(Path(run.model)).requires_grad_(True)
    total, count = torch.zeros(()), 0
    for item in run.demonstrations:
        if item.prompt.split == "train":
            prompt = chat.prompt_ids(item.prompt.messages)
            ids = [*prompt, *chat.tokenizer(item.completion, add_special_tokens=False)["input_ids"], chat.eos_id]
            q = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0], dim=-1)
            total = total - sum(q[i - 1, ids[i]] for i in range(len(prompt), len(ids)))
            count += len(ids) - len(prompt)
    (total / count).backward()
    after = dict(load(folder / "model").named_parameters())
    for name, parameter in model.named_parameters():
        moved, large = after[name] - parameter.detach(), parameter.grad.abs() > 1e-5
        assert torch.equal(moved[large].sign(), -parameter.grad[large].sign()), name


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("cosine", [1 / 3, 2 / 3, 1.0, 0.1 + 0.9 * 0.5, 0.1]),
        ("linear", [1 / 3, 2 / 3, 1.0, 0.1 + 0.9 * 0.5, 0.1]),
        ("constant", [1 / 3, 2 / 3, 1.0, 1.0, 1.0]),
    ],
)
def test_schedules_by_hand(shape: Any, expected: list[float]) -> None:
    """Two steps of warm-up, then eight more: at the start, half-way and at the end of the fall."""
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = schedule_of(optimiser, 10, 2, shape)
    rates = []
    for _ in range(11):
        rates.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    assert [rates[i] for i in (0, 1, 2, 6, 10)] == pytest.approx(expected)


def test_the_shapes_differ_between(tmp_path: Path) -> None:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    factors = [schedule_of(optimiser, 10, 2, shape).lr_lambdas[0](4) for shape in ("cosine", "linear", "constant")]
    assert factors == pytest.approx([0.1 + 0.9 * 0.853553, 0.1 + 0.9 * 0.75, 1.0], rel=1e-5)


OPTIONS: dict[str, Any] = {
    "mixture": [{"kind": "domain"}],
    "epochs": 2,
    "max_steps": 2,
    "batch_size": 4,
    "learning_rate": 5e-4,
    "schedule": "constant",
    "warmup_steps": 0,
    "weight_decay": 0.5,
    "max_grad_norm": 0.01,
    "lora": {"r": 2, "alpha": 8},
}
SHARED = {"schedule", "warmup_steps", "max_grad_norm", "lora"}
"""What it reads of the sections that stages share."""
ELSEWHERE = {
    "skip",
    "micro_batch_size",
    "gradient_checkpointing",
    "max_length",
    "too_long",
    "learn",
    "evaluate_every",
    "patience",
    "samples",
}


@pytest.mark.row(28)
def test_row_28_every_option_is_tried() -> None:
    """A new option must be put on the list, or have a test of its own."""
    assert set(OPTIONS) | ELSEWHERE == set(SFTConfig.model_fields) | SHARED


@pytest.fixture(scope="module")
def usual(tiny_run: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return adapter(train(tiny_run(tmp_path_factory.mktemp("usual")), **ONE)[0])


@pytest.mark.row(28)
@pytest.mark.parametrize(("option", "value"), OPTIONS.items(), ids=list(OPTIONS))
def test_row_28_an_option_changes_the_adapter(
    option: str, value: object, tmp_path: Path, tiny_run: Make, usual: dict[str, Tensor]
) -> None:
    found = adapter(train(tiny_run(tmp_path), **{**ONE, option: value})[0])
    assert any(
        tensor.shape != found[name].shape or not torch.equal(tensor, found[name]) for name, tensor in usual.items()
    )


def test_a_mixture_is_shown_by_kind(tmp_path: Path, tiny_run: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """8 training rows of each kind at 50/30/20: instruction is used up first, so an epoch has 16 examples."""
    shares = {"instruction": 50, "domain": 30, "safety": 20}
    mixture = [{"kind": kind, "weight": weight} for kind, weight in shares.items()]
    run = tiny_run(tmp_path)
    folder, summary = train(run, **ONE, mixture=mixture)
    assert {kind: part["examples"] for kind, part in summary["kinds"].items()} == {
        "instruction": 8,
        "domain": 5,
        "safety": 3,
    }
    chat = run.chat(run.model)
    lengths = [
        len(chat.prompt_ids(row.prompt.messages)) + len(chat.reply_ids(sft_reply(row.completion)))
        for row in run.demonstrations
        if row.prompt.split == "train" and row.prompt.kind == "instruction"
    ]
    assert summary["kinds"]["instruction"]["tokens"] == sum(lengths)
    printed = capsys.readouterr().out
    assert "8 (50.0%), " in printed and "5 (31.2%), " in printed
    # The loss of all kinds together is the mean over their tokens.
    last = read_metrics(folder / "metrics.jsonl")[-1]
    assert set(last["eval_loss_by_kind"]) == set(shares)
    assert summary["kinds"]["domain"]["eval_loss_after"] == last["eval_loss_by_kind"]["domain"]
    counts = dict.fromkeys(shares, 0)
    for row in run.demonstrations:
        if row.prompt.split != "train":
            counts[row.prompt.kind] += len(chat.reply_ids(sft_reply(row.completion)))
    mean = sum(last["eval_loss_by_kind"][kind] * count for kind, count in counts.items()) / sum(counts.values())
    assert last["eval_loss"] == pytest.approx(mean, rel=1e-6)


def sft_reply(text: str) -> Any:
    from plaudit.records import Completion

    return Completion(text)


def test_a_source_of_its_own_file(tmp_path: Path, tiny_run: Make) -> None:
    path = write_lines(tmp_path / "more.jsonl", [{"prompt": f"More {i}?", "completion": "Yes."} for i in range(6)])
    mixture = [{"path": str(path), "rows": 4, "label": "mine"}, {"kind": "safety", "rows": 16, "repeat": 2}]
    run = replace(tiny_run(tmp_path / "run"), mixed={path: read_demonstrations(path)})
    _, summary = train(run, **ONE, mixture=mixture)
    assert {kind: part["examples"] for kind, part in summary["kinds"].items()} == {"mine": 4, "safety": 16}
    assert summary["demonstrations_held_out"] == 4, "only the sources' own rows are held out"


def test_a_held_out_row_counts_once_however_many_sources_share_it(tmp_path: Path, tiny_run: Make) -> None:
    _, summary = train(tiny_run(tmp_path), **ONE, mixture=[{"weight": 1}, {"weight": 1, "label": "again"}])
    assert summary["demonstrations_held_out"] == 12


def test_a_run_reads_the_files_of_its_mixture(tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    """Any format, with bad rows set aside; a prompt that another file holds out is a leak."""
    recipe = write_recipe(tmp_path)
    rows: list[Any] = [{"instruction": f"More {i}?", "output": "Yes."} for i in range(3)]
    path = write_lines(tmp_path / "more.jsonl", [*rows, {"instruction": "Bad?", "output": 3}])
    override = "sft.mixture=[{path: more.jsonl, label: mine}, {}]"
    formats = "data.formats={more.jsonl: alpaca}"
    run = prepare(load_recipe(recipe, [override, formats, "data.on_bad_row=quarantine", f"folder={tmp_path / 'a'}"]))
    assert [row.completion for row in run.mixed[path]] == ["Yes."] * 3
    assert len((run.folder.path / "data" / "quarantine.jsonl").read_text().splitlines()) == 1
    with pytest.raises(UserError, match=r"more\.jsonl:4: .*'output'"):
        prepare(load_recipe(recipe, [override, f"folder={tmp_path / 'b'}"]))
    held_out = next(row["prompt"] for row in tiny_rows()[1] if row["split"] == "test")
    write_lines(path, [*rows, {"instruction": held_out, "output": "Yes."}])
    with pytest.raises(UserError, match=r"more\.jsonl: training demonstration '4' has a prompt that"):
        prepare(load_recipe(recipe, [override, f"folder={tmp_path / 'c'}"]))


def test_a_mixture_that_cannot_be(tmp_path: Path, tiny_run: Make) -> None:
    with pytest.raises(UserError, match=r"sft\.mixture\[0\] \(poetry\): no training demonstration"):
        train(tiny_run(tmp_path), mixture=[{"kind": "poetry"}])


def test_early_stopping_keeps_the_best(tmp_path: Path, tiny_run: Make) -> None:
    """A rate that blows up after a while: training stops, and the adapter that is left has the lowest loss."""
    folder, summary = train(tiny_run(tmp_path), epochs=40, patience=2, evaluate_every=3, learning_rate=0.3)
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if "eval_loss" in row]
    assert [row["step"] for row in rows][:3] == [0, 3, 6]
    assert summary["steps"] == rows[-1]["step"] < 120, "it never stopped; choose another rate"
    best = min(rows[1:], key=lambda row: row["eval_loss"])
    assert (summary["kept_step"], summary["eval_loss_after"]) == (best["step"], best["eval_loss"])
    assert best is rows[-3], "patience 2: two evaluations without a gain"
    # A run without patience that ends at that very step leaves the same adapter.
    more = {"evaluate_every": 3, "learning_rate": 0.3, "schedule": "constant"}
    long, kept = train(tiny_run(tmp_path / "long"), epochs=40, patience=2, **more)
    cut, _ = train(tiny_run(tmp_path / "cut"), epochs=40, max_steps=kept["kept_step"], **more)
    assert kept["kept_step"] < kept["steps"]
    assert apart(adapter(cut), adapter(long)) == 0


def test_samples_are_written_at_every_evaluation(tmp_path: Path, tiny_run: Make) -> None:
    folder, _ = train(tiny_run(tmp_path), epochs=6, samples=3, max_new_tokens=5)
    rows = read_metrics(folder / "samples.jsonl")
    assert [row["step"] for row in rows] == [step for step in (0, 3, 6, 9, 12, 15, 18) for _ in range(3)]
    assert all(len(row["text"]) < 60 for row in rows)
    assert [row["text"] for row in rows[:3]] != [row["text"] for row in rows[-3:]]
    again, _ = train(tiny_run(tmp_path / "again"), epochs=6, samples=3, max_new_tokens=5)
    assert (again / "samples.jsonl").read_bytes() == (folder / "samples.jsonl").read_bytes()


def test_too_long_is_dropped_or_truncated_and_counted(tmp_path: Path, tiny_run: Make) -> None:
    rows = tiny_rows()[1]
    rows[0]["prompt"] = "very " * 80 + "long"
    run = with_rows(tiny_run(tmp_path), tmp_path, rows)
    with pytest.raises(UserError, match=r"sft\.too_long to drop or left_truncate"):
        train(run, max_length=100)
    _, dropped = train(run, **ONE, max_length=100, too_long="drop")
    assert (dropped["dropped"], dropped["truncated"], dropped["demonstrations_train"]) == (1, 0, 23)
    _, cut = train(run, **ONE, max_length=100, too_long="left_truncate")
    assert (cut["dropped"], cut["truncated"], cut["demonstrations_train"]) == (0, 1, 24)
    assert cut["tokens"] == dropped["tokens"] + 100
    assert cut["kinds"]["instruction"]["completion_tokens"] > dropped["kinds"]["instruction"]["completion_tokens"]


def test_a_reply_is_never_cut(tmp_path: Path, tiny_run: Make) -> None:
    rows = tiny_rows()[1]
    rows[0]["completion"] = "so " * 120
    _, summary = train(with_rows(tiny_run(tmp_path), tmp_path, rows), **ONE, max_length=100, too_long="left_truncate")
    assert (summary["dropped"], summary["truncated"]) == (1, 0)


def test_all_turns_or_the_last(tmp_path: Path, tiny_run: Make) -> None:
    rows = [*tiny_rows()[1], {"id": "talk", "kind": "talk", "prompt": TURNS, "completion": "It is good."}]
    run = with_rows(tiny_run(tmp_path), tmp_path, rows)
    chat = run.chat(run.model)
    replies = [len(chat.reply_ids(sft_reply(text))) for text in ("Hello there.", "It is good.")]
    _, last = train(run, **ONE)
    _, everything = train(run, **ONE, learn="all")
    assert last["kinds"]["talk"]["completion_tokens"] == replies[1]
    assert everything["kinds"]["talk"]["completion_tokens"] == sum(replies)
    assert everything["kinds"]["talk"]["tokens"] == last["kinds"]["talk"]["tokens"]


def test_only_what_a_short_run_needs_is_tokenised(
    tmp_path: Path, tiny_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten steps over a million rows must not tokenise a million rows, nor evaluate on all that are held out."""
    made = []
    encode = sft.Encoder.encode
    monkeypatch.setattr(sft.Encoder, "encode", lambda self, item: (made.append(1), encode(self, item))[1])
    monkeypatch.setattr(sft, "EVALUATE_ON", 5)
    _, summary = train(tiny_run(tmp_path), max_steps=1, batch_size=4)
    assert len(made) <= 4 + 4 + 5
    assert (summary["steps"], summary["demonstrations_held_out"]) == (1, 5)


def test_an_exported_model_stops_where_its_replies_end(tmp_path: Path, tiny_run: Make) -> None:
    run = tiny_run(tmp_path)
    folder, _ = train(run, **ONE)
    ends = json.loads((folder / "model" / "generation_config.json").read_text())["eos_token_id"]
    assert run.chat(run.model).eos_id in (ends if isinstance(ends, list) else [ends])
