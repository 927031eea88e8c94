"""The committed JSON Schemas are what the models say, and describe what the models accept."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from harness.matrix.cell import Cell, Stack
from harness.matrix.schema import main, render_schemas, stale_schemas
from harness.result import CellResult

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "reference"


def test_committed_schemas_are_up_to_date() -> None:
    assert stale_schemas(FOLDER) == (), "python -m harness.matrix.schema --write"
    assert main(["--check", "--folder", str(FOLDER)]) == 0


def test_the_check_names_what_is_stale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", "--folder", str(tmp_path)]) == 1
    assert main(["--write", "--folder", str(tmp_path)]) == 0
    (tmp_path / "matrix.schema.json").write_text("{}", encoding="utf-8")
    capsys.readouterr()

    assert main(["--check", "--folder", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "matrix.schema.json" in said
    assert "expectations.schema.json" not in said


@pytest.mark.parametrize("name", ["matrix", "expectations"])
def test_the_shipped_files_point_to_their_schema_and_use_its_keys(name: str) -> None:
    text = (ROOT / f"{name}.toml").read_text(encoding="utf-8")
    schema = json.loads((FOLDER / f"{name}.schema.json").read_text(encoding="utf-8"))

    assert text.startswith(f"#:schema docs/reference/{name}.schema.json\n")
    assert tomllib.loads(text).keys() <= schema["properties"].keys()
    assert set(schema["required"]) <= tomllib.loads(text).keys()


def test_every_key_of_the_configuration_is_described() -> None:
    for name in ("matrix", "expectations"):
        schema = json.loads(render_schemas()[f"{name}.schema.json"])
        for table in (schema, *schema["$defs"].values()):
            for key, value in table.get("properties", {}).items():
                described = schema["$defs"][value["$ref"].rpartition("/")[2]] if "$ref" in value else value
                assert described.get("description"), f"{name}: {key}"


def test_a_written_result_has_every_required_key() -> None:
    cell = Cell(family="alpha", recipe="lora", stack=Stack(transformers="5.5.0", peft="0.19.1", trl="0.25.1"))
    written = CellResult(cell=cell, cell_id=cell.id, outcome="pass").model_dump(mode="json")
    schema = json.loads(render_schemas()["result.schema.json"])

    assert set(schema["required"]) <= written.keys()
    assert written.keys() == schema["properties"].keys()
