"""Coming from other trainers: what their settings are called here, and recipes from their files."""
