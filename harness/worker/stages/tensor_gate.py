"""The tensor gate: every tensor of a merged directory against base + delta in float64, from the bytes.

It is independent of the merge engine. It reads files with the safetensors library and takes deltas from PEFT
(``stages.deltas``). What each on-disk tensor is, it knows from the description that the checkpoint was written with
(``TensorSpec``).
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.contract.tensors import RIGHT
from harness.worker.checkpoints.family import Checkpoint
from harness.worker.checkpoints.tensors import Kind, TensorSpec
from harness.worker.introspection.saved import deltas_on_disk
from harness.worker.stages.biases import BIAS
from harness.worker.stages.deltas import DELTAS, PAIRS
from harness.worker.stages.meaning import content, same_in_other_words
from harness.worker.stages.naming import Found, find
from harness.worker.stages.shards import INDEX, Weights, moved_in_index, read_weights, wrong_in_index
from harness.worker.stages.vocabulary import CONFIG, Vocabulary

MANIFEST = "merge_manifest.json"
"""What our engine writes beside the checkpoint: what it did to every tensor."""
OWN_FILES = {MANIFEST}
"""What an engine may add beside the checkpoint's own files."""

NAMES_SHOWN = 4

_FIRST_FACTOR = re.compile(r"(.+)\.lora_(?:A\.weight|embedding_A)")
"""The name of half a pair in a saved adapter."""

ACCUMULATION_ROUNDINGS = 16
"""Float32 roundings, relative to the largest delta of a tensor, that accumulating a delta in float32 may cost."""


@dataclass(kw_only=True)
class TensorReport:
    """What the bytes of a merged directory say.

    Attributes:
        counts: attempted / applied / zero_delta / below_rounding / dropped / wrong, over all kinds.
        by_kind: the same per kind.
        by_target: what became of the tensors that each module or parameter in memory covers, by its kind and name.
        exact_fraction: share of elements of tensors with a delta that equal the correctly rounded float64 result.
        changed_elements: how many elements those tensors have.
        max_ulp: largest distance from the exact result, beyond what float32 accumulation may lose. In units in the last
            place of the largest of |base|, |delta|, |result|.
        not_applied: names of dropped and wrong tensors.
        unpaired: lora pairs of the saved adapter that cover no tensor on disk.
        idle: tensors, or experts inside a fused tensor, whose delta is zero.
        idle_altered: the same of one tensor, had it no delta for its first expert, or none at all: a control.
        untouched_changed: names of tensors without a delta whose bytes differ.
        keys_missing, keys_unexpected, dtype_changes, files_missing: differences of the directories.
        extras_missing: those of the missing keys that the model does not load (multi-token prediction).
        renamed: tensors of the base that are written under other names, counted by rule.
        files_rewritten: files that differ and say the same, in this release's words.
        files_unexpected: files that the base does not have, and that no engine is known to add.
        verdicts: what became of each tensor with a delta, by key, in the words of ``counts``.
        norms: the Frobenius norm of each delta, by key; of a tensor that has grown, its own.
        index_wrong: keys that the index puts where they are not, or does not name, a wrong total size, and what of
            index and shards cannot be read. Of an engine that keeps bytes: keys that lie in another shard too.
        files_changed: files beside the weights whose content differs (their index apart: the keys say it).
    """

    counts: Counter[str] = field(default_factory=Counter)
    by_kind: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    by_target: dict[tuple[Kind, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    exact_fraction: float | None = None
    changed_elements: int = 0
    max_ulp: float = 0.0
    not_applied: list[str] = field(default_factory=list)
    unpaired: list[str] = field(default_factory=list)
    untouched_total: int = 0
    untouched_changed: list[str] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)
    idle_altered: list[str] = field(default_factory=list)
    keys_missing: list[str] = field(default_factory=list)
    extras_missing: list[str] = field(default_factory=list)
    renamed: Counter[str] = field(default_factory=Counter)
    files_rewritten: list[str] = field(default_factory=list)
    keys_unexpected: list[str] = field(default_factory=list)
    dtype_changes: list[str] = field(default_factory=list)
    files_missing: list[str] = field(default_factory=list)
    files_changed: list[str] = field(default_factory=list)
    files_unexpected: list[str] = field(default_factory=list)
    index_wrong: list[str] = field(default_factory=list)
    verdicts: dict[str, str] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)

    def merged_of_kind(self) -> dict[Kind, int]:
        """Return how many modules and parameters of each kind have all their tensors right."""
        kinds = [kind for (kind, _), verdicts in self.by_target.items() if set(verdicts) <= set(RIGHT)]
        return {kind: kinds.count(kind) for kind in kinds}


def covered(
    checkpoint: Checkpoint, work: Path, adapter: Path, base: Path
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Return on-disk key → delta for all that a saved lora pair covers, key → what covers it, and the unpaired pairs.

    A delta is float64 and has the tensor's shape.
    Attempted is counted from here: from the pairs in the saved adapter's files and the base's own tensors.
    """
    from safetensors.torch import load_file

    deltas = load_file(work / DELTAS)
    names: dict[str, str] = json.loads((work / PAIRS).read_text())
    saved = [key for file in sorted(adapter.rglob("adapter_model.safetensors")) for key in load_file(file)]
    pairs = {found[1] for key in saved if (found := _FIRST_FACTOR.fullmatch(key))}
    pairs |= {key.removesuffix(".weight") for key in saved} & names.keys()  # what was trained whole
    available = {names[pair]: deltas[names[pair]] for pair in pairs if pair in names}
    there = on_disk(checkpoint, available, base)
    reached = {name for covering, _ in there.values() for name in covering}
    unpaired = sorted(pairs - names.keys()) + sorted(available.keys() - reached)
    return (
        {key: delta for key, (_, delta) in there.items()},
        {key: covering[-1] for key, (covering, _) in there.items()},
        unpaired,
    )


def on_disk(checkpoint: Checkpoint, deltas: dict[str, Any], base: Path) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Return on-disk key → (names of what covers it, delta of this tensor) from the deltas of parameters in memory.

    Of a family without a file transformers itself says where they go (``introspection.saved``).
    """
    if checkpoint.introspected is None:
        sliced = ((spec.key, name, delta) for spec in checkpoint.tensors for name, delta in slices_of(spec, deltas))
        return {key: ((name,), delta) for key, name, delta in sliced}
    saved = deltas_on_disk(base, deltas)
    covering = {spec.key: tuple(name for name in spec.sources if name in deltas) for spec in checkpoint.tensors}
    return {key: (names, saved[key]) for key, names in covering.items() if names}


def slices_of(spec: TensorSpec, deltas: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (name, delta of this tensor) from the deltas of in-memory modules.

    The experts may have either form there.
    """
    import torch

    if spec.bias_of is not None and f"{spec.bias_of}:{BIAS}" in deltas:
        yield f"{spec.bias_of}:{BIAS}", deltas[f"{spec.bias_of}:{BIAS}"]
    if spec.module is None:
        return
    if spec.role is None:
        if spec.module in deltas:
            yield spec.module, deltas[spec.module]
        return
    if spec.expert is None:
        # Fused on disk. In memory the same parameter, or (not met so far) Linears that would have to be stacked.
        name = f"{spec.module}:{spec.role}"
        if name in deltas:
            yield name, deltas[name]
        return
    linear = f"{spec.module}.{spec.expert}.{spec.role}"
    if linear in deltas:
        yield linear, deltas[linear]
    fused = f"{spec.module}:{'down_proj' if spec.role == 'down_proj' else 'gate_up_proj'}"
    if fused in deltas:
        rows: torch.Tensor = deltas[fused][spec.expert]
        half = spec.shape[0]
        part = {"gate_proj": slice(0, half), "up_proj": slice(half, 2 * half), "down_proj": slice(None)}[spec.role]
        yield fused, rows[part]


def inspect(
    checkpoint: Checkpoint,
    *,
    work: Path,
    base: Path,
    adapter: Path,
    merged: Path,
    ulp_max: float,
    keeps_bytes: bool = True,
) -> TensorReport:
    """Judge a merged directory, tensor by tensor.

    Args:
        checkpoint: what the base is.
        work: where the deltas are.
        base: the base's directory.
        adapter: the saved adapter's directory.
        merged: the directory to judge.
        ulp_max: how far a changed element may lie from the exact result.
        keeps_bytes: what the engine promises (``Engine.keeps_bytes``). Where it is False, other names by the rules of
            ``naming`` and other words by those of ``meaning`` are no fault. Every tensor is judged all the same.
    """
    from safetensors.torch import load_file

    report = TensorReport()
    originals, weights = read_weights(base), read_weights(merged)
    vocabulary = Vocabulary.of(checkpoint, load_file(work / DELTAS))
    checkpoint, before, after = vocabulary.checkpoint, vocabulary.before(originals.tensors), weights.tensors
    deltas, by, report.unpaired = covered(checkpoint, work, adapter, base)
    found = _look_up(after, checkpoint, keeps_bytes=keeps_bytes)
    report.renamed.update(place.rule for place in found.values() if place.rule is not None)
    report.keys_missing = sorted(key for key, place in found.items() if place.tensor is None)
    report.extras_missing = sorted(spec.key for spec in checkpoint.tensors if spec.extra and spec.key not in after)
    report.keys_unexpected = sorted(after.keys() - {key for place in found.values() for key in place.keys})
    report.keys_unexpected += [f"{key} (in two shards)" for key in sorted(weights.repeated)]
    _compare_files(report, base, merged, keeps_bytes=keeps_bytes, vocabulary=vocabulary)
    report.index_wrong = weights.unreadable + wrong_in_index(merged, weights)
    report.index_wrong += moved_in_index(base, merged) if keeps_bytes else []
    report.files_changed += _wrong_metadata(originals, weights, keeps_bytes=keeps_bytes)
    exact_elements = 0
    for spec in checkpoint.tensors:
        old, new = before[spec.key], found[spec.key].tensor
        if new is not None and new.dtype != old.dtype:
            report.dtype_changes.append(spec.key)
        if spec.key not in deltas:
            report.untouched_total += 1
            if new is not None and not _same_bytes(old, new):
                report.untouched_changed.append(spec.key)
            continue
        delta = deltas[spec.key]
        report.idle += _idle(spec, delta, checkpoint.num_experts)
        if not report.idle_altered:
            altered = delta.clone()
            altered[0 if spec.role is not None and spec.expert is None else slice(None)] = 0
            report.idle_altered = _idle(spec, altered, checkpoint.num_experts)
        if new is None or new.shape != old.shape or new.dtype not in _judged_dtypes():
            verdict = "wrong"
        else:
            exact = old.double() + delta
            rounded = exact.to(new.dtype)
            ulps = _ulps(new, exact, old, delta)
            verdict = _verdict(old, new, rounded, delta, ulps, ulp_max)
            report.changed_elements += delta.numel()
            exact_elements += int((new == rounded).sum())
            report.max_ulp = max(report.max_ulp, ulps)
        report.by_target[spec.kind, by[spec.key]].append(verdict)
        for counter in (report.counts, report.by_kind[spec.kind]):
            counter.update((verdict, "attempted"))
        report.verdicts[spec.key] = verdict
        report.norms[spec.key] = float((old.double() + delta if spec.key in vocabulary.grown else delta).norm())
        if verdict in {"dropped", "wrong"}:
            report.not_applied.append(f"{spec.key} ({verdict})")
    if report.changed_elements:
        report.exact_fraction = exact_elements / report.changed_elements
    return report


def _look_up(tensors: dict[str, Any], checkpoint: Checkpoint, *, keeps_bytes: bool) -> dict[str, Found]:
    """Return what stands for each tensor: under its own name, or another where the engine may choose."""
    if not keeps_bytes:
        return find(checkpoint.tensors, tensors, checkpoint.prefixes)
    return {
        spec.key: Found(tensor=tensors.get(spec.key), keys=(spec.key,) if spec.key in tensors else ())
        for spec in checkpoint.tensors
    }


def _compare_files(
    report: TensorReport, base: Path, merged: Path, *, keeps_bytes: bool, vocabulary: Vocabulary
) -> None:
    """Compare names and contents of what lies beside the weights.

    Of the index only the name is compared here: its keys are judged one by one.
    """
    ours = {path.name for path in base.iterdir()}
    theirs = {path.name for path in merged.iterdir()} if merged.is_dir() else set()
    weights = {name for name in ours if name.endswith(".safetensors")}
    common = (ours & theirs) - weights - {INDEX}
    changed = {name for name in common if content(base / name) != content(merged / name)}
    if vocabulary.config and CONFIG in common:
        changed = changed - {CONFIG} if vocabulary.says(base, merged) else changed | {CONFIG}
    missing, unexpected = ours - theirs - weights, theirs - ours - OWN_FILES
    same: set[str] = set()
    if not keeps_bytes and (changed or missing or unexpected):
        same = same_in_other_words(base, merged, vocabulary.configure)
    report.files_rewritten = sorted(same)
    report.files_missing = sorted(missing - same)
    report.files_unexpected = sorted(unexpected - same)
    report.files_changed = sorted(changed - same) + _own_in_disorder(merged)


def _own_in_disorder(merged: Path) -> list[str]:
    """Return the files of the engine's own that are no JSON object, or an empty one."""
    found = []
    for name in sorted(OWN_FILES):
        try:
            said = json.loads((merged / name).read_bytes())
        except FileNotFoundError:
            continue
        except (ValueError, OSError, RecursionError):
            said = None
        if not isinstance(said, dict) or not said:
            found.append(f"{name} (says nothing)")
    return found


def _wrong_metadata(base: Weights, merged: Weights, *, keeps_bytes: bool) -> list[str]:
    """Return the shards whose header does not say what the base's do: whose tensors they are, at least.

    Loaders refuse a shard whose format they do not know (transformers 4), or guess.
    """
    formats = {said.get("format") for said in base.metadata.values()}
    return [
        f"{name} (says {said or 'nothing'} of itself)"
        for name, said in merged.metadata.items()
        if said.get("format") not in formats or (keeps_bytes and said != base.metadata.get(name, said))
    ]


def _judged_dtypes() -> frozenset[Any]:
    """Return the dtypes whose rounding is known here. Weights stored as anything else hold no merge."""
    import torch

    return frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})


def _idle(spec: TensorSpec, delta: Any, experts: int) -> list[str]:
    """Return the tensor, or the experts inside it, that training has left without a delta.

    What lies beyond the routed experts never sees a token: experts that pass on what they are given.
    """
    if spec.expert is not None and spec.expert >= experts:
        return []
    if spec.role is not None and spec.expert is None:
        moved = delta.flatten(1).any(1).tolist()
        return [f"{spec.key}[{expert}]" for expert, any_ in enumerate(moved) if not any_]
    return [] if bool(delta.any()) else [spec.key]


def _verdict(old: Any, new: Any, rounded: Any, delta: Any, ulps: float, ulp_max: float) -> str:
    """Say what happened to one tensor; see the words ``applied``, ``zero_delta`` … in docs/explanation/verdicts.md."""
    same_as_base = _same_bytes(old, new)
    if not bool(delta.any()):
        return "zero_delta" if same_as_base else "wrong"
    if bool((rounded == old.to(rounded.dtype)).all()) and same_as_base:
        return "below_rounding"
    if same_as_base:
        return "dropped"
    return "applied" if ulps <= ulp_max else "wrong"


def _same_bytes(a: Any, b: Any) -> bool:
    import torch

    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return bool(torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)))


def _ulps(new: Any, exact: Any, old: Any, delta: Any) -> float:
    """Return max |new - exact| in ulps of the stored dtype at max(|base|, |delta|, |exact|).

    What a float32 sum over the rank may lose is taken off first. Its error is bounded by the sum of |b||a|, not by
    |delta|. So where the terms cancel it is many ulps of a result that is nearly zero, and no fault.
    """
    import torch

    allowance = ACCUMULATION_ROUNDINGS * 2.0**-24 * float(delta.abs().max())
    scale = torch.maximum(torch.maximum(old.double().abs(), delta.abs()), exact.abs())
    info = torch.finfo(new.dtype)
    # frexp gives scale = m * 2**e with m in [0.5, 1), so one ulp is 2**(e-1) * eps; subnormals share the smallest one.
    exponent = torch.frexp(scale)[1].double()
    ulp = torch.clamp(torch.exp2(exponent - 1) * info.eps, min=info.smallest_normal * info.eps)
    distance = (((new.double() - exact).abs() - allowance).clamp(min=0) / ulp).max()
    return float(distance) if bool(torch.isfinite(distance)) else float("inf")
