"""What merges an adapter into a checkpoint, one file each: the folder is the catalogue, and nothing else lists its names.

A file ``<name>.py`` that defines ``ENGINE`` is an engine; dashes in names are underscores in files. What an engine is given
and what it says afterwards is in ``engine.py``. Engines run inside a cell's environment: torch, transformers and PEFT are
imported in functions only, and nothing of the host's.
"""
