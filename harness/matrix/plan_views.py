"""How a plan is shown: rows for a table, JSON for programs, a matrix for GitHub Actions. Pure."""

from __future__ import annotations

import fnmatch
import itertools
import json
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.matrix.cell import MAIN_PACKAGES, Cell
from harness.matrix.durations import Duration
from harness.matrix.plan import Selection
from harness.matrix.releases import age_text

COLUMNS = (*MAIN_PACKAGES, "family", "recipe", "options", "id")
"""Columns of the plan as a table."""
OUTLOOK_COLUMNS = ("environment", "result", "expected time", "selected by")
"""Columns of what is known beside that."""
LEGEND = (
    "result: a kept one is reused and its cell not run",
    "expected time: the cell's last, ~ that of the same cell on other stacks, ? not known, - not run",
    "selected by: the blocks of matrix.toml, counted from 0, and the selectors that the stack comes from",
)
"""What the columns mean whose names do not say it all."""


def plan_rows(cells: Iterable[Cell]) -> list[dict[str, str]]:
    """Return the plan as rows of a table whose columns are ``COLUMNS``; ``options`` holds what is not the default."""
    return [
        {
            **{name: str(getattr(cell.stack, name)) for name in MAIN_PACKAGES},
            "family": cell.family,
            "recipe": cell.recipe,
            "options": " ".join(cell.id.split("+")[1:]),
            "id": cell.id,
        }
        for cell in cells
    ]


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What is known of a cell before it runs.

    Attributes:
        why: the blocks of the profile that have it, each with the selectors that its stack comes from, if any.
        environment: whether its stack's environment is there; None where that was not looked at.
        kept: how old the result is that an earlier run has kept and that is reused, in seconds; None without one.
        duration: how long it would take to run; None where nothing is known.
    """

    why: tuple[str, ...] = ()
    environment: bool | None = None
    kept: float | None = None
    duration: Duration | None = None


def outlook_columns(outlook: Outlook) -> dict[str, str]:
    """Return what is known of a cell as columns of the table."""
    there = {True: "there", False: "to be made", None: "unknown"}[outlook.environment]
    kept = "to be run" if outlook.kept is None else f"kept, {age_text(outlook.kept)} old"
    seconds = "?" if outlook.duration is None else f"{outlook.duration.seconds:.0f} s"
    about = "~" if outlook.duration is not None and outlook.duration.basis == "similar" else ""
    takes = f"{about}{seconds}" if outlook.kept is None else "-"
    return {"environment": there, "result": kept, "expected time": takes, "selected by": "; ".join(outlook.why)}


def plan_json(cells: Sequence[Cell], selection: Selection, outlooks: Mapping[str, Outlook] | None = None) -> str:
    """Return the plan as JSON: each cell complete, with its id, the command that runs exactly it, and what is known.

    ``why`` is a list of blocks, ``environment`` whether it is there, ``kept_age_seconds`` how old the result is that
    is reused (null where the cell would run), ``seconds`` and ``seconds_basis`` how long the cell takes to run and
    whether that is its own time or that of the same cell on other stacks.
    """
    known = outlooks or {}
    document = {
        "profile": selection.profile,
        "select": list(selection.select),
        "shard": "/".join(str(number) for number in selection.shard),
        "cells": [
            {
                "id": cell.id,
                "reproduce": cell.reproduce,
                **_json_outlook(known.get(cell.id)),
                **cell.model_dump(mode="json"),
            }
            for cell in cells
        ],
    }
    return json.dumps(document, indent=2)


def _json_outlook(outlook: Outlook | None) -> dict[str, object]:
    if outlook is None:
        return {}
    duration = outlook.duration
    return {
        "why": list(outlook.why),
        "environment": outlook.environment,
        "kept_age_seconds": outlook.kept,
        "seconds": None if duration is None else duration.seconds,
        "seconds_basis": None if duration is None else duration.basis,
    }


def github_matrix(cells: Sequence[Cell], selection: Selection) -> str:
    """Return the plan as the value of a GitHub Actions ``strategy.matrix``, on one line: one job per stack.

    A stack's cells share its environment. A matrix may have at most 256 jobs (GitHub's documentation, "Running
    variations of jobs in a workflow"), and a nightly profile has more cells. ``arguments`` is what such a job gives to
    ``harness matrix``, quoted for a shell.
    """
    include = []
    # One that has its versions in common with another stack (installed otherwise beside the three) is spelled out.
    stacks = Counter(stack.id for stack, _ in itertools.groupby(cell.stack for cell in cells))
    for stack, members in itertools.groupby(cells, key=lambda cell: cell.stack):
        ids = [cell.id for cell in members]
        globs = [f"*@{stack.id}", f"*@{stack.id}+*"]
        useful = [glob for glob in globs if fnmatch.filter(ids, glob)]
        # The whole of a stack takes two globs at most. A part of it is spelled out, because selectors only add up.
        whole = not selection.select and selection.shard == (1, 1) and stacks[stack.id] == 1
        words = ["--profile", selection.profile]
        words += [word for glob in (useful if whole else ids) for word in ("--select", glob)]
        words += ["--device", selection.device] if selection.device != "cpu" else []
        versions = {name: getattr(stack, name) for name in MAIN_PACKAGES}
        include.append({"stack": stack.id, **versions, "cells": len(ids), "arguments": shlex.join(words)})
    return json.dumps({"include": include}, separators=(",", ":"))
