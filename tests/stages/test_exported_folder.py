"""`plaudit export`: what a server, a reader and the Hub find in the folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from conftest import CPU, END, EOS, leave_plots_undrawn
from plaudit.errors import UserError
from plaudit.rewards.saved import load_reward_model
from plaudit.stages.export import export_role
from plaudit.stages.pipeline import run_pipeline
from plaudit.stages.recipe import load_recipe

SYSTEM = "You are kind and brief."


@pytest.fixture(scope="module")
def run(
    write_recipe: Callable[..., Path], tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A whole run at a temperature and with a system message, of a base whose own generation settings are others."""
    home = tmp_path_factory.mktemp("export")
    shutil.copytree(tiny_model(), home / "model")
    settings = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.1}
    GenerationConfig(**settings, eos_token_id=[0, 300], max_new_tokens=60).save_pretrained(home / "model")
    recipe = write_recipe(home, model=str(home / "model"))
    changes = ["sampling.temperature=1.3", f"data.system={SYSTEM}", "lora.stages.reward=null", "sft.epochs=1"]
    changes += ["reward.learning_rate=1e-4", "ppo.updates=1"]
    with pytest.MonkeyPatch.context() as patch:
        leave_plots_undrawn(patch)
        return run_pipeline(load_recipe(recipe, changes))


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("exported")
    for role in ("policy", "reward"):
        export_role(run, role, to / role)
    return to


def test_the_policy_generates_by_the_law_of_its_training(exported: Path) -> None:
    settings = GenerationConfig.from_pretrained(exported / "policy")
    ends = AutoTokenizer.from_pretrained(exported / "policy").convert_tokens_to_ids([EOS, END])
    assert settings.eos_token_id == ends
    assert (settings.do_sample, settings.temperature, settings.top_k, settings.top_p) == (True, 1.3, 0, 1.0)
    assert (settings.repetition_penalty, settings.max_new_tokens) == (1.0, 60)
    assert json.loads((exported / "policy" / "config.json").read_text())["eos_token_id"] == ends


def test_generate_draws_from_the_softmax_at_that_temperature(exported: Path) -> None:
    """Of many first tokens drawn by transformers' `generate`, as it comes, the frequencies are the law's."""
    model = AutoModelForCausalLM.from_pretrained(exported / "policy").eval()
    ids = torch.tensor([[9, 11, 12]]).repeat(4000, 1)
    torch.manual_seed(0)
    drawn = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1)[:, -1]
    with torch.no_grad():
        p_V = torch.softmax(model(ids[:1]).logits[0, -1] / 1.3, dim=0)
    found_V = torch.bincount(drawn, minlength=len(p_V)) / len(drawn)
    assert ((found_V - p_V).abs() < 5 * (p_V * (1 - p_V) / len(drawn)).sqrt() + 1e-3).all()


@pytest.mark.parametrize("role", ["policy", "reward"])
def test_the_template_says_the_system_message_of_the_run(role: str, exported: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported / role)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Tea?"}], tokenize=False)
    assert text.startswith(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nTea?")


def test_the_exported_reward_model_is_loaded_under_its_rules(exported: Path) -> None:
    reward = load_reward_model(exported / "reward", torch.float32, CPU)
    assert reward.contract.system == reward.chat.system == SYSTEM


@pytest.mark.parametrize(("role", "task"), [("policy", "text-generation"), ("reward", "text-classification")])
def test_a_card_says_what_it_is_and_how_it_was_judged(role: str, task: str, run: Path, exported: Path) -> None:
    _, header, text = (exported / role / "README.md").read_text().split("---\n", 2)
    values = yaml.safe_load(header)
    assert (values["library_name"], values["pipeline_tag"]) == ("transformers", task)
    assert "base_model" not in values, "a folder of this machine is no model of the Hub"
    assert str(run.parent) not in text
    stage, name = ("evaluate", "win_rate") if role == "policy" else ("reward", "accuracy")
    summary = json.loads((run / stage / "summary.json").read_text())
    assert f"| `{name}` | {summary[name]:.4g} |" in text
    assert "`demonstrations.jsonl`" in text
    assert "simulated annotator" in text


@pytest.mark.parametrize("role", ["policy", "reward"])
def test_every_file_may_be_read(role: str, exported: Path) -> None:
    assert {file.stat().st_mode & 0o444 for file in (exported / role).rglob("*")} == {0o444}


@pytest.mark.parametrize("role", ["policy", "reward"])
def test_a_model_that_was_cut_short_is_not_exported(role: str, run: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "run"
    shutil.copytree(run, damaged)
    weights = damaged / role.replace("policy", "ppo") / "model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        export_role(damaged, role, tmp_path / "to")
    assert not (tmp_path / "to").exists()
