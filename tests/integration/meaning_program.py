"""Run in a stack's environment: which files of a merged directory say the same in other words.

A line of JSON per case, in and out.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, sys.argv[1])
from harness.worker.stages.meaning import same_in_other_words


def _set(settings: dict[str, Any], config: dict[str, Any]) -> None:
    config.update(settings)


for line in sys.stdin:
    case = json.loads(line)
    configure = partial(_set, case.get("settings", {}))
    said = sorted(same_in_other_words(Path(case["base"]), Path(case["merged"]), configure))
    sys.stdout.write(json.dumps(said) + "\n")
