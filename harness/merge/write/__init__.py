"""Bytes of the merged checkpoint: values are read, deltas added, and shards written piece by piece."""
