"""transformers 5.6.2 and PEFT 0.19: ``WeightConverter`` takes the two arguments again with which this PEFT calls it.

They are taken as long as they mean nothing. From 5.6.2 on ``WeightConverter`` sets ``distributed_operation`` and
``quantization_operation`` itself, to None. PEFT 0.19 passes on those of another converter, which are None as well. That
fails with a TypeError (peft#3372, mended in 0.20.0).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from harness.worker.releases import release

NAME = "weight-converter-arguments"
DROPPED = ("distributed_operation", "quantization_operation")


class ShimRefusedError(RuntimeError):
    """The arguments mean something after all."""


@contextmanager
def shim() -> Iterator[bool]:
    """Replace ``WeightConverter.__init__`` within the block where the two releases disagree; yields whether they do.

    Raises:
        ShimRefusedError: from within the block, an argument that would have to be dropped is not None.
    """
    import peft
    import transformers

    if release(peft.__version__) >= (0, 20) or release(transformers.__version__) < (5, 0):
        yield False
        return
    from transformers.core_model_loading import WeightConverter

    original = WeightConverter.__init__
    if DROPPED[0] in inspect.signature(original).parameters:
        yield False
        return

    def init(self: Any, source_patterns: Any, target_patterns: Any, operations: Any, **dropped: Any) -> None:
        meant = {name: value for name, value in dropped.items() if name not in DROPPED or value is not None}
        if meant:
            raise ShimRefusedError(f"{NAME} would drop what means something: {meant}")
        original(self, source_patterns, target_patterns, operations)

    WeightConverter.__init__ = init
    try:
        yield True
    finally:
        WeightConverter.__init__ = original
