"""QLoRA in 8 bits, in a process that has loaded the same base in 4 bits before, as in a notebook."""

from dataclasses import replace

from harness.worker.recipes.qlora4 import RECIPE as FIRST
from harness.worker.recipes.qlora8 import RECIPE as SECOND

RECIPE = replace(
    SECOND,
    summary="as `qlora8`, in a process that has loaded the base in 4 bits before",
    loaded_before=FIRST.quantization,
)
