"""What each tensor of an adapter file is, by its key.

Key layout: ``peft.utils.save_and_load.get_peft_model_state_dict`` (0.18.0 to 0.21.2), after the adapter's own name is
taken off. Observed in what PEFT writes: a LoRA's parts hang on the module's path; weights that were trained or resized
in full appear under the plain path, or below ``base_layer`` where the module has a LoRA as well, or below
``token_adapter.base_layer`` where some of its tokens are trained; a resized and fully trained embedding appears three
times, once more below ``modules_to_save`` and, untrained, below ``original_module``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from harness.merge.errors import MalformedAdapterError, UnsupportedAdapterError, listed

PREFIX = "base_model.model."

Role = Literal[
    "lora_A",
    "lora_B",
    "lora_bias",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
    "tokens",
    "full",
    "spare",
]
"""``full``: a whole tensor, whose key follows; ``spare``: a copy that PEFT leaves in the file and does not need."""

_PARTS: tuple[tuple[Role, str, str], ...] = (
    ("lora_A", r"\.lora_A", r"\.weight"),
    ("lora_B", r"\.lora_B", r"\.weight"),
    ("lora_bias", r"\.lora_B", r"\.bias"),
    ("lora_embedding_A", r"\.lora_embedding_A", ""),
    ("lora_embedding_B", r"\.lora_embedding_B", ""),
    ("lora_magnitude_vector", r"\.lora_magnitude_vector", r"(?:\.weight)?"),
    ("tokens", r"\.token_adapter\.trainable_tokens_delta", ""),
)
_PATTERNS = tuple(
    (role, re.compile(rf"(?P<module>.+){front}(?:\.(?P<name>(?!weight$|bias$)[^.]+))?{back}"))
    for role, front, back in _PARTS
)
_WRAPPED = re.compile(r"(?P<module>.+?)(?:\.token_adapter)?\.base_layer\.(?P<leaf>weight|bias)")
_SPARE = re.compile(r".+?\.(?:original_module|modules_to_save)\..++(?<!\.)")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterKey:
    """One classified key.

    Attributes:
        role: what the tensor is.
        module: the path in memory without PEFT's prefix; for ``full`` the parameter's whole path.
        name: the adapter's name, where the file still has it (files that ``save_pretrained`` did not write).
        wrapped: whether a full tensor is the one below a LoRA or below trained tokens, which are applied on top.
    """

    role: Role
    module: str
    name: str | None = None
    wrapped: bool = False


def classify(key: str) -> AdapterKey:
    """Return what the tensor called ``key`` is.

    Raises:
        UnsupportedAdapterError: the key is none that PEFT's LoRA writes.
    """
    if not key.startswith(PREFIX):
        raise UnsupportedAdapterError(
            f"the adapter holds {key}, which does not start with {PREFIX}: no key of PEFT's layout."
        )
    path = key.removeprefix(PREFIX)
    for role, pattern in _PATTERNS:
        if match := pattern.fullmatch(path):
            return AdapterKey(role=role, module=match["module"], name=match["name"])
    if "lora_" in path or "trainable_tokens_" in path or "ranknum" in path:
        raise UnsupportedAdapterError(
            f"the adapter holds {key}, a part of a LoRA variant that this engine does not merge."
        )
    if _SPARE.fullmatch(path):
        return AdapterKey(role="spare", module=path)
    if match := _WRAPPED.fullmatch(path):
        return AdapterKey(role="full", module=f"{match['module']}.{match['leaf']}", wrapped=True)
    return AdapterKey(role="full", module=path)


def check_one_name(keys: Iterable[AdapterKey]) -> None:
    """Prove that the keys belong to one adapter.

    Raises:
        MalformedAdapterError: they carry different names, or only some of them carry one.
    """
    names = {key.name for key in keys if key.role not in {"full", "spare"}}
    if len(names) > 1:
        told = listed(name or "none" for name in names)
        raise MalformedAdapterError(
            f"the adapter's keys carry different adapter names: {told}.",
            "Save each adapter with PEFT's save_pretrained.",
        )
