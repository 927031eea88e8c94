"""What is known of a cell once its LoRA is attached, from which it follows which checks apply to it."""

from __future__ import annotations

from dataclasses import dataclass

from harness.contract.tensors import Kind


@dataclass(frozen=True, kw_only=True)
class CellFacts:
    """Facts that a worker reads off the recipe, the checkpoint and the model in memory.

    Attributes:
        kinds: what of the model gets a LoRA.
        quantized: whether the base is quantised while it is trained on.
        fused_experts: whether the model in memory holds its experts as 3D parameters.
        defined: whether ``harness.definitions`` describes the family's architecture.
        plain_batches: whether a step is one batch of rows of one length, each a sequence, computed once.
        resumed: whether training is resumed from a checkpoint, too.
        adapters_on_experts: how many adapters have a LoRA on the routed experts, where any has.
        per_expert: whether the adapter is loaded once more with a pair for every expert's Linear.
        resized: whether the vocabulary was resized, so that embeddings and head are saved and merged, trained or not.
    """

    kinds: tuple[Kind, ...]
    quantized: bool
    fused_experts: bool
    defined: bool = False
    plain_batches: bool = True
    resumed: bool = False
    adapters_on_experts: int = 1
    per_expert: bool = False
    resized: bool = False
