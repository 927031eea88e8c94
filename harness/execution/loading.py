"""Result directories read with suspicion: results, and cells that were planned and have none.

Somebody may have edited the files, copied them together or cut them off. Whatever is not what it should be is refused
by its name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.counting import counted
from harness.errors import ConfigurationError, InputRefusedError
from harness.execution.files import read_regular
from harness.execution.suspicious_json import encodable, read_json
from harness.matrix.cell import Cell
from harness.result import SCHEMA_VERSION, CellResult

REPORT = "report.json"
BASELINE = "Give the report.json or the results of an earlier run, as they were written."
PLANNED = ".planned"
"""Ends the name of the file of a cell that has been planned and has no result yet."""


def load_result(path: Path) -> CellResult:
    """Read one result.

    Raises:
        InputRefusedError: it cannot be read, is not JSON, has another schema version or does not fit the schema.
    """
    value = _read(path)
    version = value.get("schema_version") if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:
        said = "no schema_version" if version is None else f"schema_version {version!r}"
        raise InputRefusedError(
            f"{path}: {said}; this program reads {SCHEMA_VERSION}.",
            remedy="It is no result of a cell, or another release of the harness wrote it: use that release.",
        )
    try:
        return CellResult.model_validate(value)
    except ValidationError as error:
        raise _misfit(path, "a result of a cell", error) from error


def load_planned(path: Path) -> Cell:
    """Read a cell that was planned.

    Raises:
        InputRefusedError: it cannot be read, is not JSON, is no cell or another than its name says.
    """
    try:
        cell = Cell.model_validate(_read(path))
    except ValidationError as error:
        raise _misfit(path, "a planned cell", error) from error
    if (path.parent.name, path.name) != (cell.family, f"{cell.file_stem}{PLANNED}"):
        raise InputRefusedError(
            f"{path}: not the cell that it is named after, but {cell.id}.",
            remedy="The file was renamed or edited; remove it and run the cell again.",
        )
    return cell


def _read(path: Path) -> object:
    """Return the value of a JSON file.

    Raises:
        InputRefusedError: it cannot be read or is not JSON.
    """
    try:
        value = read_json(read_regular(path))
        # Nothing that we wrote has half a surrogate pair, and a report could not be written with one.
        json.dumps(value, ensure_ascii=False).encode()
    except OSError as error:
        raise InputRefusedError(
            f"{path}: cannot be read: {error.strerror}.", remedy="Give a file that you may read."
        ) from error
    except ValueError as error:
        raise InputRefusedError(
            f"{path}: not JSON ({encodable(str(error))}).",
            remedy="The file is damaged; remove it and run the cell again.",
        ) from error
    return value


def _misfit(path: Path, what: str, error: ValidationError) -> InputRefusedError:
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return InputRefusedError(
        f"{path}: not {what}: {place}: {first['msg']} ({counted(error.error_count(), 'problem')}).",
        remedy="The file is damaged or was edited; remove it and run the cell again.",
    )


def result_files(paths: Iterable[Path]) -> list[Path]:
    """Return the result files that ``paths`` name, each once, in the order given and by name within a directory.

    A file stands for itself. A directory stands for every ``cells/<family>/*.json`` below it. So an output directory
    can be given, or one that holds those of several shards. A ``cells`` directory may be given too.

    Raises:
        ConfigurationError: a path that is not there, a pipe or a device, or a directory without results.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_file():
            files = [path]
        elif path.is_dir():
            files = _below(path, ".json")
            if not files and not _below(path, PLANNED):
                raise ConfigurationError(
                    f"{path} holds no results.", remedy="Give an output directory: it holds cells/<family>/<cell>.json."
                )
        elif path.exists():
            raise ConfigurationError(
                f"{path} is no file and no directory: what comes through a pipe or a device is not read.",
                remedy="Write it to a file first, and give that.",
            )
        else:
            raise ConfigurationError(f"{path} does not exist.", remedy="Give result files or output directories.")
        found |= dict.fromkeys(file.resolve() for file in files)
    return list(found)


def _below(directory: Path, ending: str) -> list[Path]:
    """Return the files of cells below an output directory, or a ``cells`` directory, by name."""
    return sorted(
        directory.glob(f"*/*{ending}") if directory.name == "cells" else directory.rglob(f"cells/*/*{ending}")
    )


def load_results(paths: Iterable[Path]) -> list[CellResult]:
    """Read every result that ``paths`` name, see ``result_files`` and ``load_result``.

    Two of one cell are both returned.
    """
    return [load_result(path) for path in result_files(paths)]


def load_passed(paths: Iterable[Path]) -> frozenset[str]:
    """Return the ids of the cells that passed in a baseline: results, directories of them, or a ``report.json``.

    What passed is believed as it stands. An older release asked a pass for less evidence, and it was one all the same.

    Raises:
        ConfigurationError: a path that is not there, or a directory without results.
        InputRefusedError: a file is neither a result nor a report.
    """
    passed: set[str] = set()
    for path in result_files(map(_report_or_results, paths)):
        value = _read(path)
        rows = value.get("rows") if isinstance(value, dict) else None
        if isinstance(rows, list):
            passed |= _passed_of(rows, path)
        elif isinstance(value, dict) and isinstance(value.get("cell_id"), str):
            passed |= {value["cell_id"]} if value.get("outcome") == "pass" else set()
        else:
            raise InputRefusedError(f"{path}: neither a result of a cell nor a report.json.", remedy=BASELINE)
    return frozenset(passed)


def _report_or_results(path: Path) -> Path:
    """Return the ``report.json`` of a directory that holds one and no results, as a published report does."""
    report = path / REPORT
    alone = path.is_dir() and not _below(path, ".json") and not _below(path, PLANNED)
    return report if alone and report.is_file() else path


def _passed_of(rows: list[Any], path: Path) -> set[str]:
    """Return the ids of the cells that passed, of a report's rows.

    Raises:
        InputRefusedError: one of them is none.
    """
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("cell"), str):
            raise InputRefusedError(
                f"{path}: rows.{number} is no row of a report: it names no cell (rows are counted from 0).",
                remedy=BASELINE,
            )
    return {row["cell"] for row in rows if row.get("passed") is True}


@dataclass(frozen=True, kw_only=True)
class Found:
    """What is known of the cells of some directories.

    Attributes:
        results: every result, see ``load_results``, other than of an earlier run of a cell that was planned again.
        planned: files of cells that were planned and have no result among these.
    """

    results: list[CellResult]
    planned: dict[Path, Cell]


def load_found(paths: Sequence[Path]) -> Found:
    """Read every result that ``paths`` name, and what was planned in the directories among them.

    Raises:
        ConfigurationError, InputRefusedError: as ``result_files``, ``load_result`` and ``load_planned``.
    """
    files = [file.resolve() for path in paths if path.is_dir() for file in _below(path, PLANNED)]
    planned = {file: load_planned(file) for file in files}
    results = [load_result(path) for path in result_files(paths) if path.with_suffix(PLANNED) not in planned]
    known = {result.cell_id for result in results}
    missing = {cell.id: (file, cell) for file, cell in planned.items() if cell.id not in known}
    return Found(results=results, planned=dict(missing.values()))
