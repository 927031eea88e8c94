"""Training that does something else than was asked for."""
