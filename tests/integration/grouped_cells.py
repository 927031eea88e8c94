"""Run in a stack's environment: the grouped forward on real transformers models under the real PEFT.

It is held against PEFT's own forward. Reads cases from standard input, one JSON object a line, and answers with one
line each. ``scenario`` names a function of the two modules below.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.extend([sys.argv[1], str(Path(__file__).parent), str(Path(__file__).parents[1])])
from grouped_life import again, callables, compiled, copied, hooked, life, mixed, refused, replicated, wrapped
from grouped_sums import halves, packed, quantised, saved, single, steps

SCENARIOS = {
    one.__name__: one
    for one in (
        steps,
        single,
        halves,
        saved,
        packed,
        quantised,
        life,
        again,
        replicated,
        callables,
        copied,
        compiled,
        hooked,
        wrapped,
        mixed,
        refused,
    )
}

torch.set_num_threads(1)
for line in sys.stdin:
    case = json.loads(line)
    sys.stdout.write(json.dumps(SCENARIOS[case["scenario"]](case)) + "\n")
