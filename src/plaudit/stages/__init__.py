"""The stages: sft -> preferences -> reward -> ppo -> evaluate -> report; a folder each, its `loop.py` read top to bottom."""
