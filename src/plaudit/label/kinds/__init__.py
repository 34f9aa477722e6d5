"""The kinds of task (rank, compare, write) and what counts as an answer to each."""
