"""Scorers that are not models here: a Python function and an HTTP endpoint, each asked about texts with ids."""

import hashlib
import importlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx2

from plaudit.errors import RunStopped, UserError
from plaudit.rewards.score import ScoreItem, matched

LONGEST_WAIT = 30.0


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


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"key {twice!r} stands twice")
    return found
