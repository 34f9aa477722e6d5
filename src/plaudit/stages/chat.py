"""After a run: talk to both models side by side, and copy a trained model out of the run folder."""

import shutil
from pathlib import Path

from plaudit import rng
from plaudit.data.chat import ChatFormat
from plaudit.dist.machine import choose_machine
from plaudit.errors import UserError
from plaudit.models.heads import RewardContract
from plaudit.models.load import load_model, load_tokenizer, quiet_libraries
from plaudit.models.reward_model import check_files
from plaudit.records import Message
from plaudit.rollout.inprocess import InProcessEngine
from plaudit.run.folder import read_recipe

MODELS = {"policy": "ppo/model", "reward": "reward/model"}


class SideBySide:
    """The SFT model and the PPO policy of a run, answering the same message with the same random numbers."""

    def __init__(self, folder: Path, max_new_tokens: int, temperature: float, seed: int):
        """UserError when `folder` holds no finished SFT and PPO stage."""
        quiet_libraries()
        recipe = read_recipe(folder)
        machine = choose_machine(recipe["dtype"])
        self.engines = []
        for relative in ("sft/model", "ppo/model"):
            source = _finished(folder, relative)
            self.chat = ChatFormat(load_tokenizer(source), recipe["data"]["system"])
            model = load_model(source, machine.dtype, machine.device)
            engine = InProcessEngine(model, eos_id=self.chat.eos_id, temperature=temperature)
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


def export_role(folder: Path, role: str, to: Path) -> Path:
    """Copy the merged policy or reward model of a run to a new folder `to`; of an ensemble every member."""
    if role not in MODELS:
        raise UserError(f"--role {role!r}: not one of {', '.join(MODELS)}")
    if to.exists():
        raise UserError(f"--to {to}: already exists; give a folder that does not")
    sources = [Path(_finished(folder, MODELS[role]))]
    if role == "reward":
        sources += sorted(sources[0].parent.glob("model_*"), key=lambda path: int(path.name.removeprefix("model_")))
        for source in sources:
            check_files(source, RewardContract.load(source))
    part = to.with_name(to.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    for member, source in enumerate(sources):
        shutil.copytree(source, part if len(sources) == 1 else part / f"member_{member}")
    part.replace(to)
    return to


def _finished(folder: Path, relative: str) -> str:
    path = folder / relative
    if not (path / "config.json").is_file():
        raise UserError(f"{path} is missing: {folder} holds no run whose {relative.split('/')[0]} stage has ended")
    return str(path)
