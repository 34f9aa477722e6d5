"""Comparisons as labelling tools and published sets write them, made rows of our formats.

- Label Studio: the JSON export of a project with a Pairwise tag: a task's `data` with two answers, and `annotations`,
  each of which selected left or right (labelstud.io, "Pairwise", "Export annotations").
- OpenAI's files for preference tuning: `input` with its messages, `preferred_output` and `non_preferred_output`
  (platform.openai.com, "Direct preference optimization").
- Three published sets whose verdict is a number of a meaning of its own: HelpSteer3 (`overall_preference`, below 0
  where response1 is better), SHP (`labels`, 1 where human_ref_A is better), WebGPT comparisons (`score_0`, `score_1`).
- Comparisons of summaries: `info`, two `summaries` and a `choice`, as Stiennon et al. 2020 ("Learning to summarize from
  human feedback", arXiv:2009.01325) published them; the prompt is laid out as in their table of query formats.
"""

from collections.abc import Callable
from typing import Any

from plaudit.data.formats.duels import duel_of
from plaudit.data.formats.ranked import ranked_columns
from plaudit.data.formats.rows import shown
from plaudit.errors import UserError

_SIDES = {"left": 0, "right": 1}
# Exports of our own that hold every label as it was given, also those that are no training data.
_OF_PEOPLE = {"table": {"seq", "person", "verdict", "reply_1"}, "ledger": {"seq", "task", "replies", "gold"}}


def chosen_between(place: str, row: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """A task of Label Studio as a row of format votes, OpenAI's outputs as one of format pairs, a comparison of
    summaries and answers with their ranks beside them as one of format rankings; any other row as it is."""
    if own := next((name for name, keys in _OF_PEOPLE.items() if keys <= row.keys()), None):
        raise UserError(
            f"{place}: this is what `plaudit label export --format {own}` writes, to be looked at; to train on the "
            "labels export them with --format rankings, or demonstrations"
        )
    if {"data", "annotations"} <= row.keys():
        say("tasks of Label Studio, a vote for each annotation")
        return _label_studio(place, row)
    if {"input", "preferred_output", "non_preferred_output"} <= row.keys():
        say("OpenAI's preferred and non-preferred outputs")
        return _outputs(place, row)
    if {"info", "summaries", "choice"} <= row.keys():
        say("comparisons of summaries")
        return _summaries(place, row)
    for keys, name, read in _SETS:
        if keys <= row.keys():
            say(f"rows of {name}")
            return read(place, row)
    return ranked_columns(place, row, say)


def _label_studio(place: str, row: dict[str, Any]) -> dict[str, Any]:
    data, annotations = row["data"], row["annotations"]
    duel = duel_of(tuple(data)) if isinstance(data, dict) else None
    if duel is None or not isinstance(annotations, list):
        raise UserError(
            f"{place}: a task of Label Studio whose field 'data' has not two answers (as answer1 and answer2) is not "
            "read; export the project as CSV and name its columns with columns: prompt=THEIRS,completion=THEIRS"
        )
    votes, asked = _votes(annotations)
    if len(asked) > 1:
        raise UserError(
            f"{place}: the task asks {len(asked)} questions, {', '.join(sorted(map(repr, asked)))}, whose answers "
            "are no votes for one another; export a project with one Pairwise tag, or take the others out"
        )
    if votes == [0, 0]:
        raise UserError(f"{place}: no annotation of the task says left or right; take it out of the export")
    both = (duel.first, duel.second)
    responses = [{"text": data[key], "votes": count} for key, count in zip(both, votes, strict=True)]
    return {**{key: value for key, value in data.items() if key not in both}, "responses": responses}


def _votes(annotations: list[Any]) -> tuple[list[int], set[str]]:
    """(votes for the left and the right answer, the questions that were asked)."""
    votes, asked = [0, 0], set[str]()
    for annotation in annotations:
        results = annotation.get("result") if isinstance(annotation, dict) else None
        for result in results if isinstance(results, list) and not annotation.get("was_cancelled") else ():
            value = result.get("value") if isinstance(result, dict) else None
            side = value.get("selected") if isinstance(value, dict) else None
            if side in _SIDES:
                votes[_SIDES[side]] += 1
                asked.add(str(result.get("from_name")))
    return votes, asked


def an_annotation_each(place: str, row: dict[str, Any]) -> list[dict[str, Any]]:
    """A task of Label Studio as one task for each annotation that chose, with who gave it; any other row as it is.
    UserError for a task that cannot be read."""
    if not {"data", "annotations"} <= row.keys():
        return [row]
    _label_studio(place, row)
    parts = []
    for one in row["annotations"]:
        if any(_votes([one])[0]):
            who = _completed_by(one.get("completed_by"))
            data = row["data"] | ({"annotator": who} if who else {})
            parts.append({**row, "data": data, "annotations": [one]})
    return parts


def _completed_by(who: Any) -> str | None:
    """Who gave an annotation: Label Studio writes a number, or an object with the address."""
    if isinstance(who, dict):
        return str(who.get("email") or who.get("id") or "") or None
    return None if who is None else str(who)


def _outputs(place: str, row: dict[str, Any]) -> dict[str, Any]:
    asked = row["input"]
    if not isinstance(asked, dict) or not isinstance(asked.get("messages"), list):
        raise UserError(f"{place}: field 'input' is no object with 'messages', found {shown(asked)}")
    tools = {"tools": asked["tools"]} if asked.get("tools") else {}
    rest = {
        key: value for key, value in row.items() if key not in ("input", "preferred_output", "non_preferred_output")
    }
    return {
        **rest,
        **tools,
        "prompt": asked["messages"],
        "chosen": row["preferred_output"],
        "rejected": row["non_preferred_output"],
    }


def _summaries(place: str, row: dict[str, Any]) -> dict[str, Any]:
    info, summaries, choice = row["info"], row["summaries"], row["choice"]
    texts = [one.get("text") for one in summaries if isinstance(one, dict)] if isinstance(summaries, list) else []
    if not isinstance(info, dict) or len(texts) != 2 or choice not in (0, 1) or isinstance(choice, bool):
        raise UserError(
            f"{place}: a comparison of summaries has an object 'info', two 'summaries' with a 'text' and a 'choice' of "
            f"0 or 1; found the choice {shown(choice)}"
        )
    text = info.get("post") or info.get("article")
    if not isinstance(text, str):
        raise UserError(f"{place}: field 'info' has neither 'post' nor 'article', which the summaries are of")
    heads = [("SUBREDDIT", info.get("subreddit") and f"r/{info['subreddit']}"), ("TITLE", info.get("title"))]
    lines = [f"{head}: {value}" for head, value in heads if value]
    prompt = "\n\n".join([*lines, f"{'POST' if info.get('post') else 'Article'}: {text}", "TL;DR:"])
    found = {
        "prompt": prompt,
        "responses": [{"text": said, "rank": 1 + (at != choice)} for at, said in enumerate(texts)],
        "split": "train" if row.get("split", "train") == "train" else "validation",
    }
    return {**found, **({"annotator": row["worker"]} if row.get("worker") else {})}


def _helpsteer3(place: str, row: dict[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in row.items() if key not in _HELPSTEER3}
    both = {"response_1": row["response1"], "response_2": row["response2"]}
    return {**rest, "prompt": row["context"], **both, "preference_strength": row["overall_preference"]}


def _shp(place: str, row: dict[str, Any]) -> dict[str, Any]:
    if str(row["labels"]) not in ("0", "1"):
        raise UserError(
            f"{place}: field 'labels' must be 1 (human_ref_A is better) or 0 (human_ref_B is), found "
            f"{shown(row['labels'])}"
        )
    rest = {key: value for key, value in row.items() if key not in _SHP}
    first = int(row["labels"]) == 1
    texts = ((row["human_ref_A"], 1 if first else 2), (row["human_ref_B"], 2 if first else 1))
    return {**rest, "prompt": row["history"], "responses": [{"text": text, "rank": rank} for text, rank in texts]}


def _webgpt(place: str, row: dict[str, Any]) -> dict[str, Any]:
    scores, asked = [row["score_0"], row["score_1"]], row["question"]
    if not all(isinstance(score, (int, float)) and not isinstance(score, bool) for score in scores):
        raise UserError(f"{place}: fields 'score_0' and 'score_1' must be numbers, found {shown(scores)}")
    replies = [
        {"text": row[f"answer_{at}"], "rank": 1 + sum(other > score for other in scores), "score": score}
        for at, score in enumerate(scores)
    ]
    rest = {key: value for key, value in row.items() if key not in _WEBGPT}
    asked = asked.get("full_text") if isinstance(asked, dict) else asked
    return {**rest, "prompt": asked, "responses": replies}


_HELPSTEER3 = frozenset({"context", "response1", "response2", "overall_preference"})
_SHP = frozenset({"history", "human_ref_A", "human_ref_B", "labels"})
_WEBGPT = frozenset({"question", "answer_0", "answer_1", "score_0", "score_1"})
_SETS = ((_HELPSTEER3, "HelpSteer3", _helpsteer3), (_SHP, "SHP", _shp), (_WEBGPT, "WebGPT comparisons", _webgpt))
