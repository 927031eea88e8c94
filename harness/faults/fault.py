"""What a fault is, what it may know of a cell, and what it is given to break.

A fault of a merge is never made by the engine under test, nor by ``harness.merge``: what is broken must be known to be
broken for a reason of its own. It works on the saved adapter and on PEFT's own deltas, by plain arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.contract.stages import StageName


class FaultNotPlantedError(RuntimeError):
    """A fault could not be planted. So an error that it must end in is not its doing."""


@contextmanager
def being_planted(name: str) -> Iterator[None]:
    """Tell what planting raises from what the fault makes a library raise.

    Raises:
        FaultNotPlantedError: the block raised.
    """
    try:
        yield
    except Exception as error:  # whatever a patch of somebody's code meets
        raise FaultNotPlantedError(f"{name} could not be planted: {type(error).__name__}: {error}") from error


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
    """What a fault of a merge finds when it is planted.

    Attributes:
        facts: of the cell.
        base: the base checkpoint's directory; not to be written to.
        adapter: a copy of the saved adapter's directory, for the engine to merge. A fault of the adapter changes it.
        merged: the directory that a fault of the merged checkpoint makes; absent.
        pairs: key prefix of a saved LoRA pair → the delta it is the factors of.
        scalings: key prefix of a pair → what PEFT multiplies the product of its factors with.
        deltas: PEFT's own, float64: ``module`` → (out, in), ``module:parameter`` → (E, …).
        write: writes ``merged`` as the base plus the deltas it is given, each added in float64 and rounded once,
            whatever file they go to. A delta that is left out is dropped.
    """

    facts: Facts
    base: Path
    adapter: Path
    merged: Path
    pairs: Mapping[str, str]
    scalings: Mapping[str, float]
    deltas: Mapping[str, Any]
    write: Callable[[Mapping[str, Any]], None]


def _always(_facts: Facts) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that goes wrong in a cell.

    Attributes:
        breaks: what it breaks, in a sentence that names no subject.
        noticed_by: what must notice it, all of it: ``stage/check`` is a check that fails, ``stage`` alone is a stage
            that ends in an error.
        cell: fields of the cell in which ``harness faults`` plants it, where they are not the usual ones.
        reference: where it happened, as a link or the name of an issue; None: nowhere that is known of.
        blind: why no check sees it yet; None where it is noticed. Such a fault counts as missed in every report.
    """

    breaks: str
    noticed_by: frozenset[str]
    blind: str | None = None
    cell: Mapping[str, str] = field(default_factory=dict)
    reference: str | None = None

    def checks_of(self, stage: StageName) -> frozenset[str]:
        """Return the names of the checks of a stage that must notice it."""
        return frozenset(name.split("/")[1] for name in self.noticed_by if name.startswith(f"{stage}/"))


@dataclass(frozen=True, kw_only=True)
class MergeFault(Fault):
    """A fault of the merge: of what it is made from, or of what it leaves behind.

    Attributes:
        where: ``merged``: the fault makes the merged directory itself, no engine runs. ``adapter``: it changes the
            adapter that the engine merges.
        control: whether every cell that it applies to tries it beside its own merge.
        applies: whether it is a fault in a cell with these facts, and not a right merge by another way. Pure.
        plant: breaks what there is to break.
    """

    where: Literal["merged", "adapter"]
    plant: Callable[[Site], None]
    control: bool = False
    applies: Callable[[Facts], bool] = _always


@dataclass(frozen=True, kw_only=True)
class LibraryFault(Fault):
    """A fault of code: of a library under test, of the engine, or of the harness itself.

    Attributes:
        plant: breaks code of this process, by what it enters into the stack it is given, such as
            ``unittest.mock.patch.object``. All is mended again when the stages of the process have run.
        during: stages whose process it is planted in, before the first of them; empty: all after the imports. A process
            may have several stages (``harness.worker.cell``).
    """

    plant: Callable[[ExitStack], None]
    during: frozenset[StageName] = frozenset()
