"""A few steps with the real ``trl.SFTTrainer``, watched.

Gradients per kind, the loss on one fixed batch and tokens per expert are recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.worker.observation import Judgement, Observation
from harness.worker.recipes.recipe import Recipe
from harness.worker.request import Request
from harness.worker.stages.attach import lora_tensors, trainable_outside_lora
from harness.worker.stages.chats import MARKED_TEMPLATE
from harness.worker.stages.documents import Batches, Document, dataset, training_documents
from harness.worker.stages.evaluate import set_mode
from harness.worker.stages.experts_watch import ExpertWatch
from harness.worker.stages.gradient_watch import GradientWatch
from harness.worker.stages.objective import said_of
from harness.worker.stages.objective_watch import ObjectiveWatch
from harness.worker.stages.optimizer_watch import OptimizerWatch
from harness.worker.stages.peft_names import Target
from harness.worker.stages.trainer_options import BATCH, TEMPLATE, trainer_options

TRAINER = "trainer"
"""The folder of the trainer, in the work directory."""


class NotTrainableError(RuntimeError):
    """Something beside the LoRA would be trained: the comparison with base + delta would be meaningless."""


def fixed_batch_loss(model: Any, documents: Sequence[Document], watch: ExpertWatch, device: str) -> float:
    """Return the next-token cross entropy of some documents: nats per token.

    It is computed here, in the mode for evaluation.
    """
    import torch

    set_mode(model)
    with torch.no_grad():
        said = said_of(model, documents, watch=watch, balancing=None, device=device)
        return float(said.losses) / said.predictions


def train(
    observation: Observation,
    peft_model: Any,
    tokenizer: Any,
    targets: dict[str, set[Target]],
    *,
    recipe: Recipe,
    request: Request,
    vocab: int,
    watch: ExpertWatch,
) -> Mapping[str, float]:
    """Train, and record loss, gradient norms and tokens per expert as checks.

    Returns:
        The largest norm of the gradient of each LoRA tensor over all steps, by its name in the model.

    Raises:
        NotTrainableError: a parameter beside the LoRA is trainable.
    """
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    surplus = trainable_outside_lora(peft_model)
    if surplus:
        raise NotTrainableError(f"trainable beside the LoRA: {surplus[:4]}")
    documents = training_documents(recipe, vocab, request.seed)
    batches = Batches(known=documents, packed=recipe.packing)
    (request.work / TEMPLATE).write_text(MARKED_TEMPLATE)
    tensors = lora_tensors(peft_model, targets)
    largest = dict.fromkeys(tensors, 0.0)
    per_tensor = {name: 0.0 for members in tensors.values() for name in members}
    everything = {name: tensor for members in tensors.values() for name, tensor in members.items()}
    optimizer = OptimizerWatch(tensors=everything, learning_rate=recipe.learning_rate)
    gradients = GradientWatch(
        tensors=everything,
        watch=watch,
        device=request.device,
        max_norm=recipe.max_grad_norm,
        band=request.bands.paths_max,
        dropout=recipe.dropout > 0,
    )
    objective = ObjectiveWatch(recipe=recipe, request=request, batches=batches, gradients=gradients, watch=watch)

    class GradientNorms(TrainerCallback):  # type: ignore[misc]  # the base class is untyped on the host
        """Keeps the largest gradient norm per kind and per tensor, just before each optimizer step."""

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            optimizer.before_step()
            objective.before_step(trainer, peft_model)
            for kind, members in tensors.items():
                norms = {name: float(t.grad.float().norm()) for name, t in members.items() if t.grad is not None}
                per_tensor.update({name: max(per_tensor[name], norm) for name, norm in norms.items()})
                largest[kind] = max(largest[kind], sum(norm**2 for norm in norms.values()) ** 0.5)

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            optimizer.after_step()

    class CountingTrainer(SFTTrainer):  # type: ignore[misc]  # as above
        """Counts what losses are computed of."""

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            objective.take(inputs)
            return super().compute_loss(model, inputs, *args, **kwargs)

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)  # as it was differentiated, accumulation considered
            batches.told += float(loss)
            return loss

    before = fixed_batch_loss(peft_model, documents[:BATCH], watch, request.device)
    trainer = CountingTrainer(
        model=peft_model,
        args=SFTConfig(**trainer_options(SFTConfig, request, recipe, request.work / TRAINER)),
        train_dataset=Dataset.from_dict(dataset(recipe, vocab, request.seed)),
        processing_class=tokenizer,
        callbacks=[GradientNorms()],
    )
    with watch.counting("training"):
        outcome = trainer.train()
    if recipe.autocast:  # Accelerate leaves the model casting whatever it is asked, and its weights are the truth
        trainer.accelerator.unwrap_model(peft_model, keep_fp32_wrapper=False)
    optimizer.finish()
    after = fixed_batch_loss(peft_model, documents[:BATCH], watch, request.device)
    record = observation.data.setdefault("training", {})
    record["loss"] = [before, after]
    record["steps"] = int(outcome.global_step)
    record["grad_norm"] = {kind: float(norm) for kind, norm in largest.items()}
    silent = sorted(kind for kind, norm in largest.items() if not norm > 0.0)
    altered = {**per_tensor, next(iter(per_tensor), ""): 0.0}
    observation.judge("gradients", "train", _gradients(per_tensor, silent), control=_gradients(altered, []))
    logged = {entry["step"]: float(entry["grad_norm"]) for entry in trainer.state.log_history if "grad_norm" in entry}
    objective.judge(observation, optimizer.steps, logged)
    observation.judge(
        "update",
        "train",
        _update(optimizer.worst, optimizer.where),
        control=_update(optimizer.altered, "one that has moved further"),
    )
    observation.judge("loss", "train", _loss(before, after), control=_loss(after, before))
    return per_tensor


def _gradients(norms: Mapping[str, float], silent: Sequence[str]) -> Judgement:
    """Judge the largest gradient norm of each tensor over all steps.

    That of lora_A is zero in the first step, while lora_B still is.
    """
    idle = sorted(name for name, norm in norms.items() if not norm > 0.0)
    return Judgement(
        value=len(idle),
        band=f"== 0 of {len(norms)} LoRA tensors without a gradient",
        passed=not idle,
        detail=f"no gradient reached {', '.join(silent) or 'some of a kind'}: {', '.join(idle[:4])}",
    )


def _update(worst: float, where: str) -> Judgement:
    return Judgement(
        value=worst,
        band="<= 1, a share of what rounding allows",
        passed=worst <= 1,
        detail=f"a weight did not move as AdamW moves it: {where}",
    )


def _loss(before: float, after: float) -> Judgement:
    return Judgement(value=after - before, band="< 0", passed=after < before, detail="the loss did not fall")
