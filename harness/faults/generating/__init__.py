"""Generation that chooses something else than the model says."""
