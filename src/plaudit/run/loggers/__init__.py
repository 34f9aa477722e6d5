"""A run in the loggers that people have already: its JSON lines, sent on while it goes."""
