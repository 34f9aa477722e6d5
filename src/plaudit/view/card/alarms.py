"""What is suspicious about a report card: each alarm with the numbers it rests on; its words stand in alarms.txt.j2.

An `alarm` means that the accuracy is not what it seems; a `warning` that it may not be, or that too little was
measured. Every rule needs the interval, not the value alone, to be beyond its bound, so that a small test raises no
false alarm.
"""

from collections.abc import Mapping
from typing import Any

from plaudit.data.audit.problems import MOST_OF_ONE
from plaudit.view.page import words

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
OFF = 0.1
"""Standard deviations by which mean and spread of the anchors may be off."""

Card = Mapping[str, Any]
Alarm = dict[str, Any]


def alarms(card: Card) -> list[Alarm]:
    """{kind, level: alarm or warning, says, do, evidence}, alarms first. Of too few prompts for an interval that is
    said, and what needs none."""
    if card["accuracy_ci"] is None:
        few = (_constant(card), _trained_prompts(card), _marks(card), _wide(card))
        return sorted(filter(None, few), key=lambda alarm: alarm["level"] != "alarm")
    of_scores = (_constant(card), _chance(card))
    of_data = (_trained_prompts(card), _marks(card), _ceiling(card), _too_good(card))
    of_rest = (_length(card), _position(card), _calibration(card), _wide(card))
    raised = [alarm for alarm in (*of_scores, *of_data, *of_rest) if alarm is not None]
    return sorted(raised, key=lambda alarm: alarm["level"] != "alarm")


def with_anchors(card: Card, ruler: Mapping[str, Any]) -> dict[str, Any]:
    """The card of a round after the first, with what there is to tell of the anchors (stages/reward/anchors.py)."""
    if ruler["off"] <= OFF:
        return {**card, "anchors": ruler}
    raised = _alarm("anchors", "alarm", {**card, "anchors": ruler}, {"off": ruler["off"]})
    return {**card, "anchors": ruler, "alarms": [raised, *card["alarms"]]}


def label_alarms(card: Card) -> list[Alarm]:
    """The same of a card on labels of single replies (label_card.py)."""
    raised: list[Alarm] = []
    (low, _), length, people, most = card["auc_ci"], card["length"], card["annotators"], card["most_labels"]
    if low <= 0.5:
        raised.append(_alarm("chance", "warning", card, {"auc_ci": card["auc_ci"]}, macro="label_chance"))
    elif length["auc_ci"][0] > 0.5 and low <= length["auc"]:
        evidence = {"auc_ci": card["auc_ci"], "length_auc": length["auc"]}
        raised.append(_alarm("length", "alarm", card, evidence, macro="label_length"))
    if people is not None and people["auc_ci"][0] > 0.5 and low <= people["auc"]:
        evidence = {"auc_ci": card["auc_ci"], "annotators_auc": people["auc"]}
        raised.append(_alarm("annotators", "warning", card, evidence))
    if most is not None and most["share"] > MOST_OF_ONE:
        raised.append(_alarm("one annotator", "alarm", card, dict(most)))
    return sorted(raised, key=lambda alarm: alarm["level"] != "alarm")


def _alarm(kind: str, level: str, card: Card, evidence: Card, *facts: Any, macro: str = "") -> Alarm:
    """`facts` are what the macro of the words, by default that of the kind's name, asks for beside the card."""
    says, do = words("card/alarms.txt.j2", macro or kind.replace(" ", "_"), card, *facts).split("\n")
    return {"kind": kind, "level": level, "says": says, "do": do, "evidence": dict(evidence)}


def _constant(card: Card) -> Alarm | None:
    if card["scores"]["std"] > 0:
        return None
    return _alarm("constant", "alarm", card, {"std": 0.0})


def _chance(card: Card) -> Alarm | None:
    low, high = card["accuracy_ci"]
    if card["scores"]["std"] == 0 or low > 0.5:
        return None
    if high < 0.5:
        return _alarm("swapped", "alarm", card, {"accuracy_ci": [low, high]})
    return _alarm("chance", "warning", card, {"accuracy_ci": [low, high]})


def _trained_prompts(card: Card) -> Alarm | None:
    leaks = card["leaks"]
    exact, near = leaks["trained_prompts"] or 0, leaks["near_trained_prompts"] or 0
    if not exact + near:
        return None
    level = "alarm" if (exact + near) >= 0.01 * leaks["prompts"] else "warning"
    evidence = {"trained_prompts": exact, "near_trained_prompts": near}
    return _alarm("leak", level, card, evidence, exact, near, macro="trained_prompts")


def _marks(card: Card) -> Alarm | None:
    marks = card["leaks"]["marks"]
    if not marks:
        return None
    sure = marks[0]["layout"] or marks[0]["coverage"] >= ALARMING_COVERAGE
    return _alarm("leak", "alarm" if sure else "warning", card, {"marks": marks}, sure, macro="marks")


def _ceiling(card: Card) -> Alarm | None:
    ceiling = card["ceiling"]
    if not ceiling.get("accuracy_ci") or ceiling["accuracy_ci"][0] <= ceiling["agreement"]:
        return None
    level = "alarm" if ceiling["accuracy_ci"][0] > ceiling["best_accuracy"] else "warning"
    evidence = {name: ceiling[name] for name in ("accuracy_ci", "agreement", "best_accuracy")}
    return _alarm("ceiling", level, card, evidence, level)


def _too_good(card: Card) -> Alarm | None:
    if card["simulated"] or card["ceiling"]["compared"] or card["accuracy_ci"][0] <= USUAL_CEILING:
        return None
    if card["leaks"]["marks"] or card["leaks"]["trained_prompts"]:
        return None  # the reason is found
    return _alarm("too good", "warning", card, {"accuracy_ci": card["accuracy_ci"]})


def _length(card: Card) -> Alarm | None:
    length = card["length"]
    explains = leans = level = ""
    if length["accuracy_ci"][0] > 0.5 and length["gain_ci"][0] <= 0 and card["accuracy_ci"][0] > 0.5:
        explains = level = "alarm" if length["gain"] <= LENGTH_GAIN else "warning"
    if length["gap_ci"] is not None:
        low, high = length["gap_ci"]
        worse = length["accuracy_shorter_won" if low > 0 else "accuracy_longer_won"]
        against = worse["accuracy_ci"] is not None and worse["accuracy_ci"][1] < 0.5
        if low > LENGTH_GAP or high < -LENGTH_GAP or (against and (low > 0 or high < 0)):
            level = "alarm" if against or level == "alarm" else "warning"
            leans = "longer" if low > 0 else "shorter"
    if not level:
        return None
    evidence = {name: length[name] for name in ("accuracy", "gain", "gain_ci", "gap_ci", "model_chooses_longer")}
    return _alarm("length", level, card, evidence, explains, leans)


def _position(card: Card) -> Alarm | None:
    position = card["position"]
    low, high = position["accuracy_ci"]
    if position["listed"] != "either way" or (low <= POSITION and high >= 1 - POSITION):
        return None
    place = "first" if low > POSITION else "last"
    share = position["accuracy"] if place == "first" else 1 - position["accuracy"]
    return _alarm("position", "warning", card, {"accuracy_ci": position["accuracy_ci"]}, place, share)


def _calibration(card: Card) -> Alarm | None:
    stated = card["calibration"]
    if stated["ece"] <= max(ECE, stated["ece_limit"]):
        return None
    evidence = {"ece": stated["ece"], "ece_limit": stated["ece_limit"]}
    return _alarm("calibration", "warning", card, evidence, stated["confidence"] > card["accuracy"])


def _wide(card: Card) -> Alarm | None:
    ends, prompts = card["accuracy_ci"], card["counts"]["prompts"]
    if ends is not None and ends[1] - ends[0] <= WIDE and prompts >= 10:
        return None
    return _alarm("few pairs", "warning", card, {"accuracy_ci": ends, "prompts": prompts})
