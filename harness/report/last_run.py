"""What the last published run of the whole catalogue has shown: the line that every report begins with."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

PLACE = Path(__file__).with_name("last_run.json")
"""Written by ``harness faults --publish`` in a checkout, and shipped."""


@cache
def last_run() -> str | None:
    """Return the sentence with its date and commit; None where no run is known of."""
    if not PLACE.is_file():
        return None
    said = json.loads(PLACE.read_text(encoding="utf-8"))
    return f"{said['sentence']} ({said['ran']})"


def publish(sentence: str, ran: str) -> None:
    """Write the record."""
    text = json.dumps({"sentence": sentence, "ran": ran}, indent=1, sort_keys=True, ensure_ascii=False)
    PLACE.write_text(f"{text}\n", encoding="utf-8")
