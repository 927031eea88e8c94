"""The present moment as results write it."""

from __future__ import annotations

import datetime as dt


def utc_now() -> str:
    """Return it in ISO 8601, UTC, whole seconds."""
    return dt.datetime.now(tz=dt.UTC).isoformat(timespec="seconds")
