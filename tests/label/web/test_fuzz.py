"""Requests made from the application's own schema, thousands of kinds of wrong: none of them is a 500."""

import io
from collections import Counter
from collections.abc import Sequence
from typing import IO

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from label_kit import World, draft, written

from plaudit.label.queue.items import add_items
from plaudit.label.web.shared import aside

EXAMPLES = 12
SIGNED_OUT = {"/logout"}  # would end the session that the others are sent with


def nothing_run(database: str, arguments: Sequence[str]) -> tuple[IO[bytes], str]:
    """Instead of a process for every export: what a process cannot be given is refused before."""
    assert all("\0" not in argument for argument in arguments)
    return io.BytesIO(b"{}\n"), "-: 0 rows"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_no_request_is_a_500(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside, "run", nothing_run)
    add_items(world.engine, [*(draft(n, overlap=50) for n in range(20)), written(99)])
    boss = world.join("boss", "admin")
    lease = boss.claim("rank")["lease"]
    schema = schemathesis.openapi.from_dict(world.app.openapi())
    seen: Counter[int] = Counter()

    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path in SIGNED_OUT:
            continue

        @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def send(case: schemathesis.Case) -> None:
            parts = case.as_transport_kwargs(base_url="http://127.0.0.1:8080")
            headers = {**dict(parts.get("headers") or {}), **boss.headers}
            body = parts.get("json")
            if isinstance(body, dict) and isinstance(body.get("lease"), str) and len(body["lease"]) % 2:
                body["lease"] = lease  # half of them get past the first check
            try:
                answer = boss.browser.request(
                    parts["method"],
                    parts["url"],
                    params=parts.get("params"),
                    headers=headers,
                    **{name: parts[name] for name in ("json", "data", "files") if parts.get(name) is not None},
                )
            except (UnicodeError, TypeError, ValueError):
                return  # what a client's library cannot send
            seen[answer.status_code] += 1
            assert answer.status_code < 500, (case.as_curl_command(), answer.text)

        send()
    assert {200, 422} <= set(seen) and sum(seen.values()) > 100, seen
    assert boss.get("/api/me").status_code == 200
