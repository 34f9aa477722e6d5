"""The library from Python: run a recipe, read what it left, ask its models."""
