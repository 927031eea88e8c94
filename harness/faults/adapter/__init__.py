"""Adapters that are not what was saved, when an engine merges them."""
