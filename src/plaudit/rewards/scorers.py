"""Rewards behind one call: replies with ids in, a score for every id out.

    score(items) -> {id: score}

Here are a Python function, an HTTP endpoint and a reward model that Plaudit saved; those of other trainers are
`models.foreign`'s. A scorer answers for every id it was asked about, once, with a finite number, or the run stops: a
reward that fails is never a score of 0. Results are matched by id, never by order.
"""

import hashlib
import importlib
import importlib.util
import json
import math
import numbers
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import httpx2
import torch

from plaudit.errors import RunStopped, UserError
from plaudit.models.tokens import pad_right
from plaudit.records import Completion, Message, Prompt, messages_as_json
from plaudit.rewards.saved import load_reward_model

LONGEST_WAIT = 30.0


@dataclass(frozen=True)
class ScoreItem:
    """One reply to be scored; `id` is unique within a call."""

    id: str
    prompt: Prompt
    completion: Completion

    def as_json(self) -> dict[str, Any]:
        """What a function or an endpoint is given: id, prompt (messages), completion (text), finished."""
        return {
            "id": self.id,
            "prompt": messages_as_json(self.prompt.messages),
            "completion": self.completion.text,
            "finished": self.completion.finished,
        }


PROBE = ScoreItem(
    "probe",
    Prompt("probe", (Message("user", "How do I boil an egg?"),), "probe", "train"),
    Completion("Boil it for eight minutes."),
)
"""What a reward is asked before long work begins."""


class Scorer(Protocol):
    """Anything that scores texts."""

    name: str
    """What errors call it."""

    def score(self, items: Sequence[ScoreItem]) -> dict[str, float]:
        """A finite score for the id of every item; RunStopped, with the reason, when there is none."""
        ...


def matched(name: str, items: Sequence[ScoreItem], answer: object) -> dict[str, float]:
    """`answer` as id -> score, exactly the ids of `items`; RunStopped that names what is wrong with it.

    It is a mapping of ids to scores, or a list of mappings with the keys `id` and `score`.
    """
    if isinstance(answer, Mapping):
        pairs = list(answer.items())
    elif isinstance(answer, Sequence) and not isinstance(answer, str):
        bad = next((row for row in answer if not isinstance(row, Mapping) or not {"id", "score"} <= set(row)), None)
        if bad is not None:
            raise RunStopped(f"{name}: {str(bad)[:80]!r} is no score; write {{'id': ..., 'score': ...}}")
        pairs = [(row["id"], row["score"]) for row in answer]
    else:
        raise RunStopped(
            f"{name}: answered {type(answer).__name__} {str(answer)[:80]!r}; it must answer {{id: score}} or a list of "
            "{'id': ..., 'score': ...}"
        )
    asked = {item.id for item in items}
    assert len(asked) == len(items), "ids of one call are unique"
    scores: dict[str, float] = {}
    for number, value in pairs:
        if number not in asked:
            raise RunStopped(f"{name}: answered for id {number!r}, which it was not asked about")
        if number in scores:
            raise RunStopped(f"{name}: answered twice for id {number!r}")
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise RunStopped(f"{name}: the score of {number!r} is {str(value)[:80]!r}, not a number")
        if not math.isfinite(value):
            raise RunStopped(f"{name}: the score of {number!r} is {value}; nothing can be learnt from it")
        scores[number] = float(value)
    missing = sorted(asked - scores.keys())
    if missing:
        raise RunStopped(
            f"{name}: gave {len(scores)} scores for {len(items)} replies; there is none for id {missing[0]!r}"
        )
    return scores


class FunctionScorer:
    """A Python function on texts: a list of `ScoreItem.as_json()` in, {id: score} or [{id, score}] out."""

    def __init__(self, function: str):
        """`function` is MODULE:NAME of something installed, or FILE.py:NAME; UserError when it cannot be imported."""
        self.name = f"reward function {function}"
        self._function = _imported(function)

    def score(self, items: Sequence[ScoreItem]) -> dict[str, float]:
        try:
            answer = self._function([item.as_json() for item in items])
        except Exception as error:
            raise RunStopped(f"{self.name} raised {type(error).__name__}: {error}") from error
        return matched(self.name, items, answer)


def _imported(function: str) -> Callable[[list[dict[str, Any]]], object]:
    source, _, name = function.rpartition(":")
    if not source or not name:
        raise UserError(f"reward function {function!r}: write MODULE:NAME, for example rewards:score")
    try:
        module = _module_of_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except Exception as error:
        raise UserError(
            f"reward function {function!r}: module {source!r} cannot be imported "
            f"({type(error).__name__}: {error}); put the file beside the recipe, or install the package"
        ) from error
    if not hasattr(module, name):
        public = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise UserError(
            f"reward function {function!r}: module {source!r} has no {name!r}; it has {', '.join(public) or 'none'}"
        )
    found = vars(module)[name]
    if not callable(found):
        raise UserError(f"reward function {function!r}: {name!r} is {type(found).__name__}, not a function")
    return found


def _module_of_file(path: Path) -> ModuleType:
    """The module in a file, under a name of its own: two recipes may both have a rewards.py."""
    name = f"plaudit_reward_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Where dataclasses and the like look their own module up; its neighbours are importable while it is read.
    sys.modules[name] = module
    sys.path.append(str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


@dataclass(frozen=True)
class _Failed:
    """Why a request brought no answer; another attempt may."""

    reason: str


class EndpointScorer:
    """An HTTP endpoint: POST {"items": [ScoreItem.as_json(), ...]}, answered {"scores": [{"id", "score"}, ...]}.

    A time-out, a lost connection, status 429 and 5xx are tried again, with waits of 0.5, 1, 2, ... seconds; any other
    status and any wrong answer stop the run at once.
    """

    def __init__(self, url: str, *, timeout: float, retries: int, batch_size: int, auth_env: str | None = None):
        """`timeout` is seconds a request; `retries` are attempts after the first. `auth_env` names the environment
        variable whose value is sent as the Authorization header; UserError when it is not set."""
        self.name = f"reward endpoint {url}"
        self.url, self.retries, self.batch_size = url, retries, batch_size
        headers = {}
        if auth_env is not None:
            if not os.environ.get(auth_env):
                raise UserError(f"{self.name}: the environment variable {auth_env} is not set; auth_env names it")
            headers["Authorization"] = os.environ[auth_env]
        self._client = httpx2.Client(timeout=timeout, headers=headers)
        self._timeout = timeout

    def score(self, items: Sequence[ScoreItem]) -> dict[str, float]:
        scores: dict[str, float] = {}
        for start in range(0, len(items), self.batch_size):
            part = items[start : start + self.batch_size]
            scores |= matched(self.name, part, self._scores(self._post(part)))
        return scores

    def _post(self, items: Sequence[ScoreItem]) -> str:
        body = {"items": [item.as_json() for item in items]}
        answer = self._attempt(body)
        for attempt in range(self.retries):
            if isinstance(answer, str):
                break
            time.sleep(min(LONGEST_WAIT, 0.5 * 2**attempt))
            answer = self._attempt(body)
        if isinstance(answer, _Failed):
            raise RunStopped(f"{self.name}: {answer.reason}; given up after {self.retries + 1} attempts")
        return answer

    def _attempt(self, body: dict[str, Any]) -> str | _Failed:
        try:
            response = self._client.post(self.url, json=body)
        except httpx2.TimeoutException:
            return _Failed(f"no answer within {self._timeout:g} s")
        except httpx2.HTTPError as error:
            return _Failed(f"{type(error).__name__}: {error}")
        if response.status_code == 429 or response.status_code >= 500:
            return _Failed(f"status {response.status_code}: {response.text[:120]!r}")
        if response.status_code != 200:
            raise RunStopped(f"{self.name}: status {response.status_code}: {response.text[:120]!r}")
        return response.text

    def _scores(self, text: str) -> object:
        try:
            answer = json.loads(text, object_pairs_hook=_no_key_twice)
        except ValueError as error:
            raise RunStopped(f"{self.name}: the answer is no JSON ({error}): {text[:80]!r}") from error
        if not isinstance(answer, dict) or "scores" not in answer:
            raise RunStopped(f"{self.name}: the answer has no key 'scores': {text[:80]!r}")
        return answer["scores"]


class SavedRewardModel:
    """A reward model that Plaudit saved or exported, by text: its files and golden scores are checked as it is loaded.

    Its scores are normalised by its own contract; of an ensemble they are aggregated as it says.
    """

    def __init__(self, folder: str, *, dtype: torch.dtype, device: torch.device, batch_size: int):
        """`folder` is a run's reward folder or an exported one; UserError when it is not as it was saved."""
        self.name = f"reward model {folder}"
        self.batch_size = batch_size
        self._reward, self._chat = load_reward_model(Path(folder), dtype, device)

    @torch.no_grad()
    def score(self, items: Sequence[ScoreItem]) -> dict[str, float]:
        order = sorted(items, key=lambda item: len(item.prompt.text) + len(item.completion.text))
        scores: dict[str, float] = {}
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            prompts = [self._chat.prompt_ids(item.prompt.messages) for item in part]
            replies = [self._chat.reply_ids(item.completion) for item in part]
            tokens = pad_right(prompts, replies, self._chat.pad_id, self._reward.model.device)
            scores |= zip((item.id for item in part), self._reward.scores(tokens).tolist(), strict=True)
        return matched(self.name, items, scores)


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"key {twice!r} stands twice")
    return found
