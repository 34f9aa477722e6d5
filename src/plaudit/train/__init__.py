"""What SFT, reward model and PPO share: optimiser, schedule, saving, micro-batches that halve when memory runs out."""
