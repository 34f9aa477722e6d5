"""Stage 4: the policy learns from the reward model."""
