"""The table of families: which of them could be built, attached, trained and merged, and why not.

``harness.cli.family_report`` makes it from the results of a run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from harness.contract.outcomes import Outcome
from harness.contract.stages import StageName
from harness.report.formats.markdown import code_span
from harness.report.pipe_table import pipe_table
from harness.report.text import one_line
from harness.result import CellResult

REASON = 300
"""Characters of a reason."""
COLUMNS = ("family", "built", "attached", "trained", "merged", "outcome", "why")
STAGES: Mapping[str, StageName] = {"built": "load", "attached": "attach", "trained": "train"}
"""A column → the stage that shows it: what is built is loaded first of all."""


def family_table(results: Iterable[CellResult]) -> str:
    """Return the table as Markdown, a row for each result, by family: with how many of each outcome in front."""
    found = sorted(results, key=lambda it: (it.cell.family, it.cell_id))
    counts = Counter[Outcome](it.outcome for it in found)
    stacks = sorted({it.cell.stack.id for it in found})
    recipes = sorted({it.cell.recipe for it in found})
    said = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
    words = (
        "# Families by introspection\n\n"
        f"Every family with routed experts that transformers knows, on {', '.join(stacks)}, recipe"
        f" {', '.join(recipes)}: {len(found)} families, {said}.\n\n"
        "The smallest form of each is derived from its configuration's class, and its layout on disk is what that"
        " transformers saves. *built* is whether that form could be made and loaded. *attached* and *merged* are how"
        " many of the targets and of the tensors on disk. Nothing here defines these architectures independently. So"
        " the checks `definition` and `derivative` are not part of a pass, as they are for families with a file.\n\n"
    )
    return words + pipe_table(COLUMNS, [_row(it) for it in found]) + "\n"


def _row(it: CellResult) -> tuple[str, ...]:
    reached = {
        column: "yes"
        if (stage := it.stages.get(name)) is not None and stage.result in {"pass", "fail", "blind"}
        else "no"
        for column, name in STAGES.items()
    }
    targets = it.training.attached if it.training is not None else {}
    if targets:
        reached["attached"] = ", ".join(f"{kind} {count}" for kind, count in sorted(targets.items()))
    merged = (
        ""
        if it.merge is None
        else f"{it.merge.applied + it.merge.zero_delta + it.merge.below_rounding}/{it.merge.attempted}"
    )
    why = "" if it.reason is None else code_span(one_line(f"{it.stage}: {it.reason}", REASON))
    return (it.cell.family, *(reached[column] for column in STAGES), merged, it.outcome, why)
