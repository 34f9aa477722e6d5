"""The thin place where accelerate lives: device, number format, number of threads; and the ranks of a run."""
