"""Labels out of the database and into it, in the formats of the data files."""
