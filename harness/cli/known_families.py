"""Which families with experts a stack's transformers knows: its own environment is asked, once for each.

The answer depends on the environment and on our rules. So it is kept in the cache by both, and asked for again where
either is another.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from harness.cli.setup import Setup
from harness.envs import cache_dir, child_environment, ensure_environment, unmanaged_environment
from harness.errors import HarnessError
from harness.execution.bundle import Bundle, publish_bundle
from harness.execution.scratch import scratch_directory
from harness.matrix.catalogue import MODEL_TYPE
from harness.matrix.cell import Stack
from harness.matrix.plan import Selection, needed_stacks

FOLDER = "known-families"
TIME_LIMIT = 600
WORDS = 400
"""How much of what a process said is shown where it failed."""


class FamiliesUnknownError(HarnessError):
    """An environment could not say which families it knows."""

    exit_code = 4
    usual_remedy = (
        "Try its transformers by hand: `harness env list` shows where its environment is. Or leave the stack out."
    )


def with_known_families(
    setup: Setup, selection: Selection, *, say: Callable[[str], None], python: Path | None = None
) -> Selection:
    """Return a selection that knows the families of every stack whose own its profile asks for.

    Args:
        setup: the configuration.
        selection: what is to be planned, its selections expanded.
        say: is told what takes a while.
        python: an interpreter of the user's that takes the place of every environment.

    Raises:
        HarnessError: there is no such profile, an environment cannot be made, or it cannot say what it knows.
    """
    stacks = needed_stacks(setup.config, setup.catalogue, selection)
    if not stacks:
        return selection
    bundle = publish_bundle(cache_dir())
    known = {stack.key: tuple(ask(stack, bundle, say=say, python=python)) for stack in stacks}
    return replace(selection, known=known)


def ask(
    stack: Stack, bundle: Bundle, *, say: Callable[[str], None], python: Path | None = None
) -> Mapping[str, str | None]:
    """Return the model types with experts that a stack knows: name → why it could not be built, or None.

    Raises:
        HarnessError: its environment cannot be made, or cannot say.
    """
    environment = ensure_environment(stack) if python is None else unmanaged_environment(python)
    file = cache_dir() / FOLDER / f"{environment.identity or 'unmanaged'}-{bundle.sha256}.json"
    if environment.identity is None or (found := _read(file)) is None:
        say(f"asking transformers {environment.versions.get('transformers', '')} which families with experts it knows")
        file.parent.mkdir(parents=True, exist_ok=True)
        _run([str(environment.python), "-I", "-u", str(bundle.main), "--families", str(file)], stack)
        found = _read(file)
    if found is None:
        raise FamiliesUnknownError(f"{stack.id} did not say which families it knows: {file} is not what it should be.")
    return found


def _read(file: Path) -> dict[str, str | None] | None:
    """Return what was said; None where nothing was, or where the file is no such answer."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or cut off: it is asked again
        return None
    names = isinstance(found, dict) and all(MODEL_TYPE.fullmatch(name.replace("-", "_")) for name in found)
    whole = names and bool(found) and all(why is None or isinstance(why, str) for why in found.values())
    return found if whole else None


def _run(command: list[str], stack: Stack) -> None:
    try:
        with scratch_directory() as scratch:
            ended = subprocess.run(
                command,
                env=child_environment(scratch=scratch),
                capture_output=True,
                text=True,
                timeout=TIME_LIMIT,
                check=False,
            )
    except subprocess.TimeoutExpired as error:
        raise FamiliesUnknownError(f"{stack.id} did not say in {TIME_LIMIT} s which families it knows.") from error
    if ended.returncode != 0:
        said = " ".join(ended.stderr.split())[-WORDS:]
        raise FamiliesUnknownError(f"{stack.id} could not say which families it knows: {said}")
