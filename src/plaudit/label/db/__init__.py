"""What is kept: the schema and its migrations, one writer at a time, and everything read as one ledger."""
