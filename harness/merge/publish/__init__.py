"""A finished directory becomes the output by one rename, or nothing does."""
