"""Whether the pinned versions exist, and which release is the newest.

The configured indexes are asked before anything is planned. A pin that no index offers is a mistake in the question
(exit 2). Two existing releases that contradict each other are something else (the outcome ``unresolvable``), and so is
an index that does not answer (exit 4). uv is asked without dependencies, so that only existence is at stake. What is
known to exist is remembered per index settings, because releases do not disappear. A run whose locks are cached needs
no network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from harness.envs.existing import existing_record
from harness.envs.interpreter import Interpreter, find_interpreter
from harness.envs.layout import CacheLayout, cache_dir, write_atomically
from harness.envs.lock import compile_requirements, locked_versions
from harness.envs.uv_command import Log, Unresolvable, Uv, find_uv
from harness.errors import EnvironmentFailedError, VersionNotFoundError
from harness.matrix.cell import MAIN_PACKAGES, Stack

YANKED_FOR = timedelta(days=7)
"""How long it is believed whether a release is yanked."""


def check_versions_exist(stacks: Iterable[Stack], *, log: Log | None = None) -> None:
    """Ask the configured indexes whether every pinned version of every stack exists.

    Nothing need be offered for a stack whose environment is there.

    Raises:
        VersionNotFoundError: some do not; all of them are named, each with the releases nearest to it.
        EnvironmentFailedError: an index is out of reach, or there is no uv.
    """
    layout = CacheLayout(cache_dir())
    uv = find_uv(layout.working_folder, log)
    interpreter = find_interpreter(uv, None)
    groups = {stack.requirements: stack for stack in stacks}
    missing: dict[str, str] = {}
    for group, stack in sorted(groups.items()):
        try:
            absent = missing_pins(uv, layout, group, interpreter)
        except EnvironmentFailedError:
            if not _is_there(uv, layout, stack):
                raise
            continue
        if absent and not _is_there(uv, layout, stack):
            missing |= absent
    raise_for_missing(missing)


def _is_there(uv: Uv, layout: CacheLayout, stack: Stack) -> bool:
    """Say whether there is an environment that was made for a stack, whatever indexes offered it."""
    interpreter = find_interpreter(uv, stack.python)
    found = existing_record(layout, stack.requirements, interpreter, marks=stack.marks, sources=stack.sources)
    return found is not None


def newest_release(package: str, *, log: Log | None = None) -> str:
    """Return the newest release of ``package`` that fits the running Python; pre-releases do not count.

    Raises:
        VersionNotFoundError: no configured index has the package, or none of its releases fits.
        EnvironmentFailedError: an index is out of reach, or there is no uv.
    """
    layout = CacheLayout(cache_dir())
    uv = find_uv(layout.working_folder, log)
    try:
        found = _probe(uv, package, find_interpreter(uv, None))
    except Unresolvable as error:
        raise VersionNotFoundError(
            f"No configured package index offers a release of {package} for this Python. uv says: {error.explanation}",
            remedy="Check the spelling and the index settings (`harness doctor` lists them).",
        ) from error
    return str(Version(found).public)


def yanked_pins(stacks: Iterable[Stack], *, log: Log | None = None) -> tuple[str, ...]:
    """Return a sentence for each pin of some stack that was withdrawn from its index, with the reason given there.

    What was said is remembered for a week. Indexes that are out of reach say nothing, and are asked
    once: it is a note and no verdict.
    """
    layout = CacheLayout(cache_dir())
    uv = find_uv(layout.working_folder, log)
    interpreter = find_interpreter(uv, None)
    groups = sorted({tuple(pin for pin in stack.requirements if pinned_version(pin) is not None) for stack in stacks})
    path, today = layout.known_versions / f"{uv.indexes.digest}.yanked.json", datetime.now(UTC).date()
    known = {pin: said for pin, said in _read_yanked(path).items() if today - said[0] < YANKED_FOR}
    for group in groups:
        if all(pin in known for pin in group):
            continue
        try:
            known |= {pin: (today, reason) for pin, reason in yanked(uv, group, interpreter).items()}
        except Unresolvable:
            continue  # missing, or not for this Python: said elsewhere, where it matters
        except EnvironmentFailedError:
            break  # nor will the next be answered, and each question waits for an answer
        told = {pin: (day.isoformat(), reason) for pin, (day, reason) in known.items()}
        write_atomically(path, json.dumps(told, indent=1, sort_keys=True))
    asked = sorted({pin for group in groups for pin in group})
    return tuple(reason for pin in asked if pin in known and (reason := known[pin][1]) is not None)


def yanked(uv: Uv, pins: Sequence[str], interpreter: Interpreter) -> dict[str, str | None]:
    """Return for each pin the sentence that says that it is yanked, None where it is not.

    Raises:
        Unresolvable: no index offers one of them.
        EnvironmentFailedError: an index is out of reach.
    """
    options = ["--no-header", "--no-annotate", "--no-deps", "--python", str(interpreter.python)]
    said = uv.run(["pip", "compile", "-", *options], stdin="\n".join(pins) + "\n")
    found: dict[str, str | None] = dict.fromkeys(pins)
    for warning in said.warnings:
        if match := re.match(r'`(?P<pin>[^`]+)` is yanked(?: \(reason: "(?P<reason>.*)"\))?', warning):
            named = next((pin for pin in pins if same_pin(pin, match["pin"])), None)
            reason = f" ({match['reason']})" if match["reason"] else ""
            if named is not None:
                name, version = Requirement(named).name, pinned_version(named)
                found[named] = f"{name} {version} is yanked{reason}; it is installed because it is pinned exactly."
    return found


def same_pin(one: str, other: str) -> bool:
    """Say whether two exact pins mean one release: ``5.5`` and ``5.5.0`` do."""
    first, second = Requirement(one), Requirement(other)
    versions = [Version(pinned_version(pin) or "0") for pin in (one, other)]
    return canonicalize_name(first.name) == canonicalize_name(second.name) and versions[0] == versions[1]


def missing_pins(uv: Uv, layout: CacheLayout, requirements: Iterable[str], interpreter: Interpreter) -> dict[str, str]:
    """Return the exact pins among ``requirements`` that no index offers, each with a sentence about its neighbours.

    A version that exists but does not fit this Python or platform is not missing.
    """
    known_file = layout.known_versions / f"{uv.indexes.digest}.json"
    known = _read_known(known_file)
    pins = [pin for pin in sorted(set(requirements)) if pinned_version(pin) is not None and pin not in known]
    if not pins:
        return {}
    missing: dict[str, str] = {}
    try:
        compile_requirements(uv, pins, interpreter.python, dependencies=False)
    except Unresolvable:
        # Which of them it was is found by asking for each alone. An explanation names only one, and not always first.
        for pin in pins:
            try:
                _probe(uv, pin, interpreter)
            except Unresolvable as alone:
                if alone.says_missing(Requirement(pin).name):
                    missing[pin] = neighbours(uv, pin, interpreter)
    # Read again: another process may have written meanwhile. Losing its words would cost one question, no more.
    found = _read_known(known_file) | (set(pins) - missing.keys())
    write_atomically(known_file, json.dumps(sorted(found), indent=1))
    return missing


def empty_ranges(
    uv: Uv, requirements: Iterable[str], interpreter: Interpreter, *, pre: Collection[str] = ()
) -> dict[str, str]:
    """Return the ranges among ``requirements`` that no index has a release in, each with a sentence about the newest.

    What is built from a source has no release and is left out. Pre-releases count for the packages in ``pre``.
    """
    empty: dict[str, str] = {}
    for text in sorted(set(requirements)):
        requirement = Requirement(text)
        if requirement.url is not None or pinned_version(text) is not None:
            continue
        try:
            compile_requirements(uv, [text], interpreter.python, dependencies=False, pre=pre)
        except Unresolvable as alone:
            if alone.says_missing(requirement.name):
                newest = _probe_quietly(uv, requirement.name, interpreter)
                empty[text] = (
                    _no_such_package(requirement.name) if newest is None else _newest(requirement.name, newest)
                )
    return empty


def raise_for_missing(missing: dict[str, str]) -> None:
    """Raise the error that names every missing pin; do nothing when none is missing.

    Raises:
        VersionNotFoundError: ``missing`` is not empty.
    """
    if missing:
        pins = ", ".join(missing)
        raise VersionNotFoundError(
            f"No configured package index offers {pins}.",
            remedy=f"{' '.join(missing.values())} `harness doctor` lists the index settings.",
        )


def neighbours(uv: Uv, pin: str, interpreter: Interpreter) -> str:
    """Return a sentence that names the releases just below and just above a pin, and the newest one."""
    name, version = Requirement(pin).name, Version(pinned_version(pin) or "0")
    if version.local and _probe_quietly(uv, f"{name}=={version.public}", interpreter) is not None:
        return f"{name} {version.public} is offered, without the build +{version.local}."
    version = Version(version.public)  # an order of builds there is none
    below = _probe_quietly(uv, f"{name}<{version}", interpreter)
    above = _probe_quietly(uv, f"{name}>{version}", interpreter, lowest=True)
    newest = _probe_quietly(uv, name, interpreter)
    if newest is None:
        return _no_such_package(name)
    if newest == below:
        return _newest(name, newest)
    words = [f"{below} is the nearest below" if below else "", f"{above} the nearest above" if above else ""]
    near = " and ".join(word for word in words if word)
    return f"Of {name}, {near + ', ' if near else ''}{newest} is the newest: give {_given(name, below or newest)}."


def _newest(name: str, newest: str) -> str:
    return f"Of {name}, {newest} is the newest: give {_given(name, newest)}."


def _no_such_package(name: str) -> str:
    return f"No index has a package {name!r} for this Python: check the spelling and the index settings."


def _given(name: str, version: str) -> str:
    """Return the option that asks for a version of a package."""
    return f"--{name} {version}" if canonicalize_name(name) in MAIN_PACKAGES else f"--pin {name}=={version}"


def pinned_version(requirement: str) -> str | None:
    """Return the version that a requirement pins exactly, or None when it leaves a choice."""
    specifiers = list(Requirement(requirement).specifier)
    if len(specifiers) == 1 and specifiers[0].operator in {"==", "==="} and not specifiers[0].version.endswith(".*"):
        return specifiers[0].version
    return None


def _probe(uv: Uv, requirement: str, interpreter: Interpreter, *, lowest: bool = False) -> str:
    text = compile_requirements(uv, [requirement], interpreter.python, dependencies=False, lowest=lowest)
    return locked_versions(text)[canonicalize_name(Requirement(requirement).name)]


def _probe_quietly(uv: Uv, requirement: str, interpreter: Interpreter, *, lowest: bool = False) -> str | None:
    try:
        return _probe(uv, requirement, interpreter, lowest=lowest)
    except Unresolvable:
        return None


def _read_yanked(path: Path) -> dict[str, tuple[date, str | None]]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return {pin: (date.fromisoformat(day), reason) for pin, (day, reason) in told.items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}  # as below


def _read_known(path: Path) -> set[str]:
    try:
        return set(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return set()  # it is a memory, not a truth: without it uv is asked again
