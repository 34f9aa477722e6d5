"""The stages: sft -> preferences -> reward -> ppo -> evaluate -> report. Each is a `Config` and a `run(config, run)`."""
