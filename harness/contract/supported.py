"""The oldest releases that the harness itself can work with, written once."""

from __future__ import annotations

OLDEST: dict[str, str] = {"transformers": "4.52", "peft": "0.15", "trl": "0.18"}
"""Of each of the three packages. What is older is refused as too old for the harness, not for the stack."""
