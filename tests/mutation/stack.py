"""The environment that mutants are run in: requests for its cells, its processes, and what its cells come to."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import harness
from harness.contract.outcomes import Outcome
from harness.envs import child_environment, ensure_environment
from harness.execution.decision import EndedStage, decide
from harness.execution.observation import parse_observation
from harness.execution.request import WorkerRequest
from harness.matrix.catalogue import read_catalogue
from harness.matrix.cell import Cell
from harness.matrix.config import load_config
from harness.matrix.locate import find_config
from harness.matrix.plan import one_cell
from harness.result import CellResult

PROGRAM = Path(__file__).parent / "mutant_program.py"
ROOT = Path(harness.__file__).parents[1]


class Stack:
    """A real environment and some cells of it."""

    def __init__(self, scratch: Path, stack: str, cells: Mapping[str, Mapping[str, str]], *, jobs: int) -> None:
        catalogue = read_catalogue()
        self._config = load_config(find_config(), catalogue)
        declared = next(one for one in self._config.declared if one.id == stack)
        self._environment = ensure_environment(declared)
        self._scratch = scratch
        self._jobs = jobs
        self._processes: list[subprocess.Popen[str]] = []
        self._exits = ExitStack()
        self.cells: dict[str, Cell] = {name: one_cell(catalogue, declared, **asked) for name, asked in cells.items()}
        self.packages = next(Path(self._environment.prefix).glob("lib/python*/site-packages"))

    def __enter__(self) -> Self:
        """Start the processes."""
        for number in range(self._jobs):
            home = self._scratch / f"home-{number}"
            home.mkdir()
            process = subprocess.Popen(
                [self._environment.python, "-I", str(PROGRAM), str(ROOT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=child_environment(scratch=home, prefix=self._environment.prefix),
                text=True,
            )
            self._processes.append(self._exits.enter_context(process))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End them: they have no more to read."""
        self._exits.close()

    def file_of(self, module: str) -> Path:
        """Return the source of a module of ours or of the environment's."""
        root = ROOT if module.startswith("harness.") else self.packages
        return root / f"{module.replace('.', '/')}.py"

    def lines_run(self, modules: Sequence[str], *, seconds: float) -> dict[str, dict[str, dict[int, bool]]]:
        """Return cell → module → line that the cell runs in one of the modules → whether only from the merge on."""
        files = {str(self.file_of(module)): module for module in modules}
        found: dict[str, dict[str, dict[int, bool]]] = {}
        for cell in self.cells:
            said = self._ask(cell, {"seconds": seconds, "trace": list(files)}, name=f"trace-{cell}", worker=0)
            found[cell] = defaultdict(dict)
            for early, lines in said:
                for file, numbers in lines.items():
                    known = found[cell][files[file]]
                    known.update({number: known.get(number, True) and not early for number in numbers})
        return found

    def refuse_unless_clean(self, seconds: float) -> None:
        """Run every cell with nothing changed, whole and from the merge on.

        Raises:
            ValueError: one does not pass, so it would notice everything.
        """
        for cell in self.cells:
            for merged in (False, True):
                case = {"seconds": seconds, "merged": merged}
                outcome, by = self.outcome(cell, case, name=f"clean-{cell}", worker=0)
                if outcome != "pass":
                    raise ValueError(f"{self.cells[cell].id} with nothing changed: {outcome}, {by}")

    def outcome(self, cell: str, case: Mapping[str, Any], *, name: str, worker: int) -> tuple[str, str | None]:
        """Return what becomes of a cell, by the host's own decision, and what noticed it."""
        said = self._ask(cell, case, name=name, worker=worker)
        if said["ended"] == "not planted":
            return "not planted", said["reason"]
        if said["ended"] != "done":
            observation = said["observation"] or {}
            return said["ended"], f"{observation.get('running') or 'start'}: {said['ended']}"
        return _decided(self.cells[cell], said["observation"])

    def _ask(self, cell: str, case: Mapping[str, Any], *, name: str, worker: int) -> Any:
        if case.get("merged"):
            name = f"merged-{cell}-{worker}"  # paths of the directory are written in what is kept
            case = {**case, "kept": str(self._scratch / f"kept-{cell}-{worker}")}
        work = self._scratch / name
        work.mkdir()
        asked = self.cells[cell]
        bands = self._config.bands_of(engine=asked.engine, dtype=asked.dtype, geometry=asked.geometry).model_dump()
        request = WorkerRequest(cell=asked, work=work, bands=bands).write()
        process = self._processes[worker]
        if process.stdin is None or process.stdout is None:
            raise ValueError("started without pipes")
        process.stdin.write(json.dumps({**case, "request": str(request)}) + "\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        shutil.rmtree(work)
        return answer


def _decided(cell: Cell, observation: Any) -> tuple[Outcome, str | None]:
    """Return the outcome of a cell that came to its end, and the first check that failed, or the stage that did."""
    seen = parse_observation(json.dumps(observation).encode())
    if seen.problem is not None:
        return "error", "record"
    fields = dict(seen.fields)
    ended = {key: EndedStage(**how) for key, how in fields.pop("stages", {}).items()}  # type: ignore[attr-defined]
    try:
        result = CellResult(cell=cell, cell_id=cell.id, outcome="error", **fields)  # type: ignore[arg-type]
    except ValueError:
        return "error", "record"  # what contradicts itself is refused, which is to be noticed
    # The environment is a real one, which nobody has to resolve.
    result = decide(result.model_copy(update={"cell": cell.model_copy(update={"unmanaged": True})}), ended)
    failed = [f"{check['stage']}: {check['name']}" for check in observation["checks"] if not check["passed"]]
    stages = [name for name, stage in result.stages.items() if stage.result not in {"pass", "not_run"}]
    return result.outcome, next(iter(failed or stages), None)
