"""Two pairs of a single expert become one of twice the rank, and alpha stays: the delta is half of what was trained."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Leave alpha as it was where the configuration of an adapter is converted and its rank is not."""
    from peft.utils import transformers_weight_conversion

    def make(original: Any) -> Any:
        def convert(peft_config: Any, *args: Any, **kwargs: Any) -> None:
            original(peft_config, *args, **kwargs)
            peft_config.alpha_pattern = {}

        return convert

    replace(patches, transformers_weight_conversion, "_convert_peft_config_moe", make)


FAULT: Fault = LibraryFault(
    breaks="doubles the rank of per-expert pairs that it fuses, and not their alpha",
    noticed_by=frozenset({"reload-adapter/per_expert"}),
    cell={"recipe": "lora-per-expert"},
    during=frozenset({"reload-adapter"}),
    plant=plant,
)
