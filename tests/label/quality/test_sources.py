"""The table of sources: known answers, and simulated rankings whose worths are known."""

import numpy as np
import pytest
from label_rows import item, label

from plaudit.label.quality.sources import bradley_terry, source_table, win_rate


def strengths(wins: list[list[float]], prior: float) -> list[float]:
    return bradley_terry(np.array([wins], dtype=float), prior=prior)[0].tolist()


def test_seven_wins_to_three() -> None:
    first, second = strengths([[0, 7], [3, 0]], prior=0)
    assert first - second == pytest.approx(0.847298, abs=1e-6)
    assert first + second == pytest.approx(0, abs=1e-12)


def test_three_sources_whose_wins_are_what_their_worths_expect() -> None:
    """Worths 1, 2, 4 in 12 games each: 1 beats 2 in 4, 1 beats 4 in 12/5, 2 beats 4 in 4: the fit must be exact."""
    wins = [[0, 4, 2.4], [8, 0, 4], [9.6, 8, 0]]
    found = strengths(wins, prior=0)
    assert np.diff(found) == pytest.approx([np.log(2), np.log(2)], abs=1e-6)


def test_undefeated_needs_a_prior() -> None:
    with pytest.raises(ValueError, match="finite"):
        strengths([[0, 5], [0, 0]], prior=0)
    # Half a win and half a loss against worth 1 each: 5.5 to 0.5 wins. By symmetry worths w and 1/w:
    # 5.5 = 5 w/(w + 1/w) + w/(w + 1).
    first, second = strengths([[0, 5], [0, 0]], prior=0.5)
    w = np.exp((first - second) / 2)
    assert 5 * w / (w + 1 / w) + w / (w + 1) == pytest.approx(5.5, abs=1e-6)


def simulated(worths: dict[str, float], items: int, people: int, seed: int) -> tuple[list, list]:
    """Plackett-Luce rankings of K = 4 replies, all sources mixed."""
    rng = np.random.default_rng(seed)
    made, said = [], []
    for number in range(items):
        names = list(rng.choice(list(worths), 4, replace=False))
        made.append(item(f"i{number}", sources=names))
        for who in range(people):
            # Gumbel noise on log worths and sorting draws from Plackett-Luce.
            noisy = [np.log(worths[name]) + rng.gumbel() for name in names]
            ranks = tuple(1 + sum(bool(other > mine) for other in noisy) for mine in noisy)
            said.append(label(made[-1], ranks, person=who))
    return made, said


def test_worths_of_simulated_plackett_luce_rankings_are_recovered() -> None:
    worths = {"a": 1.0, "b": 1.5, "c": 3.0, "d": 0.5, "e": 2.0}
    truth = {name: np.log(worth) for name, worth in worths.items()}
    mean = np.mean(list(truth.values()))
    inside = 0
    for seed in range(4):
        table = source_table(*simulated(worths, 300, 2, seed))
        assert table[0]["source"] == "c"
        for row in table:
            true = truth[row["source"]] - mean
            assert row["strength"] == pytest.approx(true, abs=0.25)
            inside += row["low"] <= true <= row["high"]
    assert inside >= 17  # of 20 intervals at 95 %: 17 or more with probability 0.984


def test_the_table_by_hand() -> None:
    """Two items with sources a, b. a won twice, tied once, and the third source only meets itself."""
    one, two = item("i", sources=["a", "b"]), item("j", sources=["b", "a"])
    alone = item("k", sources=["c", "c"])
    table = source_table(
        [one, two, alone], [label(one, (1, 2)), label(two, (2, 1)), label(two, (1, 1), person=3), label(alone, (1, 2))]
    )
    assert [row["source"] for row in table] == ["a", "b"]
    assert [row["win_rate"] for row in table] == pytest.approx([2.5 / 3, 0.5 / 3])
    assert [row["verdicts"] for row in table] == [3, 3]


def test_nothing_to_compare_gives_no_table() -> None:
    unknown = item("i", sources=[None, "a"])
    assert source_table([unknown], [label(unknown, (1, 2))]) == []


def test_win_rate_of_ppo_over_sft_by_hand() -> None:
    """Of four comparisons on two prompts PPO wins two, ties one, loses one: (2 + ½)/4."""
    first = item("i", sources=["sft", "ppo"], prompt_id="p")
    second = item("j", sources=["ppo", "sft"], prompt_id="q")
    said = [
        label(first, (2, 1)),
        label(first, (1, 1), person=2),
        label(second, (1, 2)),
        label(second, (2, 1), person=2),
    ]
    found = win_rate([first, second], said, "ppo", "sft")
    assert found is not None
    assert (found["win_rate"], found["ties"], found["labels"], found["prompts"]) == (0.625, 0.25, 4, 2)
    assert found["low"] < 0.625 < found["high"]
    assert win_rate([first], [label(first, None, verdict="cannot_judge")], "ppo", "sft") is None


def test_a_prompt_counts_when_its_labels_are_all_in() -> None:
    """Two people an item: of two prompts one waits for its second label, so the interval is of one value, ¾."""
    first = item("i", sources=["sft", "ppo"], prompt_id="p")
    second = item("j", sources=["ppo", "sft"], prompt_id="q")
    said = [label(first, (2, 1)), label(first, (1, 1), person=2), label(second, (1, 2))]
    found = win_rate([first, second], said, "ppo", "sft", overlap=2)
    assert found is not None
    assert (found["complete"], found["prompts"], found["enough"]) == (1, 2, None)
    given = [*said, label(second, None, person=2, verdict="cannot_judge")]
    found = win_rate([first, second], given, "ppo", "sft", overlap=2)
    assert found is not None and found["complete"] == 2


def test_a_prompt_is_one_value_however_many_labels_it_has() -> None:
    """SFT wins nineteen prompts; of the twentieth, which an admin had more people asked about, all 21 prefer PPO. That
    is one prompt in twenty, and not 21 labels in forty, which lie outside of their own interval."""
    items = [item(f"i{n}", ["as long", "as many"], ["sft", "ppo"]) for n in range(20)]
    said = [label(one, (1, 2)) for one in items[:19]] + [label(items[19], (2, 1), person=who) for who in range(21)]
    found = win_rate(items, said, "ppo", "sft")
    assert found is not None
    assert (found["win_rate"], found["labels"], found["prompts"]) == (pytest.approx(0.05), 40, 20)
    assert found["low"] < 0.05 < found["high"] < 0.5 and found["enough"] == "sft"
    assert found["at_equal_length"]["win_rate"] == pytest.approx(0.05, abs=0.01)  # they are as long


def test_enough_labels() -> None:
    """Of 100 prompts PPO wins so many; ties only are no difference; few labels say how many more it may take."""
    items = [item(f"i{n}", ["short", "rather long"], ["sft", "ppo"]) for n in range(100)]

    def found(wins: int, of: int, tied: int = 0) -> dict:
        ranks = [(2, 1)] * wins + [(1, 1)] * tied + [(1, 2)] * (of - wins - tied)
        told = win_rate(items, [label(i, r) for i, r in zip(items, ranks, strict=False)], "ppo", "sft")
        assert told is not None
        return told

    assert (found(75, 100)["enough"], found(25, 100)["enough"], found(0, 100, 100)["enough"]) == (
        "ppo",
        "sft",
        "neither",
    )
    few = found(6, 10)
    assert few["enough"] is None
    # ln B(5 + 6k, 5 + 4k) − ln B(5, 5) + 10k·ln 2 reaches ln 20 at k = 24: 230 more labels like these.
    assert few["more"] == 230
    assert found(5, 10)["more"] is None
    assert 0.5 < few["at_equal_length"]["win_rate"] < 0.7  # always longer: nothing tells length from quality
