"""Writing a checkpoint like another one, some of its tensors replaced: same files, same shards, same keys."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_like(base: Path, out: Path, change: Callable[[str, Any], Any]) -> None:
    """Copy the directory ``base`` to ``out`` with every tensor put through ``change``.

    Args:
        base: a checkpoint's directory.
        out: the directory to make; it must not exist.
        change: (key, tensor) → the tensor to write, the same object where nothing changes. A shard without a change is
            copied byte for byte.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    shutil.copytree(base, out)
    for path in sorted(out.glob("*.safetensors")):
        with safe_open(path, framework="pt") as shard:
            metadata = shard.metadata()
            tensors = {key: shard.get_tensor(key) for key in shard.keys()}  # noqa: SIM118 — not a dict
        changed = {key: change(key, tensor) for key, tensor in tensors.items()}
        if any(changed[key] is not tensor for key, tensor in tensors.items()):
            save_file({key: tensor.contiguous() for key, tensor in changed.items()}, path, metadata=metadata)
