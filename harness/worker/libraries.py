"""Importing what a cell is about: once per process that forks, and before anything is asked of a device."""

from __future__ import annotations

import importlib.util
import sys


def import_libraries(*, threads: int, device: str) -> None:
    """Import everything that stages need, and run no tensor operation.

    Args:
        threads: how many threads torch computes with.
        device: ``cpu`` or ``cuda``.
    """
    import torch

    torch.set_num_threads(threads)
    # On a GPU float32 must mean float32: TF32 convolutions would drown the comparison.
    torch.backends.cudnn.allow_tf32 = False
    import datasets  # noqa: F401
    import peft
    import safetensors.torch  # noqa: F401
    import transformers
    from transformers import AutoModelForCausalLM  # noqa: F401
    from trl import SFTConfig, SFTTrainer  # noqa: F401

    # PEFT imports bitsandbytes only when it attaches, which would be once per child. An interpreter that a user gave may
    # lack it, which is nothing to a recipe that does not quantise.
    # With a GPU it may start CUDA in the parent, after which no forked child can.
    if device == "cpu" and importlib.util.find_spec("bitsandbytes") is not None:
        import peft.tuners.lora.bnb  # noqa: F401

    transformers.utils.logging.disable_progress_bar()
    # Keys of the prediction layers are unexpected in every load, by design; the checks say what matters.
    transformers.utils.logging.set_verbosity_error()


def cuda_started() -> bool:
    """Whether this process has started CUDA: a process forked from it could not use the device.

    ``torch.cuda.is_initialized`` (torch 2.x) asks no driver and starts nothing.
    """
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())
