"""Which model types a stack's transformers knows by name: asked before a cell of a family without a file is run.

A name that nobody knows is a mistake of the command line and no finding about a stack. The answer depends on nothing
but the environment, so it is kept in the cache by that.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Collection
from pathlib import Path

from harness.contract.cell_fields import Device
from harness.envs import cache_dir, child_environment, ensure_environment, unmanaged_environment
from harness.envs.layout import write_atomically
from harness.envs.uv_command import Unresolvable
from harness.errors import EnvironmentFailedError, UnknownNameError, mistyped, nearest
from harness.execution.scratch import scratch_directory
from harness.matrix.catalogue import Catalogue
from harness.matrix.cell import Stack

FOLDER = "model-types"
TIME_LIMIT = 300
PROGRAM = (
    "import json; from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES; "
    "print(json.dumps(sorted(CONFIG_MAPPING_NAMES)))"
)
"""What the environment's own interpreter is asked. The names lie there in every supported release."""


def refuse_unknown_model(
    catalogue: Catalogue, model: str, stack: Stack, *, device: Device = "cpu", python: Path | None = None
) -> None:
    """Refuse the name of a family that no file here describes and that the stack's transformers does not know.

    Where the environment cannot be made, or cannot say, nothing is refused: the cell then shows why.

    Args:
        catalogue: the families that have a file.
        model: the family's name.
        stack: whose transformers is asked.
        device: which build of torch its environment has.
        python: an interpreter of the user's that takes the place of its environment.

    Raises:
        UnknownNameError: nobody knows it; the message suggests the nearest name.
        HarnessError: a version of the stack is offered nowhere, or the interpreter is none.
    """
    if catalogue.is_described(model):
        return
    known = model_types(stack, device=device, python=python)
    if known is None or model in known:
        return
    # Of some 500 names one is always alike by some letters: only a typing error of one is a suggestion.
    near = None if nearest(model, catalogue.families) else mistyped(model, known)
    raise UnknownNameError(
        "model",
        model,
        catalogue.families if near is None else [near],
        why=f"it has no file here, and transformers {stack.shown('transformers')} has no such model_type",
        remedy=f"Give one of {', '.join(catalogue.families)}, or the model_type that stands in a model's config.json, "
        "as mixtral. One that only another release knows needs that release (--transformers).",
    )


def model_types(stack: Stack, *, device: Device = "cpu", python: Path | None = None) -> Collection[str] | None:
    """Return the model types that a stack's transformers knows, of any kind; None where nobody can say."""
    try:
        environment = ensure_environment(stack, device=device) if python is None else unmanaged_environment(python)
    except (EnvironmentFailedError, Unresolvable):
        return None  # the cell meets the same, and its result says so
    file = cache_dir() / FOLDER / f"{environment.identity}.json"
    if environment.identity is not None and (found := _names(_read(file))) is not None:
        return found
    try:
        with scratch_directory() as scratch:
            ended = subprocess.run(
                [str(environment.python), "-I", "-c", PROGRAM],
                env=child_environment(scratch=scratch),
                capture_output=True,
                text=True,
                timeout=TIME_LIMIT,
                check=False,
            )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = _names(ended.stdout) if ended.returncode == 0 else None
    if found is not None and environment.identity is not None:
        write_atomically(file, ended.stdout)
    return found


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:  # nobody has asked yet
        return ""


def _names(text: str) -> frozenset[str] | None:
    """Return the names in an answer; None where it is none, or not whole."""
    try:
        found = json.loads(text.strip().rpartition("\n")[2])
    except ValueError:
        return None
    whole = isinstance(found, list) and bool(found) and all(isinstance(name, str) for name in found)
    return frozenset(found) if whole else None
