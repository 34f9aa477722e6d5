"""W-RM: which pairs are taken, that no prompt is on both sides, how two trainers are compared, and that it runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import paired
import pairs as workload
import reward as benchmark
from plaudit.data.chat import ChatFormat
from plaudit.models.load import load_tokenizer
from plaudit.records import Completion, Message, Preference, Prompt


def preference(prompt: str, chosen: str, rejected: str) -> Preference:
    return Preference(Prompt("x", (Message("user", prompt),), "", "train"), Completion(chosen), Completion(rejected))


def rankings_file(path: Path, prompts: int = 6) -> Path:
    """Of every prompt a > b = c > d: five strict pairs. The third prompt's reply a is longer than 256 tokens."""
    rows = [
        {
            "prompt": f"Prompt {i}?",
            "responses": [
                {"text": "a" * (400 if i == 2 else 1), "rank": 1},
                {"text": "bb", "rank": 2},
                {"text": "ccc", "rank": 2},
                {"text": "dddd", "rank": 3},
            ],
        }
        for i in range(prompts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def chat(tiny_model: Callable[..., Path]) -> ChatFormat:
    return ChatFormat(load_tokenizer(str(tiny_model())))


def texts(pairs: list[Preference]) -> list[tuple[str, str, str]]:
    return [(pair.prompt.text, pair.chosen.text, pair.rejected.text) for pair in pairs]


def test_the_first_short_strict_pairs_in_file_order(chat: ChatFormat, tmp_path: Path) -> None:
    found = workload.select(chat, rankings_file(tmp_path / "rankings.jsonl"), count=13)
    first = [("a", "bb"), ("a", "ccc"), ("a", "dddd"), ("bb", "dddd"), ("ccc", "dddd")]
    expected = [(f"Prompt {i}?", *pair) for i in (0, 1) for pair in first]
    expected += [("Prompt 2?", "bb", "dddd"), ("Prompt 2?", "ccc", "dddd"), ("Prompt 3?", "a", "bb")]
    assert texts(found.train) == expected
    # What is left of prompt 3 is no held-out pair: its prompt was trained on.
    assert texts(found.held_out) == [(f"Prompt {i}?", *pair) for i in (4, 5) for pair in first]
    assert found.prompts() == [0] * 5 + [1] * 5


def test_a_drawn_share_of_the_prompts_is_never_trained_on(chat: ChatFormat, tmp_path: Path) -> None:
    file = rankings_file(tmp_path / "rankings.jsonl", prompts=12)
    one, again, other = (workload.select(chat, file, count=20, share=0.5, seed=seed) for seed in (0, 0, 1))
    assert one == again and one != other
    for found in (one, other):
        trained = {pair.prompt.text for pair in found.train}
        held_out = {pair.prompt.text for pair in found.held_out}
        assert not trained & held_out and len(held_out) >= 6 and len(found.train) == 20
        numbers = [int(text.split()[1].rstrip("?")) for text, _, _ in texts(found.train)]
        assert numbers == sorted(numbers)


def test_too_few_pairs_are_refused_with_the_counts(chat: ChatFormat, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"of 30 strict pairs 27 have at most 256 tokens; 27 of 28"):
        workload.select(chat, rankings_file(tmp_path / "rankings.jsonl"), count=28)


def test_neither_our_count_of_tokens_nor_the_template_s_exceeds_that_of_the_selection(chat: ChatFormat) -> None:
    """This template writes a newline after the end of the turn, which a trainer that renders everything keeps."""
    pair = preference("Hello?", "Hi.", "Go away, please.")
    turns = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Go away, please."}]
    whole = len(chat.tokenizer(chat.tokenizer.apply_chat_template(turns, tokenize=False))["input_ids"])
    ours = len(chat.prompt_ids(pair.prompt.messages)) + len(chat.reply_ids(pair.rejected))
    assert workload.tokens_of(chat, pair) == whole == ours + 1


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    pairs = workload.Pairs([preference("p", "a", "b")], [preference("q", "a", "b"), preference("q", "c", "d")])
    workload.write(pairs, tmp_path)
    found = workload.read(tmp_path)
    assert texts(found.train) == texts(pairs.train) and texts(found.held_out) == texts(pairs.held_out)
    assert len(workload.read(tmp_path, limit=1).held_out) == 1
    row = json.loads((tmp_path / workload.HELD_OUT).read_text(encoding="utf-8").splitlines()[0])
    assert row == {
        "id": "test-0",
        "split": "test",
        "prompt": [{"role": "user", "content": "q"}],
        "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [{"role": "assistant", "content": "b"}],
    }


def test_length_alone_takes_the_side_that_won_in_training() -> None:
    held_out = [preference("q", "long", "a"), preference("q", "a", "long"), preference("q", "ab", "cd")]
    longer = workload.Pairs(
        [preference("p", "long", "a"), preference("p", "long", "a"), preference("p", "a", "long")], held_out
    )
    shorter = workload.Pairs([preference("p", "a", "long"), preference("p", "ab", "cd")], held_out)
    assert longer.length_verdicts() == [1.0, 0.0, 0.5]
    assert shorter.length_verdicts() == [0.0, 1.0, 0.5]


def test_the_pairs_of_a_prompt_become_one_ranking_again() -> None:
    """a > b = c > d from its five strict pairs, and the two of another prompt."""
    pairs = [preference("p", *two) for two in (("a", "b"), ("a", "c"), ("a", "d"), ("b", "d"), ("c", "d"))]
    first, second = benchmark.by_prompt([*pairs, preference("q", "x", "y"), preference("q", "x", "z")])
    assert dict(zip((reply.text for reply in first.replies), first.ranks, strict=True)) == {
        "a": 1,
        "b": 2,
        "c": 2,
        "d": 4,
    }
    assert len(first.pairs()) == 5
    assert second.ranks == (1, 2, 2)


def margins(path: Path, folder: Path, values: list[float]) -> Path:
    digest = paired.sha256(folder / workload.HELD_OUT)
    path.write_text(json.dumps({"held_out": digest, "margins": values}), encoding="utf-8")
    return path


def test_two_trainers_compared_by_hand(tmp_path: Path) -> None:
    """Two prompts with two pairs each. Ours: 1, 1, ½, 0 and 1, 0, 1, 0; the peer's 1, 0, 0, 0; longer: 1, 0, 1, 0."""
    held_out = [preference(p, *two) for p in "qr" for two in (("long", "a"), ("a", "long"))]
    workload.write(workload.Pairs([preference("p", "long", "a")], held_out), tmp_path)
    ours = [
        margins(tmp_path / "0.json", tmp_path, [2.0, 0.1, 0.0, -1.0]),
        margins(tmp_path / "1.json", tmp_path, [1.0, -1.0, 3.0, -0.2]),
    ]
    peer = margins(tmp_path / "peer.json", tmp_path, [5.0, -1.0, -1.0, -1.0])
    found = paired.compare(tmp_path, ours, [peer])
    assert found["held_out_pairs"] == 4 and found["prompts"] == 2
    assert found["ours_by_seed"] == [0.625, 0.5]
    assert found["ours"] == pytest.approx(0.5625) and found["peer"] == 0.25 and found["length_only"] == 0.5
    assert found["ours_minus_peer"] == pytest.approx(0.3125)
    assert found["ours_minus_peer_ci"] is None, "two prompts have no interval"
    # A second seed of the peer, right about 0, 1, 1, 1: it means ½ of each pair.
    again = margins(tmp_path / "peer1.json", tmp_path, [-1.0, 1.0, 1.0, 1.0])
    found = paired.compare(tmp_path, ours, [peer, again])
    assert found["peer_by_seed"] == [0.25, 0.75] and found["peer"] == 0.5


def test_margins_of_other_pairs_are_refused(tmp_path: Path) -> None:
    workload.write(workload.Pairs([preference("p", "a", "b")], [preference("q", "a", "b")]), tmp_path)
    good = margins(tmp_path / "good.json", tmp_path, [1.0])
    short = margins(tmp_path / "short.json", tmp_path, [])
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"held_out": "0" * 64, "margins": [1.0]}), encoding="utf-8")
    for bad in (short, other):
        with pytest.raises(ValueError, match=r"margins of the pairs .* expected 1 of"):
            paired.compare(tmp_path, [good], [bad])


@pytest.mark.parametrize(("share", "replies"), [(False, 14), (True, 7)], ids=["pairs", "shared"])
def test_the_workload_runs_the_stage_and_reports_its_keys(
    share: bool, replies: int, tiny_model: Callable[..., Path], chat: ChatFormat, tmp_path: Path
) -> None:
    """Seven pairs: prompts 0 (five) and 1 (two, of its first three replies)."""
    workload.write(workload.select(chat, rankings_file(tmp_path / "rankings.jsonl"), count=7), tmp_path / "pairs")
    kept = None if share else tmp_path / "margins.json"
    found: dict[str, Any] = benchmark.measure(
        str(tiny_model()),
        tmp_path / "pairs",
        0,
        micro=2,
        share=share,
        limit=7,
        margins=kept,
        keep=tmp_path / "kept",
    )
    keys = {"workload", "pairs_per_second", "held_out_accuracy", "peak_rss_mb", "versions"}
    assert keys <= set(found) and found["workload"] == "W-RM"
    assert (found["pairs"], found["replies"], found["held_out_pairs"]) == (7, replies, 7)
    assert found["pairs_per_second"] == pytest.approx(7 / found["seconds"], rel=0.2)
    assert ("shared" if share else "packed") in found["what"]
    assert (tmp_path / "kept/model/model.safetensors").is_file() and (tmp_path / "kept/summary.json").is_file()
    if kept:
        left = json.loads(kept.read_text(encoding="utf-8"))["margins"]
        right = sum(margin > 0 for margin in left) + 0.5 * sum(margin == 0 for margin in left)
        assert found["held_out_accuracy"] == pytest.approx(right / 7, abs=1e-4)
