"""Whether the adapter holds what its own configuration targets.

An adapter file that lost tensors (an interrupted upload, a saver that dropped the experts) still merges without a
complaint from anything that only looks at the pairs that are there. So the modules that the configuration targets are
listed from the base, by PEFT's matching rules, and every one must be reached. Expert names in ``target_modules`` are
the exception: on fused experts PEFT 0.18 skips them silently, and such an adapter is complete without them; that
becomes a note.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from harness.merge.adapter.adapter import Adapter
from harness.merge.adapter.patterns import ALL_LINEAR, names_suffix, targets_module
from harness.merge.base.index import Index
from harness.merge.base.names import PARAMETER_OF, kind_of, layer_of, split
from harness.merge.errors import UncoveredTargetsError, UnsafePatternError, counted, listed

NO_LINEARS = frozenset({"lm_head", "embed_tokens"})
"""What ``all-linear`` leaves out: the output layer, and an embedding is no Linear."""
MAY_BE_SKIPPED = frozenset({"expert", "router"})
"""Kinds that are no Linears in transformers 5, so that target_modules may name them without effect."""


def _linears(index: Index, num_layers: int) -> Iterator[tuple[str, str]]:
    """Yield (common spelling, spelling on disk) of all Linears in the decoder, fused experts as the Linears that they
    hold.
    """
    for on_disk, weight in index.weights.by_key.items():
        key = index.in_memory(on_disk)
        parts = split(key)
        stem = parts[1] if parts else key
        if (
            (parts is not None or stem.endswith("lm_head.weight"))
            and key.endswith(".weight")
            and len(weight.shape) == 2  # noqa: PLR2004 - a matrix
            and (layer_of(key) or 0) < num_layers
        ):
            yield index.common(key).removesuffix(".weight"), stem.removesuffix(".weight")
    for path in index.experts:
        if (layer_of(path) or 0) >= num_layers:
            continue
        for parameter in index.expert_parameters(path).values() if _is_decoder(path) else ():
            if parameter.fused_key is not None:
                for expert in range(parameter.num_experts):
                    yield from ((f"{path}.{expert}.{part}",) * 2 for part in parameter.parts)


def _is_decoder(path: str) -> bool:
    return split(path) is not None


def _parameter(stem: str) -> str:
    """Return the parameter that a Linear is in memory when it is targeted as one.

    That is its weight, or the fused expert parameter.
    """
    if kind_of(stem) == "expert":
        path, _, leaf = stem.rpartition(".")
        if leaf in PARAMETER_OF:
            return f"{path.rpartition('.')[0]}.{PARAMETER_OF[leaf]}"
    return f"{stem}.weight"


def check_coverage(index: Index, adapter: Adapter, reached: frozenset[str]) -> tuple[str, ...]:
    """Prove that every targeted Linear or parameter of the decoder is reached; return notes.

    Args:
        index: the base.
        adapter: the adapter, whose configuration says what is targeted.
        reached: common spellings of all Linears that a pair changes, fused experts as
            ``layers.0.mlp.experts.3.gate_proj``.

    Raises:
        UncoveredTargetsError: some are not; lists them.
    """
    config = adapter.config
    layers = [layer for pair in adapter.pairs if (layer := layer_of(pair.module)) is not None]
    num_layers = index.base.num_hidden_layers or max(layers, default=-1) + 1
    prefixes = sorted({parts[0] for pair in adapter.pairs if (parts := split(pair.module))})
    prefix = prefixes[0] if prefixes else "model."
    missing: list[str] = []
    groups: dict[tuple[str, str], dict[bool, list[str]]] = defaultdict(lambda: {True: [], False: []})
    for stem, on_disk in sorted(set(_linears(index, num_layers))):
        front = "" if stem == "lm_head" else prefix
        if stem not in reached and config.target_parameters:
            parameters = {f"{front}{_parameter(stem)}", f"{front}{on_disk}.weight"}
            if any(names_suffix(name, config.target_parameters) for name in parameters):
                missing.append(stem)
        names = {f"{front}{stem}", f"{front}{on_disk}"}
        try:
            targeted = any(
                targets_module(
                    name,
                    layer_of(name),
                    target_modules=config.target_modules,
                    exclude_modules=config.exclude_modules,
                    layers_to_transform=config.layers_to_transform,
                )
                for name in names
            ) and not any(config.exclude_modules.covers(name) for name in names)
        except UnsafePatternError as error:
            return (f"{error.message} So it was not checked that the adapter is complete.",)
        if targeted and not (config.target_modules.text == ALL_LINEAR and stem in NO_LINEARS):
            groups[stem.rpartition(".")[2], kind_of(f".{stem}")][stem in reached].append(stem)
    notes: list[str] = []
    for (leaf, kind), stems in groups.items():
        if not stems[True] and (kind in MAY_BE_SKIPPED or config.target_modules.text == ALL_LINEAR):
            notes.append(
                f"target_modules names {leaf}, but the adapter holds no LoRA for any {kind} {leaf}: PEFT skips fused"
                " experts."
            )
        else:
            missing += stems[False]
    if missing:
        raise UncoveredTargetsError(
            f"the adapter's configuration targets {counted(len(set(missing)), 'tensor')} that none of its"
            f" lora pairs reach: {listed(set(missing))}.",
            "The adapter is incomplete, or was made for another model; save or download it again.",
        )
    return tuple(notes)
