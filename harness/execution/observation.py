"""The file that a worker rewrites after each stage, read with suspicion: the worker may have died over it.

It is a JSON object with some of the result's fields, ``running`` (the stage it is in, or null) and ``done``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.contract.stages import WORKER_STAGES, StageName
from harness.execution.suspicious_json import encodable, read_json
from harness.result import WORKER_FIELDS


@dataclass(frozen=True, kw_only=True)
class Observation:
    """A worker's file, as far as it could be read.

    Attributes:
        fields: the result's fields that it gives.
        running: the stage that it was in when it was written.
        done: whether the worker had come to its end.
        problem: why it could not be read, None when it could.
    """

    fields: Mapping[str, object] = field(default_factory=dict)
    running: StageName | None = None
    done: bool = False
    problem: str | None = None


def parse_observation(content: bytes | None) -> Observation:
    """Read a worker's file; anything that is not one gives an observation with a ``problem``.

    Args:
        content: the bytes of the file, None when there is none.
    """
    if content is None:
        return Observation(problem="the worker wrote no observation")
    try:
        value = _plain(read_json(content))
    except ValueError as error:
        return Observation(problem=f"the worker's observation is not JSON ({encodable(str(error))})")
    if not isinstance(value, dict):
        return Observation(problem=f"the worker's observation is a {type(value).__name__}, not an object")
    running = value.pop("running", None)
    done = value.pop("done", False)
    known = running is None or (running in WORKER_STAGES and done is not True)  # a worker that is done runs nothing
    if not known or not isinstance(done, bool):
        return Observation(problem=f"the worker's observation has running={running!r}, done={done!r}")
    unknown = sorted(value.keys() - WORKER_FIELDS)
    if unknown:
        return Observation(problem=f"the worker's observation has unknown fields: {', '.join(unknown)}")
    return Observation(fields=value, running=running, done=done)


def _plain(value: object) -> object:
    """Return a value with lone surrogates replaced, in every text and every key, and without infinite numbers.

    Python's writer lets such numbers through, which JSON does not have. In a check it stays as a text, under ``value``:
    a check tells by failing that a loss or a KL is not a number.
    """
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, list):
        return [_plain(item) for item in value if _is_finite(item)]
    if not isinstance(value, dict):
        return value
    kept: dict[str, object] = {}
    for key, item in value.items():
        if _is_finite(item):
            kept[encodable(key)] = _plain(item)
        elif key == "value" and "band" in value:
            kept[key] = str(item)
    return kept


def _is_finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
