"""The options of TRL's trainer that a recipe means; ``harness.worker.releases`` has the names that a release knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.worker.recipes.recipe import Recipe
from harness.worker.releases import known_to_trainer
from harness.worker.request import Request
from harness.worker.stages.data import TRAINING_LENGTH

BATCH = 8
"""Rows of an optimizer step."""
TEMPLATE = "marked.jinja"
"""The file of the chat template, in the work directory."""


def trainer_options(config_class: Any, request: Request, recipe: Recipe, output: Path) -> dict[str, Any]:
    """Return the options of SFTConfig, under the names that this release of TRL has for them.

    Raises:
        UnsupportedError: this release lacks a feature that the recipe asks for.
        TypeError: it lacks an option that is neither optional nor renamed.
    """
    wanted: dict[str, Any] = {
        "output_dir": str(output),
        "per_device_train_batch_size": BATCH // recipe.accumulation,
        "gradient_accumulation_steps": recipe.accumulation,
        "max_steps": recipe.steps,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": recipe.max_grad_norm,
        "optim": "adamw_torch",
        "bf16": recipe.autocast,
        "fp16": False,
        "gradient_checkpointing": recipe.checkpointing,
        "max_length": TRAINING_LENGTH,
        "packing": recipe.packing,
        "report_to": [],
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "dataloader_num_workers": 0,
        "seed": request.seed,
        "data_seed": request.seed,
        "use_cpu": request.device == "cpu",
    }
    if recipe.texts == "chats":
        wanted |= {"assistant_only_loss": True, "chat_template_path": str(request.work / TEMPLATE)}
    if recipe.resumed:
        wanted |= {"save_strategy": "steps", "save_steps": steps_before_saving(recipe)}
    return known_to_trainer(config_class, wanted)


def steps_before_saving(recipe: Recipe) -> int:
    """Return after how many steps a recipe that is resumed saves: within an epoch, so that batches are skipped too."""
    return recipe.steps // 2 + 1
