"""Texts of models and people as HTML that shows what was written and runs nothing."""
