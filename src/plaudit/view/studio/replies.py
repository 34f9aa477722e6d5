"""Replies of a run as rows for a table.

A stored rollout is a file an update, so an update is read when it is asked for and its rows are kept; numbers of every
update come from one tensor of each file. Texts are decoded when somebody looks or searches.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from plaudit.algo.rewards import normalise
from plaudit.data.chat import ChatFormat
from plaudit.data.files import read_json
from plaudit.errors import UserError
from plaudit.models.load import load_chat, quiet_libraries
from plaudit.rewards.contract import CONTRACT
from plaudit.rewards.sources import MOMENTS
from plaudit.rollout.stored import read_rollout, stored_rollouts
from plaudit.run.folder import read_recipe
from plaudit.run.metrics import read_metrics
from plaudit.view.inspect.tokens import kinds_of_scores

SORTS = ("score", "kl", "length", "advantage", "critic_error", "disagreement", "gold", "update")
MOST = 200
"""Rows in one answer."""
BINS = 24


@dataclass
class Replies:
    """The replies of one run; `kept` holds the rows of the updates that were looked at."""

    folder: Path
    kept: dict[tuple[str, int, float], list[dict[str, Any]]] = field(default_factory=dict)

    def updates(self) -> dict[str, list[int]]:
        """Updates with stored rollouts, and updates with a look at the validation prompts."""
        looks = sorted(int(file.stem) for file in (self.folder / "ppo/validation").glob("*.jsonl"))
        return {"rollout": list(stored_rollouts(self.folder)), "validation": looks}

    def rows(self, source: str, update: int) -> list[dict[str, Any]]:
        """Every reply of one update; UserError where there is none of that number."""
        if source not in ("rollout", "validation"):
            raise UserError(f"source {source!r}: replies are those of rollout or of validation")
        files = stored_rollouts(self.folder) if source == "rollout" else self._looks()
        if update not in files:
            raise UserError(f"update {update}: no replies of kind {source!r} are stored; choose another one")
        key = (source, update, files[update].stat().st_mtime)
        if key not in self.kept:
            read = self._of_rollout if source == "rollout" else _of_look
            self.kept[key] = read(update, files[update])
        return self.kept[key]

    def table(
        self, source: str, updates: list[int], search: str, sort: str, down: bool, most: int = MOST
    ) -> dict[str, Any]:
        """At most `most` replies of the updates that hold the searched text, sorted."""
        if sort not in SORTS:
            raise UserError(f"sort {sort!r}: sort by one of {', '.join(SORTS)}")
        wanted = search.casefold()
        found = [row for update in updates for row in self.rows(source, update) if _holds(row, wanted)]
        there = [row for row in found if row.get(sort) is not None]
        there.sort(key=lambda row: (row[sort], -row["update"], -row["sample"]), reverse=down)
        without = [row for row in found if row.get(sort) is None]
        return {"rows": (there + without)[:most], "count": len(found)}

    def same_prompt(self, source: str, update: int, sample: int) -> list[dict[str, Any]]:
        """The replies to the prompt of a reply over all updates, in their order: old beside new."""
        row = self.row(source, update, sample)
        if source == "validation":
            looks = (self.rows(source, look) for look in self._looks())
            return [one for rows in looks for one in rows if one["prompt"] == row["prompt"]]
        files = stored_rollouts(self.folder)
        ids = prompt_ids(files[update], sample)
        return [self.rows(source, other)[place] for other, file in files.items() for place in _asked(file, ids)]

    def row(self, source: str, update: int, sample: int) -> dict[str, Any]:
        """One reply, its number from 1; UserError where there is none."""
        rows = self.rows(source, update)
        if not 1 <= sample <= len(rows):
            raise UserError(f"update {update}: no reply {sample} is there; choose one of the table")
        return rows[sample - 1]

    def histogram(self) -> dict[str, Any]:
        """How many replies of each update have which score, of the scores that PPO used."""
        files = stored_rollouts(self.folder)
        scores = {update: _tensor(file, "scores_B").tolist() for update, file in files.items()}
        every = [score for row in scores.values() for score in row]
        if not every:
            return {"updates": [], "low": 0, "high": 1, "counts": []}
        low, high = min(every), max(every)
        width = (high - low) / BINS or 1.0
        counts = []
        for row in scores.values():
            bins = [0] * BINS
            for score in row:
                bins[min(BINS - 1, int((score - low) / width))] += 1
            counts.append(bins)
        return {"updates": list(scores), "low": low, "high": high, "counts": counts}

    def chat(self) -> ChatFormat:
        quiet_libraries()
        return load_chat(str(self.folder / "sft/model"), read_recipe(self.folder)["data"]["system"])

    def _looks(self) -> dict[int, Path]:
        return {int(file.stem): file for file in sorted((self.folder / "ppo/validation").glob("*.jsonl"))}

    def _of_rollout(self, update: int, file: Path) -> list[dict[str, Any]]:
        tensors = read_rollout(file)
        chat = self.chat()
        starts, ends = tensors["prompt_lengths_B"].tolist(), tensors["lengths_B"].tolist()
        ids = tensors["tokens_BT"].tolist()
        said = [row[start:end] for row, start, end in zip(ids, starts, ends, strict=True)]
        texts = chat.tokenizer.batch_decode(said, skip_special_tokens=True)
        disagreed = disagreement(self.folder, tensors["raw_scores_BM"])
        columns = {name: values.tolist() for name, values in (per_reply(tensors) | disagreed).items()}
        return [
            {
                "source": "rollout",
                "update": update,
                "sample": row + 1,
                "prompt": chat.asked(ids[row][: starts[row]]),
                "reply": texts[row],
                "finished": bool(tensors["finished_B"][row]),
                **{name: values[row] for name, values in columns.items()},
            }
            for row in range(len(texts))
        ]


def _of_look(update: int, file: Path) -> list[dict[str, Any]]:
    rows = []
    for number, row in enumerate(read_metrics(file), start=1):
        numbers = {key: value for key, value in row.items() if isinstance(value, float)}
        text = "\n".join(turn["content"] for turn in row["prompt"])
        said = {"prompt": text, "reply": row["text"], "finished": row["finished"], "kind": row["kind"]}
        rows.append({"source": "validation", "update": update, "sample": number, **said, **numbers})
    return rows


def per_reply(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Columns of the table, [B], of a rollout's tensors. The advantage is the mean over its tokens, the critic's error
    the largest |return − value|."""
    mask_BT, lengths_B = tensors["mask_BT"], tensors["lengths_B"] - tensors["prompt_lengths_B"]
    found = {
        "score": tensors["scores_B"],
        "kl": tensors["kl_BT"].sum(dim=1),
        "length": lengths_B,
        "advantage": tensors["advantages_BT"].sum(dim=1) / lengths_B,
    }
    if "values_BT" in tensors and "returns_BT" in tensors:
        error_BT = torch.where(mask_BT, (tensors["returns_BT"] - tensors["values_BT"]).abs(), 0.0)
        found["critic_error"] = error_BT.max(dim=1).values
        found["critic_error_token"] = error_BT.argmax(dim=1) - tensors["prompt_lengths_B"] + 2
    return found


def disagreement(folder: Path, raw_scores_BM: Tensor) -> dict[str, Tensor]:
    """One more column, [B]: the std over the members of the run's own ensemble, each normalised by its own moments
    as PPO does it. {} without an ensemble: scores of different sources have no common unit."""
    own = [name == "trained" for name in kinds_of_scores(read_recipe(folder)["ppo"], raw_scores_BM.shape[1])]
    if sum(own) < 2:
        return {}
    contract = read_json(folder / "reward" / CONTRACT)
    members_BM = raw_scores_BM[:, torch.tensor(own)]
    normalised_BM = normalise(members_BM, *(members_BM.new_tensor(contract[name]) for name in MOMENTS))
    return {"disagreement": normalised_BM.std(dim=1, unbiased=False)}


def _holds(row: Mapping[str, Any], wanted: str) -> bool:
    return not wanted or wanted in row["prompt"].casefold() or wanted in row["reply"].casefold()


def prompt_ids(file: Path, sample: int) -> list[int]:
    """The tokens of the prompt of a stored reply, its number from 1."""
    return _tensor(file, "tokens_BT")[sample - 1, : int(_tensor(file, "prompt_lengths_B")[sample - 1])].tolist()


def _asked(file: Path, ids: list[int]) -> list[int]:
    """The rows of a stored rollout whose prompt has these tokens."""
    tokens_BT, lengths_B = _tensor(file, "tokens_BT"), _tensor(file, "prompt_lengths_B")
    same_B = lengths_B == len(ids)
    if tokens_BT.shape[1] < len(ids) or not same_B.any():
        return []
    return (same_B & (tokens_BT[:, : len(ids)] == torch.tensor(ids)).all(dim=1)).nonzero()[:, 0].tolist()


def _tensor(file: Path, name: str) -> Tensor:
    with safe_open(file, "pt") as stored:
        return stored.get_tensor(name)
