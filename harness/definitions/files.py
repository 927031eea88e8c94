"""Tensors of a safetensors file in float64, by the format's definition: a header's length, the header, the bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from harness.definitions.parts import Array

PLAIN = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
LENGTH_BYTES = 8


def read_tensors(path: Path) -> dict[str, Array]:
    """Return every floating tensor of a file, (its own shape) float64: name → values.

    A bfloat16 is the upper half of a float32. Integers are left out: no weight is one.
    """
    content = path.read_bytes()
    size = int.from_bytes(content[:LENGTH_BYTES], "little")
    header = json.loads(content[LENGTH_BYTES : LENGTH_BYTES + size])
    data = content[LENGTH_BYTES + size :]
    found: dict[str, Array] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        first, end = entry["data_offsets"]
        if entry["dtype"] == "BF16":
            values = (np.frombuffer(data[first:end], "<u2").astype("<u4") << 16).view("<f4")
        elif entry["dtype"] in PLAIN:
            values = np.frombuffer(data[first:end], PLAIN[entry["dtype"]])
        else:
            continue
        found[name] = values.astype(np.float64).reshape(entry["shape"])
    return found
