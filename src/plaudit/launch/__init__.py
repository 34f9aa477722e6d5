"""Starts other engines' processes for a run: servers that sample."""
