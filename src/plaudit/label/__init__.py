"""The labelling service: people rank, write and compare replies; nothing they said is ever lost."""
