"""Merges that go wrong in the code of an engine."""
