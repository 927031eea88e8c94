"""The base's weights as a merge sees them: plain tensors as they are, quantised ones as the weight that they stand for.

A quantised weight is several tensors on disk (packed values, scales, tables). Each format's file in ``codecs`` finds
its own among the keys and says which tensors make up which weight. Here they become one ``Weight`` with the shape and
dtype that it will have in the output. Everything after this treats it like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.merge.base.checkpoint import Checkpoint
from harness.merge.base.codecs import codecs
from harness.merge.base.weight import PlainSource, Weight
from harness.merge.errors import InconsistentCheckpointError, UnsupportedBaseError, listed

FLOAT_DTYPES = ("F32", "BF16", "F16")
PACKED_DTYPES = frozenset(
    {"U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F4", "F6_E2M3", "F6_E3M2", "I32", "U32"}
)
"""What quantised values are packed in; as a weight that no codec claims they would be left without their scales."""
OUTPUT_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclass(frozen=True, kw_only=True)
class Weights:
    """All weights of a base by key.

    ``dropped`` are tensors that only decode others, ``formats`` the codecs that were needed.
    """

    by_key: Mapping[str, Weight]
    dropped: frozenset[str]
    formats: tuple[str, ...]

    def __getitem__(self, key: str) -> Weight:
        return self.by_key[key]

    def __contains__(self, key: str) -> bool:
        return key in self.by_key


def read_weights(base: Checkpoint) -> Weights:
    """Return the weights of a base.

    Raises:
        UnsupportedBaseError: config.json declares a quantisation that no codec here reads.
        InconsistentCheckpointError: the tensors of a quantised weight do not fit together.
    """
    declared = base.config.get("quantization_config")
    found = {name: quantised for name, codec in codecs().items() if (quantised := codec.find(base))}
    if declared and not found:
        method = declared.get("quant_method") if isinstance(declared, dict) else declared
        raise UnsupportedBaseError(
            f"config.json declares the quantisation {str(method)[:40]!r}, and the base holds no tensor in a format"
            " that is read"
            f" here ({', '.join(codecs())}).",
            "Merge into the 16-bit original of this model.",
        )
    used = {key for quantised in found.values() for source in quantised.values() for key in source.keys}
    weights = {
        key: Weight(key=key, shape=info.shape, dtype=info.dtype, shard=number, source=PlainSource(key=key))
        for number, shard in enumerate(base.shards)
        for key, info in shard.tensors.items()
        if key not in used
    }
    seen: set[str] = set()
    dtype = _output_dtype(base) if found else ""
    for quantised in found.values():
        for key, source in quantised.items():
            if twice := seen.intersection(source.keys):
                raise UnsupportedBaseError(f"two quantised formats claim {listed(twice)}.")
            if key in weights and key not in source.keys:
                raise InconsistentCheckpointError(f"the base stores {key} twice: as it is, and quantised.")
            seen.update(source.keys)
            weights[key] = Weight(
                key=key, shape=source.shape, dtype=dtype, shard=base.shard_of[next(iter(source.keys))], source=source
            )
    strange = [
        key
        for key, weight in weights.items()
        if found
        and isinstance(weight.source, PlainSource)
        and weight.dtype in PACKED_DTYPES
        and "weight" in key.rpartition(".")[2]
    ]
    if strange:
        raise UnsupportedBaseError(
            f"the base is quantised, and these weights are in no format that is decoded here: {listed(strange)}.",
            "Merge into the 16-bit original of this model.",
        )
    kept = {key for quantised in found.values() for key in quantised}
    dropped = frozenset(used - kept)
    return Weights(
        by_key=weights,
        dropped=dropped,
        formats=tuple(sorted(found)),
    )


def _output_dtype(base: Checkpoint) -> str:
    """Return the dtype that dequantised weights are written in: config.json's, else bfloat16, as the libraries load
    them.
    """
    for section in (base.text_config, base.config):
        for name in ("dtype", "torch_dtype"):
            if isinstance(dtype := section.get(name), str) and dtype in OUTPUT_DTYPES:
                return OUTPUT_DTYPES[dtype]
    return "BF16"
