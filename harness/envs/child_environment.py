"""The environment variables of a cell: an allow-list. What is not named here does not reach it.

Variables change what libraries do. A cell that inherited its user's would not be the same cell on the next machine. A
cell is offline, and the hub libraries are told so. For code that does not listen the proxies point at a port of this
machine where nothing answers. So a request fails at once instead of succeeding unnoticed.

``python -I`` ignores ``PYTHON*``: those given here are for processes that a cell starts without it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from harness.contract.cell_fields import Device

CUDA_NAMES = ("LD_LIBRARY_PATH",)
CUDA_SETTINGS = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
"""A cell asks whether there is a GPU before it forks.

Asking through the CUDA driver would start it, and no forked child could use the GPU afterwards.
"""

CUDA_PREFIXES = ("CUDA_", "NVIDIA_")
NOWHERE = "http://127.0.0.1:9"
"""The discard port, where nothing listens on a machine of this century."""


def child_environment(
    *,
    scratch: Path,
    threads: int = 1,
    device: Device = "cpu",
    prefix: Path | None = None,
    source: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return all the variables that a cell's process gets.

    Args:
        scratch: an existing folder of the cell's own; it stands for home, temporary and cache folders.
        threads: for OpenMP, MKL and OpenBLAS. Several spinning threads make tiny tensors an order of magnitude slower.
        device: only ``cuda`` lets ``CUDA_*``, ``NVIDIA_*`` and ``LD_LIBRARY_PATH`` through; ``cpu`` hides every GPU.
        prefix: the environment whose ``bin`` comes first in ``PATH``, or None.
        source: where the allowed variables are taken from; this process's environment by default.
    """
    inherited = os.environ if source is None else source
    home = str(scratch)
    variables = {
        "PATH": os.pathsep.join([*([str(prefix / "bin")] if prefix else []), "/usr/local/bin", "/usr/bin", "/bin"]),
        "HOME": home,
        "TMPDIR": home,
        "USER": "harness",  # torch asks for a user name, which a container's user need not have
        "LOGNAME": "harness",
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "XDG_CACHE_HOME": str(scratch / "cache"),
        "PYTHONHASHSEED": "0",
        "PYTHONUTF8": "1",
        "PYTHONNOUSERSITE": "1",
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HOME": str(scratch / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DO_NOT_TRACK": "1",
        "WANDB_MODE": "disabled",
        "BITSANDBYTES_NOWELCOME": "1",
        "NO_COLOR": "1",
    }
    variables |= {
        name: NOWHERE for scheme in ("http", "https", "all") for name in (f"{scheme}_proxy", f"{scheme.upper()}_PROXY")
    }
    variables |= dict.fromkeys(("no_proxy", "NO_PROXY"), "localhost,127.0.0.1,::1")
    if device == "cuda":
        variables |= {
            name: value for name, value in inherited.items() if name in CUDA_NAMES or name.startswith(CUDA_PREFIXES)
        }
        variables |= CUDA_SETTINGS
        variables["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # what torch's deterministic algorithms ask for
    else:
        variables["CUDA_VISIBLE_DEVICES"] = ""
    return variables
