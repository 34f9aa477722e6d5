"""The models of one run, loaded when a question needs them: replies of policies, with their scores and their KL.

    python -m plaudit.view.arena.models RUN

is the process that the studio starts: it reads a question a line and writes an answer a line, both JSON, until its
input ends. So the models never are in the studio's own process, and are gone when it ends.
"""

import json
import os
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from plaudit import rng
from plaudit.data.formats.parsers import conversation
from plaudit.dist.machine import choose_machine
from plaudit.errors import RunStopped, UserError
from plaudit.models.load import load_chat, load_model, quiet_libraries
from plaudit.models.roles import plain_logprobs
from plaudit.models.tokens import Tokens, pad_right
from plaudit.records import Prompt
from plaudit.rewards.contract import CONTRACT
from plaudit.rewards.saved import RewardModel, load_reward_model
from plaudit.rewards.texts.answers import ScoreItem
from plaudit.rollout.inprocess import InProcessEngine
from plaudit.run.folder import finished_model, read_recipe
from plaudit.view.arena.policies import policies_of

HELD = 3
"""Policies that stay loaded, beside the reference and the reward model."""


class Models:
    """The reference and the reward model of a run, and the policies that were asked last."""

    def __init__(self, folder: Path):
        """UserError when `folder` holds no run with an SFT model."""
        quiet_libraries()
        recipe = read_recipe(folder)
        self.folder, self.machine = folder, choose_machine(recipe["dtype"])
        self.system = recipe["data"]["system"]
        self.reference = self._model(finished_model(folder, "sft/model"))
        self.chat = load_chat(str(folder / "sft/model"), self.system)
        self.reward: RewardModel | None = None
        if (folder / "reward" / CONTRACT).is_file():
            self.reward = load_reward_model(folder / "reward", self.machine.dtype, self.machine.device)
        self.held: OrderedDict[str, PreTrainedModel] = OrderedDict()

    def answers(self, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
        """A reply of each of the policies `asked["policies"]` to the conversation `asked["prompt"]`: {policy, text,
        finished, length, kl, score}. Each has random numbers of its own, so that two policies which hardly differ do
        not say the same. `kl` is Σ log π − log π_ref over the reply; `score` None where the run has no reward model.
        """
        messages = conversation("the arena", "prompt", asked["prompt"], "user")
        prompt = Prompt("arena", messages, "arena", "train")
        names: Sequence[str] = asked["policies"]
        uniforms = rng.uniforms(asked["seed"], "arena", 0, list(range(len(names))), asked["max_new_tokens"])
        replies = [
            self._reply(name, prompt, uniforms[row : row + 1], asked["temperature"]) for row, name in enumerate(names)
        ]
        if self.reward is not None:
            items = [ScoreItem(str(n), prompt, reply["completion"]) for n, reply in enumerate(replies)]
            scores = self.reward.score(items)
            replies = [{**reply, "score": scores[str(n)]} for n, reply in enumerate(replies)]
        return [{**reply.pop("completion").as_json(), **reply} for reply in replies]

    @torch.no_grad()
    def _reply(self, name: str, prompt: Prompt, uniforms: Any, temperature: float) -> dict[str, Any]:
        model = self._policy(name)
        engine = InProcessEngine(model, eos_id=self.chat.ends, temperature=temperature)
        ids = self.chat.prompt_ids(prompt.messages)
        (sampled,) = engine.generate([ids], uniforms)
        tokens = pad_right([ids], [sampled.ids], self.chat.pad_id, self.machine.device)
        kl = _logprob(model, tokens, temperature) - _logprob(self.reference, tokens, temperature)
        completion = self.chat.completion(sampled.ids)
        return {"policy": name, "completion": completion, "length": len(sampled.ids), "kl": kl, "score": None}

    def _policy(self, name: str) -> PreTrainedModel:
        known = policies_of(self.folder)
        if name not in known:
            raise UserError(f"the run has no policy {name[:60]!r}; it has {', '.join(known)}")
        if known[name] == self.folder / "sft/model":
            return self.reference
        if name not in self.held:
            while len(self.held) >= HELD:
                self.held.popitem(last=False)
            self.held[name] = self._model(known[name])
        self.held.move_to_end(name)
        return self.held[name]

    def _model(self, source: Path) -> PreTrainedModel:
        return load_model(str(source), self.machine.dtype, self.machine.device)


def _logprob(model: PreTrainedModel, tokens: Tokens, temperature: float) -> float:
    return plain_logprobs(model, tokens, temperature).sum().item()


def main() -> None:
    """Answer until the input ends. What libraries print goes to the standard error: answers alone go back."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    models: Models | None = None
    for line in sys.stdin:
        try:
            models = models or Models(Path(sys.argv[1]))
            told: dict[str, Any] = {"replies": models.answers(json.loads(line))}
        except (UserError, RunStopped, RuntimeError, OSError, ValueError) as error:
            told = {"error": str(error)}
        answers.write(json.dumps(told) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
