"""Runs the bench's GPU program on the CPU, small: a line of JSON for each request in, one out."""

from __future__ import annotations

import json
import sys

import torch

sys.path.append(sys.argv[1])
from harness.bench.programs import experts_gpu

torch.set_num_threads(1)
for line in sys.stdin:
    sys.stdout.write(json.dumps(experts_gpu.run(json.loads(line))) + "\n")
