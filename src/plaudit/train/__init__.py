"""What SFT, reward model and PPO share: optimiser and schedule, saving, micro-batches that halve when memory ends."""
