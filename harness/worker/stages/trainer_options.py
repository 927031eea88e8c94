"""The options of TRL's trainer that a recipe means, under the names that this release has for them.

TRL renames and drops options between releases. All of them are set here. An option that this release does not have is
left out only when it is listed as one that came or went. So a new rename fails instead of being ignored.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from harness.worker.recipes.recipe import Recipe
from harness.worker.request import Request
from harness.worker.stages.data import TRAINING_LENGTH

BATCH = 8
"""Rows of an optimizer step."""
TEMPLATE = "marked.jinja"
"""The file of the chat template, in the work directory."""

OPTIONAL = {"average_tokens_across_devices", "use_cpu", "include_num_input_tokens_seen"}
"""Options that some supported release lacks, and without which training means the same."""

RENAMED = {"max_length": "max_seq_length"}
"""Today's name → the name in older releases."""


def trainer_options(config_class: Any, request: Request, recipe: Recipe, output: Path) -> dict[str, Any]:
    """Return the options of SFTConfig, under the names that this release of TRL has for them.

    Raises:
        TypeError: this release lacks an option that is neither optional nor renamed.
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
    known = {field.name for field in dataclasses.fields(config_class)}
    options = {name if name in known else RENAMED.get(name, name): value for name, value in wanted.items()}
    unknown = sorted(set(options) - known - OPTIONAL)
    if unknown:
        raise TypeError(f"this release of trl has no SFTConfig option {', '.join(unknown)}")
    return {name: value for name, value in options.items() if name in known}


def steps_before_saving(recipe: Recipe) -> int:
    """Return after how many steps a recipe that is resumed saves: within an epoch, so that batches are skipped too."""
    return recipe.steps // 2 + 1
