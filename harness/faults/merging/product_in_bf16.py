"""The engine multiplies lora_B and lora_A in bf16, because that is how the model was loaded (peft#1388, peft#1977)."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Compute each delta in bf16, and add it in the precision of the sum."""
    from harness.merge.write.factored_deltas import FactoredDeltas

    def make(_original: Any) -> Any:
        def add(self: Any, total: Any, region: Any, first: int, last: int) -> None:
            for term in region.terms:
                product, expert = self.of(term.contribution), term.expert or 0
                left = product.left[expert, term.offset + first : term.offset + last].bfloat16()
                delta = left @ product.right[expert].bfloat16()
                total.add_(delta.to(total.dtype), alpha=product.scaling)

        return add

    replace(patches, FactoredDeltas, "add", make)


FAULT: Fault = LibraryFault(
    breaks="multiplies lora_B and lora_A in bf16",
    noticed_by=frozenset({"compare/applied", "compare/exact"}),
    during=frozenset({"merge"}),
    plant=plant,
    reference="peft#1977",
)
