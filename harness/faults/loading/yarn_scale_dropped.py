"""YaRN's frequencies are used, and attention scores do not grow by the factor that goes with them.

transformers 4.57.6 takes no YaRN at all from a configuration of DeepSeek-V3's that 5.23.0 wrote.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace
from harness.faults.places import modeling


def plant(patches: ExitStack) -> None:
    """Leave the scale of scores as it is without YaRN."""

    def make(_original: Any) -> Any:
        def scale(_rope_parameters: Any, scaling: float) -> float:
            return scaling

        return scale

    replace(patches, modeling("deepseek_v3"), "yarn_apply_mscale", make)


FAULT: Fault = LibraryFault(
    breaks="drops the growth of scores that goes with YaRN",
    noticed_by=frozenset({"load/definition"}),
    cell={"family": "deepseek_v3"},
    plant=plant,
)
