"""Reward model: the SFT model with a scalar head in place of its LM head learns to score what was preferred.

    loss = −(1/n) Σ_rankings (1/pairs) Σ_(w,l) log σ(r_θ(x, y_w) − r_θ(x, y_l))

and, where the recipe asks for it, other losses of the same rankings (training.py) and an ensemble of members on the one
base. The score is read at the reply's last token. What was trained is saved and loaded again before
it is normalised and tested: what the numbers describe is what lies on the disk.

Leaves reward/adapter (PEFT), reward/head.safetensors, reward/reward.json (the contract: the rules its scores stand
under, checksums, golden scores), reward/model (merged `AutoModelForSequenceClassification`, raw scores),
reward/metrics.jsonl, reward/scores.jsonl (of the held-out rankings and labels), reward/card.json (the report card on
rankings), reward/labels.json (that on labels) and reward/summary.json; of an ensemble also adapter_1,
head_1.safetensors, model_1 and so on. A full fine-tuning leaves no adapter and no head beside reward/model.

    plaudit reward RECIPE
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from plaudit.algo.preferences import fit_temperature
from plaudit.data.chat import ChatFormat
from plaudit.data.files import read_labels, read_rankings, write_json, write_rows
from plaudit.data.hashes import sha256
from plaudit.dist.machine import release_memory
from plaudit.errors import RunStopped
from plaudit.guard.invariants import check_unchanged, fingerprint, joint_fingerprint
from plaudit.models.export import classifier_refused
from plaudit.models.full import FullReward
from plaudit.models.heads import head_file, save_head
from plaudit.models.roles import Roles
from plaudit.models.rounding import Rounding
from plaudit.records import Completion, Labelled, Prompt, Ranking
from plaudit.rewards.averaging import average_adapters, average_heads
from plaudit.rewards.contract import RewardContract
from plaudit.rewards.export import export_classifier, sign_classifier, write_note
from plaudit.rewards.saved import (
    adapter_name,
    file_hashes,
    golden_scores,
    load_merged,
    member_files,
    template_hash,
    weights_and_rules,
    with_heads,
)
from plaudit.rewards.score import score_replies
from plaudit.run.display import progress
from plaudit.stages.reward.anchors import Anchors, anchors_of, on_one_scale, told
from plaudit.stages.reward.config import RewardConfig
from plaudit.stages.reward.labels import Sides, divided_labels, sides_of_labels
from plaudit.stages.reward.training import (
    RewardTraining,
    Rows,
    divided,
    load_members,
    train_member,
)
from plaudit.train.run import Run
from plaudit.train.saving import Saver
from plaudit.view.card.alarms import with_anchors
from plaudit.view.card.label_card import LABELS_SHOWN, held_out_labels
from plaudit.view.card.pairs import Pairs
from plaudit.view.card.reward_report import held_out_card
from plaudit.view.card.table import print_alarms

NORMALISE_ON = 256
"""Replies of the training rankings whose scores get mean 0 and std 1: the std is then known to about 5 %."""


def train(config: RewardConfig, run: Run) -> dict[str, Any]:
    """Train, save, normalise, test on held-out prompts; returns the summary, on the first rank."""
    made = run.folder.require("preferences/summary.json", "preferences").parent
    rows = {name: made / f"{name}.jsonl" for name in ("earlier", "rankings", "unpaired")}
    hashes = {name: sha256(path) for name, path in rows.items() if path.is_file()}
    rankings = [r for name in ("earlier", "rankings") if name in hashes for r in read_rankings(rows[name])]
    labels = read_labels(rows["unpaired"]) if "unpaired" in hashes else []
    learnt, test = divided(config, rankings, "preferences/rankings.jsonl") if rankings else ([], [])
    learnt_labels, test_labels = divided_labels(labels, "preferences/unpaired.jsonl") if labels else ([], [])
    chat = run.chat(run.sft_model)
    folder = run.folder.stage("reward")
    training = RewardTraining(config, run, chat, (learnt, learnt_labels), (test, test_labels))
    model, layout = training.model, str(training.layout)
    frozen = fingerprint(model.base_tensors()) if isinstance(model, Roles) else {}
    parameters = sum(parameter.numel() for parameter in model.trainable().values())
    with Saver.open(run, "reward", {"base": joint_fingerprint(frozen), **hashes}) as saver:
        if saver.state is not None:
            load_members(training, saver.state)
        for member in range(len(training.log_nus), config.members):
            train_member(training, member, saver)
    log_nus, seconds = tuple(training.log_nus), training.seconds
    if isinstance(model, Roles):
        check_unchanged("the frozen base", frozen, fingerprint(model.base_tensors()))
    if run.ranks.first:
        save(config, run, training, folder)
    del training, model
    release_memory()
    run.ranks.wait()

    anchors = anchors_of(config, run)
    model = reload(config, run, run.folder.require("reward", "reward"))
    judged = [(r.prompt, reply) for r in test for reply in r.replies]
    raw_BM = _scored(run, model, chat, [*judged, *map(_reply, test_labels)], "Testing")
    own = [(r.prompt, reply) for r in learnt for reply in r.replies] + [*map(_reply, learnt_labels)]
    reference_BM = _scored(run, model, chat, anchors.replies if anchors else own[:NORMALISE_ON], "Normalising")
    sides = _sides(test) if test else sides_of_labels(test_labels)
    contract, temperatures = describe(config, run, chat, model, reference_BM, sides, raw_BM, anchors)
    if not run.ranks.first:
        return {}  # the rest is files, and the first rank's
    contract = replace(contract, rankings_sha256=hashes.get("rankings"))
    if config.loss == "davidson":
        averaged = config.aggregate == "weight_averaged"
        contract = replace(contract, log_nu=(float(np.mean(log_nus)),) if averaged else log_nus)
    gap = export(run, chat, model, contract, temperatures, folder)
    contract = _with_hashes(contract, run, folder)
    contract.save(folder)
    ruler = None if anchors is None else told(contract, reference_BM, anchors)
    summary, cards = judge(
        folder, contract, raw_BM, (learnt, learnt_labels), (test, test_labels), run.rankings is None, ruler
    )
    files = [folder / name for name in contract.files]
    summary |= {
        "loss": config.loss if test else "logistic",
        "layout": layout,
        "members": config.members,
        "aggregate": config.aggregate,
        "trainable_parameters": parameters,
        "rankings_train": len(learnt),
        "seconds_per_member": float(np.mean(seconds)),
        "pairs_per_second": config.epochs * config.members * summary.get("pairs_train", 0) / sum(seconds),
        "megabytes_per_member": sum(file.stat().st_size for file in files) / 1e6 / len(contract.mean),
        "passes_per_score": len(contract.mean),
        "temperature": contract.temperature,
        "export_gap": gap,
    }
    if not test:
        del summary["rankings_train"], summary["pairs_per_second"]
    pairs = ("pairs_train", "pairs_test", "accuracy", "accuracy_ci", "length_baseline_accuracy", "ece")
    shown = (*(pairs if test else ()), *(LABELS_SHOWN if test_labels else ()), *(["anchors_off"] if ruler else ()))
    more = ("length_score_correlation", "layout", "temperature", "seconds_per_member")
    ensemble = ("members", "aggregate", "megabytes_per_member", "passes_per_score") if config.members > 1 else ()
    run.finish("reward", "Reward model", summary, (*shown, *more, *ensemble))
    for card in cards:
        print_alarms(card)
    stop_for_alarm(config.on_alarm, cards)
    return summary


def stop_for_alarm(on_alarm: str, cards: Sequence[Mapping[str, Any]]) -> None:
    """RunStopped for the first alarm of the report cards, where `on_alarm` is stop."""
    alarm = next((one for card in cards for one in card["alarms"] if one["level"] == "alarm"), None)
    if on_alarm == "stop" and alarm is not None:
        raise RunStopped(
            f"reward.on_alarm=stop, and the reward model's card has the alarm {alarm['kind']!r}: {alarm['says']} "
            f"{alarm['do']} Then run --from preferences; or go on as it is: --resume reward.on_alarm=warn"
        )


def judge(
    folder: Path,
    contract: RewardContract,
    raw_BM: Tensor,
    learnt: Rows,
    test: Rows,
    own: bool,
    ruler: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(the summary, the cards) of the raw scores of the held-out rankings' replies, then of the labels' ones; writes
    the cards and the scores. `own`: the rankings are of the run's own replies. `ruler` is what there is to tell of the
    anchors, after round 1."""
    rankings, labels = test
    each = raw_BM.split([*(len(ranking.replies) for ranking in rankings), len(labels)])
    summary: dict[str, Any] = {}
    cards: list[dict[str, Any]] = []
    rows = [
        {"id": r.prompt.id, "ranks": list(r.ranks), "scores": raw_KM.tolist()}
        for r, raw_KM in zip(rankings, each, strict=False)
    ]
    if rankings:
        of_rankings = raw_BM[: len(raw_BM) - len(labels)]
        summary, card = held_out_card(of_rankings, contract, learnt[0], rankings, own=own)
        if ruler is not None:
            card = with_anchors(card, ruler)
            summary |= {"anchors_off": ruler["off"], "anchors_correlation": ruler["correlation"]}
        write_json(folder / "card.json", card)
        cards.append(card)
    if labels:
        of_labels, card = held_out_labels(each[-1], contract, learnt[1], labels)
        write_json(folder / "labels.json", card)
        summary |= of_labels
        cards.append(card)
        scored = zip(labels, each[-1].tolist(), strict=True)
        rows += [{"id": one.prompt.id, "label": one.label, "scores": [raw_M]} for one, raw_M in scored]
    write_rows(folder / "scores.jsonl", rows)
    return summary, cards


def save(config: RewardConfig, run: Run, training: RewardTraining, folder: Path) -> None:
    """Write the weights: adapters and heads, their average, or a merged model."""
    model = training.model
    if isinstance(model, FullReward):
        rounding = Rounding(run.seed, "reward/model")
        export_classifier(model, training.chat, str(run.sft_model), folder / "model", run.machine.dtype, rounding)
        return
    averaged, adapters = config.aggregate == "weight_averaged", list[Path]()
    for member, head in enumerate(model.score_heads):
        adapters.append(folder / adapter_name(member))
        model.save_adapter(adapters[member], member)
        if not averaged:
            save_head(head, folder, member)
    if averaged:
        average_adapters(adapters, adapters[0])
        heads = [head.get_parameter("weight").detach().cpu() for head in model.score_heads]
        save_file({"weight": average_heads(heads)}, folder / head_file())
        for adapter in adapters[1:]:
            shutil.rmtree(adapter)


def reload(config: RewardConfig, run: Run, folder: Path) -> Roles | FullReward:
    """What `save` wrote, as every later stage will have it."""
    if run.lora is None:
        return load_merged(folder / "model", run.machine.dtype, run.machine.device)
    members = 1 if config.aggregate == "weight_averaged" else config.members
    base, under = run.base()
    adapters = [folder / adapter_name(member) for member in range(members)]
    return with_heads(Roles(base, reward=adapters, under=under), folder)


def _scored(
    run: Run, model: Roles | FullReward, chat: ChatFormat, replies: Sequence[tuple[Prompt, Completion]], label: str
) -> Tensor:
    """Raw scores [B, M] of replies, beside a progress bar."""
    with progress(label, len(replies), "reply") as advance:
        return score_replies(model, chat, replies, advance, ranks=run.ranks)


def describe(
    config: RewardConfig,
    run: Run,
    chat: ChatFormat,
    model: Roles | FullReward,
    reference_BM: Tensor,
    sides: Sides,
    raw_BM: Tensor,
    anchors: Anchors | None = None,
) -> tuple[RewardContract, list[float]]:
    """The rules the scores stand under: moments over the raw scores `reference_BM`, after round 1 those of the
    `anchors`; temperature on the pairs `sides` of held-out replies, the text's tokens, golden scores; and the members'
    temperatures by themselves. `raw_BM` are of the held-out replies."""
    scores = reference_BM.double()
    contract = RewardContract(
        mean=tuple(scores.mean(dim=0).tolist()),
        std=tuple(scores.std(dim=0, correction=0).clamp(min=1e-6).tolist()),
        aggregate="mean" if config.aggregate == "weight_averaged" else config.aggregate,
        k=config.aggregate_k,
        beta=config.aggregate_beta,
        eos_id=chat.eos_id,
        pad_id=chat.pad_id,
        system=chat.system,
        template=chat.tokenizer.chat_template,
        template_sha256=template_hash(chat),
        dtype=run.machine.dtype_name,
        golden=golden_scores(model, chat),
        model=None if run.lora is not None else "model",
    )
    contract = contract if anchors is None else on_one_scale(contract, reference_BM, anchors.scores_B)
    each = [_temperature(raw_BM[:, m] / contract.std[m], sides) for m in range(model.members)]
    return replace(contract, temperature=_temperature(contract.normalised(raw_BM), sides)), each


def _sides(test: Sequence[Ranking]) -> Sides:
    """Of the strict pairs: on the validation split where it has some, so that the test split still judges the
    confidence."""
    pairs = Pairs(test)
    of_validation = [n for n, pair in enumerate(pairs.items) if pair.ranking.prompt.split == "validation"]
    chosen = of_validation or range(len(pairs))
    return [pairs.winners[n] for n in chosen], [pairs.losers[n] for n in chosen]


def _temperature(scores_N: Tensor, sides: Sides) -> float:
    """Of the margins of pairs, with Platt's targets (1999), (n + 1)/(n + 2) in place of 1: pairs that are all right
    prove no certainty."""
    winners, losers = sides
    margins = scores_N[winners] - scores_N[losers]
    target = (len(margins) + 1) / (len(margins) + 2)
    return fit_temperature(margins, torch.full((len(margins),), target, dtype=scores_N.dtype))


def _reply(one: Labelled) -> tuple[Prompt, Completion]:
    return one.prompt, Completion(one.completion)


def export(
    run: Run,
    chat: ChatFormat,
    model: Roles | FullReward,
    contract: RewardContract,
    temperatures: list[float],
    folder: Path,
) -> float | None:
    """Every member as a plain classifier that carries its own contract; returns the largest distance of a golden
    score from the model's own, in standard deviations. None, and a note of how to read the score, where transformers
    has no classifier on this base."""
    if isinstance(model, Roles) and classifier_refused(model.peft.get_base_model()) is not None:
        write_note(model, contract, folder)
        return None
    gaps = []
    for member, temperature in enumerate(temperatures):
        to = folder / ("model" if member == 0 else f"model_{member}")
        if isinstance(model, Roles):
            rounding = Rounding(run.seed, "reward/model", member)
            export_classifier(model, chat, str(run.sft_model), to, run.machine.dtype, rounding, member)
        gaps.append(sign_classifier(to, chat, contract.of_member(member, temperature), run.machine.dtype))
    if run.machine.dtype == torch.float32 and max(gaps) > 1e-3:
        raise AssertionError(f"the exported reward model scores otherwise by {max(gaps):.1e} standard deviations")
    return max(gaps)


def _with_hashes(contract: RewardContract, run: Run, folder: Path) -> RewardContract:
    """With the SHA-256 of the files that the scores come from: the reward model's own, and the base's."""
    if contract.model is None:
        base = file_hashes(run.sft_model, weights_and_rules(run.sft_model))
        return replace(contract, files=file_hashes(folder, member_files(len(contract.mean))), base=base)
    names = [f"{contract.model}/{name}" for name in weights_and_rules(folder / contract.model)]
    return replace(contract, files=file_hashes(folder, names))
