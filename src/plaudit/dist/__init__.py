"""The thin place where accelerate lives: which device, which number format, how many threads; and the ranks of a run."""
