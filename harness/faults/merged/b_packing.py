"""lora_B's flat axis read the other way round: same shapes, same norms, the wrong experts.

PEFT packs ``rank_major``: column j belongs to expert ``j % E`` (``ParamWrapper.get_delta_weight``, 0.18.0 to 0.21.2).
unsloth-zoo read ``j // r`` up to 2026.9.5 (unsloth-zoo#1269). No shape tells the two apart.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from harness.faults.fault import Facts, Fault, MergeFault, Site

RELATIVE_TOLERANCE = 1e-9
"""How near its own right reading must come to PEFT's delta, relative to the largest element: both are float64 sums."""


class MisreadError(RuntimeError):
    """Read with the right packing, the adapter does not give PEFT's own delta.

    Then its wrong reading would prove nothing.
    """


def applies(facts: Facts) -> bool:
    """With one expert, or rank 1, both readings are the same bytes."""
    return facts.b_packing is not None and facts.num_experts is not None and facts.num_experts > 1 and facts.rank > 1


def plant(site: Site) -> None:
    """Write a merge whose fused experts are misread and whose other tensors are right.

    Raises:
        MisreadError: the adapter, read rightly, does not give PEFT's own delta.
    """
    import torch

    adapters, packing, layout = _adapters(site), str(site.facts.b_packing), site.facts.io_layout
    other = {"rank_major": "grouped_by_expert", "grouped_by_expert": "rank_major"}[packing]
    deltas = dict(site.deltas)
    for pair, name in site.pairs.items():
        if ":" not in name:
            continue
        right, wrong = (torch.zeros_like(site.deltas[name]) for _ in range(2))
        for saved, scaling in adapters:
            if f"{pair}.lora_A.weight" in saved:
                a, b = (saved[f"{pair}.lora_{part}.weight"].double() for part in "AB")
                right += expert_deltas(a, b, scaling(pair), right.shape, packing, layout)
                wrong += expert_deltas(a, b, scaling(pair), right.shape, other, layout)
        distance = float((right - site.deltas[name]).abs().max())
        if not distance <= RELATIVE_TOLERANCE * float(site.deltas[name].abs().max()):
            raise MisreadError(f"{name}: {distance:.3g} away from PEFT's own delta when read as {packing}")
        deltas[name] = wrong
    site.write(deltas)


def _adapters(site: Site) -> list[tuple[dict[str, Any], Callable[[str], float]]]:
    """Return the tensors of every saved adapter, and what scales its pairs: an earlier one has one scale for all."""
    from safetensors.torch import load_file

    found: list[tuple[dict[str, Any], Callable[[str], float]]] = [
        (load_file(site.adapter / "adapter_model.safetensors"), site.scalings.__getitem__)
    ]
    for file in sorted(site.adapter.glob("*/adapter_model.safetensors")):
        config = json.loads((file.parent / "adapter_config.json").read_text())
        found.append((load_file(file), _always(config["lora_alpha"] / config["r"])))
    return found


def _always(scale: float) -> Callable[[str], float]:
    return lambda _pair: scale


def expert_deltas(
    lora_a: Any, lora_b: Any, scaling: float, shape: tuple[int, ...], packing: str, io_layout: str | None
) -> Any:
    """Return the delta of a fused parameter, expert by expert: (E, out, in) float64.

    Args:
        lora_a: (E * r, a); row e * r + k is rank k of expert e, in both packings.
        lora_b: (b, E * r); rank k of expert e is column k * E + e (``rank_major``) or e * r + k
            (``grouped_by_expert``).
        scaling: what their product is multiplied with.
        shape: (E, out, in).
        packing: how to read lora_b.
        io_layout: ``standard``: a = in, b = out; ``swapped``: a = out, b = in.
    """
    import torch

    experts = shape[0]
    rank = lora_a.shape[0] // experts
    found = torch.empty(shape, dtype=torch.float64)
    for e in range(experts):
        columns = [k * experts + e if packing == "rank_major" else e * rank + k for k in range(rank)]
        product = scaling * lora_b[:, columns] @ lora_a[e * rank : (e + 1) * rank]
        found[e] = product if io_layout == "standard" else product.T
    return found


FAULT: Fault = MergeFault(
    breaks="reads lora_B of fused experts in the other packing",
    where="merged",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    control=True,
    applies=applies,
    plant=plant,
    reference="unsloth-zoo#1269",
)
