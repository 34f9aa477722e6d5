"""Policies of a run answer the same prompt, side by side and blind; their models live in a process of their own."""
