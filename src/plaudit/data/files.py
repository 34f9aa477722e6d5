"""Files in and out, strict: a bad row stops with file:line, the field, the value and the fix, or is set aside.

Reads prompts, demonstrations and rankings, of any format in any container (data/formats); writes files and folders
whole or not at all.
"""

import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from plaudit.data.formats.json_rows import json_lines
from plaudit.data.formats.reader import Reader, prompt_of
from plaudit.data.formats.rows import Row, shown
from plaudit.data.table import DemonstrationTable
from plaudit.errors import UserError, no_file, writing
from plaudit.records import Demonstration, Labelled, Message, Prompt, Ranking, Record


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of every line of JSON lines; place is "file:line". An empty or malformed line is an error."""
    if why := no_file(path):
        raise UserError(f"{path}: {why}")
    for row in json_lines(path):
        if row.value is None:
            raise UserError(row.problem)
        yield row.place, row.value


@dataclass(frozen=True)
class Reading:
    """How files are read: `format` overrides detection, `bad` takes the rows that are set aside (None stops at the
    first), `say` hears what was detected; `ignore` names keys of messages that may be lost, `columns` the file's names
    of ours; `split` gives every prompt its split, whatever the row says."""

    format: str | None = None
    bad: list[Row] | None = None
    say: Callable[[str], None] = lambda line: None
    ignore: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    split: Callable[[Prompt], str] | None = None

    def records(self, source: Path, wanted: str) -> Iterator[tuple[str, Record]]:
        """(place, record) of every good row."""
        aside = self.bad is not None
        reader = Reader(
            source, format=self.format, wanted=wanted, quarantine=aside, columns=self.columns, ignore=self.ignore
        )
        for row, record in reader:
            problem = undecided(row.place, record) if isinstance(record, Ranking) else None
            if problem and self.bad is None:
                raise UserError(problem)
            if record is not None and not problem:
                yield row.place, self._divided(record)
            elif self.bad is not None:
                self.bad.append(row._replace(problem=problem) if problem else row)
                reader.bad += bool(problem)
        self.say(reader.describe())

    def _divided(self, record: Record) -> Record:
        if self.split is None:
            return record
        prompt = replace(prompt_of(record), split=self.split(prompt_of(record)))
        return prompt if isinstance(record, Prompt) else replace(record, prompt=prompt)


def undecided(place: str, ranking: Ranking) -> str | None:
    """What is wrong with a ranking in which a text beats itself."""
    for better, worse in ranking.pairs():
        if ranking.replies[better] == ranking.replies[worse]:
            return (
                f"{place}: replies {better + 1} and {worse + 1} are equal but ranked {ranking.ranks[better]} and "
                f"{ranking.ranks[worse]}: {shown(ranking.replies[better].text)}; one text cannot beat itself: give "
                "both the same rank or delete the row"
            )
    return None


_STRICT = Reading()


def read_prompts(path: Path, reading: Reading = _STRICT) -> list[Prompt]:
    """Rows `{id, kind, split, prompt}`, or those of any format; ids are unique, and no prompt stands in two splits. Of
    demonstrations and rankings, where one prompt may stand in many rows, each is taken once."""
    prompts: list[Prompt] = []
    place_of_id: dict[str, str] = {}
    first_of: dict[tuple[Message, ...], tuple[str, str]] = {}
    for place, record in reading.records(path, "prompts"):
        prompt = prompt_of(record)
        if not isinstance(record, Prompt) and first_of.get(prompt.messages, ("",))[0] == prompt.split:
            continue
        if prompt.id in place_of_id:
            raise UserError(
                f"{place}: field 'id' {prompt.id!r} is already used in {place_of_id[prompt.id]}; make it unique"
            )
        place_of_id[prompt.id] = place
        split, first = first_of.setdefault(prompt.messages, (prompt.split, place))
        if split != prompt.split:
            raise UserError(
                f"{place}: the prompt {prompt.text[:60]!r} is in split {prompt.split!r} and, in {first}, in {split!r}: "
                "a held-out prompt must not be trained on; keep one of them"
            )
        prompts.append(prompt)
    return prompts


def read_demonstrations(path: Path, reading: Reading = _STRICT) -> DemonstrationTable:
    """Rows `{id, kind, split, prompt, completion}`, or those of any format of demonstrations; split train is trained
    on, the others measure the held-out loss. The rows are on disk, not in memory."""
    records = (record for _, record in reading.records(path, "demonstrations"))
    return DemonstrationTable.of(record for record in records if isinstance(record, Demonstration))


def read_rankings(path: Path, reading: Reading = _STRICT) -> list[Ranking]:
    """Rows `{id, kind, split, prompt, responses: [{text, rank, finished}]}`, or those of any format of preferences:
    a pair is a ranking of two replies."""
    records = [record for _, record in reading.records(path, "rankings")]
    return [record for record in records if isinstance(record, Ranking)]


def read_labels(path: Path, reading: Reading = _STRICT) -> list[Labelled]:
    """Rows `{id, kind, split, prompt, completion, label, annotator}`: replies of which each was liked or not."""
    return [record for _, record in reading.records(path, "labels") if isinstance(record, Labelled)]


class _Named(io.FileIO):
    """A file whose name is in what the disk says while it is written; what its writer reads meanwhile is not."""

    def __init__(self, path: Path):
        super().__init__(path, "w")
        self._path = path

    def write(self, data: Any) -> Any:
        with writing(self._path):
            return super().write(data)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that is at `path` when the block has ended, flushed to disk, replacing what was there; an error leaves
    what was there."""
    if path.exists() and (why := no_file(path)):  # a device would be replaced, not written to
        raise UserError(f"{path}: {why}")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with io.BufferedWriter(_Named(part)) as handle:
            yield handle
            handle.flush()
            with writing(part):
                os.fsync(handle.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder, empty at first, that is at `path` when the block has ended, replacing what was there; an error leaves
    what was there."""
    part, gone = path.with_name(f"{path.name}.part-{os.getpid()}"), path.with_name(path.name + ".gone")
    for old in (part, gone):
        shutil.rmtree(old, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        with writing(part):
            yield part
        _open_to_readers(part)
        if path.exists():
            path.replace(gone)  # at no moment is there a half-deleted folder of this name
        part.replace(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        if gone.exists() and not path.exists():
            gone.replace(path)
        raise
    shutil.rmtree(gone, ignore_errors=True)


def _open_to_readers(folder: Path) -> None:
    """Every file in it may be read by whom a new file of this process may be read: safetensors makes its own private,
    so that a server of another user could not load them."""
    new = folder / ".mode"
    new.touch()
    mode = new.stat().st_mode & 0o777
    new.unlink()
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(file.stat().st_mode | mode)


def free_folder(path: Path) -> Path:
    """`path`, or the first of path-2, path-3, ... that does not exist yet."""
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate


def clear_halves(folder: Path) -> None:
    """Delete what a killed process left half-written or half-deleted in a folder and below."""
    for one in sorted([*folder.rglob("*.part*"), *folder.rglob("*.gone")]):
        if one.is_dir():
            shutil.rmtree(one)
        else:
            one.unlink(missing_ok=True)  # it may have gone with its folder


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    with whole_file(path) as handle:
        handle.write(data)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """What `write_json` wrote. UserError where it was cut short or damaged since, for it is written whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is cut short or damaged ({error}); put it back, or make it again: what a stage left with --from "
            "STAGE, a run's own files in another folder"
        ) from error


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line, whole or not at all."""
    with whole_file(path) as handle:
        for row in rows:
            handle.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def convert(
    source: str | Path,
    to: Path,
    *,
    format: str | None = None,
    quarantine: bool = False,
    columns: Mapping[str, str] | None = None,
) -> tuple[Reader, Path]:
    """Any file to the canonical JSON lines `to`, row by row, and the bad rows to TO.quarantine.jsonl beside it; without
    `quarantine` the first bad row stops it. Returns the reader, which counted the rows, and the path of the bad ones.

    Both files appear at the end, whole; a file that is there already is not replaced.
    """
    aside = to.with_name(f"{to.name.removesuffix('.jsonl')}.quarantine.jsonl")
    for path in (to, aside):
        if path.exists():
            raise UserError(f"{path}: the file is there already; move it or choose another name with --to")
    reader = Reader(source, format=format, quarantine=quarantine, columns=columns)
    with ExitStack() as opened:
        good, bad = opened.enter_context(whole_file(to)), None
        for row, record in reader:
            if record is not None:
                made = record.as_json()
                if not (row.value or {}).get("split"):
                    del made["split"]  # a split that nobody named would keep a run from dividing the rows
                good.write(json.dumps(made, ensure_ascii=False).encode() + b"\n")
            else:
                bad = bad or opened.enter_context(whole_file(aside))
                bad.write(json.dumps(row.as_json()).encode() + b"\n")
    return reader, aside
