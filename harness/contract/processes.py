"""How a cell's stages get processes of their own, which host and worker agree on in the request."""

from __future__ import annotations

from typing import Literal

Processes = Literal["forked", "started"]
"""Forked after the imports, or started where the imports start CUDA."""
