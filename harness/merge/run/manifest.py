"""merge_manifest.json: what was merged into what, how each layout was decided, and every tensor that changed.

No path of the machine and no time of day: the same inputs give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from harness.merge.adapter.adapter import ADAPTER_CONFIG
from harness.merge.base.weight import QuantisedSource
from harness.merge.errors import InputRefusedError
from harness.merge.files.copying import CHUNK
from harness.merge.files.json_file import read_object
from harness.merge.plan.merge_plan import AdapterPart, MergePlan
from harness.merge.run.report import MergeReport
from harness.merge.write.arithmetic import Outcome

MANIFEST_VERSION = 1
ENGINE_VERSION = "1.1"
ENGINE = {"name": "reference", "version": ENGINE_VERSION}
OF_THE_RUN = {"bytes_written", "bytes_decoded", "resumed"}
"""What a report says of how the output came about, which two runs of the same merge need not share."""


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def status_of(outcome: Outcome) -> str:
    """Return ``applied``, ``zero_delta`` or ``below_rounding``."""
    if outcome.changed:
        return "applied"
    return "below_rounding" if outcome.nonzero else "zero_delta"


def _adapter(part: AdapterPart) -> dict[str, object]:
    adapter = part.adapter
    return {
        "sha256": sha256_of(adapter.file.path),
        "config_sha256": sha256_of(adapter.root / ADAPTER_CONFIG),
        "peft_version": adapter.config.peft_version,
        "weight": part.weight,
        "io_layout": part.io_layout.to_json() if part.io_layout else None,
        "b_packing": part.b_packing.to_json() if part.b_packing else None,
    }


def identity(plan: MergePlan) -> dict[str, object]:
    """Return what was merged into what: adapters by content, shards of the base by size and header, and the options
    that show in the bytes.
    """
    return {
        "adapter": _adapter(plan.parts[0]),
        **({"adapters": [_adapter(part) for part in plan.parts]} if len(plan.parts) > 1 else {}),
        "base": {
            "shards": [
                {"name": shard.name, "size": shard.size, "header_sha256": shard.header_sha256}
                for shard in plan.base.shards
            ],
        },
        "dtype": plan.dtype,
        "config_changes": dict(plan.config),
        "base_as": plan.base_as,
        "quantization": plan.quantization,
    }


def made_from(manifest: Path, facts: Mapping[str, object], accumulate: str) -> bool:
    """Return whether a manifest is that of a merge with this ``identity``, summed in this dtype, by this version of the
    engine.
    """
    try:
        said = read_object(manifest)
    except InputRefusedError:
        return False  # no manifest, or one that is not ours
    wanted = {**facts, "accumulate": accumulate, "engine": ENGINE}
    return all(said.get(key) == value for key, value in json.loads(json.dumps(wanted)).items())


def build_manifest(
    plan: MergePlan,
    report: MergeReport,
    outcomes: Mapping[str, Outcome],
    *,
    accumulate: str,
    facts: Mapping[str, object],
) -> bytes:
    """Return the manifest's bytes.

    Args:
        plan: what was planned.
        report: what was counted.
        outcomes: per changed key, what its delta did. Norms are Frobenius norms of the scaled delta, rounded to six
            digits so that they do not depend on the number of threads.
        accumulate: what base and deltas were summed in.
        facts: ``identity`` of the plan.
    """
    rows = [
        {
            "key": row.key,
            "kind": row.kind,
            "layer": row.layer,
            "expert": row.expert,
            "adapter_keys": sorted({contribution.module for contribution in plan.contributions_of(row)}),
            "scaling": sorted({contribution.scaling for contribution in plan.contributions_of(row)}),
            "delta_norm": float(f"{outcomes[row.key].norm:.6g}"),
            "status": status_of(outcomes[row.key]),
        }
        for row in plan.rows
    ]
    manifest = {
        "manifest_version": MANIFEST_VERSION,
        "engine": ENGINE,
        **facts,
        "accumulate": accumulate,
        "dequantised": sorted(
            row.key for row in (*plan.rows, *plan.conversions) if isinstance(row.source, QuantisedSource)
        ),
        "dropped": sorted(plan.dropped),
        **{key: value for key, value in report.to_json().items() if key not in OF_THE_RUN},
    }
    # A line for each tensor: there can be tens of thousands, and indented JSON is slow to write and long.
    head = json.dumps(manifest, indent=1, ensure_ascii=False).removesuffix("\n}")
    lines = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in rows)
    return f'{head},\n "rows": [\n  {lines}\n ]\n}}\n'.encode()
