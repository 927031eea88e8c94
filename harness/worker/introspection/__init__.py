"""Families that no file describes: what the installed transformers knows of them, asked of it and held against it.

A model type's smallest form is derived from its configuration's class by rules on names (``sizes``) and by looking at
what they build (``smallest``). What lies on disk is what that transformers saves (``layout``), and the truth about a
merge is what it saves of the model with PEFT's own deltas in its parameters (``saved``).
"""
