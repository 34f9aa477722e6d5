"""The rows of a run: every file that its recipe names, read, divided and checked against the others."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from plaudit.data.files import Reading, read_demonstrations, read_labels, read_prompts, read_rankings
from plaudit.data.formats.rows import SPLITS, Row
from plaudit.data.hashes import sha256_rows
from plaudit.data.splits import names_split, split_of
from plaudit.data.table import DemonstrationTable
from plaudit.errors import Mistakes, UserError
from plaudit.records import Labelled, Message, Prompt, Ranking, Record
from plaudit.rewards.config import uses_trained
from plaudit.run.display import console
from plaudit.stages.recipe import Recipe
from plaudit.stages.reward.labels import divided_labels
from plaudit.stages.reward.training import divided
from plaudit.stages.sft.loop import sources_of


@dataclass
class RunData:
    """The rows of every file that a recipe names."""

    prompts: list[Prompt]
    demonstrations: DemonstrationTable
    mixed: dict[Path, DemonstrationTable]
    rankings: list[Ranking] | None
    labels: list[Labelled] | None
    bad: list[Row] = field(default_factory=list)
    """What was set aside, where bad rows do not stop the run."""

    def by_file(self, recipe: Recipe) -> dict[Path, Iterable[Record]]:
        """The rows of each file."""
        found: dict[Path, Iterable[Record]] = {recipe.data.prompts: self.prompts}
        own = {} if recipe.data.demonstrations is None else {recipe.data.demonstrations: self.demonstrations}
        for path, rows in (own | self.mixed).items():
            found[path] = rows
        if self.rankings:
            # Of several files the first stands for all: their rows are one list.
            found[recipe.preferences.rankings[0]] = self.rankings
        if recipe.preferences.unpaired is not None and self.labels is not None:
            found[recipe.preferences.unpaired] = self.labels
        return found

    @property
    def hashes(self) -> dict[str, str]:
        """By the rows, not by the files they stood in."""
        found = {
            "prompts": sha256_rows(prompt.as_json() for prompt in self.prompts),
            "demonstrations": self.demonstrations.sha256,
        }
        found |= {f"sft.mixture {path}": rows.sha256 for path, rows in self.mixed.items()}
        if self.rankings is not None:
            found["rankings"] = sha256_rows(ranking.as_json() for ranking in self.rankings)
        if self.labels is not None:
            found["labels"] = sha256_rows(labelled.as_json() for labelled in self.labels)
        return found


def read_data(recipe: Recipe, mistakes: Mistakes | None = None) -> RunData:
    """Every file of the recipe, read and checked: splits, sources of the mixture, no held-out prompt in training. With
    `mistakes` that gather, a file that cannot be read is as one without rows, and bad rows are set aside."""
    mistakes, bad, data = mistakes or Mistakes(), list[Row](), recipe.data
    named, by_hash = _divided(recipe)
    say = _once()
    aside = bad if mistakes.gather or data.on_bad_row == "quarantine" else None
    prompts, tables = list[Prompt](), dict[Path, DemonstrationTable]()
    rankings, labels = list[Ranking](), list[Labelled]()
    with mistakes:
        if by_hash is None and (dead := data.given("validation", "test")):
            raise UserError(f"data.{dead[0]} does nothing: {named[0]} names splits, which data.split=auto passes over")
    with mistakes:
        prompts = read_prompts(data.prompts, _reading(recipe, data.prompts, aside, by_hash, say))
        _check_splits(data.prompts, prompts, _to_divide(by_hash is not None, len(prompts)))
    # A file that names no split, where others do, is divided too; a mixture's own files are for training.
    judged = [path for path in (*recipe.preferences.rankings, recipe.preferences.unpaired) if path is not None]
    divided_too = {data.demonstrations, *judged} - {*named} if data.split is None else set()

    def split_by(path: Path) -> Callable[[Prompt], str] | None:
        return by_hash or (_as_known(recipe, prompts, tables) if path in divided_too else None)

    demonstrated = [path for path in recipe.demonstrated if path is not None]
    for path in dict.fromkeys(demonstrated):
        with mistakes:
            tables[path] = read_demonstrations(path, _reading(recipe, path, aside, split_by(path), say))
    own = tables.get(data.demonstrations or Path(), DemonstrationTable.of([]))
    mixed = {path: tables[path] for path in demonstrated[data.demonstrations is not None :] if path in tables}
    if len(tables) == len({*demonstrated}) and not recipe.sft.skip:
        with mistakes:
            _check_demonstrated(recipe, own, _to_divide(by_hash is not None, len(own)))
            sources_of(recipe.sft, own, mixed)
    with mistakes:
        _check_demonstrations_held_out(recipe, prompts, tables)
    with mistakes:
        for path in recipe.preferences.rankings:
            rankings += read_rankings(path, _reading(recipe, path, aside, split_by(path), say))
        if (unpaired := recipe.preferences.unpaired) is not None:
            labels = read_labels(unpaired, _reading(recipe, unpaired, aside, split_by(unpaired), say))
        _check_judged(recipe, prompts, rankings, labels)
    if by_hash is not None and prompts:
        counts = Counter(prompt.split for prompt in prompts)
        said = ", ".join(f"{counts[split]} {split}" for split in SPLITS)
        console.print(f"Prompts divided by a hash of each (data.split): {said}")
    return RunData(
        prompts=prompts,
        demonstrations=own,
        mixed=mixed,
        rankings=rankings if recipe.preferences.rankings else None,
        labels=labels if recipe.preferences.unpaired else None,
        bad=bad,
    )


def prompts_of(recipe: Recipe) -> list[Prompt]:
    """The prompts of a recipe as its runs read them, without a word."""
    aside = list[Row]() if recipe.data.on_bad_row == "quarantine" else None
    reading = _reading(recipe, recipe.data.prompts, aside, _divided(recipe)[1], lambda line: None)
    return read_prompts(recipe.data.prompts, reading)


def _divided(recipe: Recipe) -> tuple[list[Path], Callable[[Prompt], str] | None]:
    """The files that name splits, and how prompts are divided by their hash; None where the rows' splits stay."""
    data = recipe.data
    named = [path for path in dict.fromkeys(recipe.files) if names_split(path, data.columns.get(path))]
    if data.split == "rows" or (data.split is None and named):
        return named, None
    return named, lambda prompt: split_of(prompt.messages, data.validation, data.test)


def _as_known(
    recipe: Recipe, prompts: list[Prompt], tables: Mapping[Path, DemonstrationTable]
) -> Callable[[Prompt], str]:
    """For a file that names no split, where others do: that of the same prompt there, else train or validation by its
    hash."""
    known = {prompt.messages: prompt.split for prompt in prompts}
    for rows in tables.values():
        known |= {row.prompt.messages: row.prompt.split for row in rows.where(rows.splits != "train")}
    share = recipe.data.validation
    return lambda prompt: known.get(prompt.messages) or split_of(prompt.messages, share, 0)


def _check_judged(recipe: Recipe, prompts: list[Prompt], rankings: list[Ranking], labels: list[Labelled]) -> None:
    """No held-out prompt among those that the reward model learns from, and enough of both."""
    chosen, ranked, labelled = recipe.preferences, [row.prompt for row in rankings], [row.prompt for row in labels]
    held_out = {prompt.messages for prompt in [*prompts, *ranked, *labelled] if prompt.split != "train"}
    where = ", ".join(map(str, chosen.rankings))
    _check_no_leak("ranking", where, ranked, recipe, held_out)
    _check_no_leak("label", str(chosen.unpaired), labelled, recipe, held_out)
    if uses_trained(recipe.ppo.rewards):
        if rankings and chosen.annotator != "human":
            divided(recipe.reward, rankings, where)
        if labels:
            divided_labels(labels, str(chosen.unpaired))


def _once() -> Callable[[str], None]:
    """Prints a line the first time: one file may hold prompts and rankings, and is read for each."""
    told = set[str]()

    def say(line: str) -> None:
        if line not in told:
            told.add(line)
            console.print(line, soft_wrap=True)

    return say


def _reading(
    recipe: Recipe,
    path: Path,
    bad: list[Row] | None,
    split: Callable[[Prompt], str] | None,
    say: Callable[[str], None],
) -> Reading:
    """How a data file of the recipe is read; `say` is told what was detected."""
    data = recipe.data
    return Reading(
        data.formats.get(path),
        bad,
        say,
        tuple(data.ignore_message_keys),
        data.columns.get(path, {}),
        split,
    )


def _to_divide(by_hash: bool, rows: int) -> str:
    if by_hash:
        return f"a hash divides the rows, and {rows} are too few for it: add rows, or name the split of each"
    return "give some rows that split, or set data.split=auto, by which a hash of the prompt divides the rows"


def _check_splits(path: Path, prompts: list[Prompt], fix: str) -> None:
    for split in SPLITS:
        if not any(prompt.split == split for prompt in prompts):
            raise UserError(f"{path}: no prompt has split {split!r}; the run needs train, validation and test; {fix}")


def _check_demonstrated(recipe: Recipe, demonstrations: DemonstrationTable, fix: str) -> None:
    for trained in (True, False):
        if not ((demonstrations.splits == "train") == trained).any():
            missing = "split 'train'" if trained else "split 'validation' or 'test'"
            raise UserError(f"{recipe.data.demonstrations}: no demonstration has {missing}; SFT needs both; {fix}")


def _check_demonstrations_held_out(
    recipe: Recipe, prompts: list[Prompt], files: Mapping[Path, DemonstrationTable]
) -> None:
    held_out = {p.messages for p in prompts if p.split != "train"}
    for rows in files.values():
        held_out |= {row.prompt.messages for row in rows.where(rows.splits != "train")}
    for path, rows in files.items():
        train = rows.where(rows.splits == "train")
        _check_no_leak("demonstration", str(path), (row.prompt for row in train), recipe, held_out)


def _check_no_leak(
    what: str, path: str, used: Iterable[Prompt], recipe: Recipe, held_out: set[tuple[Message, ...]]
) -> None:
    """No prompt that the prompts file or one of these rows' files holds out may stand in a row that is trained on."""
    for prompt in used:
        if prompt.split == "train" and prompt.messages in held_out:
            raise UserError(
                f"{path}: training {what} {prompt.id!r} has a prompt that this file or "
                f"{recipe.data.prompts} holds out: {prompt.text[:60]!r}; give it split 'test' or remove it"
            )
