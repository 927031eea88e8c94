"""What releases of the libraries under test call things: every call of ours is adapted to the release here.

A call of ours that is newer than the stack would be a red of ours. Each entry says from which release on today's name
is known. What is older than ``harness.contract.supported.OLDEST`` is refused before a cell starts, so nothing here has
to know it. Compared with nothing but the standard library: a worker imports only what is under test.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from harness.worker.observation import UnsupportedError

OPTIONAL = {"average_tokens_across_devices", "use_cpu", "include_num_input_tokens_seen"}
"""Options of SFTConfig that some supported release lacks, and without which training means the same."""

RENAMED = {"max_length": "max_seq_length"}
"""Options of SFTConfig: today's name → the name in older releases."""

FEATURES = {"assistant_only_loss": "0.19", "chat_template_path": "0.19"}
"""Options of SFTConfig that are features, and the release of trl that they came with.

A recipe that asks for one means nothing where it is not.
"""


def release(version: str) -> tuple[int, int]:
    """Return (major, minor) of a version such as ``5.5.0``, ``5.0.0rc3``, ``5.1rc1`` or ``0.19.2.dev0``."""
    found = re.match(r"(\d+)(?:\.(\d+))?", version)
    if found is None:
        raise ValueError(f"{version!r} begins with no number")
    return int(found[1]), int(found[2] or 0)


def dtype_argument(version: str) -> str:
    """Return what ``from_pretrained`` of a release of transformers calls the dtype to load in.

    ``dtype`` is known from 4.56.0 on. Before, it reaches the model's ``__init__``, which does not know it.
    """
    return "dtype" if release(version) >= (4, 56) else "torch_dtype"


def installed_dtype_argument() -> str:
    """Return the same for the installed transformers, which is not imported for it; today's name where none is."""
    try:
        return dtype_argument(metadata.version("transformers"))
    except metadata.PackageNotFoundError:  # the reference engine needs none
        return "dtype"


def loaded_in(dtype: Any) -> dict[str, Any]:
    """Return the argument of ``from_pretrained`` that has a model loaded in a dtype, as this transformers calls it."""
    return {installed_dtype_argument(): dtype}


def known_to_trainer(config_class: Any, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of SFTConfig under the names that this release of TRL has for them.

    TRL renames and drops options between releases. An option that this release does not have is left out only when it
    is listed as one that came or went. So a new rename fails instead of being ignored.

    Args:
        config_class: SFTConfig.
        wanted: the options by today's names.

    Raises:
        UnsupportedError: this release lacks a feature that is asked for.
        TypeError: it lacks an option that is neither optional nor renamed.
    """
    known = {field.name for field in dataclasses.fields(config_class)}
    options = {name if name in known else RENAMED.get(name, name): value for name, value in wanted.items()}
    unknown = sorted(set(options) - known - OPTIONAL)
    if features := [name for name in unknown if name in FEATURES]:
        came = ", ".join(f"{name} came with {FEATURES[name]}" for name in features)
        raise UnsupportedError(f"this release of trl has no SFTConfig option {', '.join(features)} ({came})")
    if unknown:
        raise TypeError(f"this release of trl has no SFTConfig option {', '.join(unknown)}")
    return {name: value for name, value in options.items() if name in known}


def known_to_lora(config_class: Any, told: Mapping[str, Any]) -> dict[str, Any]:
    """Return what LoraConfig is told of targets, which a release may not understand.

    ``target_parameters``, which fused experts need, came with peft 0.17.0.

    Raises:
        UnsupportedError: this release does not.
    """
    lacking = sorted(set(told) - {field.name for field in dataclasses.fields(config_class)})
    if lacking:
        raise UnsupportedError(f"this release of peft has no LoraConfig option {', '.join(lacking)}")
    return dict(told)
