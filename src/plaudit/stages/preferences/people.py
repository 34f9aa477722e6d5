"""`preferences.annotator: human`: sample, put the replies up to be ranked, wait for people, take their rankings.

What was sampled lies in RUN/label/sampled.json, outside the stage's own folder, and is sampled again only when the SFT
model, the prompts or the sampling settings are others. Labels are in the database. So the stage can be stopped at any
time: run again, it goes on waiting.
"""

import hashlib
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, func, select, update
from sqlalchemy.exc import InterfaceError, OperationalError

from plaudit import rng
from plaudit.data.files import read_json, write_json
from plaudit.errors import UserError
from plaudit.label.db.database import open_project, snapshot, writing
from plaudit.label.db.ledger import Ledger, counting, read, standing
from plaudit.label.db.schema import item, label
from plaudit.label.quality.agreement import agreement
from plaudit.label.quality.places import EARLIER, filled, origin_of
from plaudit.label.queue.items import Draft, add_items, rank_draft, set_priorities
from plaudit.label.queue.leases import recount
from plaudit.label.queue.left import any_open
from plaudit.label.transfer.export import rankings_of
from plaudit.records import Completion, Ranking
from plaudit.rewards.saved import file_hashes, weights_and_rules
from plaudit.run.branch import run_of
from plaudit.run.display import console, progress
from plaudit.run.folder import RECIPE
from plaudit.stages.preferences.config import PreferencesConfig
from plaudit.stages.preferences.sampling import Group, voice_hashes
from plaudit.train.run import Run

POLL_SECONDS = 2.0
SAMPLED = "sampled.json"
AT_ONCE = 200
"""Items changed in one transaction, so that annotators never wait."""
Sample = Callable[[], tuple[list[Group], float]]
"""The stage's own sampling: K replies a prompt, and the share of them whose text becomes other ids."""


def ranked_by_people(config: PreferencesConfig, run: Run, sample: Sample) -> tuple[list[Ranking], dict[str, Any]]:
    """The rankings of people, one a person and item, and what the summary says of them."""
    home = run_of(run.folder.path, run.rounds.number)
    origin = origin_of(home.name)
    drafts, text_changed = _drafts(config, run, sample, origin)
    (home / "label").mkdir(parents=True, exist_ok=True)
    if config.labels is not None and config.labels > len(drafts) * config.overlap:
        raise UserError(
            f"preferences.labels={config.labels}: {len(drafts)} items for {config.overlap} people each give at most "
            f"{len(drafts) * config.overlap} labels; raise preferences.overlap or train_prompts, or lower labels"
        )
    where = config.database or str(home / "label" / "labels.sqlite")
    engine = open_project(where)
    try:
        add_items(engine, drafts)
        ids = {draft.id: draft for draft in drafts}
        _settle(engine, ids, origin, config.overlap, run.folder.path / "label" / SAMPLED)
        ledger, rankings = _wait(engine, where, run.folder.path, ids, config.labels)
    finally:
        engine.dispose()
    agreed = agreement([own for own in standing(ledger.labels) if own.item in ids])
    pairs = agreed["pairs"]
    return rankings, {
        "people": len({ranking.annotator for ranking in rankings}),
        "items_labelled": len({ranking.prompt.id for ranking in rankings}),
        "agreement": None if pairs is None else pairs["share"],
        "agreement_ci": None if pairs is None else [pairs["low"], pairs["high"]],
        "alpha": agreed["alpha"],
        "without_ranking": sum(without_ranking(ledger, ids).values()),
        "text_changed": text_changed,
    }


def _drafts(config: PreferencesConfig, run: Run, sample: Sample, origin: str) -> tuple[list[Draft], float]:
    """The items, from what was sampled before where that still holds; and the share of changed texts among them."""
    path = run.folder.path / "label" / SAMPLED
    model = file_hashes(run.sft_model, weights_and_rules(run.sft_model))
    law = (run.sampling.max_new_tokens, run.sampling.temperature)
    settings = (config.train_prompts, config.replies, *law, run.seed, run.system)
    decide: list[Any] = [settings, sorted(model.items()), [(p.id, p.messages, p.split) for p in run.prompts]]
    if run.before:
        decide += [run.rounds.model_dump(exclude={"count"}), voice_hashes(run)]
    name = hashlib.sha256(repr(decide).encode()).hexdigest()[:24]
    stored = read_json(path) if path.is_file() else {}
    if stored.get("sampling") != name:
        groups, text_changed = sample()
        rows = [
            [g.prompt.id, [{**reply.as_json(), "source": own} for reply, own in zip(g.replies, g.sources, strict=True)]]
            for g in groups
        ]
        stored = {"sampling": name, "replies": rows, "text_changed": text_changed}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, stored)
    else:
        console.print(f"{path}: these replies were sampled before; going on with their labels", soft_wrap=True)
    prompts = {prompt.id: prompt for prompt in run.prompts}
    # In a drawn order, so that few labels already are of prompts of every split, to train and to test on.
    order = rng.permutation(run.seed, "preferences/people", 0, len(stored["replies"]))
    found: list[Draft] = []
    for place, number in enumerate(order):
        identity, replies = stored["replies"][number]
        group = [(Completion(reply["text"], reply["finished"]), reply.get("source", "sft")) for reply in replies]
        priority = 1 - place / len(order)
        found += rank_draft(prompts[identity], group, origin, overlap=config.overlap, priority=priority)
    if not found:
        raise UserError("preferences: of no prompt two replies differ, so there is nothing to rank; raise temperature")
    return found, stored["text_changed"]


def _settle(engine: Engine, ids: Mapping[str, Draft], origin: str, overlap: int, sampled: Path) -> None:
    """The items go to as many people as the recipe says now; where it says what it said before, those that an admin
    asks one person more of are left so.

    Those of this run's earlier samplings stay, and so do their labels; but they come after these, of which some may be
    of a sampling before that.
    """
    with snapshot(engine) as connection:
        ledger = read(connection)
    stored = read_json(sampled)
    if stored.get("overlap") != overlap:
        other = [row.id for row in ledger.items if row.id in ids and row.overlap != overlap]
        for start in range(0, len(other), AT_ONCE):
            with writing(engine) as connection:
                for which in other[start : start + AT_ONCE]:
                    connection.execute(update(item).where(item.c.id == which).values(overlap=overlap))
                    recount(connection, which)
        write_json(sampled, stored | {"overlap": overlap})
    mine = [row for row in ledger.items if row.source_file == origin and row.id not in ids]
    behind = {row.id: EARLIER for row in mine if row.priority > EARLIER}
    again = [row.id for row in ledger.items if row.id in ids and row.priority <= EARLIER]
    set_priorities(engine, behind | {which: ids[which].priority for which in again})


def _wait(
    engine: Engine, where: str, folder: Path, ids: Mapping[str, Draft], labels: int | None
) -> tuple[Ledger, list[Ranking]]:
    """Until so many places have a ranking (None: all), or no more can come: every slot is filled, or everybody there
    had the item."""
    seen, more = _now(engine, ids)  # before the labels are read, so that none is missed that comes meanwhile
    ledger, rankings = _labels(engine, ids)
    had, wanted = _filled(ledger, ids, labels)
    if had < wanted:
        console.print(
            f"{had} of {wanted} labels are in. Let people rank the replies; this prints the link:\n\n"
            f"    plaudit label serve --database {where}\n\n"
            "The run goes on by itself. It may be stopped with Ctrl-C meanwhile: "
            f"`plaudit run {folder / RECIPE} --resume` goes on waiting.",
            soft_wrap=True,
        )
    with progress("Labels", wanted, "label") as advance:
        shown, away = min(had, wanted), False
        advance(count=shown)
        while had < wanted and more:
            time.sleep(POLL_SECONDS)
            before = seen
            try:
                seen, more = _now(engine, ids)
                if seen == before and more:
                    continue
                ledger, rankings = _labels(engine, ids)
            except (OperationalError, InterfaceError) as error:
                # Days are waited here: a server that begins anew, or a locked file, may be back the next time.
                if not away:
                    console.print(f"{where}: the labels cannot be read ({error.orig}); trying again", soft_wrap=True)
                seen, more, away = before, True, True
                continue
            away = False
            had, wanted = _filled(ledger, ids, labels)
            advance(count=max(0, min(had, wanted) - shown))
            shown = max(shown, min(had, wanted))
    if had < wanted:
        _say_what_is_missing(where, ledger, ids, f"{had} of {wanted} labels are in")
    if not rankings:
        fix = f"invite somebody else (`plaudit label invite NAME --database {where}`), then --resume this run"
        raise UserError(f"preferences: nobody who is there ranked any of the {len(ids)} items; {fix}")
    return ledger, rankings


def _filled(ledger: Ledger, ids: Collection[str], labels: int | None) -> tuple[int, int]:
    """(places of these items that have a ranking, how many are waited for), withdrawn items aside."""
    places = {row.id: row.overlap or ledger.overlap for row in ledger.items if row.id in ids}
    return filled(ledger.labels, places), sum(places.values()) if labels is None else labels


def _now(engine: Engine, ids: Collection[str]) -> tuple[int, bool]:
    """The number of the ledger's newest row, which tells cheaply whether anything is new, and whether more can come."""
    with snapshot(engine) as connection:
        last = connection.execute(select(func.coalesce(func.max(label.c.seq), 0))).scalar_one()
        return int(last), any_open(connection, ids)


def _say_what_is_missing(where: str, ledger: Ledger, ids: Collection[str], begin: str) -> None:
    """Why the run goes on with fewer labels than were wanted."""
    missing = without_ranking(ledger, ids) | {"skipped": sum(which in ids for which, _ in ledger.skipped)}
    counts = ", ".join(f"{count} {what}" for what, count in missing.items() if count)
    console.print(
        f"{begin}, and no slot is open to anybody who is there ({counts or 'nobody is left who had not seen the item'}"
        f"): the run goes on with these. To ask others, stop it, `plaudit label invite NAME --database {where}`, and "
        "run this stage again.",
        soft_wrap=True,
    )


def without_ranking(ledger: Ledger, ids: Collection[str]) -> dict[str, int]:
    """How many of the labels of these items give no ranking, and why."""
    said = [own for own in standing(ledger.labels) if own.item in ids and own.purpose == "normal"]
    return {
        "cannot judge": sum(own.verdict == "cannot_judge" for own in said),
        "all bad without an order": sum(own.verdict == "all_bad" and own.ranks is None for own in said),
        "late": sum(own.late and own.ranks is not None for own in said),
    }


def _labels(engine: Engine, ids: Mapping[str, Draft]) -> tuple[Ledger, list[Ranking]]:
    """What the database holds, and the rankings of these items. Their prompts are the run's: the database keeps an item
    with the split and kind that its prompt had when it was put up first."""
    with snapshot(engine) as connection:
        ledger = counting(read(connection))
    rows = ((row, ids[row.id].prompt if row.id in ids else row.prompt) for row in ledger.items)
    items = tuple(replace(row, prompt_id=own.id, kind=own.kind, split=own.split) for row, own in rows)
    ledger = replace(ledger, items=items)
    return ledger, rankings_of(ledger, only=ids)
