"""Forward passes that compute something else than the architecture."""
