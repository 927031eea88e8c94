"""Expanding the ``[[selections]]`` that a profile names: the indexes are asked, and what is new is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from harness.cli.setup import Setup
from harness.envs import IndexChooser, open_chooser
from harness.matrix.cell import Stack
from harness.matrix.generated import Generated, generate_stacks
from harness.matrix.plan import needed_selections


def expand_selections(
    setup: Setup, profile: str, *, say: Callable[[str], None], installed: Stack | None = None
) -> Mapping[str, Generated]:
    """Return the stacks that each selection of a profile comes to today; nothing is asked where it names none.

    Args:
        setup: the configuration.
        profile: the profile's name.
        say: is told of new releases, and of indexes that could not be asked.
        installed: what an interpreter of the user's holds, which takes the place of all of them.

    Raises:
        HarnessError: there is no such profile, or a selection means nothing.
    """
    needed = needed_selections(setup.config, profile)
    if installed is not None:
        return {selection.name: Generated(stacks=(installed,), reasons={}) for selection in needed}
    choosers: dict[str | None, IndexChooser] = {}
    found: dict[str, Generated] = {}
    for selection in needed:
        if selection.python not in choosers:
            choosers[selection.python] = open_chooser(python_version=selection.python, log=_only_words(say))
        asked = choosers[selection.python]
        found[selection.name] = generate_stacks(setup.config, selection, asked, now=datetime.now(UTC))
    news = (sentence for generated in found.values() for sentence in generated.news)
    notes = (note for chooser in choosers.values() for note in chooser.notes)
    for sentence in dict.fromkeys((*news, *notes)):
        say(sentence)
    return found


def _only_words(say: Callable[[str], None]) -> Callable[[str], None]:
    """Return a log that passes on sentences, and not the commands that uv is given."""

    def log(line: str) -> None:
        if not line.startswith("$ "):
            say(line)

    return log
