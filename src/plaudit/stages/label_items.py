"""Items to label out of a run: replies sampled on the spot, SFT against PPO, and which items come first.

What of labelling needs torch is here, in a process of its own (`plaudit label sample`, `compare` and `order`); it hands
items and priorities to the database, and the web service never waits for it.
"""

from dataclasses import dataclass
from pathlib import Path

from plaudit import rng
from plaudit.dist.machine import choose_machine, release_memory
from plaudit.errors import UserError
from plaudit.label.db.ledger import Ledger, standing
from plaudit.label.quality.places import EARLIER
from plaudit.label.queue.active import By, priority
from plaudit.label.queue.items import Draft, rank_draft
from plaudit.models.load import load_chat, load_model, quiet_libraries
from plaudit.records import Completion, Prompt
from plaudit.rewards.saved import load_reward_model
from plaudit.rewards.score import score_replies
from plaudit.rollout.inprocess import InProcessEngine
from plaudit.run.display import progress
from plaudit.run.folder import RECIPE
from plaudit.stages.recipe import Recipe, load_recipe
from plaudit.stages.run_data import prompts_of

MODELS = {"sft": "sft/model", "ppo": "ppo/model"}


@dataclass(frozen=True)
class Sampling:
    """What is sampled: K `replies` a prompt, dealt out in turn over every pair of `models` and `temperatures`."""

    models: tuple[str, ...] = ("sft",)
    temperatures: tuple[float, ...] = (1.0,)
    replies: int = 4
    prompts: int = 100
    split: str = "train"
    max_new_tokens: int = 64
    seed: int = 0


@dataclass(frozen=True)
class Voice:
    """One way to be answered; `source` is its name in the table of sources."""

    source: str
    folder: Path
    temperature: float


def sampled(folder: Path, sampling: Sampling) -> tuple[list[Draft], int]:
    """Items of `sampling` from the run in `folder`, and how many prompts gave no two different replies.

    The same sampling gives the same items, which the database knows already; another seed gives others. A reply's
    random numbers depend on the seed, its prompt and its number alone. UserError for a model that is not there.
    """
    quiet_libraries()
    recipe, prompts = read_run(folder)
    found = [prompt for prompt in prompts if prompt.split == sampling.split]
    if not found:
        raise UserError(f"{recipe.data.prompts}: no prompt has split {sampling.split!r}")
    order = rng.permutation(sampling.seed, "label/prompts", 0, len(found))
    asked = [found[i] for i in order[: sampling.prompts]]
    voices = _voices(folder, sampling)
    # Prompt n starts its turn with voice n, so that every voice gets its share whatever K is.
    turns = [
        [voices[(number + reply) % len(voices)] for reply in range(sampling.replies)] for number in range(len(asked))
    ]
    machine = choose_machine(recipe.dtype)
    chat = load_chat(str(folder / MODELS["sft"]), recipe.data.system)
    replies: dict[tuple[int, int], Completion] = {}
    with progress("Sampling", len(asked) * sampling.replies, "reply") as advance:
        for model in dict.fromkeys(voice.folder for voice in voices):
            own = [voice for voice in voices if voice.folder == model]
            engine = InProcessEngine(load_model(str(model), machine.dtype, machine.device), eos_id=chat.ends)
            for voice in own:
                places = [(n, k) for n, turn in enumerate(turns) for k, one in enumerate(turn) if one == voice]
                if places:
                    numbers = [n * sampling.replies + k for n, k in places]
                    uniforms = rng.uniforms(sampling.seed, "label/sample", 0, numbers, sampling.max_new_tokens)
                    engine.temperature = voice.temperature
                    ids = [chat.prompt_ids(asked[n].messages) for n, _ in places]
                    said = engine.generate(ids, uniforms, lambda *_: advance())
                    replies.update(zip(places, (chat.completion(reply.ids) for reply in said), strict=True))
            engine.close()
            release_memory()
    drafts = []
    for number, prompt in enumerate(asked):
        group = [(replies[number, k], voice.source) for k, voice in enumerate(turns[number])]
        drafts += rank_draft(prompt, group, "sampled")
    return drafts, len(asked) - len(drafts)


def read_run(folder: Path) -> tuple[Recipe, list[Prompt]]:
    """The recipe of the run in `folder` and its prompts; UserError where there is no run."""
    if not (folder / RECIPE).is_file():
        raise UserError(f"{folder}: no run of Plaudit is here ({RECIPE} is missing)")
    recipe = load_recipe(folder / RECIPE)
    return recipe, prompts_of(recipe)


def _voices(folder: Path, sampling: Sampling) -> list[Voice]:
    voices = []
    for name in sampling.models:
        model = folder / MODELS[name] if name in MODELS else Path(name)
        if not (model / "config.json").is_file():
            raise UserError(f"model {name!r}: {model} holds none; give sft, ppo or the folder of a checkpoint")
        for temperature in sampling.temperatures:
            source = name if len(sampling.temperatures) == 1 else f"{name} t={temperature:g}"
            voices.append(Voice(source, model, temperature))
    if len(set(voices)) < len(voices):
        raise UserError("the same model or temperature is named twice; name each once")
    return voices


def priorities(folder: Path, ledger: Ledger, by: By) -> dict[str, float]:
    """Item -> priority by the run's reward model, for every rank item that nobody has labelled yet, but for those of a
    run's earlier sampling: they stay behind, since no run uses their labels.

    UserError when the run has no reward model.
    """
    quiet_libraries()
    recipe, _ = read_run(folder)
    if not (folder / "reward" / "reward.json").is_file():
        raise UserError(f"{folder}: no reward model is here; stage 'reward' makes it, and without one items keep order")
    labelled = {label.item for label in standing(ledger.labels)}
    waiting = [item for item in ledger.items if item.gold is None and item.id not in labelled]
    items = [item for item in waiting if item.task == "rank" and item.priority > EARLIER]
    machine = choose_machine(recipe.dtype)
    reward = load_reward_model(folder / "reward", machine.dtype, machine.device)
    texts = [
        (Prompt(item.prompt_id, item.messages, item.kind, item.split), Completion(reply.text, reply.ended))
        for item in items
        for reply in item.replies
    ]
    with progress("Scoring", len(texts), "reply") as advance:
        raw_BM = score_replies(reward.model, reward.chat, texts, advance)
    each = zip(items, raw_BM.split([len(item.replies) for item in items]), strict=True)
    return {item.id: priority(raw.numpy(), [reply.text for reply in item.replies], by) for item, raw in each}
