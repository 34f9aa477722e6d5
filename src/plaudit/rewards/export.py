"""The reward model in the ecosystem's own format, so that no Plaudit is needed to score with it."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification

from plaudit.data.chat import ChatFormat
from plaudit.data.files import write_json
from plaudit.models.export import exported_tokenizer
from plaudit.models.full import FullReward
from plaudit.models.heads import head_file
from plaudit.models.kernels.merge import merge_into
from plaudit.models.kernels.trunk import trunk_name
from plaudit.models.load import save_model
from plaudit.models.roles import Roles, reward_adapter
from plaudit.models.rounding import Rounding
from plaudit.rewards.contract import RewardContract
from plaudit.rewards.saved import adapter_name, file_hashes, golden_scores, load_merged, weights_and_rules


def export_classifier(
    model: Roles | FullReward,
    chat: ChatFormat,
    base: str,
    folder: Path,
    dtype: torch.dtype,
    rounding: Rounding,
    member: int = 0,
) -> None:
    """A member of the reward model, merged, as `AutoModelForSequenceClassification` with one label.

    It gives raw scores: transformers reads them at the rightmost token that is not `pad_token_id` and adds no bias.
    So the pad id is one that cannot end a reply (never the end-of-turn token). `rounding` as in `Roles.merged_weights`.
    """
    classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=dtype)
    merge_into(classifier, model.merged_weights(reward_adapter(member), rounding))
    with torch.no_grad():
        classifier.score.weight.copy_(model.get_parameter(f"score_heads.{member}.weight")[None].to(dtype))
    classifier.config.pad_token_id = chat.pad_id
    # A server that knows this key (vLLM) then gives the score as it is, and not its sigmoid.
    classifier.config.problem_type = "regression"
    save_model(classifier, exported_tokenizer(chat), folder)


def sign_classifier(folder: Path, chat: ChatFormat, contract: RewardContract, dtype: torch.dtype) -> float:
    """Put the rules of the scores beside an exported classifier; `contract` is that of one member.

    The mean and std that normalise its raw scores go into its config as `plaudit_score_mean` and
    `plaudit_score_std`, and a contract of its own (file hashes, golden scores) into `reward.json`, so that Plaudit
    loads it as it loads its own folders. Returns the largest distance of its golden scores from the contract's, in
    standard deviations: what merging and rounding cost.
    """
    assert len(contract.mean) == 1
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"plaudit_score_mean": contract.mean[0], "plaudit_score_std": contract.std[0]}
    write_json(folder / "config.json", config)
    golden = golden_scores(load_merged(folder, dtype, torch.device("cpu")), chat)
    files = file_hashes(folder, weights_and_rules(folder))
    own = replace(contract, model=".", golden=golden, dtype=str(dtype).removeprefix("torch."), files=files, base={})
    own.save(folder)
    return max(abs(a[0] - b[0]) for a, b in zip(golden, contract.golden, strict=True)) / contract.std[0]


_NOTE = """# A reward model as an adapter and a head

transformers has no sequence classifier for this model, so its score is read with PEFT: the last token's hidden state
times the head, normalised. This folder and `sft/model` beside it are all that is needed; `load_reward_model` of
`plaudit.rewards.saved` loads the same, and checks it.

```python
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

base = "../sft/model"
tokenizer = AutoTokenizer.from_pretrained(base)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), "{adapter}").eval()
head = load_file("{head}")["weight"]
messages = {messages}
prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
prompt = tokenizer(prompt, add_special_tokens=False)["input_ids"]
reply = tokenizer("Boil it for eight minutes.", add_special_tokens=False)["input_ids"]
ids = torch.tensor([[*prompt, *reply, {eos_id}]])
with torch.no_grad():
    states = model.get_base_model().get_submodule("{trunk}")(input_ids=ids).last_hidden_state
score = (states[0, -1].float() @ head - {mean}) / {std}
```

The last token is the one that ends a turn. Of an ensemble every member has an adapter, a head and a mean and std in
`reward.json`.
"""


def write_note(model: Roles, contract: RewardContract, folder: Path) -> None:
    """README.md in the folder of a reward model that no classifier can hold: how others read its score."""
    messages = [{"role": "user", "content": "How do I boil an egg?"}]
    if contract.system is not None:
        messages.insert(0, {"role": "system", "content": contract.system})
    trunk = trunk_name(model.peft.get_base_model())
    words = {"adapter": adapter_name(), "head": head_file(), "messages": messages, "eos_id": contract.eos_id}
    text = _NOTE.format(**words, trunk=trunk, mean=contract.mean[0], std=contract.std[0])
    (folder / "README.md").write_text(text, encoding="utf-8")
