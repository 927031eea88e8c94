"""Files as they lie on disk: safetensors, JSON, copies, and paths that stay inside their directory.

Nothing here knows what a model is.
"""
