"""Going on from a checkpoint that the trainer saved on its way, in another trainer with a model of its own.

It must arrive where the first one did, which was never interrupted. The second model's LoRA begins with other numbers,
so what is not restored shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.worker.observation import Judgement, Observation
from harness.worker.recipes.recipe import Recipe
from harness.worker.request import Request
from harness.worker.stages.attach import lora_tensors
from harness.worker.stages.documents import dataset
from harness.worker.stages.peft_names import Target
from harness.worker.stages.train import TRAINER
from harness.worker.stages.trainer_options import steps_before_saving, trainer_options


def check_resumed(
    observation: Observation,
    peft_model: Any,
    fresh: Any,
    tokenizer: Any,
    targets: dict[str, set[Target]],
    *,
    recipe: Recipe,
    request: Request,
    vocab: int,
) -> None:
    """Record in how many numbers a resumed adapter is another than the uninterrupted one.

    Args:
        observation: where the check goes.
        peft_model: trained without a break.
        fresh: the same, untrained.
        tokenizer: the checkpoint's.
        targets: what has a LoRA.
        recipe: what is trained.
        request: the cell.
        vocab: how many tokens the model knows.
    """
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    begun: dict[str, Any] = {}
    taken: list[int] = []
    first = steps_before_saving(recipe)

    class Beginning(TrainerCallback):  # type: ignore[misc]  # the base class is untyped on the host
        """Keeps what the resumed model begins with, and the number of each step that it takes."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            begun.update(_copied(fresh, targets))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            taken.append(int(state.global_step))

    trainer = SFTTrainer(
        model=fresh,
        args=SFTConfig(**trainer_options(SFTConfig, request, recipe, request.work / "resumed")),
        train_dataset=Dataset.from_dict(dataset(recipe, vocab, request.seed)),
        processing_class=tokenizer,
        callbacks=[Beginning()],
    )
    trainer.train(resume_from_checkpoint=str(request.work / TRAINER / f"checkpoint-{first}"))
    wanted = _copied(peft_model, targets)
    steps = list(range(first + 1, recipe.steps + 1))
    observation.judge(
        "resumed",
        "train",
        judge_resumed(wanted, _copied(fresh, targets), taken, steps),
        control=judge_resumed(wanted, begun, taken, steps),
    )


def judge_resumed(wanted: Mapping[str, Any], found: Mapping[str, Any], taken: list[int], steps: list[int]) -> Judgement:
    """Judge how many numbers differ in their bits, and which steps were taken."""
    import torch

    different = {
        name: int((tensor.view(torch.int32) != found[name].view(torch.int32)).sum()) for name, tensor in wanted.items()
    }
    largest = max(float((tensor - found[name]).abs().max()) for name, tensor in wanted.items())
    names = [name for name, count in different.items() if count]
    return Judgement(
        value=sum(different.values()),
        band=f"== 0 of {sum(tensor.numel() for tensor in wanted.values())} numbers, steps {steps[0]} to {steps[-1]}",
        passed=not names and taken == steps,
        detail=f"differ by up to {largest:.3g}: {', '.join(names[:4])}; the steps taken are {taken}",
    )


def _copied(peft_model: Any, targets: dict[str, set[Target]]) -> dict[str, Any]:
    """Return copies of the trained tensors, which are float32."""
    found = lora_tensors(peft_model, targets).values()
    return {name: tensor.detach().cpu().clone() for members in found for name, tensor in members.items()}
