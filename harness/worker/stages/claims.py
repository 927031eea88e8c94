"""What an engine says of its merge, itself and in the manifest that it leaves, held against what was measured.

Whoever keeps a merge keeps the manifest to know what is in it: of which adapter, onto which base, which tensors and by
how much. So each of those is computed here once more, from the files themselves.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.worker.observation import Judgement
from harness.worker.stages.tensor_gate import MANIFEST, TensorReport

NORM = 1e-4
"""How far a norm may be from ours, relative to it: the engine has six digits of it, summed in its own order."""
LENGTH = 8
"""Bytes of the length that a safetensors file begins with (https://github.com/huggingface/safetensors, Format)."""
ADAPTER_FILES = {"sha256": "adapter_model.safetensors", "config_sha256": "adapter_config.json"}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One thing that is said.

    Attributes:
        what: of what.
        said: what is said of it.
        measured: what is so.
    """

    what: str
    said: object
    measured: object

    @property
    def true(self) -> bool:
        """Whether it is so. Numbers that are not whole may be off by what rounding costs."""
        if isinstance(self.said, float) and isinstance(self.measured, float):
            return math.isclose(self.said, self.measured, rel_tol=NORM)
        return self.said == self.measured


def judge_claims(claims: Sequence[Claim]) -> Judgement:
    """Judge how many of them are not true."""
    untrue = [claim for claim in claims if not claim.true]
    return Judgement(
        value=len(untrue),
        band="== 0 claims that are not true",
        passed=not untrue,
        detail="; ".join(f"{it.what}: {it.said!r} is claimed where {it.measured!r} is so" for it in untrue[:4]),
    )


def claims_of_manifest(merged: Path, *, base: Path, adapter: Path, measured: TensorReport) -> list[Claim]:
    """Return what the engine's manifest says, where there is one.

    One that cannot be read is a finding of the check of files.

    Args:
        merged: the directory that it lies in.
        base: what was merged into.
        adapter: what was merged.
        measured: what the bytes say of the same merge.
    """
    try:
        said = json.loads((merged / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(said, dict):
        return []
    return [*_of_adapter(said.get("adapter"), adapter), *_of_base(said.get("base"), base), *_of_rows(said, measured)]


def _of_adapter(said: object, adapter: Path) -> Iterator[Claim]:
    told = said if isinstance(said, dict) else {}
    for field, name in ADAPTER_FILES.items():
        digest = hashlib.sha256((adapter / name).read_bytes()).hexdigest()
        yield Claim(what=f"{field} of the adapter", said=told.get(field), measured=digest)


def _of_base(said: object, base: Path) -> Iterator[Claim]:
    shards = said.get("shards") if isinstance(said, dict) else None
    told = {str(shard.get("name")): shard for shard in shards or () if isinstance(shard, dict)}
    files = {path.name: path for path in sorted(base.glob("*.safetensors"))}
    yield Claim(what="shards of the base", said=sorted(told), measured=sorted(files))
    for name in sorted(told.keys() & files.keys()):
        found = {"name": name, "size": files[name].stat().st_size, "header_sha256": _header_sha256(files[name])}
        yield Claim(what=name, said=told[name], measured=found)


def _header_sha256(shard: Path) -> str:
    """Return the digest of a file's header, its length included."""
    with shard.open("rb") as file:
        length = file.read(LENGTH)
        return hashlib.sha256(length + file.read(int.from_bytes(length, "little"))).hexdigest()


def _of_rows(said: Mapping[str, Any], measured: TensorReport) -> Iterator[Claim]:
    """Yield what is said of each tensor: that it was changed, and by how much."""
    rows = said.get("rows")
    statuses: dict[str, str] = {}
    squares: dict[str, float] = defaultdict(float)
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict):
            key, norm = str(row.get("key")), row.get("delta_norm")
            statuses[key] = str(row.get("status"))
            squares[key] += norm**2 if isinstance(norm, int | float) else math.nan
    yield Claim(what="tensors with a delta", said=sorted(statuses), measured=sorted(measured.verdicts))
    for key in sorted(statuses.keys() & measured.verdicts.keys()):
        yield Claim(what=f"status of {key}", said=statuses[key], measured=measured.verdicts[key])
        yield Claim(what=f"delta_norm of {key}", said=math.sqrt(squares[key]), measured=measured.norms[key])
