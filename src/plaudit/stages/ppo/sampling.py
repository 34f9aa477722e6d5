"""Who samples PPO's replies, and when: from the policy as it is, or one update ahead (`rollout.lag: 1`).

    trainer    join replies k │ look │ load policy k, ask for replies k+1 │ score k │ train k │ join replies k+1 │ ...
    servers                                                               │ replies k+1 from policy k ..│

So policy k, as it was before update k trained, samples the replies of update k+1, and policy k+1 trains on them. A
thread asks and does nothing else: the adapter is written and loaded before it begins; models, files and what ranks
exchange are the main thread's. Every update begins with `join`, so nothing is under way while a checkpoint is made, the
policy is looked at or another adapter is loaded.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from plaudit import rng
from plaudit.data.chat import ChatFormat
from plaudit.errors import UserError
from plaudit.models.full import FullRoles
from plaudit.models.roles import Roles
from plaudit.models.rounding import Rounding
from plaudit.models.tokens import Tokens, pad_right
from plaudit.records import Prompt
from plaudit.rollout.batch import per_token
from plaudit.rollout.engine import Engine, Sampled
from plaudit.rollout.stored import REPLAYED, StoredReplies
from plaudit.rollout.vllm import VllmEngine, policy_name
from plaudit.run.threads import begun
from plaudit.train.run import Run

ROLLOUT = "ppo/rollout"
"""The stream of the replies that are trained on."""


@dataclass(frozen=True)
class Question:
    """One reply to each prompt, and the place of their random numbers."""

    prompt_ids: list[list[int]]
    stream: str
    step: int


@dataclass
class Ahead:
    """Replies that were asked for before their update, the policy that samples them, and its adapter."""

    question: Question
    policy: str
    adapter: list[Tensor]
    coming: Future[list[Sampled]] | None = None
    """This rank's share, until it was joined."""
    rows: list[Any] | None = None
    """All of them, from then on."""


class Sampler:
    """Replies of the policy to prompts; `ahead` are those of the next update, where they were asked for."""

    def __init__(self, run: Run, roles: Roles | FullRoles, engine: Engine, chat: ChatFormat):
        self._run, self._roles, self._engine, self._chat = run, roles, engine, chat
        folder, served = run.folder.stage("ppo"), run.rollout.engine == "vllm"
        self._stored = StoredReplies(folder, run.folder.path / REPLAYED, run.ranks) if served else None
        self.ahead: Ahead | None = None

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        """Nobody waits for what is under way any more: it must not hold up the end of the process."""
        if self.ahead is not None and self.ahead.coming is not None:
            assert isinstance(self._engine, VllmEngine)
            self._engine.hang_up()

    def sample(self, prompts: Sequence[Prompt], stream: str, step: int) -> tuple[Tokens, Tensor, Tensor]:
        """One reply a prompt from the current policy: tokens, the sampler's log-probs [B, T], which replies ended [B].

        Every rank samples its share of the replies; their random numbers are their own wherever they are sampled.
        """
        assert self.ahead is None or self.ahead.coming is None, "join first: the servers sample another policy"
        question, policy = self._question(prompts, stream, step), self._policy()
        rows = self._known(question, policy)
        if rows is None:
            self._take(question)
            rows = self._together(question, policy, self._mine(question))
        return self._columns(question, rows)

    def of_update(self, prompts: Sequence[Prompt], number: int) -> tuple[Tokens, Tensor, Tensor, list[Tensor] | None]:
        """The replies of update `number`, as `sample` gives them, and the adapter of the policy that sampled them,
        where that is not the current one."""
        ahead, self.ahead = self.ahead, None
        if ahead is None:
            return *self.sample(prompts, ROLLOUT, number), None
        assert ahead.rows is not None and ahead.question.step == number, (ahead.question.step, number)
        return *self._columns(ahead.question, ahead.rows), ahead.adapter

    def ask(self, prompts: Sequence[Prompt], number: int) -> None:
        """Let the servers begin with the replies of update `number`, from the policy as it is now."""
        assert self.ahead is None
        question, policy = self._question(prompts, ROLLOUT, number), self._policy()
        adapter = [parameter.detach().clone() for parameter in self._roles.adapter_parameters("policy")]
        ahead = Ahead(question, policy, adapter, rows=self._known(question, policy))
        if ahead.rows is None:
            self._take(question)
            ahead.coming = begun(partial(self._mine, question), "asking ahead")
        self.ahead = ahead

    def join(self) -> None:
        """Wait until the replies that were asked for are there and stored; raises what asking for them raised."""
        ahead = self.ahead
        if ahead is not None and ahead.coming is not None:
            replies = ahead.coming.result()
            ahead.rows, ahead.coming = self._together(ahead.question, ahead.policy, replies), None

    def restore(self, prompts: Sequence[Prompt], number: int, policy: str, adapter: Mapping[str, Tensor]) -> None:
        """The replies of update `number` are those of `policy` that were stored before the checkpoint; UserError where
        they are not there any more. `adapter` is as `packed` gave it."""
        question = self._question(prompts, ROLLOUT, number)
        rows = self._known(question, policy)
        if rows is None:
            raise UserError(
                f"{self._run.folder.stage('ppo')}/sampled: the replies of update {number + 1} from {policy} are not "
                "there, and that policy is gone; put the file back, or run the stage again with --from ppo"
            )
        weights = [adapter[str(place)] for place in range(len(adapter))]
        self.ahead = Ahead(question, policy, weights, rows=rows)

    def packed(self) -> dict[str, Tensor]:
        """The adapter of the policy that sampled the next update's replies, by its tensors' places; empty where the
        current one will sample them."""
        return {} if self.ahead is None else {str(place): one for place, one in enumerate(self.ahead.adapter)}

    def _question(self, prompts: Sequence[Prompt], stream: str, step: int) -> Question:
        return Question([self._chat.prompt_ids(prompt.messages) for prompt in prompts], stream, step)

    def _policy(self) -> str:
        """The name of the current policy, where replies are stored under one."""
        return "" if self._stored is None else policy_name(self._roles.adapter_parameters("policy"))

    def _known(self, question: Question, policy: str) -> list[Any] | None:
        """The replies that are stored already."""
        if self._stored is None:
            return None
        return self._stored.read(question.stream, question.step, policy, self._asked(question))

    def _asked(self, question: Question) -> list[Any]:
        """All that stored replies must have answered."""
        sampling = self._run.sampling
        return [question.prompt_ids, self._run.seed, sampling.max_new_tokens, sampling.temperature]

    def _take(self, question: Question) -> None:
        self._engine.take(self._roles, Rounding(self._run.seed, question.stream, question.step))

    def _mine(self, question: Question) -> list[Sampled]:
        """This rank's share of the replies, from the engine as it is; reads no weight of the trainer."""
        mine = self._run.ranks.share(range(len(question.prompt_ids)))
        longest = self._run.sampling.max_new_tokens
        uniforms = rng.uniforms(self._run.seed, question.stream, question.step, list(mine), longest)
        return self._engine.generate([question.prompt_ids[i] for i in mine], uniforms)

    def _together(self, question: Question, policy: str, replies: list[Sampled]) -> list[Any]:
        """Every rank's replies as [place, ids, log-probs], in their order; stored before anything is made of them."""
        ranks = self._run.ranks
        mine = ranks.share(range(len(question.prompt_ids)))
        message = json.dumps([[row, reply.ids, reply.logprobs] for row, reply in zip(mine, replies, strict=True)])
        rows = sorted(row for text in ranks.gathered(message) for row in json.loads(text))
        if self._stored is not None:
            self._stored.write(question.stream, question.step, policy, self._asked(question), rows)
        return rows

    def _columns(self, question: Question, rows: list[Any]) -> tuple[Tokens, Tensor, Tensor]:
        device, ends = self._run.machine.device, self._chat.ends
        tokens = pad_right(question.prompt_ids, [ids for _, ids, _ in rows], self._chat.pad_id, device)
        finished_B = torch.tensor([ids[-1] in ends for _, ids, _ in rows], device=device)
        return tokens, per_token([logprobs for *_, logprobs in rows], tokens), finished_B


@contextmanager
def holding(parameters: Sequence[nn.Parameter], weights: Sequence[Tensor] | None) -> Iterator[None]:
    """In this block the parameters hold `weights`, where there are some; after it what they held, bit for bit."""
    if weights is None:
        yield
        return
    own = [parameter.detach().clone() for parameter in parameters]
    try:
        _put(parameters, weights)
        yield
    finally:
        _put(parameters, own)


@torch.no_grad()
def _put(parameters: Sequence[nn.Parameter], weights: Sequence[Tensor]) -> None:
    for parameter, weight in zip(parameters, weights, strict=True):
        parameter.copy_(weight)
