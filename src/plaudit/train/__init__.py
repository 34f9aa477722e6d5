"""What SFT, reward model and PPO share: optimiser and schedule, saving, micro-batches that shrink when memory runs out."""
