"""`plaudit lesson`: the page is put together from its parts; its replies are those of a run, or shipped examples.

Nothing in it is fetched: the maths are in parts/maths.js, one function a formula, and tests hold them equal to algo.
"""

import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from plaudit.errors import UserError
from plaudit.models.load import load_chat, quiet_libraries
from plaudit.rollout.stored import read_rollout, stored_rollouts
from plaudit.run.folder import read_recipe
from plaudit.view.inspect.tokens import token_text
from plaudit.view.page import embedded, render_page

PARTS = Path(__file__).parent / "parts"
REPLIES, LONGEST = 6, 40
"""How many replies of a run are taken, and of how many tokens at most."""


def lesson_page(run: Path | None = None) -> str:
    """The whole page; UserError for a run without stored rollouts or without a critic."""
    replies = _shipped("replies.json") if run is None else replies_of(run)
    broken = _shipped("broken.json")
    data = {"replies": replies, "broken": broken, "questions": _shipped("questions.json")}
    return render_page(
        "lesson.html.j2",
        source="of a demo run, of its last update" if run is None else f"of the run {read_recipe(run)['name']}",
        broken_updates=broken["updates"],
        css=Markup(_text("lesson.css")),
        maths=Markup(_text("maths.js")),
        script=Markup(_text("lesson.js")),
        data=Markup(embedded(data)),
    )


def replies_of(run: Path) -> list[dict[str, Any]]:
    """Replies of the last stored update with what PPO knew of each token."""
    files = stored_rollouts(run)
    if not files:
        raise UserError(f"{run}/ppo/rollouts holds no rollout: stage ppo writes one an update; run it first")
    tensors = read_rollout(files[max(files)])
    if "values_BT" not in tensors:
        raise UserError(f"{run} has no critic (ppo.advantages): the lesson is about one that has; leave --run out")
    quiet_libraries()
    chat = load_chat(str(run / "sft/model"), read_recipe(run)["data"]["system"])
    found: list[dict[str, Any]] = []
    for row in range(len(tensors["lengths_B"])):
        start, end = int(tensors["prompt_lengths_B"][row]), int(tensors["lengths_B"][row])
        if end - start > LONGEST or len(found) == REPLIES:
            continue
        ids, columns = tensors["tokens_BT"][row, :end].tolist(), slice(start - 1, end - 1)
        numbers = {name: tensors[f"{name}_BT"][row, columns].tolist() for name in ("kl", "values")}
        found.append(
            {
                "prompt": chat.asked(ids[:start]),
                "tokens": [token_text(chat.tokenizer, token).replace("·", " ") for token in ids[start:]],
                "score": tensors["scores_B"][row].item(),
                **{name: [round(value, 6) for value in values] for name, values in numbers.items()},
            }
        )
    if not found:
        raise UserError(f"{run}: every reply of update {max(files)} is longer than {LONGEST} tokens; leave --run out")
    return found


def _shipped(name: str) -> Any:
    return json.loads(_text(name))


def _text(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")
