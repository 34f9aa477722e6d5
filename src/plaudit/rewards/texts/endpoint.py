"""An HTTP endpoint as a reward: one request holds some texts with ids, its answer their scores."""

import json
import os
import time
from collections.abc import Sequence
from typing import Any

from plaudit.dist.asking import Answer, Asking, Failed, address_of
from plaudit.errors import RunStopped, UserError
from plaudit.rewards.texts.answers import ScoreItem, matched, said

LONGEST_WAIT = 30.0
LARGEST_ANSWER = 16 << 20
"""Bytes; scores of a request are kilobytes."""


class EndpointScorer:
    """An HTTP endpoint: POST {"items": [ScoreItem.as_json(), ...]}, answered {"scores": [{"id", "score"}, ...]}.

    A time-out, a lost connection, status 429 and 5xx are tried again, with waits of 0.5, 1, 2, ... seconds; any other
    status and any wrong answer stop the run at once.
    """

    def __init__(self, url: str, *, timeout: float, retries: int, batch_size: int, auth_env: str | None = None):
        """`timeout` is seconds a request, from the connection to the answer's last byte; `retries` are attempts after
        the first. `auth_env` names the environment variable whose value is sent as the Authorization header; UserError
        when it cannot be, and for a URL that nothing can be sent to."""
        self.name = f"reward endpoint {address_of('reward endpoint', url).copy_with(userinfo=b'')}"
        self.url, self.retries, self.batch_size = url, retries, batch_size
        headers = {} if auth_env is None else {"Authorization": self._secret(auth_env)}
        self._asking = Asking(self.name, url, timeout, largest=LARGEST_ANSWER, holds="scores only", headers=headers)

    def _secret(self, auth_env: str) -> str:
        value = os.environ.get(auth_env)
        if not value:
            raise UserError(f"{self.name}: the environment variable {auth_env} is not set; auth_env names it")
        if not (value.isascii() and value.isprintable() and value == value.strip()):
            raise UserError(
                f"{self.name}: the value of the environment variable {auth_env} cannot be a header: it has a line end, "
                "a blank at an end, or a character beyond ASCII; set it to what the Authorization header shall say"
            )
        return value

    def score(self, items: Sequence[ScoreItem]) -> dict[str, float]:
        scores: dict[str, float] = {}
        for start in range(0, len(items), self.batch_size):
            part = items[start : start + self.batch_size]
            scores |= matched(self.name, [item.id for item in part], self._scores(self._post(part)))
        return scores

    def _post(self, items: Sequence[ScoreItem]) -> bytes:
        body = json.dumps({"items": [item.as_json() for item in items]}).encode()
        answer = self._attempt(body)
        for attempt in range(self.retries):
            if isinstance(answer, bytes):
                break
            time.sleep(min(LONGEST_WAIT, 0.5 * 2**attempt))
            answer = self._attempt(body)
        if isinstance(answer, Failed):
            raise RunStopped(f"{self.name}: {answer.reason}; given up after {self.retries + 1} attempts")
        return answer

    def _attempt(self, body: bytes) -> bytes | Failed:
        answer = self._asking.ask(body)
        return answer if isinstance(answer, Failed) else self._refused(answer) or answer.body

    def _refused(self, answer: Answer) -> Failed | None:
        """Why the answer is none: None for a good one; RunStopped where asking again would not help."""
        code = answer.code
        if code == 429 or code >= 500:
            return Failed(f"status {code}: {answer.begins}")
        if "Location" in answer.headers and 300 <= code < 400:
            to = said(answer.headers["Location"])
            raise RunStopped(f"{self.name}: status {code}: it redirects to {to}; write the address that answers itself")
        if code != 200:
            raise RunStopped(f"{self.name}: status {code}: {answer.begins}")
        if (packed := answer.headers.get("Content-Encoding", "identity")) != "identity":
            raise RunStopped(f"{self.name}: the answer is packed ({packed}); send it as it is, as Accept-Encoding asks")
        return None

    def _scores(self, answer: bytes) -> object:
        begins = repr(answer[:80].decode("utf-8", "replace"))
        try:
            found = json.loads(answer.decode("utf-8"), object_pairs_hook=_no_key_twice)
        except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
            raise RunStopped(f"{self.name}: the answer is no JSON ({error}): {begins}") from error
        if not isinstance(found, dict) or "scores" not in found:
            raise RunStopped(f"{self.name}: the answer has no key 'scores': {begins}")
        return found["scores"]


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"key {twice!r} stands twice")
    return found
