"""Everything that shows a run, finished or running: numbers as text, plots, pages, tables."""
