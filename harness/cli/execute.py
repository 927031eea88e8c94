"""Running cells and saying what came of them: what ``harness run`` and ``harness matrix`` have in common."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cache, partial
from pathlib import Path

from rich.console import Console

from harness.cli.device import require_gpu
from harness.cli.setup import Setup
from harness.contract.cell_fields import CellFields, Device
from harness.contract.outcomes import AS_EXPECTED
from harness.envs import (
    Prepared,
    cache_dir,
    check_versions_exist,
    child_environment,
    ensure_environment,
    prepared_environments,
    results_folder,
    unmanaged_environment,
    yanked_pins,
)
from harness.errors import HarnessError
from harness.execution.agenda import stack_key
from harness.execution.durations import recorded_costs
from harness.execution.executors import executor as make_executor
from harness.execution.files import stage_tail
from harness.execution.interruption import LOG_ENDS
from harness.execution.observer import RunReport
from harness.execution.progress import choose_progress
from harness.execution.result_cache import ResultCache
from harness.execution.result_room import results_room
from harness.execution.scheduler import RunInterruptedError, run_cells
from harness.execution.scratch import scratch_directory
from harness.execution.services import CellSettings, Expected, PreparedEnvironment, Services
from harness.execution.supervise import Limits
from harness.matrix.agreement import disagreements
from harness.matrix.cell import Cell, Stack
from harness.matrix.costs import Cost, Costs, published_costs
from harness.matrix.too_old import refuse_too_old
from harness.matrix.verdict import Verdict, judge, status_of
from harness.report.table import Row, not_run
from harness.report.terminal import print_declared, print_failure, print_next_steps, print_table
from harness.report.write import write_report
from harness.result import CellResult

FAILURES_SHOWN = 10
LOG_LINES = 15


def execute(
    setup: Setup,
    cells: Sequence[Cell],
    *,
    out: Path,
    jobs: int | None,
    device: Device,
    python: Path | None,
    fresh: bool,
    keep: bool,
    fresh_processes: bool,
    console: Console,
    report: bool,
    after_interruption: str,
    executor: str = "local",
    urgent: Collection[str] = (),
    show: bool = True,
    results: ResultCache | None = None,
    passed_before: Collection[str] = (),
    check: Callable[[CellResult], None] = lambda _result: None,
) -> tuple[int, list[Row]]:
    """Run cells, print the table and every failure, write the report; return the exit code and the rows.

    Args:
        setup: the configuration.
        cells: what to run.
        out: the output directory.
        jobs: cells at a time; None: what the configuration says for this machine.
        device: where cells run.
        python: an interpreter to run in as it is, or None.
        fresh: run every cell, also those whose result was kept.
        keep: leave work directories under ``out``.
        fresh_processes: start a new process for each cell.
        console: where to print.
        report: whether to write the report's files.
        show: whether to print the table and the failures; else the caller shows what came of the cells.
        after_interruption: what does the rest when the run was interrupted.
        executor: what runs the cells.
        urgent: the keys of the stacks whose cells go before all others.
        results: where results are kept; None: in the user's cache, as far as it has room for any.
        passed_before: ids of cells that passed in a baseline.
        check: raises where a result shows that its cell should not have been asked for; then nothing is shown.

    Raises:
        HarnessError: the run cannot start, or was interrupted (then the partial report is written first).
    """
    refuse_too_old({stack_key(cell.stack): cell.stack for cell in cells}.values())
    chosen = make_executor(executor)
    kept = results or users_results()
    prepared = Prepared(there=frozenset(), identities={}, seconds_each=None)
    if python is None:
        stacks = list({stack_key(cell.stack): cell.stack for cell in cells}.values())
        check_versions_exist(stacks)
        for sentence in yanked_pins(stacks):
            console.print(sentence, style="yellow", markup=False, soft_wrap=True)
        prepared = prepared_environments(stacks, device=device)
    capacity = chosen.capacity(device)
    if jobs is None and setup.config.limits.jobs == "auto":
        jobs = capacity.cells
    at_a_time, threads = setup.config.limits.share(capacity.cores, jobs=jobs)
    with scratch_directory() as scratch:
        services = Services(
            prepare=partial(_prepare, python=python, device=device),
            child_environment=child_environment,
            settings=lambda cell: cell_settings(setup, cell, threads),
            cache=cache_dir(),
            out=out.absolute(),
            scratch=out.absolute() / "work" if keep else scratch,
            results=kept,
            reuse=None if fresh or keep else lambda cell: may_be_reused(setup, cell),
            identities=prepared.identities,
            there=prepared.there,
            urgent=urgent,
            expected=_expected_costs(out),
        )
        try:
            ran = run_cells(
                cells,
                services,
                choose_progress(console),
                jobs=min(at_a_time, len(cells)),
                memory_mb=capacity.memory_mb,
                keep=keep,
                make_runner=chosen.make_runner,
                processes="fresh" if fresh_processes else "warm",
            )
        except RunInterruptedError as interruption:
            rows = rows_of(setup, interruption.report, passed_before)
            if show:
                _say(console, rows, out, report=report)
            interruption.remedy = after_interruption
            raise
    for result in ran.results:
        check(result)
    rows = rows_of(setup, ran, passed_before)
    if show:
        _say(console, rows, out, report=report)
    for stack, error in ran.environment_failures:
        _say_environment(console, stack, error)
    if ran.environment_failures:
        return max(error.exit_code for _, error in ran.environment_failures), rows
    return int(not all(row.as_expected for row in rows)), rows


def users_results() -> ResultCache | None:
    """Return the results in the user's cache; None where it has no room for any.

    Raises:
        ConfigurationError: the variable that says how much room there is says no size.
    """
    room = results_room()
    return ResultCache(results_folder(), room=room) if room else None


def may_be_reused(setup: Setup, cell: Cell) -> bool:
    """Say whether a kept result may stand for a cell: not for one that is declared to come out now so, now so."""
    return not any(item.flaky and item.applies(cell) for item in setup.expectations)


def judged(setup: Setup, results: Sequence[CellResult], passed_before: Collection[str] = ()) -> list[Row]:
    """Judge results in the light of the expectations, and each base in the light of what other stacks say of it.

    Args:
        setup: the configuration.
        results: what happened.
        passed_before: ids of cells that passed in a baseline. A result itself knows of earlier runs into its directory.
    """
    found: dict[str, str] = {}
    for dtype, geometry in {(result.cell.dtype, result.cell.geometry) for result in results}:
        bands = setup.config.bands_of(engine=CellFields.engine, dtype=dtype, geometry=geometry)
        alike = (it for it in results if (it.cell.dtype, it.cell.geometry) == (dtype, geometry))
        found |= disagreements(alike, band=bands.definition_max)
    return [
        _row_of(setup, result, found.get(result.cell_id), passed_before=result.cell_id in passed_before)
        for result in results
    ]


def _row_of(setup: Setup, result: CellResult, disagreement: str | None, *, passed_before: bool) -> Row:
    verdict = judge(result, setup.expectations, setup.catalogue.facts_of, passed_before=passed_before)
    if disagreement is not None and verdict.status in AS_EXPECTED:
        known_to_pass = passed_before or result.last_passed is not None
        verdict = Verdict(status=status_of(None, passed_before=known_to_pass), sentence=disagreement)
    expectation = verdict.expectation
    return Row(
        result=result,
        status=verdict.status,
        sentence=verdict.sentence,
        expectation_reason=expectation.reason if expectation else None,
        expectation_link=expectation.link if expectation else None,
        options=setup.options,
    )


def rows_of(setup: Setup, ran: RunReport, passed_before: Collection[str] = ()) -> list[Row]:
    """Judge every result; a planned cell without one is ``not run``, which never looks like a pass."""
    return judged(setup, ran.results, passed_before) + [
        not_run(cell, "the run was interrupted before it had a result", options=setup.options)
        for cell in ran.unfinished
    ]


def _prepare(stack: Stack, *, python: Path | None, device: Device) -> PreparedEnvironment:
    """Make the environment of a stack, or find it, on the machine that this runs on."""
    if python is not None:
        return unmanaged_environment(python)
    environment = ensure_environment(stack, device=device)
    if device == "cuda":
        require_gpu(environment.python, label=stack.id)
    return environment


def _expected_costs(out: Path) -> Callable[[Cell], Expected]:
    """Return what says what cells are expected to take: as earlier runs into ``out`` did, else as published.

    What lies there is read when it is first asked.
    """

    @cache
    def costs() -> Costs:
        recorded = {name: Cost(seconds=it[0], memory_mb=it[1]) for name, it in recorded_costs([out]).items()}
        return published_costs().updated(recorded)

    def expected(cell: Cell) -> Expected:
        cost = costs().of(cell)
        return Expected(seconds=cost.seconds, memory_mb=cost.memory_mb)

    return expected


def cell_settings(setup: Setup, cell: Cell, threads: int) -> CellSettings:
    """Return the limits, bands and threads of a cell."""
    limits = setup.config.limits
    return CellSettings(
        limits=Limits(seconds=limits.cell_seconds, memory_mb=limits.memory_mb),
        bands=setup.config.bands_of(engine=cell.engine, dtype=cell.dtype, geometry=cell.geometry).model_dump(),
        threads=threads,
    )


def _say(console: Console, rows: list[Row], out: Path, *, report: bool) -> None:
    """Print the table and why known failures fail.

    Then come every cell that is not as it should be, what to do about them, and where everything lies.
    """
    console.print()
    print_table(console, rows)
    print_declared(console, rows)
    wrong = [row for row in rows if row.status is not None and not row.as_expected]
    for row in wrong[:FAILURES_SHOWN]:
        log = out / row.result.log if row.result.log else None
        quoted = LOG_ENDS in (row.result.reason or "")
        print_failure(
            console, row, stage_tail(log, row.result.stage, lines=LOG_LINES) if log and not quoted else "", log
        )
    if len(wrong) > FAILURES_SHOWN:
        console.print(f"… and {len(wrong) - FAILURES_SHOWN} more; the report has them all.")
    print_next_steps(console, wrong)
    if report:
        paths = write_report(rows, out)
        console.print("report: " + ", ".join(str(path) for path in paths), soft_wrap=True)


def _say_environment(console: Console, stack: Stack, error: HarnessError) -> None:
    console.print(
        f"environment {stack.id} could not be made: {error.message}", style="red", markup=False, soft_wrap=True
    )
    if error.remedy:
        console.print(f"what to do: {error.remedy}", markup=False, soft_wrap=True)
