"""The lesson: PPO with sliders, one HTML file that needs nothing else."""
