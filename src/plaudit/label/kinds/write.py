"""The task `write`: a reply is written, or a given one is improved. Its answer is {"text", "reason"}."""

from collections.abc import Sequence

from plaudit.label.kinds.shared import BadAnswer, Body, Kind, Reply, reason_of, text_of

MOST_TEXT = 200_000


def _body(order: Sequence[int], flags: Sequence[str], sent: Body) -> Body:
    for field in ("ranks", "verdict", "strength"):
        if sent.get(field) is not None:
            raise BadAnswer(field, "a written reply has none", "send null")
    text = text_of("text", sent.get("text"), MOST_TEXT)
    if not text.strip():
        raise BadAnswer("text", "the reply is empty", "write a reply, or skip this item")
    return {"text": text, "reason": reason_of(sent)}


def _shown(order: Sequence[int], replies: list[Reply]) -> tuple[list[Reply], str | None]:
    return [], replies[0]["text"] if replies else ""


WRITE = Kind("write", _body, lambda order, body: dict(body), _shown, ("demonstrations",))
