# mypy: allow-untyped-calls
# junitparser ships types for some of its methods only; what is passed to the others is checked by the tests.
"""The report as JUnit XML, for the test tab of a CI system; pure.

JUnit knows passed, failed, errored and skipped. Only an expected pass is passed. A known failure is skipped with its
reason, as pytest's xfail is. An unexpected pass is a failure, as pytest's strict xfail is. A cell that did not run is
an error, because the run does not say what it should have said. The type of each says whose fault it is: ``new.error``,
``regression.fail``, ``environment``.
"""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree import ElementTree as ET

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from harness.contract.outcomes import Outcome
from harness.report import reuse
from harness.report.details import failed_checks, reason
from harness.report.format import Format
from harness.report.last_run import last_run
from harness.report.look import outcome_text
from harness.report.table import Row, ordered, recipe_with_options
from harness.report.text import clean, in_the_middle

_REJECTED: frozenset[Outcome] = frozenset({"fail", "noop", "blind"})
"""Failures that a check found; the others (exceptions, crashes, time limits, the machine's faults) are errors."""


def _body(row: Row) -> str:
    """Return the text of a case that did not pass: checks, the library's words, the line that reproduces it."""
    parts = [*failed_checks(row), reason(row), row.sentence, row.expectation_reason, row.expectation_link]
    return "\n".join([*(clean(part) for part in parts if part), f"Reproduce: {row.reproduce}"])


def _verdict(row: Row) -> Error | Failure | Skipped | None:
    words = row.expectation_reason or row.result.reason or ""
    message = in_the_middle(f"{outcome_text(row)}: {words}".rstrip(": "), 400)
    kind = _kind(row)
    verdict: Error | Failure | Skipped
    if row.passed:
        return None
    if row.as_expected:
        verdict = Skipped(message, kind)
    elif row.standing == "unexpected-pass" or (not row.of_machine and row.result.outcome in _REJECTED):
        verdict = Failure(message, kind)
    else:
        verdict = Error(message, kind)
    verdict.text = _body(row)
    return verdict


def _kind(row: Row) -> str:
    """Return the type of a case that did not pass: its status, with its outcome where that says more.

    ``environment`` and ``not-run`` are apart from whatever a stack may be blamed for.
    """
    if row.standing == "ok":
        return row.result.outcome
    return f"{row.standing}.{row.result.outcome}" if row.standing in {"regression", "new"} else row.standing


def _case(row: Row) -> TestCase:
    seconds = sum(stage.seconds or 0.0 for stage in row.result.stages.values())
    cell = row.result.cell
    name = f"{cell.family}/{recipe_with_options(row)} by {cell.engine}"
    case = TestCase(name, cell.stack.id, round(seconds, 3))
    verdict = _verdict(row)
    if verdict is not None:
        case.result = [verdict]
    if (said := reuse.note(row.result)) is not None:
        case.system_out = said
    return case


def render_junit(rows: Iterable[Row]) -> str:
    """Return the report as JUnit XML: a suite per stack, a case per cell. It carries no time of day.

    Raises:
        ValueError: when two rows are of the same cell.
    """
    report = JUnitXml("moe-lora-harness")
    suites: dict[str, TestSuite] = {}
    for row in ordered(rows):
        stack = row.result.cell.stack.id
        if stack not in suites:
            suites[stack] = TestSuite(stack)
        suites[stack].add_testcase(_case(row))
    for suite in suites.values():
        if (said := last_run()) is not None:
            suite.add_property("faults", said)
        report.add_testsuite(suite)
    # Canonical XML: the same bytes whichever XML library junitparser found to write with.
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.canonicalize(report.tostring())}\n'


FORMAT = Format(
    file="junit.xml",
    serves="a test tab: a suite per stack, a case per cell; a known failure is skipped with "
    "its reason, an unexpected pass is a failure",
    render=lambda rows, _generated: render_junit(rows),
)
