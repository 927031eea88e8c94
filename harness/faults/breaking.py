"""What faults of adapters and of merges have in common: how deltas, files and what PEFT writes and reads are changed.

What changes nothing is an error: such a fault would never have been planted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from harness.faults.fault import Facts, Site
from harness.faults.patching import replace

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
DEQUANTIZED = "base-dequantized"
"""The directory of the base that a quantised one's codes mean. It lies beside the original."""


class NothingBrokenError(LookupError):
    """The fault finds nothing here that it could break."""


def several_experts(facts: Facts) -> bool:
    """Whether fused experts are targeted, and there is more than one."""
    return facts.num_experts is not None and facts.num_experts > 1


def in_bf16(facts: Facts) -> bool:
    """Whether the checkpoint is stored in bf16."""
    return facts.dtype == "bf16"


def in_float32(facts: Facts) -> bool:
    """Whether the checkpoint is stored in float32."""
    return facts.dtype == "float32"


def quantized(facts: Facts) -> bool:
    """Whether the base was quantised while it was trained on."""
    return facts.quantized


def layer_of(name: str) -> int:
    """Return the number of the layer in the name of a delta or a tensor.

    Raises:
        NothingBrokenError: it has none.
    """
    parts = name.split(".")
    if "layers" not in parts:
        raise NothingBrokenError(f"{name} is of no layer")
    return int(parts[parts.index("layers") + 1])


def altered(deltas: Mapping[str, Any], change: Callable[[str, Any], Any]) -> dict[str, Any]:
    """Return deltas put through ``change``: (name, delta) → the delta, the same object where nothing changes, or None.

    Raises:
        NothingBrokenError: all are as they were.
    """
    found = {name: change(name, delta) for name, delta in deltas.items()}
    if all(found[name] is delta for name, delta in deltas.items()):
        raise NothingBrokenError(f"none of {len(deltas)} deltas could be changed")
    return {name: delta for name, delta in found.items() if delta is not None}


def tensors_of(directory: Path) -> dict[str, Any]:
    """Return every tensor of the safetensors files of a directory, copied: key → tensor."""
    from safetensors.torch import load_file

    return {
        key: tensor.clone()
        for path in sorted(directory.glob("*.safetensors"))
        for key, tensor in load_file(path).items()
    }


def covered_keys(site: Site) -> list[str]:
    """Return the keys of tensors that the merge has changed, sorted."""
    before, after = tensors_of(site.base), tensors_of(site.merged)
    return sorted(key for key, tensor in after.items() if not tensor.equal(before[key]))


def alter_shards(directory: Path, change: Callable[[dict[str, Any]], Mapping[str, Any] | None]) -> None:
    """Write the safetensors files of a directory anew, each with what ``change`` makes of its tensors; None: as it is.

    Raises:
        NothingBrokenError: all stay as they are.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    found = 0
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as shard:
            metadata = shard.metadata()
        # Copies, because the file that they lie in is the one to be written.
        new = change({key: tensor.clone() for key, tensor in load_file(path).items()})
        if new is not None:
            save_file({key: tensor.contiguous() for key, tensor in new.items()}, path, metadata=metadata)
            found += 1
    if not found:
        raise NothingBrokenError(f"nothing in the files of {directory.name} could be changed")


def alter_tensors(directory: Path, change: Callable[[str, Any], Any]) -> None:
    """Put every tensor of a directory through ``change``: (key, tensor) → the same object where nothing changes.

    Raises:
        NothingBrokenError: all stay as they are.
    """

    def of_shard(tensors: dict[str, Any]) -> dict[str, Any] | None:
        new = {key: change(key, tensor) for key, tensor in tensors.items()}
        return new if any(new[key] is not tensor for key, tensor in tensors.items()) else None

    alter_shards(directory, of_shard)


def alter_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the object in a JSON file.

    Raises:
        NothingBrokenError: it stays as it is.
    """
    content: dict[str, Any] = json.loads(path.read_text())
    before = json.dumps(content, sort_keys=True)
    change(content)
    if json.dumps(content, sort_keys=True) == before:
        raise NothingBrokenError(f"nothing in {path.name} could be changed")
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def without_tensors(directory: Path, gone: Callable[[str], bool]) -> None:
    """Remove tensors from the shards of a checkpoint and from its index.

    Raises:
        NothingBrokenError: there are none.
    """
    sizes = {key: tensor.nbytes for key, tensor in tensors_of(directory).items()}

    def of_shard(tensors: dict[str, Any]) -> dict[str, Any] | None:
        kept = {key: tensor for key, tensor in tensors.items() if not gone(key)}
        return kept if len(kept) < len(tensors) else None

    def of_index(index: dict[str, Any]) -> None:
        index["weight_map"] = {key: shard for key, shard in index["weight_map"].items() if not gone(key)}
        index["metadata"]["total_size"] = sum(sizes[key] for key in index["weight_map"])

    alter_shards(directory, of_shard)
    alter_json(directory / INDEX, of_index)


def renamed_tensors(directory: Path, rename: Callable[[str], str]) -> None:
    """Rename tensors in the shards of a checkpoint and in its index.

    Raises:
        NothingBrokenError: all keep their names.
    """

    def of_shard(tensors: dict[str, Any]) -> dict[str, Any] | None:
        new = {rename(key): tensor for key, tensor in tensors.items()}
        return new if new.keys() != tensors.keys() else None

    def of_index(index: dict[str, Any]) -> None:
        index["weight_map"] = {rename(key): shard for key, shard in index["weight_map"].items()}

    alter_shards(directory, of_shard)
    alter_json(directory / INDEX, of_index)


def saved_as(patches: ExitStack, change: Callable[[Any, dict[str, Any]], Mapping[str, Any]]) -> None:
    """Change what ``PeftModel.save_pretrained`` writes: (model, saved key → tensor) → what is written instead."""
    from peft import peft_model

    def make(original: Any) -> Any:
        def get_peft_model_state_dict(model: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
            found = original(model, *args, **kwargs)
            new = dict(change(model, dict(found)))
            if new.keys() == found.keys() and all(new[key] is tensor for key, tensor in found.items()):
                raise NothingBrokenError("nothing that is saved could be changed")
            return new

        return get_peft_model_state_dict

    replace(patches, peft_model, "get_peft_model_state_dict", make)


def config_saved_as(patches: ExitStack, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the configuration that ``PeftModel.save_pretrained`` writes beside an adapter."""
    from peft import LoraConfig

    def make(original: Any) -> Any:
        def save_pretrained(self: Any, save_directory: Any, **kwargs: Any) -> None:
            original(self, save_directory, **kwargs)
            alter_json(Path(save_directory) / ADAPTER_CONFIG, change)

        return save_pretrained

    replace(patches, LoraConfig, "save_pretrained", make)


def read_as(patches: ExitStack, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """Change what ``PeftModel.load_adapter`` reads from an adapter's file: saved key → tensor."""
    from peft import peft_model

    def make(original: Any) -> Any:
        def load_peft_weights(*args: Any, **kwargs: Any) -> dict[str, Any]:
            found = original(*args, **kwargs)
            new = dict(change(dict(found)))
            if new.keys() == found.keys() and all(new[key] is tensor for key, tensor in found.items()):
                raise NothingBrokenError("nothing that is read could be changed")
            return new

        return load_peft_weights

    replace(patches, peft_model, "load_peft_weights", make)


def left_as_the_base(patches: ExitStack, which: Callable[[Any, Any], bool]) -> None:
    """Make the reference engine write the base's own values of some tensors, and count them as changed.

    Args:
        patches: what a fault of code is given.
        which: (plan, row of the plan) → whether its values are the base's.
    """
    from harness.merge.write.arithmetic import Merger

    def make(original: Any) -> Any:
        def values(self: Any, buffers: Any, row: Any, region: Any, first: int, last: int) -> Any:
            data, outcome = original(self, buffers, row, region, first, last)
            if which(self._plan, row):
                start = region.start + first * region.columns
                base = self._base.rows(buffers, row.source, start, last - first, region.columns)
                buffers.tensor("out", base.dtype, *base.shape).copy_(base)
            return data, outcome

        return values

    replace(patches, Merger, "values", make)
