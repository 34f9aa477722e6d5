"""Replies of one model to prompts, and what models say of them in passes that keep nothing: log-probabilities and the
proxy. Every rank takes its share of each pass."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from plaudit import rng
from plaudit.data.chat import ChatFormat
from plaudit.models.kernels.attention import prepare_attention
from plaudit.models.roles import Roles, plain_logprobs_at
from plaudit.models.tokens import Tokens, pad_right
from plaudit.records import Prompt
from plaudit.rewards.saved import trained_reward
from plaudit.rewards.sources import RewardSources
from plaudit.run.display import Step
from plaudit.train.run import Run

ROWS = {"cpu": 32, "gpu": 256}
"""Replies judged in one pass at most: a GPU waits for the launches of small ones."""
SAMPLED = 64
"""Replies sampled at once."""


def sampled(
    run: Run,
    source: str | Path,
    model: PreTrainedModel,
    chat: ChatFormat,
    prompts: list[Prompt],
    sampling: Callable[..., list[list[int]]],
    stream: str,
) -> "Passes":
    """A reply of `model`, that of `source`, to each of `prompts`, as `sampling` takes them from an engine, with the
    random numbers of `stream`."""
    engine = run.engine(source, chat, SAMPLED, loaded=model)
    uniforms = rng.uniforms(run.seed, stream, 0, list(range(len(prompts))), run.sampling.max_new_tokens)
    prompt_ids = [chat.prompt_ids(prompt.messages) for prompt in prompts]
    ids = sampling(engine, prompt_ids, uniforms, SAMPLED)
    engine.close()
    return Passes(run, chat, prompts, prompt_ids, ids)


@dataclass(frozen=True)
class Passes:
    """Replies, as they go through models."""

    run: Run
    chat: ChatFormat
    prompts: list[Prompt]
    prompt_ids: list[list[int]]
    ids: list[list[int]]

    @property
    def at_once(self) -> int:
        """Replies in a pass."""
        longest = max(len(prompt) + len(reply) for prompt, reply in zip(self.prompt_ids, self.ids, strict=True))
        most = ROWS["cpu" if self.run.machine.device.type == "cpu" else "gpu"]
        return max(1, min(most, self.run.micro_batches.get("evaluate", most * longest) // longest))

    def logprob_sums(self, under: PreTrainedModel, *temperatures: float) -> list[np.ndarray]:
        """log π of each whole reply, at each of the temperatures, of one pass."""

        def measure(tokens: Tokens) -> Tensor:
            return torch.stack([x_BT.sum(dim=1) for x_BT in plain_logprobs_at(under, tokens, temperatures)], dim=1)

        return list(self._each(measure).numpy().T)

    @torch.no_grad()
    def proxy(self, rewards: RewardSources, base: PreTrainedModel, advance: Step, *, share: bool = False) -> np.ndarray:
        """What PPO is paid for each reply before the missing-EOS rule. `base` is the SFT model; where the run's own
        reward model pays it becomes that one's base. With `share`, for many replies to a prompt, that is read once a
        pass on a CPU; rounding differs."""
        machine, paid = self.run.machine, []
        files = trained_reward(self.run.folder, self.chat) if rewards.trained else None
        reward = files.attach(base, machine.dtype, machine.device) if files else None
        contract = reward.contract if reward else None
        if share and reward is not None and isinstance(reward.model, Roles) and machine.device.type == "cpu":
            reward.model.packs = prepare_attention(base).kind == "shared"
        raw_BM = self._each(reward.raw, advance) if reward else None
        for rows in _parts(len(self.ids), self.at_once):
            part = slice(rows.start, rows.stop)
            trained_BM = None if raw_BM is None else raw_BM[part].to(machine.device)
            prompts, tokens = self.prompts[part], self._batch(rows)
            scores = rewards.score(self.chat, prompts, tokens, "evaluation", trained_BM=trained_BM, contract=contract)
            paid.append(scores.normalised_B.cpu().numpy())
            if reward is None:
                advance(count=len(rows))
        return np.concatenate(paid)

    def _batch(self, rows: range) -> Tokens:
        part = slice(rows.start, rows.stop)
        return pad_right(self.prompt_ids[part], self.ids[part], self.chat.pad_id, self.run.machine.device)

    def _each(self, measure: Callable[[Tokens], Tensor], advance: Step | None = None) -> Tensor:
        """[B, ...] on the CPU: what `measure` says of each reply."""
        found: dict[str, Tensor] = {}
        told = 0
        ranks, count = self.run.ranks, len(self.ids)
        for rows in ranks.share(_parts(count, ranks.rows(self.at_once, count))):
            part = measure(self._batch(rows)).cpu()
            found.setdefault("each", part.new_zeros(count, *part.shape[1:]))[rows.start : rows.stop] = part
            if advance is not None:
                advance(count=len(rows))
                told += len(rows)
        if advance is not None:
            advance(count=count - told)  # what other ranks did
        return ranks.total(found)["each"]


def _parts(count: int, rows: int) -> list[range]:
    """The numbers up to `count`, so many at a time."""
    return [range(start, min(start + rows, count)) for start in range(0, count, rows)]
