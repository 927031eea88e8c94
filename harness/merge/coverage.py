"""Whether the adapter holds what its own configuration targets.

An adapter file that lost tensors (an interrupted upload, a saver that dropped the experts) still merges without a complaint
from anything that only looks at the pairs that are there. So the modules that the configuration targets are listed from the base, by PEFT's
matching rules, and every one must be reached. Expert names in ``target_modules`` are the exception: on fused experts
PEFT 0.18 skips them silently, and such an adapter is complete without them; that becomes a note.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from harness.merge.adapter import Adapter
from harness.merge.checkpoint import Checkpoint
from harness.merge.errors import UncoveredTargetsError, UnsafePatternError, listed
from harness.merge.names import PARTS, ExpertKeys, kind_of, layer_of, split
from harness.merge.patterns import names_suffix, targets_module

MAY_BE_SKIPPED = frozenset({"expert", "router"})
"""Kinds that are no Linears in transformers 5, so that target_modules may name them without effect."""


def _linears(base: Checkpoint, experts: Mapping[str, ExpertKeys], num_layers: int) -> Iterator[str]:
    """Yield the stems of all Linears in the decoder, fused experts as the Linears that they stack."""
    for key in base.shard_of:
        parts = split(key)
        if (
            parts is not None
            and parts[1].endswith(".weight")
            and len(base.info(key).shape) == 2  # noqa: PLR2004 - a matrix
            and (layer_of(key) or 0) < num_layers
        ):
            yield parts[1].removesuffix(".weight")
    for path, keys in experts.items():
        parts = split(path)
        if parts is None or (layer_of(path) or 0) >= num_layers:
            continue
        for parameter, key in keys.fused.items():
            for expert in range(base.info(key).shape[0]):
                yield from (f"{parts[1]}.{expert}.{part}" for part in PARTS[parameter])


def _parameter(stem: str) -> str:
    """Return the parameter that a Linear is in memory when it is targeted as one: its weight, or the fused expert parameter."""
    if kind_of(stem) == "expert":
        path, _, leaf = stem.rpartition(".")
        for parameter, parts in PARTS.items():
            if leaf in parts:
                return f"{path.rpartition('.')[0]}.{parameter}"
    return f"{stem}.weight"


def check_coverage(
    base: Checkpoint, adapter: Adapter, experts: Mapping[str, ExpertKeys], reached: frozenset[str]
) -> tuple[str, ...]:
    """Prove that every targeted Linear or parameter of the decoder is reached; return notes.

    Args:
        base: the checkpoint.
        adapter: the adapter, whose configuration says what is targeted.
        experts: the expert keys of the base, by module path.
        reached: stems (paths without the text prefix) of all Linears that a pair changes, fused experts as
            ``layers.0.mlp.experts.3.gate_proj``.

    Raises:
        UncoveredTargetsError: some are not; lists them.
    """
    config = adapter.config
    layers = [layer for pair in adapter.pairs if (layer := layer_of(pair.module)) is not None]
    num_layers = base.num_hidden_layers or max(layers, default=-1) + 1
    prefixes = sorted({parts[0] for pair in adapter.pairs if (parts := split(pair.module))})
    prefix = prefixes[0] if prefixes else "model."
    missing: list[str] = []
    groups: dict[tuple[str, str], dict[bool, list[str]]] = defaultdict(lambda: {True: [], False: []})
    for stem in sorted(set(_linears(base, experts, num_layers))):
        name = f"{prefix}{stem}"
        if stem not in reached and names_suffix(f"{prefix}{_parameter(stem)}", config.target_parameters):
            missing.append(stem)
        try:
            targeted = targets_module(
                name,
                layer_of(name),
                target_modules=config.target_modules,
                exclude_modules=config.exclude_modules,
                layers_to_transform=config.layers_to_transform,
            )
        except UnsafePatternError:
            return ("target_modules is too complex a pattern to check that the adapter is complete.",)
        if targeted:
            groups[stem.rpartition(".")[2], kind_of(f".{stem}")][stem in reached].append(stem)
    notes: list[str] = []
    for (leaf, kind), stems in groups.items():
        if not stems[True] and (kind in MAY_BE_SKIPPED or config.target_modules == "all-linear"):
            notes.append(
                f"target_modules names {leaf}, but the adapter holds no LoRA for any {kind} {leaf}: PEFT skips fused experts."
            )
        else:
            missing += stems[False]
    if missing:
        raise UncoveredTargetsError(
            f"the adapter's configuration targets {len(set(missing))} tensors that none of its lora pairs reach:"
            f" {listed(set(missing))}.",
            "The adapter is incomplete, or was made for another model; save or download it again.",
        )
    return tuple(notes)
