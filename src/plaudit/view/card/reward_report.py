"""Report cards of models: of the reward stage's own on its held-out rankings, and `plaudit reward-report MODEL FILE`,
that of any saved reward model on any file of rankings or preferences.

MODEL is a run folder or its reward/, an exported model, or another trainer's (rewards/foreign.py says which layouts).
Judged are the file's held-out rows (split validation or test) where it has any, else all of them. Its training rows,
and those that a run's reward model was trained on, teach the length baseline its direction, and their prompts are
looked for among the judged ones.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plaudit.data.files import Reading, read_rankings
from plaudit.data.formats.rows import is_hub
from plaudit.data.hashes import sha256
from plaudit.dist.machine import choose_machine
from plaudit.errors import UserError
from plaudit.models.load import quiet_libraries
from plaudit.records import Completion, Message, Ranking
from plaudit.rewards.contract import CONTRACT, RewardContract
from plaudit.rewards.foreign import load_foreign
from plaudit.rewards.saved import load_reward_model
from plaudit.rewards.score import score_replies
from plaudit.rewards.texts.answers import ScoreItem
from plaudit.view.card.measures import report_card

Progress = Callable[[int], Any]
"""Opens a progress bar over so many replies: a context manager that gives a `Step`."""


def reward_report(
    model: str, source: str, *, format: str | None, dtype: str, progress: Progress, say: Callable[[str], None]
) -> dict[str, Any]:
    """The card, with `model` and `data` that say what was judged on what. UserError names what is wrong with either."""
    rankings = read_rankings(Path(source), Reading(format, None, say))
    held_out = [ranking for ranking in rankings if ranking.prompt.split != "train"]
    judged = held_out or rankings
    if not any(ranking.pairs() for ranking in judged):
        what = "held-out rankings" if held_out else "rankings"
        raise UserError(
            f"{source}: none of its {len(judged)} {what} has a strict pair, so there is nothing to judge a model by; "
            "give rankings of which one reply is better"
        )
    folder = own_folder(model)
    train = [ranking for ranking in rankings if ranking.prompt.split == "train"] if held_out else []
    train += trained_on(folder, known=train) if folder else []
    quiet_libraries()
    if folder is not None and dtype == "auto":
        dtype = RewardContract.load(folder).dtype  # its golden scores were made in this format
    machine, items = choose_machine(dtype), unique_replies(judged)
    contract: RewardContract | None = None
    layout, changed = "plaudit", 0
    if folder is None:
        foreign = load_foreign(model, machine.dtype, machine.device)
        with progress(len(items)) as advance:
            raw = {id: [score] for id, score in foreign.score(list(items.values()), advance).items()}
        layout, changed = foreign.checkpoint.layout, foreign.changed
    else:
        own = load_reward_model(folder, machine.dtype, machine.device)
        texts = [(item.prompt, item.completion) for item in items.values()]
        with progress(len(items)) as advance:
            rows = score_replies(own.model, own.chat, texts, advance).tolist()
        raw = dict(zip((item.id for item in items.values()), rows, strict=True))
        contract = own.contract
    raw_NM = np.array([raw[items[r.prompt.messages, reply].id] for r in judged for reply in r.replies])
    scores = raw_NM[:, 0] if contract is None else card_scores(torch.from_numpy(raw_NM), contract)
    card = report_card(judged, scores, members_NM=raw_NM, train=train)
    splits = sorted({ranking.prompt.split for ranking in judged})
    return {
        "model": {
            "source": model,
            "layout": layout,
            "dtype": machine.dtype_name,
            "members": raw_NM.shape[1],
            # Replies whose text did not survive another trainer's tokenizer or template.
            "changed_replies": changed,
        },
        "data": {
            "source": source,
            "sha256": None if is_hub(source) or not Path(source).is_file() else sha256(Path(source)),
            "judged": f"held-out rows ({', '.join(splits)})" if held_out else "all rows",
            "trained_on_known": folder is not None,
        },
        **card,
    }


def held_out_card(
    raw_BM: Tensor, contract: RewardContract, train: Sequence[Ranking], test: Sequence[Ranking], *, own: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the reward stage's summary, the report card) of the members' raw scores of the replies of `test` in order.
    `own`: the rankings are of the run's own replies, which are shown to people in an order drawn for each."""
    simulated = own and all(ranking.annotator is None for ranking in (*train, *test))
    card = report_card(
        test, card_scores(raw_BM, contract), members_NM=raw_BM, train=train, simulated=simulated, seen_in_order=not own
    )
    length = card["length"]
    summary = {
        "pairs_train": card["counts"]["train_pairs"],
        "pairs_test": card["counts"]["strict_pairs"],
        "accuracy": card["accuracy"],
        "accuracy_ci": card["accuracy_ci"],
        "length_baseline_accuracy": length["accuracy"],
        "length_baseline_accuracy_ci": length["accuracy_ci"],
        "ece": card["calibration"]["ece"],
        "length_score_correlation": length["score_correlation"],
        "score_mean": contract.mean[0],
        "score_std": contract.std[0],
    }
    return summary, card


def card_scores(raw_BM: Tensor, contract: RewardContract) -> Tensor:
    """One score a reply, [B], on the scale of raw scores, where a difference is the log-odds of a preference.

    Of one model that is its raw score; of an ensemble the members' normalised scores are made one, as PPO will see
    them, and put back on the members' mean scale.
    """
    if raw_BM.shape[1] == 1:
        return raw_BM[:, 0]
    return contract.normalised(raw_BM) * float(np.mean(contract.std)) + float(np.mean(contract.mean))


def own_folder(model: str) -> Path | None:
    """The reward/ folder of a run that `model` is, or is the run of; None for any other model."""
    for path in (Path(model), Path(model) / "reward"):
        if (path / CONTRACT).is_file():
            return path
    if (Path(model) / "recipe.yaml").is_file():
        raise UserError(
            f"{model}: the run has no reward model yet (reward/{CONTRACT} is missing); run its reward stage"
        )
    return None


def trained_on(folder: Path, known: Sequence[Ranking]) -> list[Ranking]:
    """The training rankings of the run whose reward model lies in `folder`, but for those `known` already."""
    paths = [folder.parent / "preferences" / f"{name}.jsonl" for name in ("earlier", "rankings")]
    given = set(known)
    found = [r for path in paths if path.is_file() for r in read_rankings(path)]
    return [r for r in found if r.prompt.split == "train" and r not in given]


Reply = tuple[tuple[Message, ...], Completion]


def unique_replies(rankings: Sequence[Ranking]) -> dict[Reply, ScoreItem]:
    """Every reply to a prompt once, however many annotators ranked it."""
    found: dict[Reply, ScoreItem] = {}
    for ranking in rankings:
        for reply in ranking.replies:
            key = (ranking.prompt.messages, reply)
            if key not in found:
                found[key] = ScoreItem(f"reply {len(found)}, to prompt {ranking.prompt.id}", ranking.prompt, reply)
    return found
