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
        raise UserError(
            f"{folder}: transformers has no sequence classifier for this model, so the reward model is its adapter and "
            f"head in {folder / 'reward'}, on {folder / 'sft/model'}; copy the two side by side, and load them "
            "with plaudit.rewards.saved.load_reward_model"
        )
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
