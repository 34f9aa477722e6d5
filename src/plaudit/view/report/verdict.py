"""What came out of a run, in words that its numbers decide."""

from typing import Any

from plaudit.guard.limits import KL_BUDGET
from plaudit.view.text import interval, number, percent


def verdict(summary: dict[str, Any]) -> str:
    """What came out, in one sentence that the 95 % interval decides."""
    evaluated = summary["evaluate"]
    if summary["ppo"]["kept_update"] == 0:
        return (
            "No PPO update did better than the SFT model on the validation prompts, so the policy that was kept is the "
            "SFT model."
        )
    on = f"on {evaluated['prompts']} prompts that no stage was trained on"
    if "gold_gain" in evaluated:
        return _by_gold(evaluated, on)
    if people := summary.get("people"):
        low, high = people["low"], people["high"]
        came_out = "better" if low > 0.5 else "worse" if high < 0.5 else "no clear preference"
        return (
            f"PPO's reply wins {percent(people['win_rate'])} of {people['labels']} blind comparisons with SFT's by "
            f"people (95 % interval {interval([low, high], share=True)}): {came_out}."
        )
    judged = "people ranked, so only they"
    if "reward" not in summary:
        judged = "nothing here but the reward itself judged, so only people"
    return (
        f"After PPO the proxy score went from {number(evaluated['proxy_sft'])} to {number(evaluated['proxy_ppo'])} "
        f"{on}; {judged} can say whether the replies are better."
    )


def _by_gold(evaluated: dict[str, Any], on: str) -> str:
    low, high = evaluated["gold_gain_ci"]
    gold = f"gold score {number(evaluated['gold_sft'])} before, {number(evaluated['gold_ppo'])} after"
    gain = f"gain {number(evaluated['gold_gain'], sign=True)}, 95 % interval {interval([low, high])}"
    if low > 0:
        wins = f"PPO's reply wins {percent(evaluated['win_rate'])} of the pairs"
        return f"PPO made the replies better by the annotator's taste {on}: {gold} ({gain}); {wins}."
    if high < 0:
        return f"PPO made the replies worse by the annotator's taste {on}: {gold} ({gain})."
    return f"No clear effect of PPO by the annotator's taste {on}: {gold} ({gain}, which includes 0)."


def cautions(summary: dict[str, Any], recipe: dict[str, Any]) -> list[str]:
    """What a careful reader should know before believing the verdict; each one states the numbers it rests on."""
    reward, evaluated, budget = summary.get("reward"), summary["evaluate"], recipe["ppo"]["kl_budget"] or KL_BUDGET
    said: list[str] = []

    def both(name: str) -> tuple[float, float]:
        return evaluated[f"{name}_sft"], evaluated[f"{name}_ppo"]

    if reward is not None and reward["accuracy_ci"][0] <= reward["length_baseline_accuracy"]:
        said.append(
            f"The reward model's accuracy ({percent(reward['accuracy'])}, 95 % interval "
            f"{interval(reward['accuracy_ci'], share=True)}) is not clearly above what length alone reaches "
            f"({percent(reward['length_baseline_accuracy'])})."
        )
    if "gold_gain" in evaluated and evaluated["gold_gain_ci"][0] <= 0 < evaluated["proxy_ppo"] - evaluated["proxy_sft"]:
        said.append("The proxy score rose while the gold score did not clearly: PPO may be gaming the reward model.")
    if evaluated["kl"] > budget:
        kl = number(evaluated["kl"], 1)
        said.append(f"On test prompts the KL is {kl} nats a reply, over the budget of {budget:g}.")
    before, after = both("length")
    if not 0.7 <= after / before <= 1.3:
        said.append(f"The replies' length changed a lot: {number(before, 1)} to {number(after, 1)} tokens.")
    before, after = both("ref_nll")
    if after > 1.3 * before:
        said.append(f"The replies are less fluent: reference NLL {number(before)} to {number(after)} nats a token.")
    before, after = both("eos")
    if after < before - 0.1:
        said.append(f"Fewer replies end by themselves: the EOS rate fell from {percent(before)} to {percent(after)}.")
    before, after = both("repeated_trigrams")
    if after > before + 0.02:
        said.append(f"The replies repeat themselves more: repeated 3-grams {percent(before)} to {percent(after)}.")
    before, after = both("declines") if "declines_sft" in evaluated else (0.0, 0.0)
    if after < before - 0.1:
        said.append(f"Fewer safety prompts are declined: {percent(before)} before, {percent(after)} after.")
    return said
