"""Sampling replies: the batch a rollout gives, the engine's protocol, and the in-process engine."""
