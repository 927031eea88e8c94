"""Everything a result knows, as small titled tables of text; pure.

The HTML page shows these when a row is opened. They are made here rather than in the page's script. So one place
decides how a number reads, and the script only ever puts plain text into the document.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from harness.contract.checks import CONTROL
from harness.contract.readings import lies_within
from harness.contract.stages import STAGES
from harness.contract.tensors import COUNTS, KINDS
from harness.report import figures, funnel, quantized, reuse
from harness.report.margins import mildest_broken
from harness.report.remarks import lost
from harness.report.table import Row
from harness.report.text import fold, in_the_middle, one_line
from harness.result import CellResult, Check, StageResult, TensorCounts


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a section. ``bad`` ones are drawn so that the eye finds them; their text says so too."""

    cells: tuple[str, ...]
    bad: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """A titled table."""

    title: str
    head: tuple[str, ...]
    lines: tuple[Line, ...] = field(default=())


def _plain(cells: Iterable[str | float | None]) -> tuple[str, ...]:
    return tuple(figures.number(cell) for cell in cells)


def _pairs(title: str, head: tuple[str, str], pairs: Iterable[tuple[str, str | float | None]]) -> Section:
    """Make a section of names and values, leaving out what was not measured."""
    return Section(
        title=title, head=head, lines=tuple(Line(cells=_plain(pair)) for pair in pairs if pair[1] is not None)
    )


def _checks(result: CellResult) -> Section:
    controls = {(check.name, check.stage): check for check in result.checks if check.name.startswith(CONTROL)}

    def altered(check: Check) -> str:
        """Say what the check measured of its control, which stands in its line as long as it was rejected.

        Where it has none of its own, it is the mildest of the broken merges that it rejected.
        """
        control = controls.get((f"{CONTROL}{check.name}", check.stage))
        if control is not None:
            return figures.number(control.value)
        broken = mildest_broken(result, check)
        return "" if broken is None else f"{figures.number(broken.values[check.name])} ({broken.name})"

    lines = tuple(
        Line(
            cells=(
                *_plain((check.name, check.stage, check.value, check.band)),
                "✓ passed" if check.passed else "✗ not passed",
                altered(check),
                one_line(check.detail or "", 400),
            ),
            bad=not check.passed,
        )
        for check in sorted(result.checks, key=lambda check: check.passed)
        if check.stage == "controls" or not check.passed or not check.name.startswith(CONTROL)
    )
    head = ("check", "stage", "value", "band", "verdict", "its control", "what was off")
    return Section(title="Checks", head=head, lines=lines)


def _stage_word(stage: StageResult) -> str:
    word = {"pass": "✓ pass", "not_run": "· not run"}.get(stage.result)
    return word or f"✗ {stage.result}"


def _stages(result: CellResult) -> Section:
    lines = tuple(
        Line(
            cells=(name, _stage_word(stage), figures.seconds(stage.seconds), in_the_middle(stage.reason or "", 400)),
            bad=stage.result not in {"pass", "not_run", "skipped", "unsupported"},
        )
        for name in STAGES
        if (stage := result.stages.get(name)) is not None
    )
    return Section(title="Stages", head=("stage", "result", "time", "reason"), lines=lines)


def _counts_line(name: str, counts: TensorCounts) -> Line:
    values = [getattr(counts, column) for column in COUNTS]
    return Line(cells=_plain((name, *values)), bad=bool(counts.dropped or counts.wrong))


def _merge(result: CellResult) -> Sequence[Section]:
    merge = result.merge
    if merge is None:
        return ()
    known = [kind for kind in KINDS if kind in merge.by_kind]
    others = sorted(merge.by_kind.keys() - set(KINDS))
    lines = [_counts_line("all", merge), *(_counts_line(kind, merge.by_kind[kind]) for kind in [*known, *others])]
    head = ("tensors", *(column.replace("_", " ") for column in COUNTS))
    claims: list[tuple[str, str | float | None]] = [
        ("applied, as the engine says", merge.engine_applied),
        ("by another path, as the engine says", merge.fallback),
        ("first error", merge.first_error),
    ]
    return (
        Section(title="Merged tensors, measured from the bytes", head=head, lines=tuple(lines)),
        _pairs("The engine's own account", ("claim", "value"), claims),
    )


def _controls(result: CellResult) -> Section:
    lines = tuple(
        Line(
            cells=(
                *_plain((control.name,)),
                "✓ rejected" if control.rejected else "✗ got through",
                one_line(", ".join(control.by)) or figures.MISSING,
                figures.number(control.value),
            ),
            bad=not control.rejected,
        )
        for control in result.controls
    )
    return Section(
        title="Controls: broken merges that must be rejected", head=("control", "verdict", "by", "value"), lines=lines
    )


def _training(result: CellResult) -> Section:
    training = result.training
    pairs: list[tuple[str, str | float | None]] = []
    if training is not None:
        loss = " → ".join(figures.number(value) for value in training.loss)
        pairs += [("steps", training.steps), ("loss on one fixed batch", loss or None)]
        pairs += [(f"largest gradient norm, {kind}", value) for kind, value in sorted(training.grad_norm.items())]
        pairs += [
            (f"fewest tokens of an expert, {phase}", count)
            for phase, count in sorted(training.tokens_per_expert_min.items())
        ]
        pairs += [(f"LoRA attached, {kind}", count) for kind, count in sorted(training.attached.items())]
        pairs += [(f"LoRA tensors in {dtype}", count) for dtype, count in sorted(training.lora_dtypes.items())]
    return _pairs("Training", ("what", "value"), pairs)


def _funnel(result: CellResult) -> Section:
    lines = tuple(Line(cells=cells, bad=not whole) for cells, whole in funnel.lines(result))
    return Section(title=funnel.TITLE, head=funnel.HEAD, lines=lines)


def _environment(result: CellResult) -> Section:
    adapter = result.adapter
    pairs: list[tuple[str, str | float | None]] = [
        ("python", result.python),
        ("platform", result.platform),
        ("device", result.device),
        ("threads", result.threads),
        ("seed", result.seed),
        ("peak memory", None if result.peak_rss_mb is None else f"{result.peak_rss_mb:.0f} MB"),
        ("peak GPU memory", None if result.peak_vram_mb is None else f"{result.peak_vram_mb:.0f} MB"),
        ("imported first", result.import_first),
        ("base checkpoint sha256", result.base_sha256),
        ("environment lock sha256", result.lock_sha256),
        ("started", result.started),
        ("node of the cluster", result.node),
        ("lost before", lost(result)),
        ("reused", None if result.reused is None else reuse.note(result)),
    ]
    if adapter is not None:
        pairs += [
            ("adapter tensors", adapter.tensors),
            ("adapter written by PEFT", adapter.peft_version),
            ("adapter io layout", adapter.io_layout),
            ("adapter B packing", adapter.b_packing),
        ]
    return _pairs("Environment and inputs", ("what", "value"), pairs)


def _without_empty_columns(section: Section) -> Section:
    kept = [index for index in range(len(section.head)) if any(line.cells[index] for line in section.lines)]
    return Section(
        title=section.title,
        head=tuple(section.head[index] for index in kept),
        lines=tuple(Line(cells=tuple(line.cells[index] for index in kept), bad=line.bad) for line in section.lines),
    )


def sections(row: Row) -> tuple[Section, ...]:
    """Return a row's details, the most telling first; sections that would be empty are left out."""
    result = row.result
    metrics: list[tuple[str, str | float | None]] = [
        (name.replace("_", " "), value) for name, value in result.metrics.model_dump().items()
    ]
    timings: list[tuple[str, str | float | None]] = [
        (name, figures.seconds(value)) for name, value in sorted(result.timings.items())
    ]
    versions: list[tuple[str, str | float | None]] = sorted(result.versions.items())
    found = (
        _checks(result),
        _stages(result),
        _funnel(result),
        *_merge(result),
        _pairs("Metrics (KL in nats)", ("metric", "value"), metrics),
        _pairs("Quantised base", ("what", "value"), quantized.pairs(row)),
        _controls(result),
        _training(result),
        _pairs("Not possible in this release", ("feature", "why"), sorted(result.not_possible.items())),
        _pairs("Timings", ("phase", "time"), timings),
        _pairs("Versions", ("package", "version"), versions),
        _environment(result),
    )
    return tuple(_without_empty_columns(section) for section in found if section.lines)


def failed_checks(row: Row) -> list[str]:
    """Return a line per check that did not pass: ``kl: 0.55, must be <= 1e-09``.

    It says what was off where that is known. Of one that failed for another reason than its band it says that reason.
    """
    return [_failed_check(check) for check in row.result.checks if not check.passed]


def _failed_check(check: Check) -> str:
    detail = one_line(check.detail or "", 400)
    value, band = figures.number(check.value), one_line(check.band)
    if lies_within(check.value, check.band) is True:
        why = detail or "it failed, and does not say why"
        return f"{check.name}: {why} (its value, {value}, is within its band, {band})"
    return f"{check.name}: {value}, must be {band}" + (f" ({detail})" if detail else "")


def reason(row: Row) -> str | None:
    """Return the cell's reason, cleaned and folded: the library's own words wherever it had any."""
    return fold(row.result.reason) if row.result.reason else None


def told_by_checks(row: Row) -> bool:
    """Say whether the reason is the failed checks of its stage once more, in a line (``kl is 0.31, the band is …``)."""
    result = row.result
    first = next((check.name for check in result.checks if check.stage == result.stage and not check.passed), None)
    return first is not None and (result.reason or "").startswith((f"{first} is ", f"{first}: "))


def verdict(row: Row) -> str | None:
    """Return the verdict's sentence on one line where it is news: of something unexpected, and not just the reason
    again.

    A cell can be a regression although its outcome is ``pass`` (a stage is missing, a check failed). Then only this
    says why.
    """
    if not row.sentence or row.status is None or row.as_expected:
        return None
    sentence = in_the_middle(row.sentence, 600)
    words = one_line(row.result.reason or "", 80).rstrip("…")
    planted = row.standing in {"fault-noticed", "fault-missed"}
    return None if words and words in sentence and not planted else sentence


def web_link(row: Row) -> str | None:
    """Return the expectation's link when it can be followed safely.

    Safe is http or https, with no blank space and no control character.
    """
    link = row.expectation_link
    if link is None or link != one_line(link, 2000) or " " in link:
        return None
    return link if link.lower().startswith(("https://", "http://")) else None
