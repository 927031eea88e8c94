"""Rotary planes are taken to be halves where the checkpoint's are neighbours: a setting that has another default."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_loading
from harness.faults.places import parts


def plant(patches: ExitStack) -> None:
    """Say of every loaded model that its planes are halves."""

    def change(model: Any) -> None:
        for attention in parts(model, "kv_b_proj", "config"):
            if not attention.config.rope_interleave:
                raise AttributeError("its planes are halves already")
        model.config.rope_interleave = False

    after_loading(patches, change)


FAULT: Fault = LibraryFault(
    breaks="rotates halves of a head where neighbours are meant",
    noticed_by=frozenset({"load/definition"}),
    cell={"family": "deepseek_v3"},
    plant=plant,
)
