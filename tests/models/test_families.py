"""Every family of models on tiny random weights: the log-probabilities are transformers' own, a decoder's states are
those of whole passes, and a merged adapter is the adapter. The outcome of each stands in docs/models.md."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_families import (
    FAMILIES,
    SLOW,
    Family,
    built,
    check_adapter,
    check_decoding,
    check_logprobs,
    expected_logprobs,
    ragged_tokens,
    styled_tokenizer,
)
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from conftest import CPU, make_tokenizer
from plaudit.errors import UserError
from plaudit.models.config import LoraSettings
from plaudit.models.kernels.choose import cache_refused, decoder_of
from plaudit.models.kernels.decoder import LibraryDecoder, RereadingDecoder
from plaudit.models.kernels.trunk import state_size
from plaudit.models.load import load_model
from plaudit.models.roles import Roles, plain_logprobs

ALL = [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@pytest.fixture(params=ALL)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Family, PreTrainedModel, Path]:
    family = (FAMILIES | SLOW)[request.param]
    model = built(family)
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    return family, model, tmp_path


def test_its_numbers_are_those_of_transformers(
    made: tuple[Family, PreTrainedModel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PLAUDIT_PLAIN", raising=False)  # which decoder a family gets is looked at
    family, theirs, folder = made
    check_logprobs(theirs, folder, ragged_tokens())
    assert check_decoding(theirs, folder) == family.decoder


def test_a_merged_adapter_is_the_adapter(made: tuple[Family, PreTrainedModel, Path], tmp_path: Path) -> None:
    family, _, folder = made
    chosen = check_adapter(folder, ragged_tokens(), tmp_path / "merged")
    assert family.left_out in str(chosen) and bool(family.left_out) == bool(chosen.left_out)


SHORT = {
    "sampling": {"max_new_tokens": 4},
    "sft": {"max_steps": 1, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-2, "samples": 0},
    "preferences": {"train_prompts": 4, "replies": 2},
    "reward": {"epochs": 1, "rankings_per_step": 2, "rankings_per_micro_batch": 2, "learning_rate": 1e-2},
    "ppo": {"updates": 1, "batch_size": 2, "minibatch_size": 2, "micro_batch_size": 2, "keep_by": "score"},
    "evaluate": {"replies": 1},
}


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", FAMILIES | SLOW)
def test_it_goes_through_the_whole_pipeline(
    name: str, write_recipe: Callable[..., Path], plaudit: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    """With its family's style of chat template; the policy that is left is the same model in plain transformers."""
    family = (FAMILIES | SLOW)[name]
    tokenizer = styled_tokenizer(family.template)
    built(Family(family.kind, family.more | {"vocab_size": len(tokenizer)})).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    done = plaudit("run", write_recipe(tmp_path / "made", model=str(tmp_path / "base"), **SHORT))
    assert done.code == 0, done.err
    policy, tokens = tmp_path / "made/run/ppo/model", ragged_tokens()
    theirs = expected_logprobs(AutoModelForCausalLM.from_pretrained(policy).eval(), tokens)
    ours = plain_logprobs(load_model(str(policy), torch.float32, CPU), tokens, 1.0)
    torch.testing.assert_close(ours[tokens.mask_BT], torch.cat(theirs), rtol=1e-3, atol=1e-3)
    assert (tmp_path / "made/run/reward/model").exists() or "no sequence classifier" in done.out


def test_a_cache_that_reads_padding_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever forgets the mask of a padded prompt gets other states; then every step reads the rows anew."""
    built(FAMILIES["LFM2"]).save_pretrained(tmp_path)
    model, right = load_model(str(tmp_path), torch.float32, CPU), LibraryDecoder._forward

    def forgets(self: LibraryDecoder, *arguments: Tensor) -> Tensor:
        self.attention_BT = torch.ones_like(self.attention_BT)
        return right(self, *arguments)

    assert cache_refused(model) is None
    monkeypatch.setattr(LibraryDecoder, "_forward", forgets)
    assert "a padded prompt gives other states" in str(cache_refused(model))
    assert isinstance(decoder_of(model), RereadingDecoder)


@pytest.mark.parametrize(
    ("family", "asked", "said"),
    [
        ("Llama 3", ["q_porj", "v_proj"], "no linear layer 'q_porj'; did you mean 'q_proj'"),
        ("Mixtral", ["experts"], "no linear layer 'experts'; it has k_proj"),
        ("Mixtral", ".*gate_up_proj", "PEFT refuses it for this model"),
        ("Mixtral", ["q_proj", "gate"], "no linear layer 'gate'"),
    ],
)
def test_wrong_target_modules_are_refused_with_the_names_there_are(
    family: str, asked: str | list[str], said: str, tmp_path: Path
) -> None:
    built(FAMILIES[family]).save_pretrained(tmp_path)
    with pytest.raises(UserError) as refused:
        Roles(
            load_model(str(tmp_path), torch.float32, CPU),
            trained="policy",
            lora=LoraSettings(r=2, alpha=4, target_modules=asked),
        )
    assert said in str(refused.value)


def test_the_states_of_a_classifier_are_those_that_its_head_reads(tmp_path: Path) -> None:
    """OPT-350m projects them to another size than its layers'."""
    built(FAMILIES["OPT 350m"]).save_pretrained(tmp_path)
    assert state_size(load_model(str(tmp_path), torch.float32, CPU)) == 16
    assert state_size(AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1)) == 16
