"""The adapter says that PEFT 0.18.1 made it, and its shapes say otherwise. Nobody can know which is right."""

from __future__ import annotations

from harness.faults.adapter.made_by_old_peft import applies, plant
from harness.faults.fault import Fault, MergeFault

FAULT: Fault = MergeFault(
    breaks="names a release of PEFT that had the io layout the other way round, where shapes contradict",
    where="adapter",
    noticed_by=frozenset({"merge"}),
    applies=applies,
    plant=plant,
    reference="peft#3165",
)
