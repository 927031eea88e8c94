"""A PEFT LoRA adapter as its configuration and header describe it: typed pairs of lora_A and lora_B, no data read.

Key layout: ``peft.utils.save_and_load.get_peft_model_state_dict`` (0.18.0 to 0.21.2) writes
``base_model.model.<module>.lora_A.weight`` and ``…lora_B.weight`` with the adapter's name removed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.merge.adapter_config import AdapterConfig, parse_adapter_config
from harness.merge.confine import confined, open_root
from harness.merge.errors import MalformedAdapterError, UnsafeFormatError, UnsupportedAdapterError, listed
from harness.merge.json_file import read_object
from harness.merge.safetensors_file import TensorFile, TensorInfo, read_header

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
LORA_A = ".lora_A.weight"
LORA_B = ".lora_B.weight"
FLOAT_DTYPES = ("F32", "BF16", "F16")

UNSUPPORTED_KEYS = {
    "lora_embedding_": "LoRA on an embedding",
    "lora_magnitude_vector": "DoRA",
    ".lora_B.bias": "a bias on lora_B",
    "trainable_tokens_": "trained token embeddings",
    ".modules_to_save.": "fully trained modules",
}
"""What a key that is no lora_A or lora_B weight belongs to, by a part of its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraPair:
    """One lora_A and its lora_B.

    ``module`` is the path of the wrapped module in memory, without PEFT's prefix: ``model.layers.0.self_attn.q_proj``, or for a
    fused expert parameter ``model.layers.0.mlp.experts`` or ``model.layers.0.mlp.experts.base_layer``.
    ``lora_A``: (columns, a_features), ``lora_B``: (b_features, columns); columns is the rank, or num_experts times it.
    """

    module: str
    lora_A: TensorInfo  # noqa: N815 - the field's name for it
    lora_B: TensorInfo  # noqa: N815

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


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A validated adapter; ``pairs`` are sorted by module."""

    root: Path
    config: AdapterConfig
    file: TensorFile
    pairs: tuple[LoraPair, ...]


def _refuse_key(key: str) -> UnsupportedAdapterError:
    for part, meaning in UNSUPPORTED_KEYS.items():
        if part in key:
            return UnsupportedAdapterError(f"the adapter holds {key}: {meaning}, which this engine does not merge.")
    return UnsupportedAdapterError(
        f"the adapter holds {key}, which is no lora_A or lora_B weight of PEFT's key layout; fully trained modules and"
        " embeddings are not merged by this engine."
    )


def _module(key: str, suffix: str) -> str:
    module = key.removesuffix(suffix)
    return module.removeprefix(PREFIX)


def _pairs(file: TensorFile) -> tuple[LoraPair, ...]:
    halves: dict[str, dict[str, TensorInfo]] = {LORA_A: {}, LORA_B: {}}
    for key, info in file.tensors.items():
        suffix = next((suffix for suffix in halves if key.endswith(suffix)), None)
        if suffix is None or not key.startswith(PREFIX):
            raise _refuse_key(key)
        if info.dtype not in FLOAT_DTYPES:
            raise UnsupportedAdapterError(
                f"the adapter's {key} is {info.dtype}; only {', '.join(FLOAT_DTYPES)} are merged."
            )
        if len(info.shape) != 2:  # noqa: PLR2004 - a matrix
            raise UnsupportedAdapterError(
                f"the adapter's {key} has {len(info.shape)} dimensions; LoRA on convolutions is not merged."
            )
        halves[suffix][_module(key, suffix)] = info
    first, second = halves[LORA_A], halves[LORA_B]
    if lonely := first.keys() ^ second.keys():
        raise MalformedAdapterError(
            f"lora_A without lora_B, or the reverse, for: {listed(lonely)}.", "Save the adapter again."
        )
    pairs = tuple(LoraPair(module=name, lora_A=first[name], lora_B=second[name]) for name in sorted(first))
    for pair in pairs:
        if pair.lora_A.shape[0] != pair.lora_B.shape[1]:
            raise MalformedAdapterError(f"lora_A and lora_B of {pair.module} do not fit together: {pair.shapes}.")
    return pairs


def open_adapter(path: Path) -> Adapter:
    """Return the adapter in a directory, validated from its configuration and header.

    Raises:
        InputNotFoundError: no such directory.
        UnsafeFormatError: the weights are a pickle.
        UnsupportedAdapterError: a feature that is not merged, by name.
        InputRefusedError: corrupt or malformed in one of the ways its subclasses name.
    """
    root = open_root(path, "adapter")
    config = parse_adapter_config(read_object(confined(root, ADAPTER_CONFIG)))
    if not (root / ADAPTER_FILE).exists() and (root / "adapter_model.bin").exists():
        raise UnsafeFormatError(
            "the adapter's weights are a pickle (adapter_model.bin), which runs code when it is read.",
            "Load it where you trust it and save it with PEFT's default, safetensors.",
        )
    file = read_header(confined(root, ADAPTER_FILE), name=ADAPTER_FILE)
    pairs = _pairs(file)
    if not pairs:
        raise MalformedAdapterError("the adapter holds no tensors: there is nothing to merge.")
    return Adapter(root=root, config=config, file=file, pairs=pairs)
