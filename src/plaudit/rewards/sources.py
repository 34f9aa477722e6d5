"""A score's way, from what PPO is paid by to one number a reply; PPO and evaluation both take it.

    raw -> normalisation of each source -> weighted sum -> missing-EOS rule -> clip -> batch whitening

The first three are strung together here; each step is a function of algo/rewards.py. A source is the run's own reward
model, a Python function, an HTTP endpoint, or a reward model made elsewhere. Foreign scores are normalised by their
mean and std over replies of the SFT model to training prompts, measured before the first update (or stated).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plaudit.algo.rewards import normalise, weighted_scores
from plaudit.data.chat import ChatFormat
from plaudit.data.files import read_json, write_json
from plaudit.dist.machine import Machine
from plaudit.dist.ranks import ALONE, Ranks
from plaudit.errors import RunStopped, UserError
from plaudit.guard.invariants import check_finite
from plaudit.models.tokens import Tokens
from plaudit.records import Prompt
from plaudit.rewards.config import RewardSource, names_of, pays, uses_trained
from plaudit.rewards.contract import CONTRACT, RewardContract
from plaudit.rewards.foreign import ForeignRewardModel, load_foreign
from plaudit.rewards.saved import load_reward_model
from plaudit.rewards.texts.answers import PROBE, ScoreItem, Scorer
from plaudit.rewards.texts.endpoint import EndpointScorer
from plaudit.rewards.texts.function import FunctionScorer
from plaudit.run.display import console

REWARDS = "rewards.json"
MOMENTS = ("mean", "std")
NORMALISE_ON = 64
"""Training prompts whose SFT replies measure mean and std of a source that states none."""


def check_sources(
    sources: Sequence[RewardSource], machine: Machine, asked: Sequence[Prompt] = (), new: int = 0
) -> None:
    """Load every foreign source and have it score one reply, a model one to each of the prompts `asked` too; UserError
    when that fails, or a model made elsewhere does not take one of them with a reply of `new` tokens, before any long
    work."""
    for number, source in enumerate(sources):
        if not source.trained:
            try:
                scorer = _scorer(source, machine)
                scorer.score([PROBE])
                for prompt in asked if source.model is not None else ():
                    scorer.score([ScoreItem(prompt.id, prompt, PROBE.completion)])
                    if isinstance(scorer, ForeignRewardModel):
                        scorer.check_room(prompt, new)
            except (RunStopped, UserError) as error:
                raise UserError(f"ppo.rewards[{number}]: {error}") from error


def _scorer(source: RewardSource, machine: Machine) -> Scorer:
    if source.function is not None:
        return FunctionScorer(source.function)
    if source.endpoint is not None:
        named = {name: getattr(source, name) for name in ("timeout", "retries", "batch_size", "auth_env")}
        return EndpointScorer(source.endpoint, **named)
    assert source.model is not None
    if (Path(source.model) / CONTRACT).is_file():
        return load_reward_model(Path(source.model), machine.dtype, machine.device, source.batch_size)
    return load_foreign(source.model, machine.dtype, machine.device, source.batch_size)


@dataclass(frozen=True)
class Scores:
    """What B replies scored. The columns of `raw_scores_BM` are the sources' own scores, in their order; the run's own
    reward model has one a member. `by_source` holds the normalised ones [B], `normalised_B` is the weighted sum of
    those that pay."""

    raw_scores_BM: Tensor
    by_source: dict[str, Tensor]
    normalised_B: Tensor
    metrics: dict[str, float]
    """Mean normalised score of each source, and the share of texts that did not survive a model's tokenizer; empty for
    the run's own reward model alone, whose score is logged anyway."""


class RewardSources:
    """The sources of a run, ready to score."""

    def __init__(self, sources: Sequence[RewardSource], machine: Machine, ranks: Ranks = ALONE):
        """Without any source the run's own reward model pays alone. Foreign models are loaded here; with `ranks` they
        divide the texts, while functions and endpoints are asked by the first rank alone, for all."""
        self.ranks = ranks
        self.trained = uses_trained(sources)
        self.named = bool(sources)
        paying = list(sources) or [RewardSource(trained=True)]
        self.names = names_of(paying)
        self.sources = dict(zip(self.names, paying, strict=True))
        self.scorers = {name: _scorer(source, machine) for name, source in self.sources.items() if not source.trained}
        stated = {name: (source.mean, source.std) for name, source in self.sources.items()}
        self.moments = {name: (m, s) for name, (m, s) in stated.items() if m is not None and s is not None}
        self.weights = {name: source.weight for name, source in self.sources.items() if pays(source)}
        self.constraints = {name: source for name, source in self.sources.items() if source.at_least is not None}
        """Those that are held up, not paid for: what they say counts as it is."""
        self.moments |= {name: (0.0, 1.0) for name in self.constraints if name in self.scorers}

    def score(
        self,
        chat: ChatFormat,
        prompts: Sequence[Prompt],
        tokens: Tokens,
        where: str,
        *,
        trained_BM: Tensor | None,
        contract: RewardContract | None,
        watched: bool = False,
    ) -> Scores:
        """Raw and normalised scores of B replies; `trained_BM` are the raw ones of the run's own reward model, whose
        rules are `contract`. Foreign sources read the text that the replies' ids spell. With `watched` the sources
        that do not pay are asked too.

        RunStopped when a source fails or a score is not finite; `where` says in which step.
        """
        items = score_items(chat, prompts, tokens) if self.scorers else []
        raw: list[Tensor] = []
        normalised: dict[str, Tensor] = {}
        metrics: dict[str, float] = {}
        for name, source in self.sources.items():
            if source.watch and not watched:
                continue
            if source.trained:
                assert trained_BM is not None and contract is not None
                raw.append(trained_BM)
                normalised[name] = contract.normalised(raw[-1])
            else:
                raw.append(self._raw(name, items, metrics)[:, None].to(tokens.tokens_BT.device))
                mean, std = self.moments[name]
                normalised[name] = normalise(raw[-1], raw[-1].new_tensor([mean]), raw[-1].new_tensor([std]))[:, 0]
            metrics[f"score_{name}"] = normalised[name].mean().item()
            check_finite("a score", normalised[name].sum().item(), where)
        return Scores(torch.cat(raw, dim=1), normalised, self.paid(normalised), metrics if self.named else {})

    def paid(self, by_source: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum [B] of the sources that pay."""
        return weighted_scores([by_source[name] for name in self.weights], list(self.weights.values()))

    def _raw(self, name: str, items: Sequence[ScoreItem], metrics: dict[str, float]) -> Tensor:
        """[B], in the order of `items`: what a scorer answers is matched by id."""
        scorer, everyone = self.scorers[name], range(len(items))
        # A model reads each text by itself; what a function or an endpoint does with its texts is its own affair.
        whole = isinstance(scorer, FunctionScorer | EndpointScorer)
        mine = self.ranks.share(everyone) if not whole else everyone if self.ranks.first else ()
        before = scorer.changed if isinstance(scorer, ForeignRewardModel) else 0
        scores = scorer.score([items[i] for i in mine]) if mine else {}
        changed = scorer.changed - before if isinstance(scorer, ForeignRewardModel) else 0
        scores_B = torch.zeros(len(items))
        scores_B[list(mine)] = torch.tensor([scores[items[i].id] for i in mine])
        found = self.ranks.total({"scores": scores_B, "changed": torch.tensor(changed)})
        if isinstance(scorer, ForeignRewardModel):
            metrics[f"text_changed_{name}"] = found["changed"].item() / len(items)
        return found["scores"]

    def asks_trained(self, *, watched: bool = False) -> bool:
        """Whether `score` needs the scores of the run's own reward model."""
        return any(source.trained and (watched or not source.watch) for source in self.sources.values())

    def measured_on(self, train: Sequence[Prompt]) -> list[Prompt]:
        """The first of the prompts `train`, whose SFT replies measure the sources that state no mean and std."""
        return list(train[:NORMALISE_ON]) if self._unmeasured() else []

    def measure(self, chat: ChatFormat, prompts: Sequence[Prompt], tokens: Tokens) -> None:
        """Take mean and std of those sources from one reply of the SFT model to each of `measured_on`.

        UserError when a source scores all replies alike: its std would be 0.
        """
        items = score_items(chat, prompts, tokens)
        for name in self._unmeasured():
            called, metrics = self.scorers[name].name, dict[str, float]()
            raw = self._raw(name, items, metrics).double().numpy()
            if np.ptp(raw) <= 1e-6 * max(1.0, float(np.abs(raw).max())):
                raise UserError(
                    f"ppo.rewards, {called}: it gives all {len(raw)} replies of the SFT model the score {raw[0]:g}, so "
                    "there is no std to divide by; state mean and std"
                )
            self.moments[name] = mean, std = float(raw.mean()), float(raw.std())
            console.print(f"{called}: mean {mean:.4g}, std {std:.4g} over {len(raw)} SFT replies", soft_wrap=True)
            if changed := metrics.get(f"text_changed_{name}"):
                console.print(f"{called}: {changed:.1%} of those texts did not survive its tokenizer", soft_wrap=True)

    def _unmeasured(self) -> list[str]:
        return [name for name in self.scorers if name not in self.moments]

    def save(self, folder: Path) -> None:
        """Write what pays, with its moments, to folder/rewards.json; nothing where only the own reward model does."""
        rows = []
        for name, source in self.sources.items() if self.named else ():
            row: dict[str, Any] = {"name": name, source.kind: getattr(source, source.kind), "weight": source.weight}
            row |= {"watch": True} if source.watch else {}
            row |= {"at_least": source.at_least} if source.at_least is not None else {}
            rows.append(row if source.trained else {**row, **dict(zip(MOMENTS, self.moments[name], strict=True))})
        if rows:
            write_json(folder / REWARDS, {"sources": rows})

    def load(self, folder: Path) -> None:
        """Take the moments that `save` wrote to folder/rewards.json; UserError when they are of other sources."""
        path = folder / REWARDS
        rows = read_json(path)["sources"] if path.is_file() else []
        now = [(n, getattr(s, s.kind), s.weight, s.watch) for n, s in self.sources.items()]
        then = [(r["name"], r.get(r["name"].partition("_")[0]), r["weight"], r.get("watch", False)) for r in rows]
        if self.named and now != then:
            raise UserError(f"{path}: PPO was paid by {then}, the recipe has {now}; run PPO again with --from ppo")
        for row in rows:
            if row["name"] in self.scorers:
                self.moments[row["name"]] = row["mean"], row["std"]


def score_items(chat: ChatFormat, prompts: Sequence[Prompt], tokens: Tokens) -> list[ScoreItem]:
    """The text of every reply with its prompt; a prompt that stands twice gives two ids."""
    return [
        ScoreItem(f"{prompt.id}#{number}", prompt, chat.completion(ids))
        for number, (prompt, ids) in enumerate(zip(prompts, tokens.replies, strict=True))
    ]
