"""The tables of the documentation that folders decide: families, recipes, report formats, quantised formats.

Families, recipes and codecs run inside cells. So their files are read and not imported, as the catalogue reads them.
``python -m harness.cli.folder_tables --write`` puts the tables between their marks, ``--check`` says whether they are
what the files say.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.errors import HarnessError
from harness.matrix.catalogue import read_catalogue
from harness.report.contract_tables import renew
from harness.report.format import all_formats
from harness.report.pipe_table import pipe_table

PAGES = (
    Path("docs/reference/checkpoints.md"),
    Path("docs/reference/merge.md"),
    Path("docs/how-to/use-the-report-in-ci.md"),
)
HARNESS = Path(__file__).resolve().parents[1]
WORKER = HARNESS / "worker"
CODECS = HARNESS / "merge" / "base" / "codecs"


def family_table(worker: Path = WORKER) -> str:
    """Return the families, by name.

    Raises:
        HarnessError: a family does not write ``LAYOUT_OF`` and ``SHOWS`` as literal texts.
    """
    rows = []
    for name in read_catalogue(worker.parent).families:
        path = worker / "checkpoints" / "families" / f"{name}.py"
        said = dict(_texts(_tree(path)))
        if missing := [variable for variable in ("LAYOUT_OF", "SHOWS") if variable not in said]:
            raise HarnessError(f"{path}: write {' and '.join(missing)} as a literal text.")
        rows.append((f"`{name}`", said["LAYOUT_OF"], said["SHOWS"]))
    return pipe_table(("family", "layout taken from", "what it exercises"), rows)


def recipe_table(worker: Path = WORKER) -> str:
    """Return the recipes, by name.

    Raises:
        HarnessError: a recipe does not write its ``summary`` as a literal text.
    """
    rows = []
    for name in read_catalogue(worker.parent).recipes:
        path = worker / "recipes" / f"{name.replace('-', '_')}.py"
        summary = next(_summaries(_tree(path)), None)
        if summary is None:
            raise HarnessError(f"{path}: give RECIPE its summary as a literal text.")
        rows.append((f"`{name}`", summary))
    return pipe_table(("recipe", "what gets a LoRA"), rows)


def format_table() -> str:
    """Return the files of a report, in the order in which they are named."""
    return pipe_table(("file", "for"), [(f"`{found.file}`", found.serves) for found in all_formats()])


def codec_table(folder: Path = CODECS) -> str:
    """Return the quantised formats, by the name of their file, with the first sentence of its description.

    Raises:
        HarnessError: a codec's file does not describe itself.
    """
    rows = []
    for path in sorted(folder.glob("[!_]*.py")):
        tree = _tree(path)
        said, *_ = (ast.get_docstring(tree) or "").split("\n")
        if not said:
            raise HarnessError(f"{path}: say in its docstring's first line what is decoded.")
        names = next(_tuples(tree, "FORMATS"), (path.stem,))
        rows.append((", ".join(f"`{name}`" for name in names), said.replace("``", "`").rstrip(".")))
    return pipe_table(("`--quantization`", "what is decoded"), rows)


def _tuples(tree: ast.Module, variable: str) -> Iterator[tuple[str, ...]]:
    """Yield the literal tuple of texts that a module assigns to a variable at its top level."""
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Tuple() as value) if name == variable:
                yield tuple(ast.literal_eval(value))


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _texts(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield the texts that a module assigns at its top level, by variable."""
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str() as text)):
                yield name, text


def _summaries(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.keyword(arg="summary", value=ast.Constant(value=str() as text)):
                yield text


TABLES = {
    "families": family_table,
    "recipes": recipe_table,
    "report formats": format_table,
    "quantised formats": codec_table,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 1 when ``--check`` finds that a page says something else than the files."""
    return renew(PAGES, TABLES, command="python -m harness.cli.folder_tables", arguments=arguments)


if __name__ == "__main__":
    sys.exit(main())
