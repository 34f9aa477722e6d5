"""Rejection sampling: SFT once more, on the best of n replies of the SFT model."""
