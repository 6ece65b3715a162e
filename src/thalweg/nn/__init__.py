"""The seeds' networks."""
