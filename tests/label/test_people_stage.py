"""`preferences.annotator: human`: the run samples once, waits for people, can be stopped, and goes on with what they
said; and what a run puts up to be labelled."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from annotators import join, label_next, labelling
from pydantic import ValidationError
from sqlalchemy.exc import OperationalError

from plaudit.data.files import read_prompts, read_rankings
from plaudit.errors import UserError
from plaudit.label.db.database import connect, open_project, snapshot, writing
from plaudit.label.db.ledger import read
from plaudit.label.quality.dashboard import dashboard
from plaudit.label.quality.places import filled_of_run
from plaudit.label.queue import leases
from plaudit.label.queue.again import another_opinion, ask_others
from plaudit.label.queue.items import add_items, rank_draft, set_priorities
from plaudit.records import Completion
from plaudit.run.metrics import read_metrics
from plaudit.run.stopping import Interrupted
from plaudit.stages.label_items import Sampling, sampled
from plaudit.stages.pipeline import next_round, run_pipeline
from plaudit.stages.plan import Flags
from plaudit.stages.preferences import loop as preferences
from plaudit.stages.preferences import people as preferences_people
from plaudit.stages.preferences.config import PreferencesConfig
from plaudit.stages.recipe import load_recipe
from plaudit.view.report.write import compared_by_people
from plaudit.view.status import status_of
from plaudit.view.studio.logs import card


def shorter_is_better(shown: list[str]) -> dict[str, Any]:
    lengths = [len(text) for text in shown]
    return {"ranks": [1 + sum(other < own for other in lengths) for own in lengths]}


def longer_is_better(shown: list[str]) -> dict[str, Any]:
    return {"ranks": [1 + sum(len(other) > len(own) for other in shown) for own in shown]}


@pytest.fixture
def run_again(trained: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The arguments of `plaudit` that run one stage on a copy of the trained run, with its preferences by people."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)

    def arguments(stage: str, *changes: str) -> list[str]:
        human = [f"preferences.{change}" for change in ("annotator=human", "train_prompts=6", *changes)]
        return [stage, str(trained.parent / "recipe.yaml"), f"folder={folder}", "sampling.temperature=2.0", *human]

    return arguments


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preferences_people, "POLL_SECONDS", 0.05)


def test_a_run_waits_for_people_stops_goes_on_and_never_samples_twice(
    run_again: Callable[..., list[str]],
    plaudit: Callable[..., SimpleNamespace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    label = tmp_path / "run" / "label"
    stage = run_again("preferences", "overlap=2", "labels=20")
    with monkeypatch.context() as stopped:

        def stop(_: float) -> None:
            raise Interrupted(signal.SIGINT)

        stopped.setattr(preferences_people.time, "sleep", stop)
        first = plaudit(*stage)
    assert first.code == 130
    assert f"plaudit label serve --database {label / 'labels.sqlite'}" in first.out
    before = (label / "sampled.json").read_bytes()
    engine = connect(label / "labels.sqlite")
    with snapshot(engine) as connection:
        items = read(connection).items
    assert {item.overlap for item in items} == {2}
    assert {reply.source for item in items for reply in item.replies} == {"sft"}
    # Of every split early, so that few labels can train and test a reward model.
    served_first = sorted(items, key=lambda item: -item.priority)[: len(items) // 2]
    assert {item.split for item in served_first} == {"train", "validation", "test"}

    # A few labels come while nothing runs; then the run goes on, and the rest comes.
    who = join(engine, "early bird")
    for _ in range(5):
        assert label_next(engine, who, shorter_is_better)
    monkeypatch.setattr(preferences, "sampled", lambda *_: pytest.fail("it sampled again"))
    with labelling(label / "labels.sqlite", shorter_is_better, ["ann", "bo"]):
        second = plaudit(*stage)
    assert second.code == 0, second.err
    assert "sampled before" in second.out
    assert (label / "sampled.json").read_bytes() == before
    with snapshot(engine) as connection:
        assert len(read(connection).items) == len(items)
    engine.dispose()

    rankings = read_rankings(tmp_path / "run" / "preferences" / "rankings.jsonl")
    assert len(rankings) >= 20
    assert {ranking.annotator for ranking in rankings} == {"early bird", "ann", "bo"}
    for ranking in rankings:
        assert all(len(ranking.replies[w].text) < len(ranking.replies[l].text) for w, l in ranking.pairs())
    summary = json.loads((tmp_path / "run" / "preferences" / "summary.json").read_text())
    assert summary["people"] == 3
    assert summary["agreement"] == 1.0
    assert summary["longer_wins"] == 0.0
    assert "gold_mean" not in summary

    # The next stage trains on them, and knows that no simulated annotator said this.
    third = plaudit(*run_again("reward", "overlap=2", "labels=20"))
    assert third.code == 0, third.err
    card = json.loads((tmp_path / "run" / "reward" / "card.json").read_text())
    assert card["simulated"] is False
    assert card["ceiling"]["compared"] > 0


def test_another_sampling_is_sampled_anew_and_served_first(
    run_again: Callable[..., list[str]], plaudit: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    path = tmp_path / "run" / "label" / "labels.sqlite"
    with labelling(path, shorter_is_better, ["ann"]):
        assert plaudit(*run_again("preferences", "labels=6")).code == 0
    engine = connect(path)
    with snapshot(engine) as connection:
        old = {item.id for item in read(connection).items}
    with labelling(path, shorter_is_better, ["bo"]):
        done = plaudit(*run_again("preferences", "labels=6"), "sampling.max_new_tokens=3")
    assert done.code == 0, done.err
    with snapshot(engine) as connection:
        book = read(connection)
    assert {item.priority for item in book.items if item.id in old} == {-1.0}
    assert min(item.priority for item in book.items if item.id not in old) >= 0
    assert len({item.id for item in book.items}) > len(old)
    rankings = read_rankings(tmp_path / "run" / "preferences" / "rankings.jsonl")
    assert {ranking.annotator for ranking in rankings} == {"bo"}  # the labels of the first sampling are kept, not used
    # The settings of before: what was put up then comes first again, with its labels.
    assert plaudit(*run_again("preferences", "labels=6")).code == 0
    with snapshot(engine) as connection:
        assert {row.id for row in read(connection).items if row.priority >= 0} == old
        assert filled_of_run(connection, "run")[1] == len(old)
    engine.dispose()
    rankings = read_rankings(tmp_path / "run" / "preferences" / "rankings.jsonl")
    assert sum(ranking.annotator == "ann" for ranking in rankings) >= 6


def test_labels_follow_a_prompt_into_its_new_split(
    run_again: Callable[..., list[str]], plaudit: Callable[..., SimpleNamespace], trained: Path, tmp_path: Path
) -> None:
    """The same replies to prompts that are held out now: the database knows the items by what they say."""
    path, prompts = tmp_path / "run/label/labels.sqlite", tmp_path / "prompts.jsonl"
    with labelling(path, shorter_is_better, ["ann"]):
        assert plaudit(*run_again("preferences")).code == 0
    before = {row.prompt.id: row.prompt.split for row in read_rankings(tmp_path / "run/preferences/rankings.jsonl")}
    rows = [prompt.as_json() for prompt in read_prompts(trained.parent / "prompts.jsonl")]
    moved = {"validation": "test", "test": "validation", "train": "train"}
    prompts.write_text("".join(json.dumps(row | {"split": moved[row["split"]]}) + "\n" for row in rows))
    with labelling(path, shorter_is_better, ["bo"]):
        done = plaudit(*run_again("preferences"), f"data.prompts={prompts}")
    assert done.code == 0, done.err
    after = {row.prompt.id: row.prompt.split for row in read_rankings(tmp_path / "run/preferences/rankings.jsonl")}
    assert after == {identity: moved[split] for identity, split in before.items()}


def test_people_rank_the_replies_of_a_later_round(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of round 1's policy, in the one database of the run, before what is left of round 1; the run waits, stops
    and goes on as there."""
    home = tmp_path / "run"
    shutil.copytree(trained, home)
    keys = ["preferences.annotator=human", "preferences.train_prompts=6", "preferences.labels=6"]
    second = next_round(home, 1, [*keys, "sampling.temperature=2.0", "rounds.count=2"])
    (home / "label").mkdir()
    engine = open_project(home / "label/labels.sqlite")
    replies = [(Completion("One."), "sft"), (Completion("Two."), "sft")]
    (left,) = rank_draft(read_prompts(trained.parent / "prompts.jsonl")[0], replies, "preferences of run", overlap=1)
    add_items(engine, [left])
    with monkeypatch.context() as stopped:

        def stop(_: float) -> None:
            raise Interrupted(signal.SIGINT)

        stopped.setattr(preferences_people.time, "sleep", stop)
        with pytest.raises(Interrupted):
            run_pipeline(second, Flags(only=("preferences",)))
    assert card("run", home / "round-2")["progress"] == "waits for people"
    assert status_of(home / "round-2")["progress"] == "waits for people, 0 of 6 labels are in"
    monkeypatch.setattr(preferences, "sampled", lambda *_: pytest.fail("it sampled again"))
    with labelling(home / "label/labels.sqlite", shorter_is_better, ["ann"]):
        folder = run_pipeline(second, Flags(only=("preferences",)))
    assert folder == home / "round-2" and not (folder / "label/labels.sqlite").exists()
    rankings = read_rankings(folder / "preferences/rankings.jsonl")
    assert len(rankings) >= 6 and {ranking.annotator for ranking in rankings} == {"ann"}
    sources = {source for ranking in rankings for source in ranking.sources or ()}
    assert "round 1" in sources and sources <= {"sft", "round 1"}
    first = read_rankings(trained / "preferences/rankings.jsonl")
    assert read_rankings(folder / "preferences/earlier.jsonl") == first
    with snapshot(engine) as connection:
        priorities = {item.id: item.priority for item in read(connection).items}
    engine.dispose()
    assert priorities.pop(left.id) == -1.0 and min(priorities.values()) >= 0


def test_the_overlap_can_be_raised_while_the_run_waits(
    run_again: Callable[..., list[str]], plaudit: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    path = tmp_path / "run" / "label" / "labels.sqlite"
    with labelling(path, shorter_is_better, ["ann"]):
        assert plaudit(*run_again("preferences")).code == 0  # every item once
    with labelling(path, shorter_is_better, ["bo"]):
        done = plaudit(*run_again("preferences", "overlap=2"))  # every item twice
    assert done.code == 0, done.err
    rankings = read_rankings(tmp_path / "run" / "preferences" / "rankings.jsonl")
    by_name = [sum(ranking.annotator == name for ranking in rankings) for name in ("ann", "bo")]
    assert by_name[0] == by_name[1] > 0


def test_a_lowered_overlap_counts_the_places_that_are_filled(
    run_again: Callable[..., list[str]],
    plaudit: Callable[..., SimpleNamespace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What more people said of an item than it has places now does not stand for an item that nobody ranked; the run,
    `status` and the dashboard say the same."""
    run = tmp_path / "run"
    path = run / "label/labels.sqlite"
    with monkeypatch.context() as stopped:

        def stop(_: float) -> None:
            raise Interrupted(signal.SIGINT)

        stopped.setattr(preferences_people.time, "sleep", stop)
        assert plaudit(*run_again("preferences", "overlap=2")).code == 130
        engine = connect(path)
        for who in (join(engine, "ann"), join(engine, "bo")):
            for _ in range(4):
                assert label_next(engine, who, shorter_is_better)
        with snapshot(engine) as connection:
            book = read(connection)
        assert len({one.item for one in book.labels}) == 4 and len(book.labels) == 8
        again = plaudit(*run_again("preferences", "overlap=1"))
    count = len(book.items)
    assert again.code == 130 and f"4 of {count} labels are in" in again.out
    with snapshot(engine) as connection:
        seen = dashboard(read(connection), 0.0)["progress"]
    assert (seen["given"], seen["wanted"]) == (4, count)
    (found,) = json.loads(plaudit("status", run, "--json").out)
    assert (found["now"], found["progress"]) == ("preferences", f"waits for people, 4 of {count} labels are in")
    with labelling(path, shorter_is_better, ["cleo"]):
        assert plaudit(*run_again("preferences", "overlap=1")).code == 0
    engine.dispose()
    rankings = read_rankings(run / "preferences/rankings.jsonl")
    assert len({ranking.prompt.id for ranking in rankings}) == count and len(rankings) == count + 4


def test_one_person_more_whom_an_admin_asks_for_is_waited_for(
    run_again: Callable[..., list[str]],
    plaudit: Callable[..., SimpleNamespace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "run/label/labels.sqlite"
    with monkeypatch.context() as stopped:

        def stop(_: float) -> None:
            raise Interrupted(signal.SIGINT)

        stopped.setattr(preferences_people.time, "sleep", stop)
        assert plaudit(*run_again("preferences")).code == 130
        engine = connect(path)
        with writing(engine) as connection:
            which = read(connection).items[0].id
            assert another_opinion(connection, which)
        assert plaudit(*run_again("preferences")).code == 130  # stopped and gone on, it is asked for still
    with labelling(path, shorter_is_better, ["ann", "bo"]):
        assert plaudit(*run_again("preferences")).code == 0
    with snapshot(engine) as connection:
        assert sum(one.item == which for one in read(connection).labels) == 2
    engine.dispose()


def test_a_label_that_comes_while_the_run_looks_is_not_lost(
    run_again: Callable[..., list[str]],
    plaudit: Callable[..., SimpleNamespace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last one, just after the labels were read for the first time."""
    run, looked = tmp_path / "run", preferences_people._labels

    def slow(engine: Any, ids: set[str]) -> Any:
        read_before = looked(engine, ids)
        who = join(engine, f"ann {len(read_before[1])}")
        while label_next(engine, who, shorter_is_better):
            continue
        return read_before

    monkeypatch.setattr(preferences_people, "_labels", slow)
    done = plaudit(*run_again("preferences"))
    assert done.code == 0, done.err
    prompts = {row.prompt.id for row in read_rankings(run / "preferences/rankings.jsonl")}
    engine = connect(run / "label/labels.sqlite")
    with snapshot(engine) as connection:
        assert prompts == {row.prompt_id for row in read(connection).items}
    engine.dispose()


def test_what_was_taken_back_is_no_disagreement(
    run_again: Callable[..., list[str]],
    plaudit: Callable[..., SimpleNamespace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ann ranked an item the wrong way round, and then said that she could not judge it; Bo agrees with all else."""
    with monkeypatch.context() as stopped:

        def stop(_: float) -> None:
            raise Interrupted(signal.SIGINT)

        stopped.setattr(preferences_people.time, "sleep", stop)
        assert plaudit(*run_again("preferences", "overlap=2", "labels=3")).code == 130
    engine = connect(tmp_path / "run/label/labels.sqlite")
    ann, bo = join(engine, "ann"), join(engine, "bo")
    assert label_next(engine, ann, longer_is_better)
    with writing(engine) as connection:
        (first,) = read(connection).labels
        leases.correct(connection, ann, first.seq, "client-again", {"verdict": "cannot_judge"})
    for who in (ann, bo, bo):
        assert label_next(engine, who, shorter_is_better)
    engine.dispose()
    assert plaudit(*run_again("preferences", "overlap=2", "labels=3")).code == 0
    summary = json.loads((tmp_path / "run/preferences/summary.json").read_text())
    assert (summary["rankings"], summary["without_ranking"], summary["agreement"]) == (3, 1, 1.0)


def test_a_run_waits_on_while_the_database_is_away(
    run_again: Callable[..., list[str]],
    plaudit: Callable[..., SimpleNamespace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once when it looks whether anything is new, and once when it reads what is."""
    away = {"_now": 2, "_labels": 2}  # which call of each finds nobody there; the first ones are before it waits

    def flaky(name: str) -> Callable[..., Any]:
        whole = getattr(preferences_people, name)

        def found(*arguments: Any) -> Any:
            away[name] -= 1
            if away[name] == 0:
                raise OperationalError("SELECT 1", {}, Exception("the server has gone"))
            return whole(*arguments)

        return found

    for name in away:
        monkeypatch.setattr(preferences_people, name, flaky(name))
    path = tmp_path / "run/label/labels.sqlite"
    with labelling(path, shorter_is_better, ["ann"]):
        done = plaudit(*run_again("preferences", "overlap=1"))
    assert done.code == 0, done.err
    assert done.out.count("the labels cannot be read (the server has gone); trying again") in (1, 2)
    assert max(away.values()) < 0
    engine = connect(path)
    with snapshot(engine) as connection:
        count = len(read(connection).items)
    engine.dispose()
    assert len(read_rankings(tmp_path / "run/preferences/rankings.jsonl")) == count


def test_more_labels_than_there_can_be_are_refused_before_anybody_is_asked(
    run_again: Callable[..., list[str]], plaudit: Callable[..., SimpleNamespace]
) -> None:
    done = plaudit(*run_again("preferences", "labels=1000"))
    assert done.code == 2
    assert "preferences.labels=1000" in done.err


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"labels": 5}, "labels would do nothing with annotator=simulated"),
        ({"annotator": "human", "noise": 0.5}, "noise would do nothing with annotator=human"),
        ({"replies": 3, "rankings": "x.jsonl"}, "nothing is sampled with rankings=x.jsonl: replies would do nothing"),
        ({"annotator": "human", "database": "postgresql+psycopg://me:secret@host/db"}, "holds no secret"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        PreferencesConfig(**values)


def test_a_database_file_is_looked_for_beside_the_recipe(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    path = write_recipe(tmp_path, preferences={"annotator": "human", "database": "our.sqlite"})
    assert load_recipe(path).preferences.database == str(tmp_path / "our.sqlite")
    url = "postgresql+psycopg://me@host/db"
    assert load_recipe(path, [f"preferences.database={url}"]).preferences.database == url


# --- items out of a run ---


def test_replies_of_several_models_and_temperatures_are_mixed(trained: Path) -> None:
    """Four voices in turn: all of them answer, and the same sampling gives the same items."""
    sampling = Sampling(("sft", "ppo"), (0.7, 2.0), replies=3, prompts=4, split="train", max_new_tokens=4, seed=1)
    drafts, alike = sampled(trained, sampling)
    assert len(drafts) + alike == 4
    voices = {"sft t=0.7", "sft t=2", "ppo t=0.7", "ppo t=2"}
    assert {source for draft in drafts for source in draft.sources} == voices
    for draft in drafts:
        assert len({reply.text for reply in draft.replies}) == len(draft.replies) >= 2
        assert draft.prompt.split == "train"
    again, _ = sampled(trained, sampling)
    assert [draft.id for draft in again] == [draft.id for draft in drafts]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": ("sft", "nothing")}, "model 'nothing'"),
        ({"models": ("sft", "sft")}, "named twice"),
        ({"split": "holdout"}, "split 'holdout'"),
    ],
)
def test_what_cannot_be_sampled_is_said(trained: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        sampled(trained, Sampling(**changes))


def test_before_and_after_over_the_command_line(
    trained: Path, plaudit: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    """SFT against PPO: the evaluation's own replies; people who like the shorter one decide, and stats says so."""
    database = tmp_path / "labels.sqlite"
    done = plaudit("label", "compare", trained, "--database", database)
    assert done.code == 0, done.err
    rows = read_metrics(trained / "evaluate" / "replies.jsonl")
    different = [row for row in rows if row["sft"]["text"] != row["ppo"]["text"]]
    engine = connect(database)
    who = join(engine, "ann")
    while label_next(engine, who, shorter_is_better, "compare"):
        continue
    with snapshot(engine) as connection:
        book = read(connection)
    engine.dispose()
    assert len(book.items) == len(different) > 0
    assert {tuple(reply.source for reply in item.replies) for item in book.items} == {("sft", "ppo")}
    lengths = [(len(row["sft"]["text"]), len(row["ppo"]["text"])) for row in different]
    expected = sum((ppo < sft) + 0.5 * (ppo == sft) for sft, ppo in lengths) / len(lengths)
    told = json.loads(plaudit("label", "stats", "--database", database, "--json").out)
    assert told["compare"]["win_rate"] == pytest.approx(expected)
    assert told["compare"]["labels"] == len(different)
    again = plaudit("label", "compare", trained, "--database", database)
    assert "0 new items" in again.out


def test_the_report_tells_what_people_preferred(
    trained: Path, plaudit: Callable[..., SimpleNamespace], tmp_path: Path, undrawn: None
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    prompts = read_prompts(trained.parent / "prompts.jsonl")
    run: Any = SimpleNamespace(folder=SimpleNamespace(path=folder), prompts=prompts, rounds=SimpleNamespace(number=1))
    assert compared_by_people(run) is None
    assert plaudit("label", "compare", folder).code == 0
    assert compared_by_people(run) is None  # nobody has compared yet
    engine = connect(folder / "label" / "labels.sqlite")
    who = join(engine, "ann")
    while label_next(engine, who, lambda shown: {"ranks": [1, 1]}, "compare"):
        continue
    engine.dispose()
    done = plaudit("report", trained.parent / "recipe.yaml", f"folder={folder}")
    assert done.code == 0, done.err
    people = json.loads((folder / "summary.json").read_text())["people"]
    assert (people["win_rate"], people["ties"]) == (0.5, 1.0)
    assert "people prefer PPO" in done.out
    assert "People prefer PPO" in (folder / "report.html").read_text(encoding="utf-8")
    # Ann's answers are set aside: they count no more, here as on the dashboard.
    engine = connect(folder / "label" / "labels.sqlite")
    bo = join(engine, "bo")
    with writing(engine) as connection:
        ask_others(connection, who)
    assert compared_by_people(run) is None
    while label_next(engine, bo, lambda shown: {"ranks": [1, 1]}, "compare"):
        continue
    engine.dispose()
    again = compared_by_people(run)
    assert again is not None and again["labels"] == people["labels"]
    # Replies of another evaluation were compared: those labels say nothing of this one.
    rows = read_metrics(folder / "evaluate" / "replies.jsonl")
    changed = [{**row, "ppo": {**row["ppo"], "text": row["ppo"]["text"] + " And more."}} for row in rows]
    (folder / "evaluate" / "replies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    assert compared_by_people(run) is None


def test_items_come_in_the_order_of_the_reward_models_doubt(
    trained: Path, plaudit: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    database = tmp_path / "labels.sqlite"
    sample = ["label", "sample", trained, "--database", database, "--prompts", "8", "--replies", "2"]
    assert plaudit(*sample, "--temperature", "2", "--max-new-tokens", "8").code == 0
    done = plaudit("label", "order", trained, "--database", database)
    assert done.code == 0, done.err
    engine = connect(database)
    with snapshot(engine) as connection:
        items = read(connection).items
    assert all(0 < item.priority <= 1 for item in items)
    assert len({item.priority for item in items}) > 1
    # What a run sampled before, and uses no more, stays behind.
    set_priorities(engine, {items[0].id: -1.0})
    assert plaudit("label", "order", trained, "--database", database).code == 0
    with snapshot(engine) as connection:
        assert [item.priority < 0 for item in read(connection).items] == [True, *[False] * (len(items) - 1)]
    assert plaudit("label", "order", trained, "--database", database, "--by", "length").code == 0
    assert plaudit("label", "order", trained, "--database", database, "--by", "age").code == 2
    engine.dispose()


def test_people_and_files_of_rankings_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file has is learnt from beside what people rank; without people nothing is sampled."""
    monkeypatch.setattr(preferences_people, "ranked_by_people", lambda *_: (["ranked now"], {"people": 1}))
    run: Any = SimpleNamespace(rankings=("of a file",), before=())
    both = PreferencesConfig.model_validate({"annotator": "human", "rankings": ["x.jsonl"], "overlap": 2})
    assert preferences._rankings(both, run, None) == (["of a file", "ranked now"], {"people": 1})
    alone = PreferencesConfig.model_validate({"rankings": "x.jsonl"})
    assert preferences._rankings(alone, run, None) == (["of a file"], {})
