"""What is in data files and what is wrong with it, line by line."""
