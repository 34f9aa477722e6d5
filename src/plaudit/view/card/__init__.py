"""A reward model's report card."""
