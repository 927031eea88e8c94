"""What a fault is, what it may know of a cell, and what it is given to break.

A fault is never made by the engine under test, nor by ``harness.merge``: what is broken must be known to be broken for
a reason of its own. It works on the saved adapter and on PEFT's own deltas, by plain arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

Where = Literal["adapter", "merged", "library", "engine"]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What decides whether a fault is one in a cell. All of it stands in the cell's result.

    Attributes:
        dtype: how the checkpoint is stored, ``float32`` or ``bf16``.
        quantized: whether the base was quantised while it was trained on.
        num_experts: experts in each fused parameter that the adapter targets; None where it targets none.
        rank: largest rank of the adapter's pairs.
        io_layout: which factor of a fused parameter faces its input, ``standard`` or ``swapped``; None where nothing is
            fused.
        b_packing: how lora_B's flat axis is ordered, ``rank_major`` or ``grouped_by_expert``; None where nothing is
            fused.
    """

    dtype: str
    quantized: bool
    num_experts: int | None
    rank: int
    io_layout: str | None
    b_packing: str | None

    @classmethod
    def of(cls, adapter: Mapping[str, Any], *, dtype: str, quantized: bool) -> Facts:
        """Return the facts of a cell from a result's ``adapter`` and what else decides.

        Raises:
            KeyError: ``adapter`` does not say what it must.
        """
        names = ("num_experts", "rank", "io_layout", "b_packing")
        return cls(dtype=dtype, quantized=quantized, **{name: adapter[name] for name in names})


@dataclass(frozen=True, kw_only=True)
class Site:
    """What a fault finds when it is planted.

    Attributes:
        facts: of the cell.
        base: the base checkpoint's directory; not to be written to.
        adapter: a copy of the saved adapter's directory, for the engine to merge. A fault of the adapter changes it.
        merged: the directory that a fault of the merged checkpoint makes; absent.
        pairs: key prefix of a saved LoRA pair → the delta it is the factors of.
        deltas: PEFT's own, float64: ``module`` → (out, in), ``module:parameter`` → (E, …).
        write: writes ``merged`` as the base plus the deltas it is given, each added in float64 and rounded once,
            whatever file they go to. A delta that is left out is dropped.
        patches: is closed when the engine has merged. A fault of a library or an engine enters its
            ``unittest.mock.patch.object`` here.
    """

    facts: Facts
    base: Path
    adapter: Path
    merged: Path
    pairs: Mapping[str, str]
    deltas: Mapping[str, Any]
    write: Callable[[Mapping[str, Any]], None]
    patches: ExitStack = field(default_factory=ExitStack)


class Fault(Protocol):
    """Something that goes wrong in a merge.

    Attributes:
        breaks: what it breaks, in a sentence that names no subject.
        where: ``merged``: the fault makes the merged directory itself, no engine runs. ``adapter``: it changes the
            adapter that the engine merges. ``library``, ``engine``: it changes code of one, in this process, while the
            engine merges.
        noticed_by: checks of the compare stage, all of which must reject it.
        control: whether every cell that it applies to tries it.
    """

    @property
    def breaks(self) -> str:
        """What it breaks."""

    @property
    def where(self) -> Where:
        """Where it is planted."""

    @property
    def noticed_by(self) -> frozenset[str]:
        """Names of the checks that must reject it."""

    @property
    def control(self) -> bool:
        """Whether it is tried in every cell that it applies to."""

    def applies(self, facts: Facts) -> bool:
        """Say whether it is a fault in a cell with these facts, and not a right merge by another way. Pure."""

    def plant(self, site: Site) -> None:
        """Break what there is to break."""
