"""Files, chat templates, and the simulated annotator: what turns text into training data. No torch here."""
