"""The merged model turns positions by the default base of 10000: its rope_theta lies under a key that is not read.

transformers 4.57.6 reads a config.json of 5.x so.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

from harness.faults.breaking import NothingBrokenError
from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_loading

DEFAULT = 10000.0


def plant(patches: ExitStack) -> None:
    """Give every rotary embedding the frequencies of the default base."""

    def change(model: Any) -> None:
        theta = float(model.config.get_text_config().rope_parameters["rope_theta"])
        rotary = [module for module in model.modules() if hasattr(module, "inv_freq")]
        if not rotary or theta == DEFAULT:
            raise NothingBrokenError(f"{len(rotary)} rotary embeddings of base {theta:g}")
        for module in rotary:
            module.inv_freq.copy_(module.inv_freq ** (math.log(DEFAULT) / math.log(theta)))

    after_loading(patches, change)


FAULT: Fault = LibraryFault(
    breaks="loads the merged model with the default rope_theta",
    noticed_by=frozenset({"compare/kl", "compare/logprob", "compare/definition"}),
    during=frozenset({"reload-merged"}),
    plant=plant,
)
