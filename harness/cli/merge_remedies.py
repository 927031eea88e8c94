"""What can be done about each condition that ends a merge, an audit or a conversion, where the engine does not say.

The engine says what to do where it knows something of the case at hand. What is always true of a condition stands here.
"""

from __future__ import annotations

from collections.abc import Mapping

_AGAIN = "Save or download the adapter again; `harness adapter inspect` shows what is in it."
_OTHER = "Look with `harness adapter inspect` what the adapter holds"

REMEDIES: Mapping[str, str] = {
    "IncompleteMergeError": "Nothing was published. Free some space or mend what the message names; --resume goes on.",
    "UsageError": "`harness merge --help` says what the options are.",
    "InputNotFoundError": "Give the directory that holds it.",
    "OutputExistsError": "Give another --out, or --overwrite to replace what is there.",
    "UnsafeOutputError": "Give an --out of its own, beside the inputs.",
    "OverwriteUnsupportedError": "Give an --out that does not exist, and exchange the directories yourself.",
    "ThreadLimitError": "Give fewer --threads, or raise the limit (ulimit -u).",
    "InputRefusedError": "Give another base or adapter, or make this one again.",
    "UnreadableInputError": "See that the file is there and that you may read it, then give the same command again.",
    "CorruptFileError": "Download or save the file again.",
    "UnsafePathError": "Use plain file names inside the directory; download the checkpoint again if it is not yours.",
    "UnsafeFormatError": "Load it where you trust it and save it again as safetensors.",
    "UnsafePatternError": "Write the names out in adapter_config.json, or use a simpler pattern.",
    "InconsistentCheckpointError": "Download the base again: its index, shards and config.json must be of one version.",
    "UnsupportedBaseError": "Merge into the base that is not quantised or converted, and convert the result.",
    "UnsupportedAdapterError": f"{_OTHER}. PEFT's own merge_and_unload may know it, and docs/reference/merge.md says "
    "what is merged here.",
    "MalformedAdapterError": _AGAIN,
    "NonFiniteError": "The training diverged or a file is damaged: look at the loss, or download the file again.",
    "AdapterMismatchError": "Give the base that the adapter was trained on: adapter_config.json names it in "
    "base_model_name_or_path.",
    "UncoveredTargetsError": _AGAIN,
    "AmbiguousLayoutError": "Say which it is with --io-layout: standard from PEFT 0.19.1 on, swapped before.",
    "LayoutContradictionError": f"{_OTHER}; leave out --io-layout, or give the one that its shapes show.",
    "InputChangedError": "Let nothing write to the inputs while they are read, then give the same command again.",
}
"""By the class of the error (``harness.merge.errors``), which the engine's process names."""


def remedy_of(event: Mapping[str, object]) -> str:
    """Return what to do about the error that an engine's process ended with: its own words, else those of its class."""
    own = event.get("remedy")
    return str(own) if own else REMEDIES.get(str(event.get("class")), REMEDIES["InputRefusedError"])
