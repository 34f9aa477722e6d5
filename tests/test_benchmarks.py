"""The benchmarks of PPO that measure results: their arithmetic by hand, and each once on a tiny model."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from plaudit.data.chat import ChatFormat
from plaudit.models.load import load_tokenizer
from plaudit.records import Message

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SMALL = ["ppo.updates=2", "ppo.batch_size=4", "ppo.minibatch_size=2", "ppo.micro_batch_size=2", "ppo.epochs=1"]
SMALL += ["sampling.max_new_tokens=6", "ppo.evaluate_every=1"]


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """The benchmarks' modules, imported as their scripts import each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import learning
        import learning_compare
        import long_run
        import packing
        import prepared
        import task

        yield SimpleNamespace(
            task=task,
            prepared=prepared,
            learning=learning,
            compare=learning_compare,
            long_run=long_run,
            packing=packing,
        )
        for name in ("task", "prepared", "learning", "learning_compare", "long_run", "packing"):
            sys.modules.pop(name, None)


def row(update: int, kl: float, rewards: dict[str, float], distinct: float = 1.0) -> dict[str, Any]:
    mean = sum(rewards.values()) / len(rewards)
    return {"update": update, "kl": kl, "reward": mean, "distinct_2": distinct, "rewards_by_prompt": rewards}


def test_openings_are_64_texts_and_the_held_out_ones_are_others(bench: SimpleNamespace) -> None:
    train, held_out = bench.task.openings("train"), bench.task.openings("validation")
    assert (len(train), len(held_out)) == (48, 16)
    assert len({r["prompt"] for r in train + held_out}) == len({r["id"] for r in train + held_out}) == 64
    assert all(r["prompt"] == r["prompt"].strip() for r in train + held_out)


def test_distinct_2(bench: SimpleNamespace) -> None:
    # 2-grams: 12 21 12 and 12: four, two different.
    assert bench.task.distinct_2([[1, 2, 1, 2], [1, 2]]) == 0.5
    assert bench.task.distinct_2([[1]]) == 0.0


def test_evaluation_row_averages_by_opening(bench: SimpleNamespace, tokenizer_of: Callable[..., Any]) -> None:
    found = bench.task.evaluation_row(3, 1.5, ["a", "a", "b"], ["x", "y", "z"], [1.0, 0.0, 0.5], tokenizer_of())
    assert found["reward"] == 0.5
    assert found["rewards_by_prompt"] == {"a": 0.5, "b": 0.5}
    assert found["replies"] == {"a": "x", "b": "z"}


def test_fixed_prompts_have_the_length_asked_for(bench: SimpleNamespace, tokenizer_of: Callable[..., Any]) -> None:
    tokenizer = tokenizer_of()
    texts = bench.task.fixed_prompts(tokenizer, 34, 16)
    assert len(set(texts)) == 34
    assert {len(bench.task.ids_of(tokenizer, text)) for text in texts} == {16}


def test_a_prompt_goes_on_as_plain_text_and_ends_with_a_token_without_embedding(
    bench: SimpleNamespace, tiny_model: Callable[..., Path]
) -> None:
    tokenizer = load_tokenizer(str(tiny_model()))
    plain = bench.task.ids_of(tokenizer, "The city council met")
    vocabulary = len(tokenizer)
    bench.task.add_never(tokenizer)
    tokenizer.chat_template = bench.prepared.CONTINUES
    chat = ChatFormat(tokenizer)
    assert chat.prompt_ids([Message("user", "The city council met")]) == plain
    assert chat.eos_id == vocabulary


def test_budget_is_the_highest_point_within_it_interpolated_where_the_curve_crosses(bench: SimpleNamespace) -> None:
    rows = [
        row(0, 0, {"a": 0.0, "b": 0.0}),
        row(2, 6, {"a": 0.2, "b": 0.4}, 0.9),
        row(4, 10, {"a": 0.8, "b": 0.8}, 0.5),
    ]
    point = bench.compare.at_budget(rows, 8.0)
    # Half way from (6, 0.3) to (10, 0.8).
    assert point.at("reward") == pytest.approx(0.55)
    assert point.at("kl") == pytest.approx(8.0)
    assert point.at("update") == pytest.approx(3.0)
    assert point.at("distinct_2") == pytest.approx(0.7)
    np.testing.assert_allclose(point.by_prompt(), [0.5, 0.6])
    # It never crosses: the highest evaluation, not the last.
    falling = [*rows[:2], row(4, 7, {"a": 0.1, "b": 0.1})]
    assert bench.compare.at_budget(falling, 8.0).at("update") == 2
    # Back within the budget, higher than before.
    back = [*rows, row(6, 6, {"a": 0.9, "b": 0.9})]
    assert bench.compare.at_budget(back, 8.0).at("update") == 6


def test_difference_is_paired_by_opening(bench: SimpleNamespace) -> None:
    far_apart = {f"p{i}": float(i) for i in range(16)}
    ours = bench.compare.at_budget([row(0, 0, {name: value + 0.5 for name, value in far_apart.items()})], 8.0)
    peer = bench.compare.at_budget([row(0, 0, far_apart)], 8.0)
    # The openings differ by up to 15; what is done to each of them is the same 0.5.
    np.testing.assert_allclose(bench.compare.difference([ours], [peer]), [0.5, 0.5, 0.5])


def test_the_better_learning_rate_is_taken_and_the_other_named(bench: SimpleNamespace) -> None:
    runs = [
        {"label": "x", "learning_rate": rate, "seed": seed, "evaluations": [row(0, 0, {"a": reward})]}
        for rate, seed, reward in ((1e-4, 0, 0.3), (3e-4, 0, 0.6), (3e-4, 1, 0.2))
    ]
    kept, left = bench.compare.chosen(runs, 8.0)
    assert [run["seed"] for run in kept["x"]] == [0, 1]
    assert left == ["x: learning rate 0.0001 gave 0.300, not shown"]


def test_positivity_is_the_compound_score_of_the_text(bench: SimpleNamespace) -> None:
    # One word of valence 3.1 (VADER's lexicon): 3.1 / √(3.1² + 15), to four digits.
    assert bench.task.Positivity()("a great day") == round(3.1 / (3.1**2 + 15) ** 0.5, 4)


def test_learning_on_a_tiny_model(
    bench: SimpleNamespace, tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.task, "REPLIES_A_PROMPT", 2)
    # So few words of a random model hold no feeling.
    vowels: Callable[..., float] = lambda _, text: sum(text.count(letter) for letter in "aeiou") / 6  # noqa: E731
    monkeypatch.setattr(bench.task.Positivity, "__call__", vowels)
    found = bench.learning.measure(str(tiny_model()), 0, 1e-2, SMALL, "float32")
    rows = found["evaluations"]
    assert [row["update"] for row in rows] == [0, 1, 2]
    assert rows[0]["kl"] == 0.0 and rows[-1]["kl"] > 0.0
    assert set(rows[0]["rewards_by_prompt"]) == {row["id"] for row in bench.task.openings("validation")}
    assert rows[0]["replies"] != rows[-1]["replies"]
    # Every reply that was scored: 3 evaluations of 32 and 2 updates of 4.
    assert sum(map(len, bench.learning.SCORED)) == 3 * 32 + 2 * 4
    held_out = [vowels(None, text) for call in bench.learning.SCORED for prompt, text, _ in call if "/" in prompt]
    np.testing.assert_allclose([row["reward"] for row in rows], np.reshape(held_out, (3, 32)).mean(axis=1))
    again = bench.learning.measure(str(tiny_model()), 0, 1e-2, SMALL, "float32")
    assert again["evaluations"] == rows
    picture = tmp_path / "curve.svg"
    bench.compare.picture({"tiny": [{**found, "label": "tiny"}]}, 8.0, picture)
    assert "held-out reward" in picture.read_text()


def test_long_run_on_a_tiny_run(bench: SimpleNamespace, trained: Path, tmp_path: Path) -> None:
    recipe = trained.parent / "recipe.yaml"
    found = bench.long_run.measure(recipe, trained, tmp_path / "run", 2, ["ppo.batch_size=4", "ppo.minibatch_size=2"])
    assert [row["update"] for row in found["evaluations"]] == [0, 1, 2]
    kept = next(row for row in found["evaluations"] if row["update"] == found["kept_update"])
    assert kept["kl"] == found["summary"]["kl"] == found["kl_kept"]
    assert found["gold_peak"] == max(row["gold"] for row in found["evaluations"])


def test_verdict_of_a_long_run(bench: SimpleNamespace) -> None:
    names = ("update", "kl", "entropy", "gold", "repeated_trigrams")
    rows = [
        dict(zip(names, values, strict=True))
        for values in ((0, 0.0, 2.0, 0.1, 0.1), (5, 4.0, 1.0, 0.4, 0.3), (10, 12.0, 1.5, 0.5, 0.2))
    ]
    found = bench.long_run.verdict(rows, 5)
    assert (found["kl_kept"], found["kl_last"], found["kl_max"]) == (4.0, 12.0, 12.0)
    assert (found["entropy_ratio_last"], found["entropy_ratio_min"]) == (0.75, 0.5)
    assert found["repeated_trigrams_ratio"] == pytest.approx(2.0)
    assert found["repeated_trigrams_ratio_max"] == pytest.approx(3.0)
    assert found["gold_kept_of_peak"] == pytest.approx(0.8)


def test_packing_on_a_tiny_model(
    bench: SimpleNamespace, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.packing.roles_module, "PACKED_BELOW", 0.8)  # put back what the benchmark changes
    shape = bench.packing.Shape
    shapes = {
        "shared": shape(0, (6,) * 4 + (3,) * 4, (2,) * 8),
        "start": shape(5, (*range(2, 10),), (3,) * 8),
        "ragged": shape(0, (*range(2, 10),), (*range(8, 0, -1),)),
    }
    monkeypatch.setattr(bench.packing, "SHAPES", shapes)
    shared, start, ragged = bench.packing.measure(str(tiny_model("llama")), 1, "float32")["rows"]
    # Prompts of 6 and 3 tokens once and eight replies of 2, in rows of 8; rows of 10 tokens each need no padding.
    assert shared["cells"] == round((6 + 3 + 16) / 64, 3)
    assert start["cells"] == round((5 + sum(range(2, 10)) + 24) / (8 * 17), 3)
    assert ragged["cells"] == 1
    assert min(shared["padded"], shared["packed"]) > 0
