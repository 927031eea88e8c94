"""The names by which PEFT is told of what gets a LoRA, and the rank and scale that a recipe asks for by name.

PEFT 0.19 and later on transformers 5 rewrite ``target_modules`` that end in ``gate_proj`` / ``up_proj`` / ``down_proj``
into targets on the fused experts (``peft.utils.transformers_weight_conversion._convert_peft_config_moe``). So they
silently lose the dense MLP and the shared experts of the same names. There those Linears are named through
``target_parameters`` (``….gate_proj.weight``), which PEFT leaves alone. Everything is targeted by its full name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from harness.worker.recipes.recipe import Recipe
from harness.worker.releases import release

REWRITTEN_SUFFIXES = (".gate_proj", ".up_proj", ".down_proj")

Target = tuple[str, str | None]
"""In-memory module path, and the parameter's name where the parameter itself is targeted (fused experts)."""


def rewrites_names() -> bool:
    """Whether this PEFT, on this transformers, may take names of projections for those of fused experts."""
    import peft
    import transformers

    return release(transformers.__version__) >= (5, 0) and release(peft.__version__) >= (0, 19)


def rewrites_names_of(model: Any) -> bool:
    """Whether it does so in a model: asked of PEFT's own tables (``_convert_peft_config_moe``, 0.19.1 to 0.21.2)."""
    if not rewrites_names():
        return False
    from peft.utils import transformers_weight_conversion as conversion

    pattern = conversion._MODEL_TO_CONVERSION_PATTERN.get(model.config.model_type)  # noqa: SLF001 - no public way
    return bool(pattern in conversion._MOE_TARGET_MODULE_MAPPING)  # noqa: SLF001 - as above


def name_of(target: Target, recipe: Recipe) -> str:
    """Return the name by which PEFT is told of a target: a parameter's, or a module's as it is."""
    module, parameter = target
    if parameter is not None:
        return f"{module}.{parameter}"
    if recipe.linears_only or not module.endswith(REWRITTEN_SUFFIXES):
        return module
    return f"{module}.weight" if rewrites_names() else module


def rank_and_scaling(name: str, recipe: Recipe, rank: int) -> tuple[int, float]:
    """Return the rank and the scaling that a recipe asks for, by the name of a target.

    Args:
        name: as PEFT is told of it.
        recipe: whose patterns fit a name's end, from a dot on.
        rank: of what no pattern fits.
    """

    def first(patterns: Mapping[str, int], default: int) -> int:
        return next((value for p, value in patterns.items() if re.search(rf"(^|\.)({p})$", name)), default)

    found, alpha = first(recipe.rank_pattern, rank), first(recipe.alpha_pattern, rank * recipe.alpha_over_rank)
    if recipe.target_modules and name.endswith(".experts.gate_up_proj"):
        found, alpha = 2 * found, 2 * alpha  # a rank for each of the two names that mean it, as PEFT has it
    return found, alpha / (math.sqrt(found) if recipe.use_rslora else found)
