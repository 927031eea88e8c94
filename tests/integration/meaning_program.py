"""Run in a stack's environment: which files of a merged directory say the same in other words.

A line of JSON per case, in and out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from harness.worker.stages.meaning import same_in_other_words

for line in sys.stdin:
    case = json.loads(line)
    said = sorted(same_in_other_words(Path(case["base"]), Path(case["merged"])))
    sys.stdout.write(json.dumps(said) + "\n")
