"""Chat templates: what a run freezes in one, and how one writes an assistant turn."""
