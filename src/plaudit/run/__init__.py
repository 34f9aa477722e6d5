"""The run folder, its metrics and its progress display. No torch here."""
