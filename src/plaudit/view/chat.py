"""After a run: ask its policy, or talk to the SFT model and the PPO policy side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from plaudit import rng
from plaudit.data.formats.parsers import conversation
from plaudit.dist.machine import choose_machine
from plaudit.errors import UserError
from plaudit.models.load import load_chat, load_model, quiet_libraries
from plaudit.records import Message
from plaudit.rollout.inprocess import InProcessEngine
from plaudit.run.folder import finished_model, read_recipe

Asked = str | Sequence[Mapping[str, str]]
"""A user message, or a conversation of {role, content} messages that ends with the user's."""


def asked_messages(number: int, asked: Asked) -> tuple[Message, ...]:
    """The messages of prompt `number` of a call; UserError for what is no conversation."""
    return conversation(f"prompt {number}", "prompt", asked if isinstance(asked, str) else list(asked), "user")


class Policy:
    """A policy that a run has trained, loaded to answer: that of PPO, or with `stage="sft"` the SFT model."""

    def __init__(self, folder: str | Path, stage: str = "ppo"):
        """UserError when `folder` holds no run whose stage has ended."""
        if stage not in ("sft", "ppo"):
            raise UserError(f"stage {stage!r}: the policies of a run are those of sft and ppo")
        quiet_libraries()
        recipe = read_recipe(Path(folder))
        machine = choose_machine(recipe["dtype"])
        source = str(finished_model(Path(folder), f"{stage}/model"))
        self._chat = load_chat(source, recipe["data"]["system"])
        self._engine = InProcessEngine(load_model(source, machine.dtype, machine.device), eos_id=self._chat.ends)

    def reply(
        self,
        prompts: Sequence[Asked],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.7,
        seed: int = 0,
        turn: int = 0,
    ) -> list[str]:
        """A sampled reply to each prompt. The same seed and turn give the same replies.

        >>> policy = plaudit.Policy("runs/demo")
        >>> replies = policy.reply(["Tell me about tea.", "And about the sea?"], max_new_tokens=8)
        >>> len(replies)
        2
        """
        messages = [asked_messages(number, asked) for number, asked in enumerate(prompts, start=1)]
        uniforms = rng.uniforms(seed, "chat", turn, list(range(len(messages))), max_new_tokens)
        self._engine.temperature = temperature
        sampled = self._engine.generate([self._chat.prompt_ids(one) for one in messages], uniforms)
        return [self._chat.completion(reply.ids).text for reply in sampled]


class SideBySide:
    """The SFT model and the PPO policy of a run, answering the same message with the same random numbers."""

    def __init__(self, folder: Path, max_new_tokens: int, temperature: float, seed: int):
        """UserError when `folder` holds no finished SFT and PPO stage."""
        self.policies = [Policy(folder, stage) for stage in ("sft", "ppo")]
        self.max_new_tokens, self.temperature, self.seed = max_new_tokens, temperature, seed
        self.asked = 0

    def replies(self, text: str) -> list[str]:
        """One reply from SFT and one from PPO."""
        settings = {"max_new_tokens": self.max_new_tokens, "seed": self.seed, "turn": self.asked}
        self.asked += 1
        return [policy.reply([text], temperature=self.temperature, **settings)[0] for policy in self.policies]
