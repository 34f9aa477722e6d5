"""Names of the choices that formulas offer; without torch, so that a recipe can be read without it."""

from typing import Literal

MissingEos = Literal["subtract", "replace", "none"]
KLEstimator = Literal["k1", "k2", "k3"]
Aggregation = Literal["mean", "min", "mean_minus_std", "pessimistic"]
SamplerCorrection = Literal["none", "tis", "icepop"]
