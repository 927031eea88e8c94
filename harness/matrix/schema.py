"""JSON Schemas of the files that people write and programs read, generated from the models.

``python -m harness.matrix.schema --write`` renews the committed schemas, ``--check`` says whether they are what the
models say; CI runs the latter. The schemas let editors complete and check ``matrix.toml``, and tell readers of results
in any language what to rely on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from harness.matrix.config import MatrixConfig
from harness.matrix.expectations import Expectations
from harness.result import CellResult

_MODELS: dict[str, tuple[type[BaseModel], Literal["validation", "serialization"]]] = {
    "matrix": (MatrixConfig, "validation"),
    "expectations": (Expectations, "validation"),
    # Results are written by us and read by others: what always stands in a file is required there.
    "result": (CellResult, "serialization"),
}


def render_schemas() -> dict[str, str]:
    """Return the schemas (JSON Schema 2020-12, one text per file) by file name."""
    return {f"{name}.schema.json": _render(model, mode) for name, (model, mode) in _MODELS.items()}


def _render(model: type[BaseModel], mode: Literal["validation", "serialization"]) -> str:
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema(mode=mode)}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def stale_schemas(folder: Path) -> tuple[str, ...]:
    """Return the names of the files in ``folder`` that are absent or differ from what the models say."""
    return tuple(
        name
        for name, text in render_schemas().items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 1 when ``--check`` finds a schema that is not up to date."""
    parser = argparse.ArgumentParser(prog="python -m harness.matrix.schema", description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="exit 1 when a schema is not up to date")
    action.add_argument("--write", action="store_true", help="write the schemas")
    parser.add_argument(
        "--folder", type=Path, default=Path("docs/reference"), help="where they are (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    stale = stale_schemas(options.folder)
    if options.check:
        for name in stale:
            sys.stderr.write(f"{options.folder / name} is not up to date: python -m harness.matrix.schema --write\n")
        return 1 if stale else 0
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, text in render_schemas().items():
        (options.folder / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
