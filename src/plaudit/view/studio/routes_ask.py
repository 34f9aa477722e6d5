"""What the studio is asked to do beside showing: the arena, and replies for the labelling queue.

Every POST carries the session's token, as those of the labelling service do. Runs stay as they are: labels go into the
database that `plaudit studio --labels` names.
"""

import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from plaudit.errors import UserError
from plaudit.label.queue.items import add_items
from plaudit.label.transfer.import_labels import put_label
from plaudit.label.web.shared.service import Refused
from plaudit.view.arena.policies import policies_of
from plaudit.view.studio.session import Studio, studio_of
from plaudit.view.studio.to_label import Chosen, drafts_of

router = APIRouter()
Here = Annotated[Studio, Depends(studio_of)]
"""Asked for before the body is looked at: nobody else hears what is wrong with it."""


class Question(BaseModel):
    """A prompt, and the policies that answer it."""

    model_config = ConfigDict(extra="forbid")
    prompt: Annotated[str, Field(min_length=1, max_length=20_000)]
    policies: Annotated[list[Annotated[str, Field(max_length=100)]], Field(min_length=1, max_length=8)]
    max_new_tokens: Annotated[int, Field(ge=1, le=2048)] = 128
    temperature: Annotated[float, Field(ge=0.01, le=5)] = 0.7


class Choice(BaseModel):
    """The places of the best replies of a match, none where nothing is chosen, and whether that is to be a label."""

    model_config = ConfigDict(extra="forbid")
    match: Annotated[str, Field(max_length=64)]
    best: Annotated[list[Annotated[int, Field(ge=0, lt=8)]], Field(max_length=8)]
    store: bool = False


class ToLabel(BaseModel):
    """Rows of the table."""

    model_config = ConfigDict(extra="forbid")
    chosen: Annotated[list[Chosen], Field(min_length=1, max_length=200)]


@router.get("/api/me")
def me(studio: Here) -> Any:
    """What a page needs before it can ask for something."""
    return {"csrf": studio.csrf, "labels": studio.labels is not None}


@router.get("/api/runs/{name}/arena")
def policies(studio: Here, name: str) -> Any:
    return {"policies": list(policies_of(studio.run(name)))}


@router.post("/api/runs/{name}/arena")
def ask(studio: Here, name: str, question: Question) -> Any:
    """The replies, blind: who wrote which is told with the choice."""
    folder = studio.run(name)
    names = list(dict.fromkeys(question.policies))
    known = policies_of(folder)
    if missing := [policy for policy in names if policy not in known]:
        raise UserError(f"the run has no policy {missing[0]!r}; choose among {', '.join(known) or 'none'}")
    asked = {**question.model_dump(), "policies": names, "seed": secrets.randbelow(1 << 31)}
    number, match = studio.matches.begin(name, question.prompt, studio.models.ask(folder, asked))
    return {"match": number, "replies": match.blind}


@router.post("/api/runs/{name}/arena/choice")
def choose(studio: Here, name: str, choice: Choice) -> Any:
    """Who wrote which reply, with score and KL; the choice as a label, where that is asked for."""
    studio.run(name)
    labels = studio.labelling() if choice.store else None
    match = studio.matches.get(choice.match)
    if match is None:
        raise Refused(409, "this was chosen already, or too long ago", "ask again")
    best = [place for place in choice.best if place < len(match.replies)]
    stored = None
    if labels is not None and best and (draft := match.draft()) is not None:
        stored = put_label(labels.engine, draft, labels.annotator, {"ranks": match.ranks(best)})
    studio.matches.end(choice.match)
    return {"replies": match.replies, "stored": stored}


@router.post("/api/runs/{name}/label")
def to_label(studio: Here, name: str, rows: ToLabel) -> Any:
    """Chosen replies as items of the labelling queue; how many are new, and how many were there already."""
    labels = studio.labelling()
    drafts = drafts_of(studio.replies_of(name), name, rows.chosen)
    added, known = add_items(labels.engine, drafts)
    return {"added": added, "known": known}
