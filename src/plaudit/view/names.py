"""What a column of a log is called where people read it, with its unit: one name on the report and in the studio."""

NAMES = {
    "score": "score (std of SFT replies)",
    "score_std": "spread of the scores (std)",
    "held_out_score": "held-out score",
    "gold": "gold (the annotator's utility)",
    "kl": "KL (nats a reply)",
    "kl_per_token": "KL (nats a token)",
    "kl_coef": "β, the KL coefficient",
    "effective_kl_coef": "effective β",
    "kl_penalty": "KL penalty (reward a reply)",
    "entropy": "entropy (nats a token)",
    "length": "length (tokens)",
    "eos": "EOS rate (share of replies)",
    "text_changed": "text that becomes other tokens (share of replies)",
    "sampler_gap_mean": "sampler gap, mean (nats a token)",
    "sampler_gap_p99": "sampler gap, 99th percentile (nats a token)",
    "sampler_slope": "sampler slope (0 policy, 1 reference)",
    "sampler_slope_se": "sampler slope, standard error",
    "sampler_weight": "sampler weight, mean",
    "sampler_weight_cut": "sampler weights that were cut (share of tokens)",
    "lag": "lag (updates)",
    "lag_kl": "KL of the lag (nats a token)",
    "explained_variance": "explained variance (1 is perfect)",
    "loss": "loss",
    "l_clip": "L_CLIP",
    "l_vf": "value loss (squared return)",
    "approx_kl": "approximate KL (nats a token)",
    "clip_fraction": "clip fraction (share of tokens)",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm before clipping",
    "steps": "optimiser steps",
    "tokens": "tokens",
    "eval_loss": "held-out loss",
    "accuracy": "accuracy (share of pairs)",
    "eval_accuracy": "held-out accuracy (share of pairs)",
    "eval_auc": "held-out AUC",
    "margin": "margin of the implicit reward",
    "eval_margin": "held-out margin of the implicit reward",
    "length_correlation": "correlation of score and length",
    "repeated_trigrams": "repeated 3-grams (share)",
    "distinct_bigrams": "distinct 2-grams (share)",
    "score_gain_se": "gain of the score, standard error",
    "held_out_gain_se": "gain of the held-out score, standard error",
}
_FAMILIES = {"constraint_": "constraint {}", "bound_": "bound of {}", "multiplier_": "λ of {}"}
"""Columns that end in the name of a reward source."""


def name_of(column: str) -> str:
    """The name of a column; one that has none is its key in words.

    >>> name_of("l_vf"), name_of("bound_polite"), name_of("new_column")
    ('value loss (squared return)', 'bound of polite', 'new column')
    """
    for start, name in _FAMILIES.items():
        if column.startswith(start):
            return name.format(column.removeprefix(start))
    return NAMES.get(column, column.replace("_", " "))
