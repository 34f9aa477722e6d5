"""Tokens drawn by the run's own random numbers; imports torch, and in `processor` vLLM, and nothing else."""
