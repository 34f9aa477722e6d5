"""Copy a trained model out of the run folder."""

import shutil
from pathlib import Path

from plaudit.data.files import whole_folder
from plaudit.errors import UserError
from plaudit.rewards.contract import RewardContract
from plaudit.rewards.saved import check_files
from plaudit.run.folder import finished_model
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
    if role == "reward":
        sources += sorted(sources[0].parent.glob("model_*"), key=lambda path: int(path.name.removeprefix("model_")))
        for source in sources:
            check_files(source, RewardContract.load(source))
    with whole_folder(to) as part:
        for member, source in enumerate(sources):
            shutil.copytree(source, part if len(sources) == 1 else part / f"member_{member}", dirs_exist_ok=True)
        write_card(folder, role, part)
    return to


def _export_adapter(folder: Path, to: Path) -> Path:
    """A reward model that no classifier can hold: adapters and heads, with the model they stand on beside them."""
    names = [*RewardContract.load(folder / "reward").files, "reward.json", "README.md"]
    with whole_folder(to) as part:
        shutil.copytree(finished_model(folder, "sft/model"), part / "sft/model")
        for name in names:
            (part / "reward" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / "reward" / name, part / "reward" / name)
        write_card(folder, "reward", part)
    return to
