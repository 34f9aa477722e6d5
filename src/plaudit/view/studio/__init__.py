"""The studio: runs in a browser while they go. Everything is read; nothing of a run is changed."""
