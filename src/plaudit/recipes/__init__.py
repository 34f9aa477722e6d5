"""Recipes and their data, shipped with the package. A recipe is data: nothing runs in it."""
