"""Copy a trained model out of the run folder."""

import shutil
import tempfile
from pathlib import Path

import torch

from plaudit.data.files import whole_folder
from plaudit.errors import UserError
from plaudit.models.load import load_chat, load_model
from plaudit.models.roles import Roles
from plaudit.models.rounding import Rounding
from plaudit.rewards.contract import RewardContract
from plaudit.rewards.export import export_classifier
from plaudit.rewards.saved import adapter_name, check_files, with_heads
from plaudit.run.folder import check_left, finished_model, read_recipe
from plaudit.stages.model_card import write_card

MODELS = {"policy": "ppo/model", "reward": "reward/model"}


def export_role(folder: Path, role: str, to: Path) -> Path:
    """Copy the merged policy or reward model of a run to a new folder `to`, with a model card; of an ensemble every
    member."""
    if role not in MODELS:
        raise UserError(f"--role {role!r}: not one of {', '.join(MODELS)}")
    if to.exists():
        raise UserError(f"--to {to}: already exists; give a folder that does not")
    if role == "reward" and (folder / "reward" / "reward.json").is_file() and not (folder / MODELS[role]).exists():
        return _export_adapter(folder, to)
    sources = [finished_model(folder, MODELS[role])]
    if role == "policy":  # a reward model's contract has the hashes of its files
        check_left(folder, "ppo", [MODELS[role]])
    if role == "reward":
        sources += sorted(sources[0].parent.glob("model_*"), key=lambda path: int(path.name.removeprefix("model_")))
    with whole_folder(to) as part:
        for member, source in enumerate(sources):
            own = part if len(sources) == 1 else part / f"member_{member}"
            shutil.copytree(source, own, dirs_exist_ok=True)
            if role == "reward":
                if not [*own.glob("*.safetensors")]:
                    _merge_again(folder, member, len(sources), own)
                check_files(own, RewardContract.load(own))
        write_card(folder, role, part)
    return to


def _export_adapter(folder: Path, to: Path) -> Path:
    """A reward model that no classifier can hold: adapters and heads, with the model they stand on beside them."""
    names = [*RewardContract.load(folder / "reward").files, "reward.json", "README.md"]
    check_left(folder, "sft", ["sft/model"])
    check_left(folder, "reward", [f"reward/{name}" for name in names])
    with whole_folder(to) as part:
        shutil.copytree(finished_model(folder, "sft/model"), part / "sft/model")
        for name in names:
            (part / "reward" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / "reward" / name, part / "reward" / name)
        write_card(folder, "reward", part)
    return to


def _merge_again(folder: Path, member: int, members: int, to: Path) -> None:
    """The weights of a merged reward model that `plaudit clean` has taken out, from its adapter, by the same rounding:
    their hashes are in the contract beside them."""
    dtype, base = getattr(torch, RewardContract.load(folder / "reward").dtype), str(folder / "sft/model")
    adapters = [folder / "reward" / adapter_name(one) for one in range(members)]
    cpu = torch.device("cpu")
    roles = with_heads(Roles(load_model(base, dtype, cpu), reward=adapters), folder / "reward")
    rounding = Rounding(read_recipe(folder)["seed"], "reward/model", member)
    with tempfile.TemporaryDirectory(dir=to.parent) as scratch:
        made = Path(scratch) / "model"
        export_classifier(roles, load_chat(base), base, made, dtype, rounding, member)
        for file in made.glob("*.safetensors"):
            shutil.move(file, to / file.name)
