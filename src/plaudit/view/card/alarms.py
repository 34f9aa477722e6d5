"""What is suspicious about a report card: each alarm in plain words, with the numbers it rests on and what to do.

An `alarm` means that the accuracy is not what it seems; a `warning` that it may not be, or that too little was
measured. Every rule needs the interval, not the value alone, to be beyond its bound, so that a small test raises no
false alarm.
"""

from collections.abc import Mapping
from typing import Any

from plaudit.view.text import plain_interval as interval
from plaudit.view.text import plain_percent as percent
from plaudit.view.text import plain_points

USUAL_CEILING = 0.75
"""People who rank replies agree 63 % (Bai et al. 2022) to 77 % (Stiennon et al. 2020) of the time; above this, look."""
LENGTH_GAIN = 0.02
"""A model not surely better than length, and by its own value not this much better, is explained by length."""
LENGTH_GAP = 0.15
"""Accuracy where the longer reply won minus that where the shorter one did."""
ALARMING_COVERAGE = 0.5
POSITION = 0.6
ECE = 0.1
WIDE = 0.2

Card = Mapping[str, Any]
Alarm = dict[str, Any]


def alarms(card: Card) -> list[Alarm]:
    """{kind, level: alarm or warning, says, do, evidence}, alarms first."""
    of_scores = (_constant(card), _chance(card))
    of_data = (_trained_prompts(card), _marks(card), _ceiling(card), _too_good(card))
    of_rest = (_length(card), _position(card), _calibration(card), _wide(card))
    raised = [alarm for alarm in (*of_scores, *of_data, *of_rest) if alarm is not None]
    return sorted(raised, key=lambda alarm: alarm["level"] != "alarm")


def _alarm(kind: str, level: str, says: str, do: str, **evidence: Any) -> Alarm:
    return {"kind": kind, "level": level, "says": says, "do": do, "evidence": evidence}


def _constant(card: Card) -> Alarm | None:
    if card["scores"]["std"] > 0:
        return None
    says = f"Every reply scores {card['scores']['mean']:.4g}: the model tells nothing apart."
    do = "Look for a head that was lost or never trained, and for texts that were cut before the reply."
    return _alarm("constant", "alarm", says, do, std=0.0)


def _chance(card: Card) -> Alarm | None:
    low, high = ends = card["accuracy_ci"]
    if card["scores"]["std"] == 0 or low > 0.5:
        return None
    says = f"The accuracy is {percent(card['accuracy'])} ({interval(ends)})"
    if high < 0.5:
        says += ": surely below a coin's. The model prefers the worse reply."
        do = "Check whether chosen and rejected are swapped in this file or were in training, and the sign of the head."
        return _alarm("swapped", "alarm", says, do, accuracy_ci=list(ends))
    says += ", which includes a coin's 50 %: on these pairs the model may know nothing."
    do = (
        "Judge it on more pairs. If it stays there: another task than it was trained for, another chat template, or a "
        "head that was lost."
    )
    return _alarm("chance", "warning", says, do, accuracy_ci=list(ends))


def _trained_prompts(card: Card) -> Alarm | None:
    leaks = card["leaks"]
    exact, near = leaks["trained_prompts"] or 0, leaks["near_trained_prompts"] or 0
    if not exact + near:
        return None
    parts = [f"{exact:,} word for word"] * bool(exact)
    parts += [f"{near:,} but for capitals, punctuation and spacing"] * bool(near)
    level = "alarm" if (exact + near) >= 0.01 * leaks["prompts"] else "warning"
    says = (
        f"A leak: {exact + near:,} of the {leaks['prompts']:,} judged prompts were trained on ({', '.join(parts)}), "
        f"for example {leaks['examples'][0]['text'][:80]!r}. The accuracy is partly memory."
    )
    do = "Split by prompt: give every row of one prompt the same split (plaudit data check lists them)."
    return _alarm("leak", level, says, do, trained_prompts=exact, near_trained_prompts=near)


def _marks(card: Card) -> Alarm | None:
    marks = card["leaks"]["marks"]
    if not marks:
        return None
    top = marks[0]
    sure = top["layout"] or top["coverage"] >= ALARMING_COVERAGE
    winner = top["share"] >= 0.5
    share = top["share"] if winner else 1 - top["share"]
    others = f" Other such marks: it {', it '.join(mark['mark'] for mark in marks[1:4])}." if len(marks) > 1 else ""
    says = (
        f"{'A leak' if sure else 'Perhaps a leak'}: in {top['pairs']:,} pairs ({percent(top['coverage'])} of all) one "
        f"reply {top['mark']} and the other does not, and it is the {'preferred' if winner else 'other'} one in "
        f"{percent(share)} of them. A model that looks for this alone seems good and knows nothing.{others}"
    )
    do = "Find out how it came there. If it is no part of what people prefer, remove it from all texts and train again."
    return _alarm("leak", "alarm" if sure else "warning", says, do, marks=marks)


def _ceiling(card: Card) -> Alarm | None:
    ceiling = card["ceiling"]
    if not ceiling.get("pairs") or ceiling["accuracy_ci"][0] <= ceiling["agreement"]:
        return None
    best = percent(ceiling["best_accuracy"])
    level = "alarm" if ceiling["accuracy_ci"][0] > ceiling["best_accuracy"] else "warning"
    says = (
        f"On the {ceiling['pairs']:,} pairs that several annotators judged the model agrees with them in "
        f"{percent(ceiling['accuracy'])} ({interval(ceiling['accuracy_ci'])}); they agree with each other in "
        f"{percent(ceiling['agreement'])}. "
    )
    if level == "alarm":
        says += f"At that agreement no model can expect more than {best}: this one knows the "
        says += "labels from somewhere, which is a leak."
    else:
        says += "A model that knows the majority's taste can go above single annotators, up to "
        says += f"{best}; it is rarely earned."
    do = "Look for judged prompts or replies among the training data, and for marks in the text that only winners have."
    evidence = {name: ceiling[name] for name in ("accuracy_ci", "agreement", "best_accuracy")}
    return _alarm("ceiling", level, says, do, **evidence)


def _too_good(card: Card) -> Alarm | None:
    if card["simulated"] or card["ceiling"]["compared"] or card["accuracy_ci"][0] <= USUAL_CEILING:
        return None
    if card["leaks"]["marks"] or card["leaks"]["trained_prompts"]:
        return None  # the reason is found
    says = (
        f"The accuracy is {percent(card['accuracy'])} ({interval(card['accuracy_ci'])}). If people gave these labels, "
        "that is more than they usually agree among themselves (63 to 77 %), and a leak is likelier than so good a "
        "model. If a model or a rule gave them, or only clear cases were kept, it may be honest."
    )
    do = (
        "Find out who labelled. If people did: have some pairs labelled twice, name the annotators, and look for "
        "judged prompts or replies among the training data."
    )
    return _alarm("too good", "warning", says, do, accuracy_ci=card["accuracy_ci"])


def _length(card: Card) -> Alarm | None:
    length = card["length"]
    longer, shorter = length["accuracy_longer_won"], length["accuracy_shorter_won"]
    level, says = "", []
    likes = "shorter" if length["rule"].startswith("the shorter") else "longer"
    if length["accuracy_ci"][0] > 0.5 and length["gain_ci"][0] <= 0 and card["accuracy_ci"][0] > 0.5:
        level = "alarm" if length["gain"] <= LENGTH_GAIN else "warning"
        says.append(
            f"{'Length explains' if level == 'alarm' else 'Length may explain'} the accuracy: “{length['rule']}” alone "
            f"reaches {percent(length['accuracy'])}, the model {percent(card['accuracy'])}; the difference is "
            f"{plain_points(length['gain'], length['gain_ci'])}."
        )
    if length["gap_ci"] is not None:
        low, high = length["gap_ci"]
        worse = shorter if low > 0 else longer
        against = worse["accuracy_ci"] is not None and worse["accuracy_ci"][1] < 0.5
        if low > LENGTH_GAP or high < -LENGTH_GAP or (against and (low > 0 or high < 0)):
            level = "alarm" if against or level == "alarm" else "warning"
            likes = "longer" if low > 0 else "shorter"
            says.append(
                f"The model leans on length, towards the {likes} reply: it is right in {percent(longer['accuracy'])} "
                f"of the pairs whose longer reply won and in {percent(shorter['accuracy'])} of those whose shorter one "
                "did."
            )
    if not says:
        return None
    if length["model_chooses_longer"] is not None:
        says.append(f"It chooses the longer reply in {percent(length['model_chooses_longer'])} of the pairs.")
    do = (
        f"PPO will learn length from it. Add pairs in which the better reply is not the {likes} one, balance the "
        "lengths of winners and losers, or have the annotators told that length is no merit; then train again."
    )
    evidence = {name: length[name] for name in ("accuracy", "gain", "gain_ci", "gap_ci", "model_chooses_longer")}
    return _alarm("length", level, " ".join(says), do, **evidence)


def _position(card: Card) -> Alarm | None:
    position = card["position"]
    low, high = position["accuracy_ci"]
    if position["listed"] != "either way" or (low <= POSITION and high >= 1 - POSITION):
        return None
    place = "first" if low > POSITION else "last"
    share = position["accuracy"] if place == "first" else 1 - position["accuracy"]
    says = (
        f"The reply listed {place} won {percent(share)} of the pairs. If the annotators saw them in this order, they "
        "may have ranked by place; a reward model of single replies cannot see it, but learns what it did to labels."
    )
    do = "Show the replies in random order, and keep that order in the file."
    return _alarm("position", "warning", says, do, accuracy_ci=position["accuracy_ci"])


def _calibration(card: Card) -> Alarm | None:
    stated = card["calibration"]
    if stated["ece"] <= max(ECE, stated["ece_limit"]):
        return None
    sure = stated["confidence"] > card["accuracy"]
    after = stated["temperature"]
    says = (
        f"The model is {'surer' if sure else 'less sure'} than it is right: it claims {percent(stated['confidence'])} "
        f"and is right in {percent(card['accuracy'])}; ECE {stated['ece']:.3f}."
    )
    if after is not None and after["ece"] < stated["ece"]:
        says += f" Dividing by a temperature of {after['value']:.2f} brings it to {after['ece']:.3f}."
    mend = "Train for fewer epochs if it is over-fitted." if sure else "Scale the scores before reading them as odds."
    do = f"The order of replies stays, so PPO does not mind. {mend}"
    return _alarm("calibration", "warning", says, do, ece=stated["ece"], ece_limit=stated["ece_limit"])


def _wide(card: Card) -> Alarm | None:
    (low, high), counts = card["accuracy_ci"], card["counts"]
    if high - low <= WIDE and counts["prompts"] >= 10:
        return None
    says = (
        f"{counts['strict_pairs']:,} pairs of {counts['prompts']:,} prompts leave the accuracy anywhere from "
        f"{interval([low, high])}; the other numbers of this card are as loose."
    )
    evidence = {"accuracy_ci": [low, high], "prompts": counts["prompts"]}
    return _alarm("few pairs", "warning", says, "Hold out more prompts.", **evidence)
