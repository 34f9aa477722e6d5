"""Recipes from TRL's scripts and configurations, and the tables of other trainers' settings.

Run as a script, this file writes the tables of docs/coming.md anew:

    .venv/bin/python tests/recipes/test_coming.py
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from plaudit.errors import UserError
from plaudit.recipes.coming.table import Entry, tables
from plaudit.recipes.coming.trl import MODEL, STAGES, from_trl
from plaudit.stages.recipe import Recipe, load_recipe, recipe_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "coming.md"
MARK = "<!-- generated below -->\n"
ONE_TWELVE = {
    "PPOConfig": """learning_rate dataset_num_proc num_mini_batches total_episodes local_rollout_forward_batch_size
        num_sample_generations response_length stop_token stop_token_id temperature missing_eos_penalty sft_model_path
        world_size num_total_batches micro_batch_size local_batch_size batch_size local_mini_batch_size mini_batch_size
        push_to_hub reward_model_path model_adapter_name ref_adapter_name num_ppo_epochs whiten_rewards kl_coef
        kl_estimator cliprange vf_coef cliprange_value gamma lam ds3_gather_for_generation""",
    "RewardConfig": """learning_rate model_init_kwargs trust_remote_code chat_template_path disable_dropout
        dataset_num_proc eos_token max_length pad_to_multiple_of center_rewards_coefficient activation_offloading
        pad_token""",
    "SFTConfig": """learning_rate model_init_kwargs router_aux_loss_coef trust_remote_code chat_template_path
        dataset_text_field dataset_kwargs dataset_num_proc eos_token max_length truncation_mode shuffle_dataset packing
        packing_strategy padding_free pad_to_multiple_of eval_packing completion_only_loss assistant_only_loss loss_type
        activation_offloading pad_token""",
}
"""The fields that TRL 1.12 declares in each class; all of them have those of TrainingArguments too."""
BEFORE = """exp_name seed log_with task_name model_name query_dataset reward_model remove_unused_columns tracker_kwargs
    accelerator_kwargs project_kwargs tracker_project_name push_to_hub_if_best_kwargs steps learning_rate adap_kl_ctrl
    init_kl_coef kl_penalty target horizon gamma lam cliprange cliprange_value vf_coef batch_size forward_batch_size
    mini_batch_size gradient_accumulation_steps world_size ppo_epochs max_grad_norm optimize_cuda_cache
    optimize_device_cache early_stopping target_kl compare_steps ratio_threshold use_score_scaling use_score_norm
    score_clip is_encoder_decoder is_peft_model backward_batch_size global_backward_batch_size global_batch_size"""
"""Those of PPOConfig in TRL 0.11."""


def coming_page(page: str) -> str:
    """`page` with everything below the mark rendered from the tables."""
    parts = [page.partition(MARK)[0] + MARK]
    for name, heading in (("trl", "TRL: "), ("others", "")):
        for whose, fields in tables(name).items():
            parts.append(f"## {heading}{whose}\n\n| theirs | here | |\n| --- | --- | --- |")
            flag = "--" if whose == "OpenRLHF" else ""
            for field, entry in fields.items():
                parts.append(f"| `{flag}{field}` | {f'`{entry.key}`' if entry.key else 'none'} | {entry.how} |")
            parts.append("")
    return "\n".join(parts)


def test_the_page_is_in_step_with_the_tables() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == coming_page(page), "docs/coming.md is stale: run .venv/bin/python tests/recipes/test_coming.py"


def entry_of(name: str, field: str) -> Entry | None:
    return next(
        (tables("trl")[part][field] for part in (name, "TrainingArguments") if field in tables("trl")[part]), None
    )


def test_every_field_of_trl_has_its_key_or_its_reason() -> None:
    from transformers import TrainingArguments

    common = [field.name for field in dataclasses.fields(TrainingArguments)]
    for name, own in {**ONE_TWELVE, "PPOConfig": f"{ONE_TWELVE['PPOConfig']} {BEFORE}"}.items():
        missing = [field for field in [*own.split(), *common] if entry_of(name, field) is None]
        assert not missing, (name, missing)


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from keys_of(kind, f"{prefix}{name}.")


def test_every_key_is_one_and_nothing_else_has_no_reason() -> None:
    known = set(keys_of(Recipe))
    for name in ("trl", "others"):
        for fields in tables(name).values():
            for field, entry in fields.items():
                key = (entry.key or "").replace(".stages.STAGE", "")
                assert key in known if entry.key else entry.how, field


def ours(path: Path, *more: Path, stage: str | None = None) -> tuple[dict[str, Any], dict[str, tuple[str, str]]]:
    """(the recipe, which passes its own validation; field -> (key, what happened))."""
    found = from_trl([path, *more], stage)
    recipe_of(found.recipe, path.parent)
    return found.recipe, {name: (key, how) for name, _, key, how in found.rows}


def put(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


CALL = """
import os
from trl import PPOConfig, PPOTrainer
raise SystemExit("this must not be run")
RATE = 3e-6
extra = {"cliprange_value": 0.3, "run_name": "mine"}
config = PPOConfig(learning_rate=RATE, per_device_train_batch_size=4, gradient_accumulation_steps=2, num_mini_batches=2,
    total_episodes=1000, response_length=53, kl_coef=0.05, vf_coef=0.1, num_ppo_epochs=4, kl_estimator="k3",
    stop_token="eos", sft_model_path="./sft", reward_model_path="./reward", bf16=True, logging_steps=5,
    output_dir=os.environ["OUT"], lr_scheduler_type="cosine", colour="red", **extra)
data = load_dataset("trl-lib/tldr")
"""


@pytest.mark.parametrize(
    ("call", "prompts"),
    [
        ('load_dataset("json", data_files="rows.jsonl")', "rows.jsonl"),
        ('load_dataset("csv", data_files=["a.csv", "b.csv"], split="train")', "a.csv"),
        ('load_dataset("text", data_files={"test": "t.txt", "train": ["p.txt"]})', "p.txt"),
        ('load_dataset("json/rows")', "hub:json/rows"),
        ('load_dataset("json", data_files=found)', "prompts.jsonl"),  # to be filled in; the table says why
    ],
)
def test_files_that_a_script_loads_are_not_a_data_set_of_the_hub(tmp_path: Path, call: str, prompts: str) -> None:
    recipe, rows = ours(put(tmp_path / "ppo.py", f"config = PPOConfig(learning_rate=1e-6)\ndata = {call}\n"))
    assert recipe["data"]["prompts"] == prompts
    assert ("load_dataset.data_files" in rows) == ("found" in call)


def test_a_script_that_makes_its_configuration(tmp_path: Path) -> None:
    recipe, rows = ours(put(tmp_path / "my ppo.py", CALL))
    assert recipe["ppo"] == {
        "batch_size": 16,
        "minibatch_size": 8,
        "micro_batch_size": 4,
        "learning_rate": 3e-6,
        "updates": 63,
        "kl_coef": 0.05,
        "score_scale": "none",
        "value_coef": 0.05,
        "epochs": 4,
        "kl_penalty": "k3",
        "rewards": [{"model": "./reward"}],
        "value_clip": 0.3,
    }
    assert (recipe["name"], recipe["model"], recipe["dtype"]) == ("mine", "./sft", "bfloat16")
    assert recipe["data"] == {"prompts": "hub:trl-lib/tldr"} and recipe["sft"] == {"skip": True}
    assert recipe["sampling"] == {"max_new_tokens": 53}
    assert recipe["optimiser"] == {"stages": {"ppo": {"schedule": "cosine"}}}
    assert rows["stop_token"][0] == "" and "end-of-turn token" in rows["stop_token"][1]
    assert rows["PPOConfig.output_dir"] == ("", "is no literal, so it could not be read")
    assert rows["colour"] == ("", "is no field of TRL 1.12 or of its PPO before")
    assert rows["vf_coef"] == ("ppo.value_coef", "halved: TRL's value loss has a factor ½")


def test_the_classic_script_of_before(tmp_path: Path) -> None:
    text = """
config = trl.PPOConfig(model_name="lvwerra/gpt2-imdb", learning_rate=1.41e-5, batch_size=128, mini_batch_size=16,
    gradient_accumulation_steps=2, steps=20000, init_kl_coef=0.2, target=6, adap_kl_ctrl=True, kl_penalty="mse",
    use_score_scaling=True, query_dataset="stanfordnlp/imdb", ratio_threshold=10.0)
"""
    recipe, rows = ours(put(tmp_path / "sentiment.py", text))
    wanted = {"batch_size": 128, "minibatch_size": 32, "micro_batch_size": 16, "updates": 157, "kl_coef": 0.2}
    assert wanted.items() <= recipe["ppo"].items()
    assert recipe["ppo"]["kl_target"] == 6.0 and recipe["ppo"]["kl_penalty"] == "k2"
    assert recipe["ppo"]["score_scale"] == "running" and recipe["data"]["prompts"] == "hub:stanfordnlp/imdb"
    assert recipe["model"] == "lvwerra/gpt2-imdb" and rows["ratio_threshold"][0] == ""


def test_a_parser_and_its_json(tmp_path: Path) -> None:
    script = put(
        tmp_path / "train.py",
        "parser = HfArgumentParser((ScriptArguments, RewardConfig, ModelConfig))\nparser.parse()\n",
    )
    values = {
        "model_name_or_path": "me/model",
        "dataset_name": "me/pairs",
        "dataset_config": "short",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 8,
        "num_train_epochs": 1.0,
        "learning_rate": 1e-5,
        "center_rewards_coefficient": 0.01,
        "max_length": 2048,
        "use_peft": True,
        "lora_r": 32,
        "lora_target_modules": ["q_proj", "v_proj"],
        "warmup_steps": 0.1,
        "report_to": "none",
    }
    recipe, rows = ours(script, put(tmp_path / "config.json", json.dumps(values)))
    assert recipe["reward"] == {
        "rankings_per_micro_batch": 4,
        "rankings_per_step": 32,
        "epochs": 1,
        "learning_rate": 1e-5,
        "centring_coef": 0.01,
    }
    assert recipe["preferences"] == {"rankings": "hub:me/pairs:short"} and recipe["model"] == "me/model"
    assert recipe["lora"] == {"r": 32, "target_modules": ["q_proj", "v_proj"]} and "optimiser" not in recipe
    assert rows["max_length"][0] == "" and rows["warmup_steps"][0] == ""
    # The configuration by itself: one field is of RewardConfig alone.
    assert from_trl([tmp_path / "config.json"]).recipe["reward"] == recipe["reward"]


def test_loggers_that_are_installed_and_a_base_in_few_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"wandb", "mlflow"}
    monkeypatch.setattr("plaudit.recipes.coming.trl.find_spec", lambda name: name if name in there else None)
    script = "SFTConfig(report_to=%r)\nModelConfig(load_in_4bit=True)\n"
    recipe, rows = ours(put(tmp_path / "a.py", script % ["wandb", "tensorboard", "comet_ml"]))
    assert (recipe["loggers"], recipe["quantise"]) == (["wandb"], "nf4") and rows["report_to"][0] == "loggers"
    assert ours(put(tmp_path / "b.py", script % "all"))[0]["loggers"] == ["wandb", "mlflow"]
    recipe, rows = ours(put(tmp_path / "c.py", script % "tensorboard"))
    assert "loggers" not in recipe and "where they are installed" in rows["report_to"][1]


@pytest.mark.parametrize("kind", ["list", "shell"])
def test_flags_of_a_command_line(kind: str, tmp_path: Path) -> None:
    """As a list in a script, and in a shell script."""
    words = "--model_name_or_path me/base --dataset_name me/chats --max_length 1024 --packing --learning_rate=2e-5 "
    words += "--num_train_epochs 2 --per_device_train_batch_size 8 --gradient_accumulation_steps 4 --truncation_mode "
    words += "keep_end --lora_target_modules q_proj v_proj --eos_token <|im_end|> --bf16"
    if kind == "list":
        path = put(tmp_path / "go.py", f"ARGS = {words.split()!r}\n(args,) = TrlParser(SFTConfig).parse_args(ARGS)\n")
    else:
        path = put(
            tmp_path / "go.sh",
            f"# one GPU\naccelerate launch trl/scripts/sft.py \\\n    {words.replace('<|im_end|>', 'E')}",
        )
    recipe, rows = ours(path)
    wanted = {"micro_batch_size": 8, "batch_size": 32, "epochs": 2, "learning_rate": 2e-5, "max_length": 1024}
    assert recipe["sft"] == {**wanted, "too_long": "left_truncate"}
    assert recipe["lora"] == {"target_modules": ["q_proj", "v_proj"]} and recipe["dtype"] == "bfloat16"
    assert recipe["data"]["demonstrations"] == "hub:me/chats" and recipe["model"] == "me/base"
    assert rows["packing"] == ("", "demonstrations share rows wherever the model can")


def test_what_cannot_be_told(tmp_path: Path) -> None:
    path = put(tmp_path / "c.json", json.dumps({"learning_rate": 1e-5}))
    with pytest.raises(UserError, match="cannot tell which of PPOConfig, RewardConfig, SFTConfig this is"):
        from_trl([path])
    assert from_trl([path], "sft").recipe["sft"] == {"learning_rate": 1e-5}
    with pytest.raises(UserError, match=r"x.py:1: not valid Python"):
        from_trl([put(tmp_path / "x.py", "def (")])
    with pytest.raises(UserError, match="no such file"):
        from_trl([tmp_path / "gone.py"])
    with pytest.raises(UserError, match="a configuration is a mapping of fields, found list"):
        from_trl([put(tmp_path / "l.json", "[]")])


def test_what_is_hostile_stays_a_comment_or_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "c.json", json.dumps({"kl_coef": 0.1, "x\nmodel: evil": "a\nb", "gamma": [1]}))
    text = from_trl([path]).text()
    assert yaml.safe_load(text)["model"] == MODEL and "# x model: evil='a\\nb'" in text
    for field in ("batch_size", "vf_coef", "total_episodes"):
        with pytest.raises(UserError, match=r"c.json: a field of PPOConfig is not of its kind"):
            from_trl([put(path, json.dumps({"kl_coef": 0.1, field: "auto"}))])
    with pytest.raises(UserError, match="cannot be read as a shell script"):
        from_trl([put(tmp_path / "go.sh", "trl sft --output_dir 'x")])


def test_the_command_writes_a_recipe_that_loads(tmp_path: Path, plaudit: Callable[..., SimpleNamespace]) -> None:
    path, to = put(tmp_path / "ppo.py", CALL.replace("0.3", "-0.3")), tmp_path / "recipe.yaml"
    done = plaudit("init", "--from-trl", path, "--to", to)
    assert done.code == 2 and "ppo.value_clip" in done.err and not to.exists(), "a value out of range is refused"
    path = put(path, CALL.replace('sft_model_path="./sft", ', ""))
    done = plaudit("init", "--from-trl", path, "--to", to)
    assert done.code == 0 and "num_ppo_epochs" in done.out
    recipe = load_recipe(to)
    assert recipe.ppo.epochs == 4 and recipe.model == MODEL
    assert "# Not carried over:\n" in to.read_text(encoding="utf-8")
    assert yaml.safe_load(to.read_text(encoding="utf-8"))["name"] == "mine"
    assert plaudit("init", "--from-trl", path, "--to", to).code == 2
    assert plaudit("init", "--from-trl", path, "--to", tmp_path / "b.yaml", "--as", "dpo").code == 2
    assert set(STAGES.values()) == {"sft", "reward", "ppo"}


if __name__ == "__main__":
    PAGE.write_text(coming_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"Wrote {PAGE.name}")
