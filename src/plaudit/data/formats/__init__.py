"""Formats of rows: read from JSON lines, CSV, Parquet or the Hub, recognised, parsed."""
