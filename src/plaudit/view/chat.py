"""After a run: talk to the SFT model and the PPO policy side by side."""

from pathlib import Path

from plaudit import rng
from plaudit.dist.machine import choose_machine
from plaudit.models.load import load_chat, load_model, quiet_libraries
from plaudit.records import Message
from plaudit.rollout.inprocess import InProcessEngine
from plaudit.run.folder import finished_model, read_recipe


class SideBySide:
    """The SFT model and the PPO policy of a run, answering the same message with the same random numbers."""

    def __init__(self, folder: Path, max_new_tokens: int, temperature: float, seed: int):
        """UserError when `folder` holds no finished SFT and PPO stage."""
        quiet_libraries()
        recipe = read_recipe(folder)
        machine = choose_machine(recipe["dtype"])
        self.engines = []
        for relative in ("sft/model", "ppo/model"):
            source = str(finished_model(folder, relative))
            self.chat = load_chat(source, recipe["data"]["system"])
            model = load_model(source, machine.dtype, machine.device)
            engine = InProcessEngine(model, eos_id=self.chat.ends, temperature=temperature)
            self.engines.append(engine)
        self.max_new_tokens = max_new_tokens
        self.seed = seed
        self.asked = 0

    def replies(self, text: str) -> list[str]:
        """One reply from SFT and one from PPO."""
        prompt = self.chat.prompt_ids((Message("user", text),))
        uniforms = rng.uniforms(self.seed, "chat", self.asked, [0], self.max_new_tokens)
        self.asked += 1
        return [self.chat.completion(engine.generate([prompt], uniforms)[0].ids).text for engine in self.engines]
