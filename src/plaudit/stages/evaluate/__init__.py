"""Stage 5: SFT model and PPO policy on held-out prompts, paired."""
