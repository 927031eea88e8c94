"""Saved adapters that are something else once they are loaded again."""
