"""The stages: sft -> preferences -> reward -> ppo -> evaluate -> report; a folder each, its `loop.py` top to bottom."""
