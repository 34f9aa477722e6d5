"""`plaudit data check`: every planted fault is named with its lines, and the counts are those worked by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from plaudit.data.audit import near as near_module
from plaudit.data.audit.check import Audit
from plaudit.data.audit.near import NearDuplicates, Sample
from plaudit.data.audit.problems import LEVELS
from plaudit.data.audit.texts import diversity, words_alone

Plaudit = Callable[..., SimpleNamespace]
REPLY = "Put the kettle on, wait until the water boils, and pour it over the leaves of the tea."
LONG = " ".join(f"Step {n} is to wait for {n} minutes." for n in range(20))


def put(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def check(*paths: Path, **options: Any) -> dict[str, Any]:
    audit = Audit(**options)
    for path in paths:
        audit.add(path)
    return audit.report()


def problems(report: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """kind -> (line, text) of its examples, paths shortened to file names."""
    assert all(problem["count"] >= len(problem["examples"]) > 0 for problem in report["problems"])
    return {
        problem["kind"]: [
            (Path(e["place"]).name, e["text"].replace(str(Path(e["place"]).parent) + "/", ""))
            for e in problem["examples"]
        ]
        for problem in report["problems"]
    }


def demonstration(number: int, **changes: Any) -> dict[str, Any]:
    words = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "islet", "jetty")
    text = f"{words[number % 10]} {words[number // 10 % 10]}"
    return {"prompt": f"Tell me about {text}.", "completion": f"The {text} is old, and it is fine.", **changes}


def test_a_clean_file_has_no_problem_and_its_numbers_are_right(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", *(demonstration(i, kind="domain" if i < 3 else "safety") for i in range(10)))
    report = check(path)
    assert (report["errors"], report["warnings"], report["problems"], report["overlaps"]) == (0, 0, [], [])
    (file,) = report["files"]
    assert (file["rows"], file["used"], file["bad"], file["format"], file["detected"]) == (
        10,
        10,
        0,
        "prompt-completion",
        True,
    )
    assert file["kinds"] == {"safety": 7, "domain": 3}
    assert file["splits"] == {}  # no row names one, so a run divides them by a hash
    assert file["roles"] == {"user": 10, "assistant": 10}
    # "Tell me about amber amber." has 5 words, the reply 9; every word of the list has 5 letters.
    assert file["words"]["prompt"]["p50"] == 5 and file["words"]["reply"]["p100"] == 9
    assert file["characters"]["prompt"]["p5"] == file["characters"]["prompt"]["p100"] == 26


PAIR = {"prompt": "Which?", "chosen": "This one, since it is larger.", "rejected": "That."}


@pytest.mark.parametrize(
    ("rows", "kind", "found"),
    [
        pytest.param(
            [demonstration(1), demonstration(2), demonstration(1)],
            "duplicate",
            ("a.jsonl:3", "the same as a.jsonl:1"),
            id="duplicate",
        ),
        pytest.param(
            [demonstration(1, completion=LONG), demonstration(1, completion=f"{LONG} Now!")],
            "near-duplicate",
            ("a.jsonl:2", "nearly the same as a.jsonl:1"),
            id="near-duplicate",
        ),
        pytest.param(
            [demonstration(1, split="test"), demonstration(2), demonstration(1, completion="No.")],
            "leak",
            ("a.jsonl:1", "the prompt of split 'test' is in split 'train' at a.jsonl:3"),
            id="leak",
        ),
        pytest.param(
            [demonstration(1, split="test"), demonstration(1, prompt="tell me ABOUT birch, amber!")],
            "leak",
            ("a.jsonl:1", "the prompt of split 'test' is in split 'train' at a.jsonl:2"),
            id="leak but for capitals",
        ),
        pytest.param(
            [demonstration(1, split="test"), demonstration(1, split="validation", completion="No.")],
            "validation and test overlap",
            ("a.jsonl:1", "the prompt of split 'test' is in split 'validation' at a.jsonl:2"),
            id="held out twice",
        ),
        pytest.param(
            [
                demonstration(1, completion=LONG, split="test"),
                demonstration(1, prompt="Tell me about the birch amber.", completion=LONG),
            ],
            "near leak",
            ("a.jsonl:2", "nearly the same as a.jsonl:1, and one of them is held out"),
            id="near leak",
        ),
        pytest.param(
            [PAIR, {**PAIR, "chosen": PAIR["rejected"], "rejected": PAIR["chosen"]}],
            "contradiction",
            ("a.jsonl:2", "prefers the reply that loses at a.jsonl:1"),
            id="contradiction",
        ),
        pytest.param(
            [PAIR, {**PAIR, "rejected": PAIR["chosen"]}],
            "identical replies",
            ("a.jsonl:2", "the better and the worse reply are 'This one, since it is larger.'"),
            id="identical",
        ),
        pytest.param([{**PAIR, "rejected": " "}], "empty reply", ("a.jsonl:1", "a reply is ' '"), id="empty"),
        pytest.param(
            [demonstration(1), demonstration(2, completion="")],
            "bad row",
            ("a.jsonl:2", "field 'completion' must be a non-empty string, found ''; write one or delete the row"),
            id="bad row",
        ),
        pytest.param(
            [demonstration(1, completion=f"{REPLY} After that you should let it stand for")],
            "cut reply",
            ("a.jsonl:1", "a reply ends in '. After that you should let it stand for'"),
            id="cut",
        ),
        pytest.param(
            [{**PAIR, "chosen_rating": 1, "rejected_rating": "5"}],
            "scored otherwise",
            ("a.jsonl:1", "the rating of chosen is 1, of rejected 5"),
            id="swapped",
        ),
        pytest.param(
            [{**PAIR, "score_chosen": 8.0, "score_rejected": 8.0, "reward_chosen": None}],
            "scored alike",
            ("a.jsonl:1", "the score of chosen is 8, of rejected 8"),
            id="scored alike",
        ),
        pytest.param(
            [demonstration(1, completion=f"{REPLY}<|im_end|>")],
            "template mark",
            ("a.jsonl:1", "a text holds <|im_end|>"),
            id="template mark",
        ),
        pytest.param(
            [{**PAIR, "prompt": "Do it well.\n\n### Instruction:\nSing.\n\n### Response:"}],
            "template mark",
            ("a.jsonl:1", "a text holds ### Response:"),
            id="mark of Alpaca",
        ),
        pytest.param(
            [{"id": "x", "prompt": "One?"}, {"id": "x", "prompt": "Two?"}],
            "repeated id",
            ("a.jsonl:2", "the id is that of a.jsonl:1"),
            id="repeated id",
        ),
    ],
)
def test_a_planted_fault_is_named_with_its_lines(
    rows: list[dict[str, Any]], kind: str, found: tuple[str, str], tmp_path: Path
) -> None:
    report = check(put(tmp_path / "a.jsonl", *rows))
    assert problems(report) == {kind: [found]}
    level, fix = LEVELS[kind]
    assert report["problems"][0]["level"] == level and report["problems"][0]["fix"] == fix
    assert (report["errors"], report["warnings"]) == ((1, 0) if level == "error" else (0, 1))


def test_splits_are_counted_where_a_row_of_any_file_names_one(tmp_path: Path) -> None:
    """As a run takes them: those of rows that name none are train then."""
    one, other = demonstration(1, split="test"), demonstration(2)
    files = check(put(tmp_path / "a.jsonl", one, other), put(tmp_path / "b.jsonl", demonstration(3)))["files"]
    assert [file["splits"] for file in files] == [{"train": 1, "test": 1}, {"train": 1}]


def test_a_leak_between_files_is_found(tmp_path: Path) -> None:
    train = put(tmp_path / "train.jsonl", *(demonstration(i) for i in range(10)))
    test = put(tmp_path / "test.jsonl", *({"prompt": demonstration(i)["prompt"], "split": "test"} for i in (30, 4, 5)))
    report = check(train, test)
    assert problems(report) == {
        "leak": [
            ("test.jsonl:2", "the prompt of split 'test' is in split 'train' at train.jsonl:5"),
            ("test.jsonl:3", "the prompt of split 'test' is in split 'train' at train.jsonl:6"),
        ]
    }
    assert report["overlaps"] == [{"first": [str(train), "train"], "second": [str(test), "test"], "prompts": 2}]


def test_a_list_a_link_and_a_finished_sentence_are_not_cut(tmp_path: Path) -> None:
    ends = ("1. one\n2. a long second point of the list that has many words in it", "see https://x.org/a-b", "x = f(y)")
    rows = [demonstration(i, completion=f"{REPLY}\n{end}") for i, end in enumerate(ends)]
    assert "cut reply" not in problems(check(put(tmp_path / "a.jsonl", *rows)))


def test_a_reply_that_is_marked_as_cut_is_known(tmp_path: Path) -> None:
    text = f"{REPLY} After that you should let it stand for"
    responses = [{"text": text, "rank": 1, "finished": False}, {"text": "No.", "rank": 2}]
    assert check(put(tmp_path / "a.jsonl", {"prompt": "x", "responses": responses}))["problems"] == []


def test_the_length_bias_is_that_of_the_strict_pairs(tmp_path: Path) -> None:
    """Ranks 1, 2, 2: two strict pairs and a tie. "long reply" beats "short" (1), loses to nobody; "ab" wins at equal
    length (a half); "x" beats a longer one (0)."""
    rows = [
        {"prompt": "a", "responses": [{"text": t, "rank": r} for t, r in (("long reply", 1), ("short", 2), ("x", 2))]},
        {"prompt": "b", "responses": [{"text": "ab", "rank": 1}, {"text": "cd", "rank": 5}]},
        {"prompt": "c", "responses": [{"text": "x", "rank": 1}, {"text": "longer", "rank": 2}]},
    ]
    (file,) = check(put(tmp_path / "a.jsonl", *rows))["files"]
    assert (file["strict_pairs"], file["tied_pairs"]) == (4, 1)
    assert file["longer_wins"] == pytest.approx((1 + 1 + 0.5 + 0) / 4)


def test_contradictions_are_found_inside_rankings(tmp_path: Path) -> None:
    def ranking(*texts: str) -> dict[str, Any]:
        return {"prompt": "x", "responses": [{"text": t, "rank": i} for i, t in enumerate(texts, start=1)]}

    report = check(put(tmp_path / "a.jsonl", ranking("p", "q", "r"), ranking("q", "p", "s"), ranking("q", "r", "t")))
    assert problems(report)["contradiction"] == [("a.jsonl:2", "prefers the reply that loses at a.jsonl:1")]


def test_examples_are_capped_and_the_count_is_not(tmp_path: Path) -> None:
    report = check(put(tmp_path / "a.jsonl", demonstration(1), *[f"{{{n}" for n in range(40)]))
    assert [(p["kind"], p["count"], len(p["examples"])) for p in report["problems"]] == [("bad row", 40, 5)]
    assert report["errors"] == 40


def test_diversity_by_hand() -> None:
    # a b a b: words a, b of 4; pairs ab, ba of 3; triples aba, bab of 2. "c" has one word.
    found = diversity(["a b a b", "c"])
    assert found["distinct_1"] == pytest.approx(3 / 5)
    assert found["distinct_2"] == pytest.approx(2 / 3)
    assert found["distinct_3"] == pytest.approx(1.0)
    assert found["distinct_openings"] == 1.0


def test_the_words_alone_of_prompts() -> None:
    assert words_alone("  What's, the TIME?\n") == "what's the time"
    assert words_alone("?!") == "?!"


def test_tokens_are_counted_by_what_is_given(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", *(demonstration(i) for i in range(10)))
    (file,) = check(path, count_tokens=lambda texts: [2 * len(text) for text in texts])["files"]
    assert file["tokens"]["prompt"]["p50"] == 2 * file["characters"]["prompt"]["p50"]
    assert file["tokens"]["reply"] == {k: 2 * v for k, v in file["characters"]["reply"].items()}
    assert file["tokens_of_rows"] == 10


# --- samples ---


def test_a_sample_is_everything_until_it_is_full_and_then_even() -> None:
    sample = Sample(1000)
    entries = [(row, entry) for row in range(1000) if (entry := sample.take()) is not None]
    assert sample.whole and entries == [(n, n) for n in range(1000)]
    kept = [row for row in range(1000, 20_000) if sample.take() is not None]
    assert not sample.whole
    assert 400 <= sample.mask().sum() <= 1000
    rows = np.array([*range(1000), *kept])[sample.mask()]
    # Every tenth of the stream has about a tenth of the sample.
    share = np.histogram(rows, bins=10, range=(0, 20_000))[0] / len(rows)
    assert np.all(np.abs(share - 0.1) < 0.04)


def test_sampling_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plaudit: Plaudit) -> None:
    monkeypatch.setattr(near_module, "SAMPLE", 50)
    path = put(tmp_path / "a.jsonl", *(demonstration(i, id=str(i)) for i in range(100)))
    (file,) = json.loads(plaudit("data", "check", path, "--json").out)["files"]
    assert file["near_sampled"] and 10 <= file["near_of_rows"] <= 50
    assert "sampled" in plaudit("data", "check", path).out


def test_near_duplicates_are_what_the_estimate_says() -> None:
    near = NearDuplicates(1000)
    base = " ".join(f"w{i}" for i in range(200))
    texts = [base, base + " tail", " ".join(f"v{i}" for i in range(200)), "one two three", base, "one two four", ""]
    for row, text in enumerate(texts):
        near.add(row, text)
    content = np.array([1, 2, 3, 4, 1, 5, 6], dtype=np.uint64)
    assert near.pairs(content) == [(1, 0)]
    assert near.pairs(content, np.array([0, 1, 0, 0, 0, 0, 0], dtype=np.uint64)) == []
    assert NearDuplicates(10).pairs(np.zeros(0, dtype=np.uint64)) == []


# --- the commands ---


def test_check_prints_a_table_and_ends_with_0_or_1(tmp_path: Path, plaudit: Plaudit) -> None:
    good = put(tmp_path / "good.jsonl", *(demonstration(i) for i in range(5)), demonstration(0))
    done = plaudit("data", "check", good)
    assert done.code == 0 and done.err == ""
    for part in ("good.jsonl", "prompt-completion", "(detected)", "none named", "distinct-1", "0 errors, 1 warnings"):
        assert part in done.out
    assert f"{good}:6: the same as {good}:1" in done.out
    bad = put(tmp_path / "bad.jsonl", demonstration(1), '{"prompt": "x"}')
    done = plaudit("data", "check", good, bad)
    assert done.code == 1
    assert f"{bad}:2: field 'completion'" in done.out and "1 prompts in common" in done.out


def test_check_as_json_is_the_report(tmp_path: Path, plaudit: Plaudit) -> None:
    path = put(tmp_path / "a.jsonl", demonstration(1, split="test"), demonstration(1, completion="ü"))
    done = plaudit("data", "check", path, "--json")
    assert done.code == 1
    assert json.loads(done.out) == check(path)


def test_check_with_a_tokenizer(
    tmp_path: Path, plaudit: Plaudit, tiny_model: Callable[..., Path], chat_of: Callable[..., Any]
) -> None:
    path = put(tmp_path / "a.jsonl", demonstration(1))
    done = plaudit("data", "check", path, "--json", "--tokenizer", tiny_model())
    (file,) = json.loads(done.out)["files"]
    ids = chat_of(tiny_model()).tokenizer(demonstration(1)["prompt"], add_special_tokens=False)["input_ids"]
    assert file["tokens"]["prompt"]["p50"] == len(ids)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("check", "nowhere.jsonl"), ("nowhere.jsonl: no such file",)),
        (("check", "a.jsonl", "--format", "alpacca"), ("did you mean 'alpaca'",)),
        (("convert", "a.jsonl", "--to", "a.jsonl"), ("a.jsonl: the file is there already",)),
        (("convert", "a.jsonl", "--to", "b.jsonl", "--on-bad-row", "drop"), ("'drop'", "stop or quarantine")),
        (("convert", "a.jsonl", "--to", "b.jsonl"), ("a.jsonl:2: field 'completion'",)),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...], says: tuple[str, ...], tmp_path: Path, plaudit: Plaudit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "a.jsonl", demonstration(1), '{"prompt": "x"}')
    done = plaudit("data", *arguments)
    assert done.code == 2 and done.err.startswith("Error: ") and done.err.count("\n") == 1
    assert all(part in done.err for part in says)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_convert_writes_canonical_rows_and_sets_bad_ones_aside(tmp_path: Path, plaudit: Plaudit) -> None:
    rows = [{"instruction": f"Say {i}", "input": "", "output": f"It is {i}."} for i in range(5)]
    path = put(tmp_path / "a.jsonl", *rows[:3], '{"instruction": "x"', *rows[3:])
    to = tmp_path / "out.jsonl"
    done = plaudit("data", "convert", path, "--to", to, "--on-bad-row", "quarantine")
    assert done.code == 0
    assert "format alpaca (detected)" in done.out and "6 rows: 5 in" in done.out and "1 in" in done.out
    written = [json.loads(line) for line in to.read_text().splitlines()]
    assert written[0] == {
        "id": "1",
        "kind": "instruction",
        "prompt": [{"role": "user", "content": "Say 0"}],
        "completion": "It is 0.",
    }, "and no split that nobody named: a run divides the rows"
    assert [row["id"] for row in written] == ["1", "2", "3", "5", "6"]
    (aside,) = [json.loads(line) for line in (tmp_path / "out.quarantine.jsonl").read_text().splitlines()]
    assert aside["place"] == f"{path}:4" and aside["raw"] == '{"instruction": "x"'
    assert plaudit("data", "check", to).code == 0


# --- a run ---


def test_a_run_sets_bad_rows_aside_and_says_so(
    tmp_path: Path, write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from plaudit.stages.prepare import prepare
    from plaudit.stages.recipe import load_recipe

    recipe = write_recipe(tmp_path)
    with (tmp_path / "demonstrations.jsonl").open("a") as handle:
        handle.write('{"prompt": "x"}\n{"prompt": \n')
    run = prepare(load_recipe(recipe, ["data.on_bad_row=quarantine"]))
    assert len(run.demonstrations) == 36
    aside = [json.loads(line) for line in (run.folder.path / "data/quarantine.jsonl").read_text().splitlines()]
    assert [row["raw"] for row in aside] == ['{"prompt": "x"}', '{"prompt": ']
    out = capsys.readouterr().out
    assert "38 rows, 2 of them bad" in out and "2 bad rows set aside in" in out


def test_a_run_takes_pairs_and_other_formats(tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    from plaudit.stages.prepare import prepare
    from plaudit.stages.recipe import load_recipe

    recipe = write_recipe(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "demonstrations.jsonl").read_text().splitlines()]
    turns = [
        {
            "split": row["split"],
            "kind": row["kind"],
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
            ],
        }
        for row in rows
    ]
    (tmp_path / "chat.json").write_text(json.dumps(turns))
    put(
        tmp_path / "pairs.jsonl",
        *({"prompt": r["prompt"], "split": r["split"], "chosen": "Yes.", "rejected": "No."} for r in rows),
    )
    run = prepare(
        load_recipe(
            recipe,
            [
                "data.demonstrations=chat.json",
                "preferences.rankings=pairs.jsonl",
                "data.formats={chat.json: messages, pairs.jsonl: pairs}",
                "preferences.train_prompts=320",
                "preferences.replies=4",
            ],
        )
    )
    assert [d.completion for d in run.demonstrations] == [row["completion"] for row in rows]
    assert run.rankings is not None
    assert [ranking.ranks for ranking in run.rankings] == [(1, 2)] * 36


def ranked_by(who: str | None, *texts: str, prompt: str = "x") -> dict[str, Any]:
    """`texts` from best to worst, listed by their alphabet."""
    replies = [{"text": text, "rank": texts.index(text) + 1} for text in sorted(texts)]
    return {"prompt": prompt, "responses": replies, **({"annotator": who} if who else {})}


def test_two_people_may_differ_and_one_may_not(tmp_path: Path) -> None:
    one, other = ranked_by("ann", "a b c d", "e f g h"), ranked_by("bo", "e f g h", "a b c d")
    report = check(put(tmp_path / "a.jsonl", one, other, ranked_by("cy", "a b c d", "e f g h")))
    assert report["problems"] == []
    # Of the three pairs of people one agrees.
    assert report["agreement"] == {"pairs": 3, "share": pytest.approx(1 / 3)}
    assert report["files"][0]["annotators"] == {"ann": 1, "bo": 1, "cy": 1}
    turned = {**other, "annotator": "ann"}
    assert [*problems(check(put(tmp_path / "b.jsonl", one, turned)))] == ["contradiction"]
    assert [*problems(check(put(tmp_path / "c.jsonl", one, one)))] == ["duplicate"]


def test_a_length_bias_that_is_sure_is_a_warning(tmp_path: Path) -> None:
    """38 of 40 pairs: Wilson's interval is 83 to 99 %; of 4 pairs 3 say nothing."""
    rows = [ranked_by(None, f"a longer reply {i}", f"no {i}", prompt=f"Question {i}?") for i in range(38)]
    rows += [ranked_by(None, f"no {i}", f"a longer reply {i}", prompt=f"Question {i}?") for i in range(38, 40)]
    (found,) = problems(check(put(tmp_path / "a.jsonl", *rows)))["length bias"]
    assert found == ("a.jsonl", "the longer reply wins 95% of 40 pairs (95 % interval 83% to 99%)")
    assert "length bias" not in problems(check(put(tmp_path / "b.jsonl", *rows[-5:-1])))
