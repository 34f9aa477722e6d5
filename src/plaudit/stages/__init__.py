"""The stages: sft -> preferences -> reward -> ppo -> evaluate -> report; a folder each, its loop read top to bottom."""
