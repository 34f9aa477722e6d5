"""What is kept: the schema and its migrations, people, the ledger of labels; one writer at a time."""
