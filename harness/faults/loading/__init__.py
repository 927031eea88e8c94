"""Models that are not what their files say, once they are loaded."""
