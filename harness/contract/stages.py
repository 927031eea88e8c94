"""The stages of a cell, in order, and what each cannot do without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

StageName = Literal[
    "resolve", "install", "import", "build", "load", "attach", "train", "save", "generate", "forward-paths",
    "reload-adapter", "merge", "reload-merged", "generate-merged", "compare", "controls",
]  # fmt: skip
STAGES: tuple[StageName, ...] = get_args(StageName)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage.

    Attributes:
        does: what happens in it, for the reader of a table.
        needs: stages without which it cannot be run.
        after: stages that share its process and come before it. It needs nothing of them, and cannot be run where that
            process has ended in one of them.
        on_host: whether the host runs it; the worker runs the others.
        may_lack: whether a stack may say here that it has no such family or feature. Later the same words are a fault,
            because the family was there a moment ago.
    """

    does: str
    needs: tuple[StageName, ...] = ()
    after: tuple[StageName, ...] = ()
    on_host: bool = False
    may_lack: bool = False


TABLE: Mapping[StageName, Stage] = {
    "resolve": Stage(does="a lock is compiled from the stack's pins", on_host=True),
    "install": Stage(does="the environment is made from the lock", needs=("resolve",), on_host=True),
    "import": Stage(does="the libraries under test are imported", needs=("install",), may_lack=True),
    "build": Stage(
        does="the base checkpoint is written, byte for byte the same in every stack; of a family without a file as "
        "this transformers writes it",
        needs=("import",),
        may_lack=True,
    ),
    "load": Stage(does="the base is loaded, quantised where the recipe says so", needs=("build",), may_lack=True),
    "attach": Stage(does="the LoRA is attached", needs=("load",), may_lack=True),
    "train": Stage(
        does="a few steps with `trl.SFTTrainer`; the trained model is kept as the truth",
        needs=("attach",),
        may_lack=True,
    ),
    "save": Stage(does="the adapter is saved", needs=("train",)),
    "generate": Stage(does="the trained model generates", needs=("train",), after=("save",)),
    "forward-paths": Stage(
        does="the trained model goes through every experts forward that the stack has, and through ours",
        needs=("train",),
        after=("save", "generate"),
    ),
    "reload-adapter": Stage(does="base and saved adapter are loaded in a fresh process", needs=("save",)),
    "merge": Stage(does="the engine merges, in a process of its own", needs=("save",)),
    "reload-merged": Stage(does="the merged directory is loaded in a fresh process", needs=("merge",)),
    "generate-merged": Stage(
        does="the merged model generates, where the trained one could", needs=("reload-merged", "generate")
    ),
    "compare": Stage(does="both gates judge the merge", needs=("merge",)),
    "controls": Stage(does="merges that are broken on purpose go through the same gates", needs=("compare",)),
}
"""A stage may be ``not_run`` only because something that it needs did not pass.

Otherwise a merge that was never tried could hide behind an adapter that is known not to reload.
"""

WORKER_STAGES: tuple[StageName, ...] = tuple(name for name in STAGES if not TABLE[name].on_host)
"""Stages that run in the cell's environment, in the order in which a cell begins them."""
