"""Stage 3: the reward model learns from rankings."""
