"""A run of Plaudit that begins at a given model: it is the SFT model, and prompts are plain text that goes on.

Shared by ppo.py and learning.py. The model's tokenizer is saved with `task.NEVER` as end of turn and with a template
that writes nothing but the texts, so that a reply continues its prompt and always has its full length.
"""

from pathlib import Path
from typing import Any

import torch
import yaml

from plaudit.data.files import write_rows
from plaudit.dist.machine import choose_machine
from plaudit.models.load import load_model, load_tokenizer, quiet_libraries, resolve, save_model
from plaudit.stages.plan import Flags, plan_of
from plaudit.stages.prepare import prepare
from plaudit.stages.recipe import Recipe, load_recipe
from plaudit.train.run import Run
from task import NEVER, add_never

CONTINUES = (
    "{% for message in messages %}{{ message['content'] }}{% if message['role'] == 'assistant' %}{{ '"
    + NEVER
    + "' }}{% endif %}{% endfor %}"
)


def begin(
    home: Path,
    model: str,
    prompts: list[dict[str, Any]],
    values: dict[str, Any],
    overrides: list[str],
    dtype: str,
    *,
    closes: bool,
) -> tuple[Recipe, Run]:
    """The recipe home/recipe.yaml, made of `values` and `overrides`, and its run folder home/run, with stage sft in it.

    `prompts` are rows of the splits train and validation. `closes`: a stage reads whole conversations, which are closed
    with the end token, so that it must have a row of its own. With zeros its logit is 0, where those of likely tokens
    are about 20 (SmolLM2): a policy that moved far may sample it after all, and the workload refuses such a run.
    """
    quiet_libraries()
    source, machine = resolve(model), choose_machine(dtype)
    tokenizer = load_tokenizer(source)
    never = add_never(tokenizer)
    tokenizer.chat_template = CONTINUES
    sft = load_model(source, machine.dtype, machine.device)
    if closes:
        sft.resize_token_embeddings(max(never + 1, sft.get_input_embeddings().weight.shape[0]), mean_resizing=False)
        with torch.no_grad():
            sft.get_input_embeddings().weight[never] = 0
            sft.get_output_embeddings().weight[never] = 0
    # A reply would end where the model's own settings say that a text does.
    sft.config.eos_token_id = sft.generation_config.eos_token_id = never
    save_model(sft, tokenizer, home / "model")
    # No stage of these runs reads a test prompt or a demonstration, but a recipe has them.
    test = {"id": "test", "kind": "test", "split": "test", "prompt": "The last row of this file"}
    write_rows(home / "prompts.jsonl", [*prompts, test])
    train = next(row for row in prompts if row["split"] == "train")
    write_rows(home / "demonstrations.jsonl", [{**row, "completion": " is not read."} for row in (train, test)])
    recipe = {
        "name": "benchmark",
        "model": str(home / "model"),
        "folder": str(home / "run"),
        "dtype": dtype,
        "data": {"prompts": "prompts.jsonl", "demonstrations": "demonstrations.jsonl"},
        **values,
    }
    (home / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    read = load_recipe(home / "recipe.yaml", overrides)
    # As PPO alone: no stage reads the recipe's model as it is, in which the end token may have no row.
    run = prepare(read, plan_of(read, set(), set(), Flags(only=("ppo",))))
    (run.folder.stage("sft") / "model").symlink_to(home / "model")
    return read, run
