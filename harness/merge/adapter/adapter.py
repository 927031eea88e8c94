"""A PEFT LoRA adapter as its configuration and header describe it: typed pairs, full tensors and trained tokens.

No data is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.merge.adapter.config import AdapterConfig, parse_adapter_config
from harness.merge.adapter.keys import Role, check_one_name, classify
from harness.merge.adapter.patterns import names_suffix, names_within
from harness.merge.errors import (
    InputNotFoundError,
    MalformedAdapterError,
    UnsafeFormatError,
    UnsupportedAdapterError,
    listed,
)
from harness.merge.files.confine import confined, open_root
from harness.merge.files.json_file import read_object
from harness.merge.files.safetensors_file import TensorFile, TensorInfo, read_header

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
FLOAT_DTYPES = ("F32", "BF16", "F16")

EMBEDDINGS = frozenset({"embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "word_embeddings"})
"""Modules that PEFT saves whole when they were resized or have a LoRA (``peft.utils.constants.EMBEDDING_LAYER_NAMES``
and what the models call them).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraPair:
    """One lora_A and its lora_B.

    Attributes:
        module: the path of the wrapped module in memory, without PEFT's prefix: ``model.layers.0.self_attn.q_proj``, or
            for a fused expert parameter ``model.layers.0.mlp.experts`` or ``model.layers.0.mlp.experts.base_layer``.
        lora_A: (columns, a_features). columns is the rank, or num_experts times it.
        lora_B: (b_features, columns).
        embedding: whether they are lora_embedding_A (rank, vocabulary) and lora_embedding_B (features, rank).
        bias: (b_features,).
        magnitude: DoRA's, (b_features,).
    """

    module: str
    lora_A: TensorInfo  # noqa: N815 - the field's name for it
    lora_B: TensorInfo  # noqa: N815
    embedding: bool = False
    bias: TensorInfo | None = None
    magnitude: TensorInfo | None = None

    @property
    def columns(self) -> int:
        """The shared dimension: the rank of a Linear's LoRA, num_experts times the rank of a fused parameter's."""
        return self.lora_A.shape[0]

    @property
    def features(self) -> tuple[int, int]:
        """(a_features, b_features): columns of lora_A and rows of lora_B."""
        return self.lora_A.shape[1], self.lora_B.shape[0]

    @property
    def shapes(self) -> str:
        """Both shapes, for messages."""
        return f"lora_A {list(self.lora_A.shape)}, lora_B {list(self.lora_B.shape)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FullTensor:
    """A tensor that replaces the base's.

    ``path``: the parameter's path in memory; ``wrapped``: deltas of the same module go on top.
    """

    path: str
    info: TensorInfo
    wrapped: bool


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A validated adapter; ``pairs`` are sorted by module, ``full`` by path.

    ``tokens`` are trained rows (count, features) by module.
    """

    root: Path
    config: AdapterConfig
    file: TensorFile
    pairs: tuple[LoraPair, ...]
    full: tuple[FullTensor, ...] = ()
    tokens: Mapping[str, TensorInfo] = field(default_factory=dict)


_DIMENSIONS: Mapping[Role, int] = {
    "lora_A": 2, "lora_B": 2, "lora_embedding_A": 2, "lora_embedding_B": 2, "tokens": 2, "lora_bias": 1,
    "lora_magnitude_vector": 1,
}  # fmt: skip


def _sorted_by_role(file: TensorFile) -> dict[Role, dict[str, TensorInfo]]:
    """Return the file's tensors by role and module, dtypes and dimensions checked."""
    keys = {key: classify(key) for key in file.tensors}
    check_one_name(keys.values())
    found: dict[Role, dict[str, TensorInfo]] = {role: {} for role in (*_DIMENSIONS, "full", "spare")}
    for key, named in keys.items():
        info = file.tensors[key]
        if named.role == "spare":
            continue
        if info.dtype not in FLOAT_DTYPES:
            raise UnsupportedAdapterError(
                f"the adapter's {key} is {info.dtype}; only {', '.join(FLOAT_DTYPES)} are merged."
            )
        wanted = _DIMENSIONS.get(named.role)
        if wanted is not None and len(info.shape) != wanted:
            convolution = "; LoRA on convolutions is not merged" if len(info.shape) > 2 else ""  # noqa: PLR2004 - a matrix
            raise UnsupportedAdapterError(
                f"the adapter's {key} has {len(info.shape)} dimensions, not {wanted}{convolution}."
            )
        if named.module in found[named.role]:
            raise MalformedAdapterError(f"the adapter holds two tensors for {named.module} ({named.role}).")
        found[named.role][named.module] = info
    return found


def _pairs(found: Mapping[Role, Mapping[str, TensorInfo]]) -> tuple[LoraPair, ...]:
    """Return the lora pairs, every half with its other half and every extra with its pair."""
    pairs: dict[str, LoraPair] = {}
    for roles, embedding in ((("lora_A", "lora_B"), False), (("lora_embedding_A", "lora_embedding_B"), True)):
        first, second = found[roles[0]], found[roles[1]]  # type: ignore[index]  # both are roles
        if lonely := first.keys() ^ second.keys():
            raise MalformedAdapterError(
                f"{roles[0]} without {roles[1]}, or the reverse, for: {listed(lonely)}.", "Save the adapter again."
            )
        for module in first:
            if module in pairs:
                raise MalformedAdapterError(f"{module} has a LoRA both as a Linear and as an embedding.")
            pairs[module] = LoraPair(
                module=module,
                lora_A=first[module],
                lora_B=second[module],
                embedding=embedding,
                bias=found["lora_bias"].get(module),
                magnitude=found["lora_magnitude_vector"].get(module),
            )
    for role in ("lora_bias", "lora_magnitude_vector"):
        if lonely := found[role].keys() - pairs.keys():
            raise MalformedAdapterError(f"{role} without lora_A and lora_B for: {listed(lonely)}.")
    for pair in pairs.values():
        if pair.lora_A.shape[0] != pair.lora_B.shape[1]:
            raise MalformedAdapterError(f"lora_A and lora_B of {pair.module} do not fit together: {pair.shapes}.")
    return tuple(pairs[module] for module in sorted(pairs))


def _check_features(config: AdapterConfig, pairs: tuple[LoraPair, ...]) -> None:
    """Hold DoRA's and lora_bias's tensors against the configuration; they must be there for all pairs or none."""
    for name, wanted, role in (("use_dora", config.use_dora, "magnitude"), ("lora_bias", config.lora_bias, "bias")):
        odd = [
            pair.module
            for pair in pairs
            if (getattr(pair, role) is not None) != wanted and not (role == "bias" and pair.embedding)
        ]
        if odd:
            raise MalformedAdapterError(
                f"adapter_config.json has {name} = {str(wanted).lower()}, but the adapter"
                f" {'lacks' if wanted else 'holds'} the tensors of it for: {listed(odd)}.",
                "The configuration does not belong to these weights; save the adapter again.",
            )


def _check_full(config: AdapterConfig, full: tuple[FullTensor, ...]) -> None:
    """Refuse a whole tensor that nothing in the configuration explains: it would silently replace the base's."""
    for tensor in full:
        module, _, leaf = tensor.path.rpartition(".")
        if names_suffix(module, EMBEDDINGS) or (config.bias != "none" and "bias" in leaf):
            continue
        if names_within(module, config.modules_to_save):
            continue
        raise UnsupportedAdapterError(
            f"the adapter holds the whole tensor {tensor.path}, which neither modules_to_save"
            f" ({listed(config.modules_to_save) or 'empty'})"
            f" nor bias ({config.bias}) explains."
        )


def open_adapter(path: Path) -> Adapter:
    """Return the adapter in a directory, validated from its configuration and header.

    Raises:
        InputNotFoundError: no such directory, or the adapters are in folders of their own below it.
        UnsafeFormatError: the weights are a pickle.
        UnsupportedAdapterError: a feature that is not merged, by name.
        InputRefusedError: corrupt or malformed in one of the ways its subclasses name.
    """
    root = open_root(path, "adapter")
    below = sorted(folder.parent.name for folder in root.glob(f"*/{ADAPTER_CONFIG}"))
    if below and not (root / ADAPTER_CONFIG).exists():
        raise InputNotFoundError(
            f"the adapter directory holds no {ADAPTER_CONFIG}, but named adapters: {listed(below)}.",
            f"Name one of them: {path / below[0]}.",
        )
    config = parse_adapter_config(read_object(confined(root, ADAPTER_CONFIG)))
    if not (root / ADAPTER_FILE).exists() and (root / "adapter_model.bin").exists():
        raise UnsafeFormatError(
            "the adapter's weights are a pickle (adapter_model.bin), which runs code when it is read.",
            "Load it where you trust it and save it with PEFT's default, safetensors.",
        )
    file = read_header(confined(root, ADAPTER_FILE), name=ADAPTER_FILE)
    found = _sorted_by_role(file)
    pairs = _pairs(found)
    wrapped = {named.module for key in file.tensors if (named := classify(key)).wrapped}
    full = tuple(
        FullTensor(path=name, info=info, wrapped=name in wrapped) for name, info in sorted(found["full"].items())
    )
    tokens = dict(sorted(found["tokens"].items()))
    if not pairs and not full and not tokens:
        raise MalformedAdapterError("the adapter holds no tensors: there is nothing to merge.")
    _check_features(config, pairs)
    _check_full(config, full)
    return Adapter(root=root, config=config, file=file, pairs=pairs, full=full, tokens=tokens)
