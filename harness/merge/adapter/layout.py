"""Which io layout and which B packing an adapter on fused experts has: decided in the open, never guessed.

io layout. For a parameter (num_experts, out, in), PEFT up to and including 0.19.0 gives lora_A the output features and
lora_B the input features (``swapped``: delta[e] = (B_e A_e)^T); from 0.19.1 it is the other way round (``standard``:
delta[e] = B_e A_e; huggingface/peft#3165, ``lora.layer.ParamWrapper.update_layer``). Shapes show it, except for a
square parameter; gate_up_proj (2I, H) and down_proj (H, I) cannot both be square, so the whole adapter usually settles
it. Where it does not, the ``peft_version`` in adapter_config.json does, and where that is missing too a flag has to.

B packing. ``ParamWrapper.get_delta_weight`` reads lora_B (b, num_experts * r) as (b, r, num_experts): column j belongs
to expert ``j % num_experts`` (``rank_major``; unchanged in 0.18.0 to 0.21.2). unsloth-zoo up to 2026.9.5 meant ``j //
r`` (``grouped_by_expert``), and newer trainers say which in ``lora_B_layout``. Nothing in the shapes shows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from harness.merge.errors import AmbiguousLayoutError, LayoutContradictionError, MalformedAdapterError

IoLayout = Literal["standard", "swapped"]
BPacking = Literal["rank_major", "grouped_by_expert"]
IO_LAYOUTS: tuple[IoLayout, ...] = ("standard", "swapped")
B_PACKINGS: tuple[BPacking, ...] = ("rank_major", "grouped_by_expert")

_RELEASE = re.compile(r"(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?(.*)")
LAST_SWAPPED = (0, 19, 0)
FIRST_STANDARD = (0, 19, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A layout or packing and what decided it: ``shape``, ``provenance``, ``flag``, ``peft-default`` or ``marker``."""

    value: str
    by: str

    def to_json(self) -> dict[str, str]:
        """Return ``{"value": …, "by": …}``."""
        return {"value": self.value, "by": self.by}


def parameter_readings(
    features: tuple[int, int], parameters: Mapping[str, tuple[int, int]]
) -> frozenset[tuple[str, IoLayout]]:
    """Return every (parameter, io layout) under which a pair's shapes fit.

    Args:
        features: (a_features, b_features): columns of lora_A, rows of lora_B.
        parameters: the fused parameters that the pair may belong to: name to (out, in) of one expert.
    """
    readings: set[tuple[str, IoLayout]] = set()
    for name, (out_features, in_features) in parameters.items():
        if features == (in_features, out_features):
            readings.add((name, "standard"))
        if features == (out_features, in_features):
            readings.add((name, "swapped"))
    return frozenset(readings)


def layout_of_peft(version: str | None) -> IoLayout | None:
    """Return the io layout that a release of PEFT writes for (num_experts, out, in) parameters, or None when it does
    not tell.

    Versions between 0.19.0 and 0.19.1 (development snapshots, pre-releases) may be on either side of the change.
    """
    match = _RELEASE.fullmatch(version or "")
    if match is None:
        return None
    release = (int(match[1]), int(match[2]), int(match[3] or 0))
    final = not match[4] or match[4].startswith((".post", "+", "@"))
    if release <= LAST_SWAPPED:
        return "swapped"
    return "standard" if release > FIRST_STANDARD or final else None


def decide_io_layout(
    possible: Iterable[tuple[str, frozenset[IoLayout]]],
    *,
    peft_version: str | None,
    recorded: IoLayout | None,
    flag: IoLayout | None,
) -> Decision:
    """Decide the io layout of a whole adapter.

    Args:
        possible: for each fused pair, its module and the layouts that its shapes allow (one or two).
        peft_version: from adapter_config.json, for messages.
        recorded: the layout that this release gives the family's parameters, None when that does not tell.
        flag: what the user said, if anything. It settles what shapes leave open and outranks the recorded version,
            but cannot outrank shapes.

    Raises:
        LayoutContradictionError: two pairs, or shapes and the flag, or shapes and the version say different things.
        AmbiguousLayoutError: nothing says which.
    """
    decided: dict[IoLayout, str] = {}
    for module, layouts in possible:
        if len(layouts) == 1:
            decided.setdefault(next(iter(layouts)), module)
    if len(decided) > 1:
        told = ", ".join(f"{module} is {layout}" for layout, module in sorted(decided.items()))
        raise LayoutContradictionError(f"the adapter mixes io layouts by its shapes: {told}.")
    shown = next(iter(decided), None)
    if flag is not None:
        if shown not in {None, flag}:
            raise LayoutContradictionError(
                f"--io-layout {flag} was given, but the shapes of {decided[shown]} are {shown}."
            )
        return Decision(value=flag, by="flag")
    if shown is not None:
        if recorded not in {None, shown}:
            raise LayoutContradictionError(
                f"the shapes of {decided[shown]} are {shown}, but PEFT {peft_version}, which adapter_config.json names,"
                f" writes {recorded}.",
                f"If the adapter was converted after training, confirm with --io-layout {shown}.",
            )
        return Decision(value=shown, by="shape")
    if recorded is None:
        raise AmbiguousLayoutError(
            "every expert parameter that the adapter targets is square, so its shapes do not show the io layout, and"
            " adapter_config.json names no PEFT release that would tell for this model"
            f" (peft_version = {str(peft_version)[:40]!r}).",
            "Say it with --io-layout: swapped for adapters made with PEFT 0.19.0 or earlier, standard from 0.19.1 on.",
        )
    return Decision(value=recorded, by="provenance")


def decide_b_packing(marker: object, flag: BPacking | None) -> Decision:
    """Decide how lora_B's flat axis is packed: the flag, else the marker of the adapter, else PEFT's definition.

    Raises:
        MalformedAdapterError: the marker has a value that nobody defined, and no flag overrides it.
    """
    if flag is not None:
        return Decision(value=flag, by="flag")
    if marker is None:
        return Decision(value="rank_major", by="peft-default")
    if marker not in B_PACKINGS:
        raise MalformedAdapterError(
            f"adapter_config.json: lora_B_layout is {str(marker)[:80]!r}; known are {', '.join(B_PACKINGS)}.",
            "If you know which it is, say so with --b-packing.",
        )
    return Decision(value=str(marker), by="marker")
