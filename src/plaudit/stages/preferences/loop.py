"""Preferences: sample K replies a prompt (sampling.py), have them ranked best to worst, write the rankings.

The annotator is a simulated one (data/annotator.py), which stands where a person stands, or people on the labelling
page (people.py). Leaves preferences/rankings.jsonl, the derived preferences/preferences.jsonl
(prompt/chosen/rejected) and preferences/summary.json. With `rankings:` a file of people's rankings is taken instead of
sampling; labels of single replies (`unpaired:`) become preferences/unpaired.jsonl, alone or beside rankings. In a round
after the first the rankings of all rounds before it are in preferences/earlier.jsonl.

    plaudit preferences RECIPE
"""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from plaudit.algo.statistics import correlation
from plaudit.data.annotator import Annotator, simulated_annotator, words
from plaudit.data.files import write_rows
from plaudit.errors import UserError
from plaudit.records import Completion, Ranking, preferences_of
from plaudit.stages.preferences.config import PreferencesConfig
from plaudit.stages.preferences.sampling import earlier_rankings, sampled
from plaudit.train.run import Run


def annotator_of(config: PreferencesConfig, seed: int) -> Annotator | None:
    """The simulated annotator, whose utility is the gold score; None when people ranked."""
    people = not config.samples or config.annotator == "human"
    return None if people else simulated_annotator(config.noise, config.tie_margin, seed)


def collect(config: PreferencesConfig, run: Run) -> dict[str, Any]:
    """Sample, rank, write; returns the summary."""
    labels = list(run.labels or ())
    if labels:
        write_rows(run.folder.stage("preferences") / "unpaired.jsonl", (labelled.as_json() for labelled in labels))
    of_labels = {"labels": len(labels), "liked": float(np.mean([one.label for one in labels]))} if labels else {}
    if run.rankings is None and not config.samples:
        return run.finish("preferences", "Preferences", of_labels, tuple(of_labels))
    annotator = annotator_of(config, run.seed)
    rankings, said = _rankings(config, run, annotator)
    preferences = [preference for ranking in rankings for preference in preferences_of(ranking)]
    if not preferences:
        raise UserError(
            "preferences: every ranking is one big tie, so there is no pair to learn from; "
            + ("lower tie_margin" if annotator else "more labels are needed, or replies that differ more")
        )
    folder = run.folder.stage("preferences")
    write_rows(folder / "rankings.jsonl", (ranking.as_json() for ranking in rankings))
    write_rows(folder / "preferences.jsonl", (preference.as_json() for preference in preferences))
    if run.before:
        write_rows(folder / "earlier.jsonl", (ranking.as_json() for ranking in earlier_rankings(run)))
    all_pairs = sum(len(r.replies) * (len(r.replies) - 1) // 2 for r in rankings)
    summary: dict[str, Any] = {
        "rankings": len(rankings),
        "prompts": len({ranking.prompt.messages for ranking in rankings}),
        "replies": sum(len(r.replies) for r in rankings),
        "strict_pairs": len(preferences),
        "tie_share": 1 - len(preferences) / all_pairs,
        "finished_share": float(np.mean([reply.finished for r in rankings for reply in r.replies])),
        "longer_wins": float(np.mean([_longer(p.chosen, p.rejected) for p in preferences])),
        **said,
        **of_labels,
    }
    if annotator:
        summary |= gold_correlations(annotator, rankings)
    return run.finish("preferences", "Preferences", summary, tuple(summary))


def _longer(first: Completion, second: Completion) -> float:
    a, b = len(first.text), len(second.text)
    return 0.5 if a == b else float(a > b)


def _rankings(config: PreferencesConfig, run: Run, annotator: Annotator | None) -> tuple[list[Ranking], dict[str, Any]]:
    """The rankings, and what the summary says beside of those by people on the labelling page."""
    if config.annotator == "human":
        # Here, because it needs the extra `label`.
        from plaudit.stages.preferences.people import ranked_by_people

        rankings, said = ranked_by_people(config, run, lambda: sampled(config, run))
        return [*(() if run.before else run.rankings or ()), *rankings], said
    if annotator is None:
        return list(run.rankings or ()), {}
    groups, text_changed = sampled(config, run)
    before = len(earlier_rankings(run))  # a ranking's number is its own in all rounds
    rankings = [annotator.rank(group.prompt, group.replies, before + n) for n, group in enumerate(groups)]
    if run.before:
        rankings = [replace(ranking, sources=group.sources) for ranking, group in zip(rankings, groups, strict=True)]
    return rankings, {"text_changed": text_changed}


def gold_correlations(annotator: Annotator, rankings: list[Ranking]) -> dict[str, Any]:
    """Pearson's r of the gold score with what it must not be: length, punctuation, the presence of any one word.

    The word is the one, of those in 1 % of the replies or more, with the largest |r|.
    """
    scored = [(annotator.utility(r.prompt, reply.text), reply.text) for r in rankings for reply in r.replies]
    gold = [utility for utility, _ in scored]
    texts = [text for _, text in scored]
    vocabularies = [set(words(text)) for text in texts]
    counts = Counter(word for vocabulary in vocabularies for word in vocabulary)
    common = sorted(word for word, count in counts.items() if count >= max(2, 0.01 * len(texts)))
    by_word = {word: correlation(gold, [word in vocabulary for vocabulary in vocabularies]) for word in common}
    top = max(by_word, key=lambda word: abs(by_word[word]), default="")
    return {
        "gold_mean": float(np.mean(gold)),
        "gold_std": float(np.std(gold)),
        "gold_length_correlation": correlation(gold, [len(words(text)) for text in texts]),
        "gold_punctuation_correlation": correlation(
            gold, [sum(not c.isalnum() and not c.isspace() for c in t) for t in texts]
        ),
        "gold_word_correlation": by_word.get(top, 0.0),
        "gold_word": top,
    }
