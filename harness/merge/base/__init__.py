"""The base checkpoint: its tensors by name, its quantised weights, and what its family calls and stores differently."""
