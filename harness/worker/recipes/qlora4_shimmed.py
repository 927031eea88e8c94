"""``qlora4`` where transformers and PEFT disagree about how an adapter is loaded.

It has the one shim that shows that it can work.
"""

from dataclasses import replace

from harness.worker.recipes.qlora4 import RECIPE as QLORA4
from harness.worker.recipes.recipe import Recipe

RECIPE: Recipe = replace(
    QLORA4,
    summary="as `qlora4`; on transformers 5.6.2 with PEFT 0.19 an argument that says nothing is dropped while the "
    "adapter is loaded, and the result says so",
    geometry="blocks",
    shims=("weight-converter-arguments",),
)
