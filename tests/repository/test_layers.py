"""Who may import whom, read from the syntax trees of the whole package.

So an import inside a function counts too.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "harness"
UNDER_TEST = frozenset({
    "accelerate", "bitsandbytes", "datasets", "huggingface_hub", "numpy", "peft", "safetensors", "tokenizers", "torch",
    "transformers", "trl",
})  # fmt: skip
"""What a cell's environment holds and the host's does not."""

IN_A_CELL = ("contract", "worker", "merge", "experts", "engines", "faults", "definitions")

ALLOWED: Mapping[str, frozenset[str]] = {
    "contract": frozenset({"contract"}),
    "errors": frozenset(),
    "counting": frozenset(),
    "matrix.cell": frozenset({"contract", "matrix.cell"}),
    "result": frozenset({"contract", "matrix.cell", "faults"}),
    "evidence": frozenset({"contract", "result", "faults", "definitions"}),
    "planted": frozenset({"contract", "result", "faults"}),
    "matrix": frozenset({"contract", "matrix", "matrix.cell", "counting", "errors", "evidence", "planted", "result"}),
    "envs": frozenset({"contract", "envs", "matrix.cell", "errors"}),
    "execution": frozenset(
        {"contract", "execution", "envs", "matrix.cell", "counting", "errors", "evidence", "result"}
    ),
    "report": frozenset({"contract", "report", "matrix.cell", "counting", "faults", "planted", "result"}),
    "merge": frozenset({"merge"}),
    "experts": frozenset({"experts", "merge"}),
    "engines": frozenset({"engines", "merge"}),
    "faults": frozenset({"contract", "faults", "merge", "experts"}),
    "definitions": frozenset({"definitions"}),
    "worker": frozenset({"contract", "worker", "merge", "experts", "engines", "faults", "definitions"}),
    "bench": frozenset({"contract", "bench", "merge", "experts", "worker", "envs", "matrix", "matrix.cell", "errors"}),
    "cli": frozenset(
        {
            "contract",
            "cli",
            "bench",
            "matrix",
            "matrix.cell",
            "envs",
            "execution",
            "report",
            "counting",
            "errors",
            "faults",
            "result",
        }
    ),
    "__main__": frozenset({"cli"}),
}
"""Package or module of ours to those it may import. ``matrix.cell`` stands apart: everything speaks of cells."""

SPOKEN_OF = ("cell", "sources", "releases")
"""Modules of ``matrix`` that stand apart as ``matrix.cell``: cells, and where their packages come from."""


@dataclass(frozen=True, kw_only=True)
class Import:
    """One import, whether it happens when the file is imported, and whether only for type checkers."""

    module: str
    line: int
    at_import: bool
    for_types: bool


def imports_of(source: str) -> list[Import]:
    """Return every import of a file: ``from a import b`` is ``a``, and ``from harness import b`` is ``harness.b``."""
    return list(_walk(ast.parse(source).body, at_import=True, for_types=False))


def _walk(nodes: Iterable[ast.AST], *, at_import: bool, for_types: bool) -> Iterator[Import]:
    for node in nodes:
        match node:
            case ast.Import(names=names):
                modules = [alias.name for alias in names]
            case ast.ImportFrom(level=level) if level:
                modules = ["a relative import"]
            case ast.ImportFrom(module="harness", names=names):
                modules = [f"harness.{alias.name}" for alias in names]
            case ast.ImportFrom(module=str(module)):
                modules = [module]
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                yield from _walk(ast.iter_child_nodes(node), at_import=False, for_types=for_types)
                continue
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), body=body, orelse=orelse):
                yield from _walk(body, at_import=False, for_types=True)
                yield from _walk(orelse, at_import=at_import, for_types=for_types)
                continue
            case _:
                yield from _walk(ast.iter_child_nodes(node), at_import=at_import, for_types=for_types)
                continue
        for module in modules:
            yield Import(module=module, line=node.lineno, at_import=at_import, for_types=for_types)


def files_of(*parts: str) -> list[Path]:
    """Return the files of some packages or modules of ours."""
    places = [PACKAGE / part.replace(".", "/") for part in parts]
    found = [path for place in places for path in place.rglob("*.py")]
    found += [path for place in places if (path := place.with_suffix(".py")).is_file()]
    assert found
    return sorted(found)


def layer_of(module: str) -> str | None:
    """Return what of ours a module belongs to, as the table above names it. None for what is not ours."""
    parts = module.split(".")
    if parts[0] != "harness" or parts[1:] in ([], ["__version__"]):
        return None
    return "matrix.cell" if parts[1] == "matrix" and parts[2:3] and parts[2] in SPOKEN_OF else parts[1]


def forbidden(layer: str, source: str) -> list[str]:
    """Return the imports of ours that a file of ``layer`` has and may not have."""
    return [
        f"line {item.line}: {item.module}"
        for item in imports_of(source)
        if item.module == "a relative import" or layer_of(item.module) not in {None, *ALLOWED[layer]}
    ]


def third_party(source: str) -> list[Import]:
    """Return the imports of a file that are neither ours nor the standard library's."""
    known = {*sys.stdlib_module_names, "harness"}
    return [item for item in imports_of(source) if item.module.split(".")[0] not in known]


def test_every_package_is_in_the_table() -> None:
    found = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir() if path.suffix in {"", ".py"}}
    assert found - {"__init__", "__pycache__"} - set(IN_A_CELL) <= ALLOWED.keys()


@pytest.mark.parametrize("layer", ALLOWED)
def test_lower_packages_never_import_upper_ones(layer: str) -> None:
    found = {path.relative_to(ROOT).as_posix(): forbidden(layer, path.read_text("utf-8")) for path in files_of(layer)}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_cells_are_below_everything_but_the_contract() -> None:
    for name in SPOKEN_OF:
        source = (PACKAGE / "matrix" / f"{name}.py").read_text("utf-8")
        assert {layer_of(item.module) for item in imports_of(source)} <= {None, "contract", "matrix.cell"}


def test_the_contract_uses_the_standard_library_alone() -> None:
    found = [item.module for path in files_of("contract") for item in third_party(path.read_text("utf-8"))]
    assert found == []


def test_the_table_has_no_cycle() -> None:
    """``result`` speaks of cells and ``matrix`` judges results: ``matrix.cell`` has a place of its own below both."""
    below = {layer: {name for name in names if name != layer} for layer, names in ALLOWED.items()}
    order: list[str] = []
    while len(order) < len(below):
        ready = [name for name in below if name not in order and below[name] <= {*order, *IN_A_CELL}]
        assert ready, f"a cycle among {below.keys() - set(order)}"
        order += ready


@pytest.mark.parametrize(
    "layer", ["errors", "result", "evidence", "matrix", "envs", "execution", "report", "cli", "__main__"]
)
def test_the_host_never_imports_what_is_under_test(layer: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{item.line}: {item.module}"
        for path in files_of(layer)
        for item in third_party(path.read_text("utf-8"))
        if item.module.split(".")[0] in UNDER_TEST
    ]
    assert found == []


@pytest.mark.parametrize("layer", ["worker", "engines", "faults"])
def test_what_runs_in_a_cell_imports_libraries_only_inside_functions(layer: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{item.line}: {item.module}"
        for path in files_of(layer)
        for item in third_party(path.read_text("utf-8"))
        if item.at_import or item.module.split(".")[0] not in UNDER_TEST
    ]
    assert found == []


def test_the_bench_imports_what_it_measures_only_inside_functions() -> None:
    """Measured processes of foreign environments import the same files.

    The checkpoints are made with numpy, which pandas brings.
    """
    found = [
        f"{path.relative_to(ROOT)}:{item.line}: {item.module}"
        for path in files_of("bench")
        for item in third_party(path.read_text("utf-8"))
        if item.module.split(".")[0] in UNDER_TEST - {"numpy"} and item.at_import
    ]
    assert found == []


def test_what_runs_in_a_foreign_environment_imports_the_standard_library_alone() -> None:
    """A contender's file, and whatever of ours it imports, is loaded where only the contender is installed."""
    sources = {_module_of(path): path.read_text("utf-8") for path in files_of("bench")}
    reached = {"harness.bench.measured", *(name for name in sources if ".contenders." in name or ".programs." in name)}
    waiting = list(reached)
    while waiting:
        for item in imports_of(sources[waiting.pop()]):
            if item.at_import and item.module in sources and item.module not in reached:
                reached.add(item.module)
                waiting.append(item.module)
    assert "harness.bench.durable" in reached
    assert [name for name in sorted(reached) if any(item.at_import for item in third_party(sources[name]))] == []


def test_the_judge_of_exactness_never_sees_the_engine() -> None:
    source = (PACKAGE / "bench" / "programs" / "exactness.py").read_text("utf-8")
    assert [item.module for item in imports_of(source) if item.module.startswith("harness")] == []


ASKED_FOR_NAMES = {"transformers", "transformers.conversion_mapping", "transformers.core_model_loading"}
"""What one module of the engine asks for names, where it is installed and a base is read by no other."""


def test_the_merge_engine_needs_torch_alone_and_only_to_merge() -> None:
    """A plan is made without torch: no module that ``harness.merge`` imports on import may import it, itself or not."""
    sources = {_module_of(path): path.read_text("utf-8") for path in files_of("merge")}
    assert {item.module for source in sources.values() for item in third_party(source)} - ASKED_FOR_NAMES == {"torch"}
    asking = [name for name, source in sources.items() if {it.module for it in third_party(source)} & ASKED_FOR_NAMES]
    assert asking == ["harness.merge.base.installed"]
    assert not any(item.at_import for item in third_party(sources["harness.merge.base.installed"]))

    reached = {"harness.merge", "harness.merge.plan.planner", "harness.merge.command"}
    waiting = list(reached)
    while waiting:
        for item in imports_of(sources[waiting.pop()]):
            if item.at_import and item.module in sources and item.module not in reached:
                reached.add(item.module)
                waiting.append(item.module)
    assert len(reached) > 10, "the search itself must have found something"
    needing = [name for name in sorted(reached) if any(not item.for_types for item in third_party(sources[name]))]
    assert needing == asking


MERGE_ROOMS = ("files", "adapter", "base", "plan", "write", "publish", "run")
"""The rooms of ``harness/merge``, each of which imports only rooms that stand before it."""

BESIDE_RUN = ("auditing", "adapter_tools")
"""Programs of their own over the same rooms: none imports another, or ``run``."""

CATALOGUES = ("base.codecs", "base.families")
"""Folders that find their own files; their ``__init__`` is the catalogue."""


def merge_imports(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Return which files of ``harness.merge`` each of them imports, wherever in the file.

    ``from a import b`` may mean the file ``a.b``.
    """
    found: dict[str, set[str]] = {}
    for name, source in sources.items():
        found[name] = set()
        for node in ast.walk(ast.parse(source)):
            match node:
                case ast.ImportFrom(module=str(module), names=names):
                    meant = {f"{module}.{alias.name}" for alias in names}
                    found[name] |= meant & sources.keys() or {module} & sources.keys()
                case ast.Import(names=names):
                    found[name] |= {alias.name for alias in names} & sources.keys()
    return found


def circles(imports: Mapping[str, set[str]]) -> set[str]:
    """Return the files that import themselves, through others, and those that import such."""
    left = dict(imports)
    while ready := [name for name, below in left.items() if not below & left.keys()]:
        for name in ready:
            del left[name]
    return set(left)


def misplaced(imports: Mapping[str, set[str]]) -> list[str]:
    """Return the imports that go from a room to one that does not stand below it."""
    found = []
    for name, below in imports.items():
        for other in below:
            here, there = (MERGE_ROOM.match(module) for module in (name, other))
            if here is None or (there is not None and there["room"] == here["room"]):
                continue
            if there is None:
                allowed = other in {"harness.merge.errors", "harness.merge.process"} or name.endswith(".command")
            elif here["room"] in BESIDE_RUN:
                allowed = there["room"] in MERGE_ROOMS[:-1]
            else:
                allowed = there["room"] in MERGE_ROOMS[: MERGE_ROOMS.index(here["room"])]
            if not allowed:
                found.append(f"{name} -> {other}")
    return found


MERGE_ROOM = re.compile(rf"harness\.merge\.(?P<room>{'|'.join((*MERGE_ROOMS, *BESIDE_RUN))})(\.|$)")


def merge_sources() -> dict[str, str]:
    """Return the source of every file of ``harness.merge`` by module."""
    return {_module_of(path): path.read_text("utf-8") for path in files_of("merge")}


def test_every_folder_of_the_merge_engine_is_a_room() -> None:
    inside = [path.relative_to(PACKAGE / "merge") for path in files_of("merge")]

    assert {path.parts[0] for path in inside if len(path.parts) > 1} == {*MERGE_ROOMS, *BESIDE_RUN}


def test_no_file_of_the_merge_engine_imports_itself_through_others() -> None:
    assert circles(merge_imports(merge_sources())) == set()


def test_the_rooms_of_the_merge_engine_import_only_rooms_below() -> None:
    assert misplaced(merge_imports(merge_sources())) == []


def test_a_room_of_the_merge_engine_loads_nothing_by_itself() -> None:
    """Only the face and the catalogues have code in ``__init__``, so that importing one file imports no other."""
    rooms = {name: path for path in files_of("merge") if path.name == "__init__.py" and (name := _module_of(path))}
    but = {"harness.merge", *(f"harness.merge.{name}" for name in CATALOGUES)}
    assert rooms.keys() >= but

    assert [
        name for name, path in rooms.items() if name not in but and len(ast.parse(path.read_text()).body) != 1
    ] == []


def test_planted_circles_and_misplaced_imports_are_found() -> None:
    planted = merge_imports({
        "harness.merge": "from harness.merge.plan.planner import plan_merge",
        "harness.merge.plan.planner": "def f():\n    from harness.merge.plan import regions",
        "harness.merge.plan.regions": "import harness.merge.plan.planner",
        "harness.merge.files.hub_cache": "from harness.merge.write import shards",
        "harness.merge.write.shards": "from harness.merge import plan_merge",
        "harness.merge.run.engine": "from harness.merge.auditing import walk",
        "harness.merge.auditing.walk": "from harness.merge.run import engine",
    })  # fmt: skip

    assert circles(planted) == planted.keys()
    assert set(misplaced(planted)) == {
        "harness.merge.files.hub_cache -> harness.merge.write.shards",
        "harness.merge.write.shards -> harness.merge",
        "harness.merge.run.engine -> harness.merge.auditing.walk",
        "harness.merge.auditing.walk -> harness.merge.run.engine",
    }


def _module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("name", ["envs/indexes.py", "execution/deadman.py"])
def test_files_that_are_started_or_loaded_by_path_stand_alone(name: str) -> None:
    source = (PACKAGE / name).read_text("utf-8")
    assert third_party(source) == []
    assert [item.module for item in imports_of(source) if item.module.startswith("harness")] == []


def test_the_bundle_takes_what_the_worker_may_import() -> None:
    from harness.contract.packages import WORKER_PACKAGES  # noqa: PLC0415 - the rest imports nothing of ours

    assert set(WORKER_PACKAGES) == set(IN_A_CELL) == {*ALLOWED["worker"], "worker"}


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        ("merge", "from harness.errors import HarnessError"),
        ("merge", "from harness import errors"),
        ("worker", "import harness.matrix.cell"),
        ("report", "def f():\n    from harness.execution.store import load_result"),
        ("envs", "from . import layout"),
        ("matrix", "if TYPE_CHECKING:\n    from harness.envs import Environment"),
        ("execution", "class A:\n    from harness.cli import app"),
    ],
)
def test_a_planted_import_is_found(layer: str, source: str) -> None:
    assert len(forbidden(layer, source)) == 1


def test_where_an_import_happens_is_seen() -> None:
    found = imports_of(
        "import a\nif TYPE_CHECKING:\n    import b\ndef f():\n    import c\nclass D:\n    import d\n"
        "try:\n    import e\nexcept ImportError:\n    pass\n"
    )
    assert [(item.module, item.at_import, item.for_types) for item in found] == [
        ("a", True, False),
        ("b", False, True),
        ("c", False, False),
        ("d", True, False),
        ("e", True, False),
    ]
