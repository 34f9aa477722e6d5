"""Formats of rows: read from JSON lines, CSV, Parquet or the Hub, told apart, parsed, converted."""
