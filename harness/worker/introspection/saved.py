"""PEFT's deltas as they lie on disk: added to the model's own parameters, and saved by transformers itself.

So a layout that nobody has written down is judged without a reading of it. The base is loaded in float64 and saved, and
once more with the deltas in its parameters. What differs between the two, tensor by tensor, is what a merge must add.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.worker.introspection.layout import save_tensors
from harness.worker.releases import loaded_in


class NotSavedAsLoadedError(RuntimeError):
    """transformers does not write the base that it has loaded, so what it writes of a merge says nothing."""


def deltas_on_disk(base: Path, deltas: Mapping[str, Any]) -> dict[str, Any]:
    """Return the delta of each tensor on disk, float64, for all that transformers writes: key → delta.

    Args:
        base: the checkpoint's directory.
        deltas: ``module`` or ``module:parameter`` → delta of that parameter, float64 (``stages.deltas``).

    Raises:
        NotSavedAsLoadedError: a tensor of the base comes back under another key, or with other numbers.
    """
    import torch

    from harness.worker.stages.shards import read_weights

    model = load_exactly(base)
    before, _ = save_tensors(model)
    _check_same(read_weights(base).tensors, before)
    with torch.no_grad():
        for name, delta in deltas.items():
            module, _, parameter = name.partition(":")
            weight = model.get_submodule(module).get_parameter(parameter or "weight")
            weight += delta.reshape(weight.shape)
    after, _ = save_tensors(model)
    return {key: after[key].double() - before[key].double() for key in before if before[key].is_floating_point()}


def load_exactly(base: Path) -> Any:
    """Load the base in float64 on the CPU."""
    import torch

    from harness.worker.stages.load import auto_class

    return auto_class(base).from_pretrained(base, **loaded_in(torch.float64)).double()


def _check_same(base: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Hold what transformers has saved of the base against the base."""
    import torch

    wrong = sorted(base.keys() ^ saved.keys())
    wrong += [key for key in base.keys() & saved.keys() if not torch.equal(base[key].double(), saved[key].double())]
    if wrong:
        shown = ", ".join(wrong[:4])
        raise NotSavedAsLoadedError(f"save_pretrained does not write what from_pretrained has read: {shown}")
