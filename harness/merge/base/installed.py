"""What an installed transformers calls in memory what a base calls otherwise on disk: its own conversion mapping.

The engine needs no transformers. Most bases are read by the names that all families share (``names``) and by the files
of ``families``. An adapter may name modules that a base has not by any of these. If a transformers is installed here
that knows the base's model type, that release is then asked what the names on disk are in memory. It is asked for names
alone. What it would compute (a transposed weight, permuted rows) is not done here, and a pair on such a weight is
refused.

Read off ``transformers.conversion_mapping`` and ``core_model_loading`` of 5.23.0 and 5.24.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

_NATURAL = re.compile(r"\d+|\D+")
_STACKING = ({"MergeModulelist"}, {"MergeModulelist", "Concatenate"})
"""What only puts the experts of a layer together, gate before up: the plain rules know it."""
_LEAVES = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",), "up_proj": ("up_proj",)}


@dataclass(frozen=True, kw_only=True)
class InstalledNames:
    """What an installed transformers says of a base's keys.

    Attributes:
        in_memory: key on disk → name in memory, for those that differ.
        converted: key → what is done to the tensor on the way, in transformers' own words.
        joined: name in memory → what is done to the tensor that it is stored in with others.
        said_by: the release.
    """

    in_memory: Mapping[str, str] = field(default_factory=dict)
    converted: Mapping[str, str] = field(default_factory=dict)
    joined: Mapping[str, str] = field(default_factory=dict)
    said_by: str = ""


def installed_names(config: Mapping[str, Any], keys: Iterable[str]) -> InstalledNames | None:
    """Return the names in memory of a base's keys; None where no transformers is installed that says any.

    Args:
        config: config.json.
        keys: of all tensors.
    """
    try:
        import transformers  # noqa: PLC0415 - it may not be here, and takes seconds where it is
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping  # noqa: PLC0415
        from transformers.core_model_loading import WeightRenaming  # noqa: PLC0415
    except ImportError:
        return None
    names = [str(name) for name in config.get("architectures") or ()] + [str(config.get("model_type"))]
    found = next((mapping for name in names if (mapping := get_checkpoint_conversion_mapping(name))), None) or []
    text = config.get("text_config")
    if isinstance(text, dict):  # as ``get_model_conversion_mapping`` has it for a model inside another
        for inside in get_checkpoint_conversion_mapping(str(text.get("model_type"))) or []:
            inside.scope_prefix, inside.base_model_prefix = "language_model", "model"
            found = [*found, inside]
    if not found:
        return None
    said = _Said(
        renamings=[it for it in found if isinstance(it, WeightRenaming)],
        converters=[it for it in found if not isinstance(it, WeightRenaming)],
        by=f"transformers {transformers.__version__}",
    )
    for key in sorted(keys, key=_natural):  # the order in which it loads them, on which some of its rules depend
        said.take(key)
    return InstalledNames(in_memory=said.in_memory, converted=said.converted, joined=said.joined, said_by=said.by)


@dataclass(kw_only=True)
class _Said:
    """What is gathered key by key."""

    renamings: list[Any]
    converters: list[Any]
    by: str
    in_memory: dict[str, str] = field(default_factory=dict)
    converted: dict[str, str] = field(default_factory=dict)
    joined: dict[str, str] = field(default_factory=dict)

    def take(self, key: str) -> None:
        """Rename a key by all renamings, then by the first converter that takes it, as the library does."""
        name = key
        for renaming in self.renamings:
            name, _ = renaming.rename_source_key(name)
        for converter in self.converters:
            other, pattern = converter.rename_source_key(name)
            if pattern is None:
                continue
            leaf = _leaf(converter, pattern)
            if leaf is not None:
                name = re.sub(r"\.[^.]+\.weight$", f".{leaf}.weight", name)
                break
            done = ", ".join(type(operation).__name__ for operation in converter.operations)
            self.converted[key] = f"{done} by {self.by}"
            name = other
            first, *others = (str(target) for target in converter.target_patterns)
            self.joined |= {name.replace(first, target, 1): self.converted[key] for target in others}
            break
        if name != key:
            self.in_memory[key] = name


def _leaf(converter: Any, pattern: str) -> str | None:
    """Return what an expert's Linear is called by all, where a converter only puts experts together; else None."""
    operations = {type(operation).__name__ for operation in converter.operations}
    targets = [str(target).rpartition(".")[2] for target in converter.target_patterns]
    leaves = _LEAVES.get(targets[0], ()) if len(targets) == 1 else ()
    sources = list(converter.source_patterns)
    if operations not in _STACKING or len(leaves) != len(sources) or not re.search(r"experts\.\*\.", pattern):
        return None
    return leaves[sources.index(pattern)]


def _natural(key: str) -> list[tuple[bool, int, str]]:
    """Return what sorts numbers as numbers."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in _NATURAL.findall(key)]
