"""Stage 1: the model learns from demonstrations."""
