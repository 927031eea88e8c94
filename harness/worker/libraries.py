"""Importing what a cell is about: once per process that forks, and before anything is asked of a device."""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

from harness.contract.packages import WORKER_PACKAGES
from harness.worker.import_order import USUAL


def import_libraries(*, threads: int, device: str, first: str = USUAL) -> None:
    """Import everything that stages need, and run no tensor operation.

    Args:
        threads: how many threads torch computes with.
        device: ``cpu`` or ``cuda``.
        first: which of the libraries under test is imported first.
    """
    import torch

    torch.set_num_threads(threads)
    # On a GPU float32 must mean float32: TF32 convolutions would drown the comparison.
    torch.backends.cudnn.allow_tf32 = False
    import datasets  # noqa: F401
    import safetensors.torch  # noqa: F401

    for name in sorted(_IMPORTED, key=lambda name: name != first):
        _IMPORTED[name]()
    import transformers

    # PEFT imports bitsandbytes only when it attaches, which would be once per child.
    # An interpreter that a user gave may lack it. A recipe that does not quantise does not need it.
    # With a GPU it may start CUDA in the parent. After that no forked child can use CUDA.
    if device == "cpu" and importlib.util.find_spec("bitsandbytes") is not None:
        importlib.import_module("peft.tuners.lora.bnb")

    transformers.utils.logging.disable_progress_bar()
    # Keys of the prediction layers are unexpected in every load, by design; the checks say what matters.
    transformers.utils.logging.set_verbosity_error()


def _import_peft() -> None:
    import peft  # noqa: F401


def _import_transformers() -> None:
    from transformers import AutoModelForCausalLM  # noqa: F401


def _import_trl() -> None:
    from trl import SFTConfig, SFTTrainer  # noqa: F401


_IMPORTED = {"peft": _import_peft, "transformers": _import_transformers, "trl": _import_trl}
"""In the usual order."""


def cuda_started() -> bool:
    """Whether this process has started CUDA: a process forked from it could not use the device.

    ``torch.cuda.is_initialized`` (torch 2.x) asks no driver and starts nothing.
    """
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def try_to_compute(*, seconds: float = 60.0) -> bool:
    """Fork a child that multiplies two matrices with all its threads, and return whether it comes to an end.

    Once a process has used torch's thread pool, its forked children hang in their first parallel operation. An import
    that computes would do that.
    """
    import torch

    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            torch.ones(512, 512) @ torch.ones(512, 512)
            torch.ones(2**20).exp()
            code = 0
        finally:
            os._exit(code)
    deadline = time.monotonic() + seconds
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return False
        time.sleep(0.01)
    return ended[1] == 0


FIRST_USED_IN_STAGES = (
    "multiprocessing.synchronize",
    "numpy.ctypeslib",
    "peft.utils.transformers_weight_conversion",
    "torch.profiler",
    "transformers.integrations.bitsandbytes",
    "transformers.integrations.moe",
    "transformers.modeling_rope_utils",
    "transformers.models.mixtral.modeling_mixtral",
)
"""Modules that the libraries import only when a stage needs them.

This was seen over all stacks and recipes of ``matrix.toml``.
"""


def preload() -> None:
    """Import in the parent what each child would import again.

    That is our own code, the families' models, and what is used first in stages. A stack that lacks a module, or cannot
    import it, says so in the stage that needs it, where it is a finding. Of ours, what quantises experts needs a
    transformers that has them as parameters.
    """
    own = [name for package in WORKER_PACKAGES for name in _modules_of(package)]
    families = [name.rpartition(".")[2] for name in own if name.startswith("harness.worker.checkpoints.families.")]
    models = [f"transformers.models.{name}.modeling_{name}" for name in families]
    for name in (*own, *FIRST_USED_IN_STAGES, *models):
        try:
            importlib.import_module(name)
        except (ImportError, RuntimeError) as error:  # RuntimeError: transformers' own word for an import that failed
            print(f"not imported ahead: {name}: {error}", flush=True)


def _modules_of(package: str) -> list[str]:
    """Return the modules of a package of ours, entry points apart. Nothing is imported to find them."""
    harness = Path(__file__).parents[1]
    paths = [path.relative_to(harness.parent) for path in sorted((harness / package).rglob("*.py"))]
    names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return [name for name in names if not name.endswith(".__main__")]
