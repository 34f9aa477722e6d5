"""Model loading, and the four roles on one frozen base."""
