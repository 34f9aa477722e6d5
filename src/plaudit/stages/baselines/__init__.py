"""What else could have been done: best-of-n, rejection sampling and DPO beside PPO, at equal KL and equal labels."""
