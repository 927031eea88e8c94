"""Merged directories that are wrong, as an engine would leave them that does not know it."""
