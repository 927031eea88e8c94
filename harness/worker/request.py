"""The request that the host writes: what to run, where, and against which bands."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Bands:
    """What a right merge may cost, per dtype; the values and how they were measured are in ``matrix.toml``.

    Attributes:
        kl_max: KL(trained ‖ merged), mean over clear positions, nats.
        logprob_max: largest |Δ log p| at a clear position, nats.
        samples_min: share of greedy samples that must match token by token.
        signal_min: KL(trained ‖ base) that a cell needs to see anything at all, nats.
        exact_min: share of changed elements equal to the correctly rounded float64 result.
        ulp_max: distance of any changed element from the exact result, in units in the last place of the largest of
            |base|, |delta| and |result|.
        adapter_reload_kl_max: KL(trained ‖ base + reloaded adapter), nats.
        near_tie_epsilon: router gap (in logits) under which a position is reported apart.
        clear_min: share of positions that must lie clear of router ties for a cell to have seen enough.
        paths_max: largest difference between two forward paths of the trained model, of logits relative to their standard
            deviation or of a LoRA gradient relative to its norm.
    """

    kl_max: float
    logprob_max: float
    samples_min: float
    signal_min: float
    exact_min: float
    ulp_max: float
    adapter_reload_kl_max: float
    near_tie_epsilon: float
    clear_min: float
    paths_max: float


@dataclass(frozen=True, kw_only=True)
class Request:
    """One cell, as the worker sees it."""

    family: str
    recipe: str
    geometry: str
    variant: str
    dtype: str
    device: str
    seed: int
    engine: str
    fault: str | None
    work: Path
    observation: Path
    threads: int
    bands: Bands

    @property
    def base(self) -> Path:
        """The base checkpoint's directory."""
        return self.work / "base"

    @property
    def adapter(self) -> Path:
        """The saved adapter's directory."""
        return self.work / "adapter"

    @property
    def merged(self) -> Path:
        """The merged checkpoint's directory."""
        return self.work / "merged"


def read_request(path: Path) -> Request:
    """Read a request file.

    Raises:
        OSError: the file cannot be read.
        KeyError, TypeError, json.JSONDecodeError: it is not a request of this version.
    """
    data: dict[str, Any] = json.loads(path.read_text())
    cell = data["cell"]
    names = ("family", "recipe", "geometry", "variant", "dtype", "device", "seed", "engine", "fault")
    return Request(
        **{name: cell[name] for name in names},
        work=Path(data["work"]),
        observation=Path(data["observation"]),
        threads=int(data["threads"]),
        bands=Bands(**data["bands"]),
    )
