"""The merged model is loaded with its embedding as output matrix: a flag that was lost, a default that says so.

Trained models had their own (transformers#45127).
"""

from __future__ import annotations

from contextlib import ExitStack

from harness.faults.fault import Fault, LibraryFault
from harness.faults.loading import lm_head_tied


def plant(patches: ExitStack) -> None:
    """Give the loaded model its embedding as output matrix."""
    lm_head_tied.plant(patches)


FAULT: Fault = LibraryFault(
    breaks="ties the output matrix of the merged model to the embedding",
    noticed_by=frozenset({"compare/kl", "compare/logprob", "compare/definition"}),
    during=frozenset({"reload-merged"}),
    plant=plant,
    reference="transformers#45127",
)
