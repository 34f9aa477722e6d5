"""Where weights come from: adapters by themselves, and why a library could not read what it was given."""
