"""A run before it begins: everything that can be looked at without training, and how long it will take."""
