"""What merges an adapter into a checkpoint, one file each. The folder is the catalogue: nothing else lists its names.

A file ``<name>.py`` that defines ``ENGINE`` is an engine. Dashes in names are underscores in files. What an engine is
given and what it says afterwards is in ``engine.py``. Engines run inside a cell's environment. So they import torch,
transformers and PEFT in functions only, and nothing of the host's.
"""
