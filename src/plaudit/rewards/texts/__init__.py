"""Scorers that are asked about texts: what every one must answer, a Python function, an HTTP endpoint. No tensors."""
