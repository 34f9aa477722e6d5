"""What every PPO run checks about its models while it goes on (guard/invariants.py says what each check means)."""

import json

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from plaudit.guard import invariants
from plaudit.models.full import FullReward
from plaudit.models.sharded import let_go
from plaudit.models.tokens import Tokens
from plaudit.rollout.batch import RolloutBatch
from plaudit.stages.ppo.trainer import Trainer


class RunChecks:
    """The frozen weights as they were when the run began, and the checks that need a model."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.before = self._frozen()

    def before_rollout(self) -> None:
        """No module is in train mode."""
        invariants.check_modes(self.trainer.roles)

    def before_update(self, batch: RolloutBatch, number: int) -> None:
        """One policy and one batch on all ranks; once, that two passes agree and that columns belong to their states.

        A value head starts at zero, so a fresh run's values are looked at in its second update.
        """
        ranks, learning = self.trainer.ranks, self.trainer.roles.trainable().items()
        if ranks.count > 1:
            found = invariants.fingerprint([*learning, ("the advantages", batch.advantages_BT)])
            invariants.check_ranks_agree([json.loads(text) for text in ranks.gathered(json.dumps(found))])
        if number == 0:
            row = self._longest(batch)
            invariants.check_repeatable(self._read(row)[0], self._read(row)[0])
        if number == 1 and int(batch.tokens.reply_lengths_B.max()) >= 3:
            invariants.check_alignment(self._read, self._longest(batch))

    def at_end(self) -> None:
        """The reference and the reward model are what they were."""
        after = self._frozen()
        for what, fingerprint in self.before.items():
            invariants.check_unchanged(what, fingerprint, after[what])

    def _frozen(self) -> dict[str, dict[str, str]]:
        roles, scorer = self.trainer.roles, self.trainer.scorer
        let_go(roles)
        # What ranks hold together is the base, one tensor of which at a time is whole here.
        frozen = [(n, p) for n, p in roles.named_parameters() if not (p.requires_grad or isinstance(p, DTensor))]
        places = {tensor.data_ptr() for _, tensor in roles.base_tensors()}
        reward = [(name, p) for name, p in frozen if p.data_ptr() not in places]
        apart = isinstance(scorer, FullReward) or self.trainer.run.rounds.moves_reference
        if scorer is not None and apart:
            reward += list(scorer.named_parameters())
        pairs = (("the reference", roles.base_tensors()), ("the reward model", reward))
        return {what: invariants.fingerprint(tensors) for what, tensors in pairs}

    def _longest(self, batch: RolloutBatch) -> Tokens:
        return batch.tokens.rows([int(batch.tokens.reply_lengths_B.argmax())])

    @torch.no_grad()
    def _read(self, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
        roles, critic = self.trainer.roles, self.trainer.config.critic
        needs = self.trainer.needs("policy") - {"last_values"}
        output = roles(tokens, "policy", needs)
        own = roles(tokens, "critic", frozenset({"values"})) if critic == "own" else output
        assert output.logprobs_BT is not None
        return output.logprobs_BT, own.values_BT
