"""Run in a stack's environment as a warm worker: the real imports and the real forking, with cells that spoil or tell.

Arguments: the project's root. A request file is ``{"do": "spoil" | "tell", "to": FILE}``.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, sys.argv[1])

from harness.worker.libraries import import_libraries, preload
from harness.worker.warm import serve


def prepare() -> None:
    """Import what a real worker imports."""
    import_libraries(threads=1, device="cpu")
    preload()


def run(path: Path) -> None:
    """Do what the request says."""
    import numpy as np  # noqa: PLC0415 - imported by prepare
    import peft  # noqa: PLC0415
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    request = json.loads(path.read_text())
    if request["do"] == "spoil":
        torch.manual_seed(7)
        np.random.seed(7)  # noqa: NPY002 - the generator that libraries share
        random.seed(7)
        torch.set_default_dtype(torch.float64)
        torch.nn.functional.silu = torch.nn.functional.relu
        transformers.PreTrainedModel.from_pretrained = None
        peft.PeftModel.from_pretrained = None
        os.environ["HF_HUB_OFFLINE"] = "0"
        os.chdir("/")
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        (torch.randn(300, 300) @ torch.randn(300, 300)).sum()
        Path(tempfile.gettempdir(), "left").write_text("behind")
    else:
        layer = torch.nn.Linear(4, 4)
        with torch.no_grad():
            out = torch.nn.functional.silu(layer(torch.ones(1, 4))) @ torch.ones(4, 4)
        told = {
            "dtype": str(layer.weight.dtype),
            "torch": out[0].tolist(),
            "silu": float(torch.nn.functional.silu(torch.tensor(-1.0))),
            "numpy": float(np.random.rand()),  # noqa: NPY002
            "random": random.random(),  # noqa: S311 - compared, not kept secret
            "methods": [transformers.PreTrainedModel.from_pretrained is None, peft.PeftModel.from_pretrained is None],
            "offline": os.environ["HF_HUB_OFFLINE"],
            "directory": Path.cwd() == path.parent,
            "threads": len(list(Path("/proc/self/task").iterdir())),
            "temporary": [entry.name for entry in Path(tempfile.gettempdir()).iterdir()],
        }
        Path(request["to"]).write_text(json.dumps(told))


if __name__ == "__main__":
    serve(prepare, run)
