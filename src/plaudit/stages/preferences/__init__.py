"""Stage 2: replies are sampled and ranked."""
