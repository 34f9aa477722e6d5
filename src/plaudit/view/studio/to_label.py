"""Replies of the table as items of the labelling queue: those of one prompt are ranked, one alone is improved."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from plaudit.data.files import Reading, read_prompts, read_rankings
from plaudit.data.formats.parsers import conversation
from plaudit.data.hashes import sha256_json
from plaudit.errors import UserError
from plaudit.label.queue.items import MOST_REPLIES, Draft, rank_draft, rankings_path
from plaudit.records import Completion, Message, Prompt, messages_as_json
from plaudit.rollout.stored import stored_rollouts
from plaudit.run.folder import read_recipe
from plaudit.run.metrics import read_metrics
from plaudit.view.studio.replies import Replies, prompt_ids

Messages = tuple[Message, ...]


class Chosen(BaseModel):
    """A row of the table."""

    model_config = ConfigDict(extra="forbid")
    source: Annotated[str, Field(max_length=20)]
    update: int
    sample: Annotated[int, Field(ge=1)]


def drafts_of(replies: Replies, run: str, chosen: Sequence[Chosen]) -> list[Draft]:
    """The items of the chosen rows; UserError before anything is sent, where one cannot become part of an item."""
    by_prompt: dict[Messages, list[tuple[Completion, str]]] = {}
    known = Conversations(replies)
    for one in chosen:
        row = replies.row(one.source, one.update, one.sample)
        written = Completion(row["reply"], row["finished"]), f"{run}, update {one.update}"
        by_prompt.setdefault(known.of(one), []).append(written)
    drafts = []
    for messages, replied in by_prompt.items():
        if (count := len({reply.text for reply, _ in replied})) > MOST_REPLIES:
            raise UserError(f"{count} replies to one prompt; a person can rank {MOST_REPLIES}: choose fewer")
        prompt = Prompt(f"studio-{sha256_json(messages_as_json(messages))[:12]}", messages, "studio", "train")
        (first, source), *_ = replied
        drafts += rank_draft(prompt, replied, run) or [Draft("write", prompt, (first,), (source,), source_file=run)]
    return drafts


class Conversations:
    """The messages of rows: rollouts are stored as tokens, so their prompts are looked for among those of the run."""

    def __init__(self, replies: Replies):
        self.folder, self._chat = replies.folder, replies.chat
        self._by_ids: dict[tuple[int, ...], Messages] | None = None

    def of(self, row: Chosen) -> Messages:
        """UserError where the run has no prompt of these tokens."""
        if row.source == "validation":
            look = read_metrics(self.folder / f"ppo/validation/{row.update:05d}.jsonl")[row.sample - 1]
            return conversation("the reply", "prompt", look["prompt"], "user")
        if self._by_ids is None:
            chat = self._chat()
            self._by_ids = {tuple(chat.prompt_ids(messages)): messages for messages in self._there()}
        ids = tuple(prompt_ids(stored_rollouts(self.folder)[row.update], row.sample))
        if ids not in self._by_ids:
            raise UserError(
                f"update {row.update}, reply {row.sample}: the messages of its prompt are in no file of the run, and "
                "the recipe's data file has moved; choose replies to validation prompts"
            )
        return self._by_ids[ids]

    def _there(self) -> Iterator[Messages]:
        """The prompts of the run's rankings, and those of the recipe's file where it is there still."""
        ranked = rankings_path(self.folder)
        if ranked.is_file():
            yield from (ranking.prompt.messages for ranking in read_rankings(ranked))
        data = read_recipe(self.folder)["data"]
        if (file := Path(data["prompts"])).is_file():
            reading = Reading(format=data["formats"].get(str(file)), bad=[], columns=data["columns"].get(str(file), {}))
            yield from (prompt.messages for prompt in read_prompts(file, reading))
