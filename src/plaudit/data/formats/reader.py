"""What the rows of a file mean: the formats, recognised by the keys of the rows, and their one reader.

| format | kind | keys of a row |
| --- | --- | --- |
| prompts | prompts | prompt |
| prompt-completion | demonstrations | prompt, completion |
| messages | demonstrations | messages |
| alpaca | demonstrations | instruction, output, input |
| sharegpt | demonstrations | conversations |
| pairs | rankings | chosen, rejected, prompt or none: strings or messages, by TRL's conventions |
| hh | rankings | chosen, rejected, texts of "\\n\\nHuman: … \\n\\nAssistant: …" |
| rankings | rankings | prompt, responses [{text, rank}], equal ranks are ties |
| votes | rankings | prompt, responses [{text, votes}] without ranks, equal votes are ties |
| strength | rankings | prompt, response_1, response_2, preference_strength: below 0 the first wins, 0 is a tie |
| winner | rankings | prompt, two answers (answer_a, answer_b), and which is better (winner: a, b or tie) |
| unpaired | labels | prompt, completion, label: whether the completion was liked |

Nothing is guessed: rows that fit two formats, or another one than the rows before, are bad rows. What was detected can
be asked for and is printed by every caller.
"""

import difflib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

from plaudit.data.formats.columns import OURS, Columns
from plaudit.data.formats.compared import an_annotation_each, chosen_between
from plaudit.data.formats.containers import rows
from plaudit.data.formats.duels import Duel, duel_of
from plaudit.data.formats.key_words import holds_text, seem_answers, seems_judged, unsays_pair
from plaudit.data.formats.message_keys import TOOLS, ignored_keys, says
from plaudit.data.formats.parsers import record_of
from plaudit.data.formats.rows import Row, row_of, shown
from plaudit.data.formats.shapes import fits, shaped
from plaudit.errors import UserError
from plaudit.records import Completion, Demonstration, Labelled, Prompt, Ranking, Record

KINDS = {
    "prompts": "prompts",
    **dict.fromkeys(("prompt-completion", "messages", "alpaca", "sharegpt"), "demonstrations"),
    **dict.fromkeys(("pairs", "hh", "rankings", "votes", "strength", "winner"), "rankings"),
    "unpaired": "labels",
}
"""Every format and the kind of its records."""
FORMATS = tuple(KINDS)
_CANONICAL = {"prompts": "prompts", "demonstrations": "prompt-completion", "rankings": "rankings", "labels": "unpaired"}
_OF_ANY = {"id", "kind", "split", "system", "history", "strength", "annotator"}
_READ: dict[str, frozenset[str] | set[str]] = {
    "prompts": {"prompt"},
    "prompt-completion": {"prompt", "completion"},
    "messages": {"messages"},
    "alpaca": {"instruction", "input", "output"},
    "sharegpt": {"conversations"},
    **dict.fromkeys(("pairs", "hh"), frozenset({"prompt", "chosen", "rejected"})),
    **dict.fromkeys(("rankings", "votes"), frozenset({"prompt", "responses"})),
    "strength": {"prompt", "response_1", "response_2", "preference_strength"},
    "winner": {"prompt"},
    "unpaired": {"prompt", "completion", "label"},
}
"""What each format reads of a row."""
_ASKED_TOO = {"input", "context", "passage", "background"}
"""Keys that in other people's files stand beside a question and belong to it."""
_ASKED_ALONE = {"question", "query"}
"""Those that often say again what the prompt says."""
_LOOKED_AT = 16  # rows whose commonest format a file with quarantine has


class Reader:
    """The rows of one source as records. Iterate once; then `format`, `rows`, `bad` and `ignored` say what was read.

    `wanted` is the kind of records that the caller can use (any, if None). It gives (row, record); with `quarantine` a
    bad row comes with None and says its problem, without it the first one is raised. Keys of messages that `ignore`
    names are counted, any other than role and content makes a bad row. With `by_person` a row that tells what several
    people said is one for each of them.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        format: str | None = None,
        wanted: str | None = None,
        quarantine: bool = False,
        columns: Mapping[str, str] | None = None,
        ignore: Collection[str] = (),
        by_person: bool = False,
    ):
        if format is not None and format not in FORMATS:
            near = difflib.get_close_matches(format, FORMATS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the formats are {', '.join(FORMATS)}"
            raise UserError(f"format {format!r}: unknown; {hint}")
        self.source, self.given, self.wanted, self.quarantine = source, format, wanted, quarantine
        self.columns = Columns(source, columns)
        self.format: str | None = format
        self.format_place = ""
        self.rows = self.bad = 0
        self.ignored: dict[str, int] = {}
        self._harmless: set[str] = set()
        self.ignore, self.by_person = ignore, by_person
        self.ignored_in_messages: Counter[str] = Counter()

    def describe(self) -> str:
        """What was detected, in a line."""
        said = "given" if self.given else "detected"
        kind = f", {KINDS[self.format]}" if self.format else ""
        counts = ", ".join(f"{shown(key)} ({count:,})" for key, count in sorted(self.ignored.items()))
        ignored = f"; ignored keys: {counts}" if counts else ""
        if self.ignored_in_messages:
            counts = ", ".join(f"{shown(key)} ({count:,})" for key, count in sorted(self.ignored_in_messages.items()))
            ignored += f"; ignored in messages: {counts}"
        aside = f", {self.bad} of them bad" if self.bad else ""
        seen = "".join(f"; {text}" for text in self.columns.said)
        return (
            f"{self.source}: format {self.format or 'unknown'} ({said}){kind}; {self.rows} rows{aside}{seen}{ignored}"
        )

    def __iter__(self) -> Iterator[tuple[Row, Record | None]]:
        stream = rows(self.source, self.columns)
        if self.by_person:
            stream = chain.from_iterable(map(_by_person, stream))
        if self.format is None:
            looked_at = list(islice(stream, _LOOKED_AT if self.quarantine else 1))
            self._settle([self._shaped(row) for row in looked_at])
            stream = chain(looked_at, stream)
        elif self.wanted not in (None, "prompts", KINDS[self.format]):
            raise UserError(f"{self.source}: {self._unwanted()}")
        for row in stream:
            self.rows += 1
            row = self._shaped(row)
            try:
                if row.value is None:
                    raise UserError(row.problem)
                if self.given is None:
                    self._check_fit(row.place, row.value)
                assert self.format is not None
                self._check_keys(row.place, row.value)
                duel = self._duel(row.value)
                more = (duel.first, duel.second) if duel else ()
                extra = ignored_keys(row.place, self.format, row.value, self.ignore, more)
                record = record_of(self.format, row.place, row.number, row.value)
                self.ignored_in_messages.update(extra)
                yield row, record
            except UserError as error:
                if not self.quarantine:
                    raise
                self.bad += 1
                yield row._replace(problem=str(error)), None

    def _shaped(self, row: Row) -> Row:
        value = row.value
        if value is None:
            return row
        return row_of(
            row.place,
            row.number,
            row.raw,
            lambda: shaped(row.place, chosen_between(row.place, value, self.columns.say), self.columns.say, self.given),
        )

    def _duel(self, row: dict[str, Any]) -> Duel | None:
        return duel_of(tuple(row)) if self.format == "winner" else None

    def _settle(self, looked_at: list[Row]) -> None:
        """Choose the format: the first row's, or with quarantine the commonest of the first rows."""
        clear = [(fits(row.value), row.place) for row in looked_at if row.value is not None]
        counted = Counter(names[0] for names, _ in clear if len(names) == 1)
        if not counted:
            # Nothing to go by: the caller's own format says what is missing.
            self.format = _CANONICAL[self.wanted] if self.wanted else None
            return
        name = counted.most_common(1)[0][0]
        self.format, self.format_place = name, next(place for names, place in clear if names == [name])
        if self.wanted in (None, "prompts", KINDS[name]):
            return
        if name != "prompts":
            raise UserError(f"{self.format_place}: {self._unwanted()}")
        self.format = _CANONICAL[str(self.wanted)]

    def _unwanted(self) -> str:
        if self.format == "unpaired":
            return (
                "the rows are completions with a label, which are neither ideal replies nor rankings: for SFT keep "
                "those that were liked and delete the column 'label'; for the reward model name the file in "
                "preferences.unpaired"
            )
        able = [name for name, kind in KINDS.items() if kind == self.wanted]
        return (
            f"the rows are of format {self.format!r}, which holds {KINDS[str(self.format)]}; {self.wanted} are needed "
            f"here: {', '.join(able)}"
        )

    def _check_fit(self, place: str, row: dict[str, Any]) -> None:
        names = fits(row)
        if self.format is None and len(names) == 1:
            self.format, self.format_place = names[0], place
        if len(names) > 1:
            raise UserError(f"{place}: the keys fit {' and '.join(names)}: ambiguous; say which with format")
        if self.format is None:
            keys = ", ".join(map(shown, list(row)[:12])) or "none"
            self._check_keys(place, row)
            raise UserError(
                f"{place}: no known format has the keys {keys}; the formats are {', '.join(FORMATS)}; columns of other "
                "names are named with columns: prompt=THEIRS (prompts alone), prompt=THEIRS,completion=THEIRS (ideal "
                "answers), or prompt=THEIRS,answer_a=THEIRS,answer_b=THEIRS,winner=THEIRS (two answers, and which is "
                "better)"
            )
        # A row that lacks the format's own key is left to the format's parser, which names the missing field.
        lacking = not names or names == ["prompts"] or (self.format == "hh" and names == ["pairs"])
        if names != [self.format] and not lacking:
            raise UserError(
                f"{place}: the row is of format {names[0]!r}, but the file is of format {self.format!r} "
                f"(see {self.format_place or self.source}); put them in two files"
            )

    def _check_keys(self, place: str, row: dict[str, Any]) -> None:
        """A key that is a misspelt key of ours, or would lose an answer or a judgement, is an error; any other that the
        format does not read is counted as ignored."""
        used = _READ.get(str(self.format), OURS) | _OF_ANY
        if duel := self._duel(row):
            used = used | {duel.first, duel.second, *duel.verdict, *duel.writers}
        for key in row:
            if key in used or (key in TOOLS and row[key] and says(row[key])):  # those are counted by ignored_keys
                continue
            if self.given is None:
                self._check_unread(place, key, row)
            if key not in self.ignored and len(self.ignored) >= 1000:
                raise UserError(f"{place}: more than 1,000 different unknown keys, now {shown(key)}; not a table")
            self.ignored[key] = self.ignored.get(key, 0) + 1

    def _check_unread(self, place: str, key: str, row: dict[str, Any]) -> None:
        """UserError where a key that the format does not read says something that must not be lost."""
        if self.format is not None and row[key] not in (None, "", []):
            kind = KINDS[self.format]
            lost = kind == "prompts" or (kind == "demonstrations" and self.wanted != "prompts")
            if lost and key not in self._harmless:
                self._check_name(place, key, row)
            self._check_text(place, key, row, kind)
            if self.format in ("pairs", "hh") and unsays_pair(key, row[key]):
                raise UserError(
                    f"{place}: field {shown(key)} {shown(row[key])} says that 'chosen' is not the better one; "
                    "make it a ranking with ties, delete the row, or name the format to ignore the field"
                )
            self._harmless.add(key)
        if key not in OURS and key not in self.ignored and (near := self._near(key, row)):
            hint = f"did you mean {near[0]!r}? Name the format to ignore the key"
            raise UserError(f"{place}: unknown key {shown(key)}; {hint}")

    def _check_name(self, place: str, key: str, row: dict[str, Any]) -> None:
        if two := seem_answers(key, row):
            raise UserError(
                f"{place}: columns {shown(two[0])} and {shown(two[1])} look like two answers, which format "
                f"{self.format!r} would lose; say what they are with columns (answer_a={two[0]}, "
                f"answer_b={two[1]}, winner=THEIRS), or name the format to ignore them"
            )
        if seems_judged(key) and not self._near(key, row):
            raise UserError(
                f"{place}: column {shown(key)} looks like an answer or a judgement, which format {self.format!r} "
                "would lose; say what it is with columns (completion=THEIRS, chosen=THEIRS, label=THEIRS), or name the "
                "format to ignore it"
            )

    def _check_text(self, place: str, key: str, row: dict[str, Any], kind: str) -> None:
        """What a text beside the fields that are read may be: a part of the prompt, or the answer."""
        value, lost = row[key], f"field {shown(key)} is not read by format {self.format!r} and would be lost"
        asks_else = key in _ASKED_ALONE and "prompt" in row and isinstance(value, str) and not _is_asked(value, row)
        if key in _ASKED_TOO or asks_else:
            raise UserError(f"{place}: {lost}; put it into the prompt, or name the format to ignore it")
        if key == "prompt" and self.format in ("messages", "sharegpt") and not _is_said(value, row):
            raise UserError(
                f"{place}: {lost}, and is none of the messages: {shown(value)}; put it there, or name the format to "
                "ignore it"
            )
        if (kind == "prompts" or is_implicit(self.format, row)) and holds_text(value):
            what = "completion" if kind == "prompts" else "prompt"
            raise UserError(
                f"{place}: {lost}, and holds a text: {shown(value)}; say what it is with columns ({what}={key}), or "
                "name the format to ignore it"
            )

    def _near(self, key: str, row: dict[str, Any]) -> list[str]:
        lists = {"responses", "messages", "conversations"} if isinstance(row[key], str) else set()
        numbered = set() if key[-1:].isdigit() else {"response_1", "response_2"}
        return difflib.get_close_matches(key, OURS - row.keys() - lists - numbered, n=1, cutoff=0.85)


def _by_person(row: Row) -> list[Row]:
    if row.value is None:
        return [row]
    return [row._replace(value=own) for own in an_annotation_each(row.place, row.value)]


def _is_said(text: Any, row: dict[str, Any]) -> bool:
    """Whether a text is that of one of the row's messages."""
    turns = row.get("messages", row.get("conversations"))
    found = turns if isinstance(turns, list) else []
    said = (turn.get("content", turn.get("value")) for turn in found if isinstance(turn, dict))
    return any(isinstance(one, str) and one.strip() == str(text).strip() for one in said)


def _is_asked(text: str, row: dict[str, Any]) -> bool:
    """Whether the row's prompt has this text in it."""
    asked = row["prompt"]
    turns = (
        [str(turn.get("content")) for turn in asked if isinstance(turn, dict)] if isinstance(asked, list) else [asked]
    )
    return any(text.strip() in str(turn) for turn in turns)


def is_implicit(format: str | None, row: dict[str, Any] | None) -> bool:
    """Whether a row's prompt is what its two replies begin with."""
    return format == "pairs" and row is not None and "prompt" not in row and isinstance(row.get("chosen"), str)


def prompt_of(record: Record) -> Prompt:
    """The prompt of any record."""
    return record if isinstance(record, Prompt) else record.prompt


def replies_of(record: Record) -> tuple[Completion, ...]:
    """The replies of any record; a prompt has none."""
    if isinstance(record, Demonstration | Labelled):
        return (Completion(record.completion),)
    return record.replies if isinstance(record, Ranking) else ()
