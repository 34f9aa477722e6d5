"""The stages: sft -> preferences -> reward -> ppo -> evaluate -> report. Each has a config and a `run`."""
