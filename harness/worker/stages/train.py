"""A few steps with the real ``trl.SFTTrainer``, watched.

Gradients per kind, the loss on one fixed batch and tokens per expert are recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness.worker.observation import Judgement, Observation
from harness.worker.recipes.recipe import Recipe
from harness.worker.request import Request
from harness.worker.stages.attach import Target, lora_tensors, trainable_outside_lora
from harness.worker.stages.chats import MARKED_TEMPLATE
from harness.worker.stages.documents import Batches, Document, dataset, training_documents
from harness.worker.stages.evaluate import set_mode
from harness.worker.stages.experts_watch import ExpertWatch
from harness.worker.stages.gradient_watch import GradientWatch, judge_gradient
from harness.worker.stages.objective import Balancing, Objective, Said, said_of
from harness.worker.stages.optimizer_watch import OptimizerWatch
from harness.worker.stages.trainer_options import BATCH, TEMPLATE, trainer_options


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
) -> None:
    """Train, and record loss, gradient norms and tokens per expert as checks.

    Raises:
        NotTrainableError: a parameter beside the LoRA is trainable.
    """
    import torch
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
    gradients = GradientWatch(tensors=everything, watch=watch, device=request.device)
    first: list[Said] = []
    objective: list[Objective] = []

    class GradientNorms(TrainerCallback):  # type: ignore[misc]  # the base class is untyped on the host
        """Keeps the largest gradient norm per kind and per tensor, just before each optimizer step."""

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            optimizer.before_step()
            if not objective:
                objective.append(Objective.of(first, told=batches.told, labels=batches.labels_of_step))
            if not recipe.plain_batches:
                of_step = batches.labels_of_step if objective[0].by_labels else batches.predictions_of_step
                gradients.look(peft_model, batches.parts, balancing=_balancing(trainer), divisor=of_step)
            batches.step_taken()
            for kind, members in tensors.items():
                norms = {name: float(t.grad.float().norm()) for name, t in members.items() if t.grad is not None}
                per_tensor.update({name: max(per_tensor[name], norm) for name, norm in norms.items()})
                largest[kind] = max(largest[kind], sum(norm**2 for norm in norms.values()) ** 0.5)

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            optimizer.after_step()

    class CountingTrainer(SFTTrainer):  # type: ignore[misc]  # as above
        """Counts what losses are computed of, and computes those of the first step again."""

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            part = batches.take(inputs["input_ids"].tolist(), inputs["labels"].tolist())
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            if not objective:
                with torch.no_grad():
                    balancing = _balancing(self)
                    first.append(said_of(model, part, watch=watch, balancing=balancing, device=request.device))
            return loss

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)  # as it was differentiated, accumulation considered
            batches.told += float(loss)
            return loss

    before = fixed_batch_loss(peft_model, documents[:BATCH], watch, request.device)
    trainer = CountingTrainer(
        model=peft_model,
        args=SFTConfig(**trainer_options(SFTConfig, request, recipe, request.work / "trainer")),
        train_dataset=Dataset.from_dict(dataset(recipe, vocab, request.seed)),
        processing_class=tokenizer,
        callbacks=[GradientNorms()],
    )
    with watch.counting("training"):
        outcome = trainer.train()
    after = fixed_batch_loss(peft_model, documents[:BATCH], watch, request.device)
    record = observation.data.setdefault("training", {})
    record["loss"] = [before, after]
    record["steps"] = int(outcome.global_step)
    record["grad_norm"] = {kind: float(norm) for kind, norm in largest.items()}
    silent = sorted(kind for kind, norm in largest.items() if not norm > 0.0)
    altered = {**per_tensor, next(iter(per_tensor), ""): 0.0}
    observation.judge("gradients", "train", _gradients(per_tensor, silent), control=_gradients(altered, []))
    masked = replace(batches, labels=batches.labels - 1, wrong=batches.wrong + 1)
    observation.judge(
        "steps", "train", _steps(recipe, optimizer.steps, batches), control=_steps(recipe, optimizer.steps, masked)
    )
    observation.judge("objective", "train", objective[0].judged(), control=objective[0].judged_after_next())
    if not recipe.plain_batches:
        runs = watch.runs("training", batches.positions)

        def judged(worst: float, where: str) -> Judgement:
            band, wanted = request.bands.paths_max, 2 if recipe.checkpointing else 1
            return judge_gradient(worst, where, band=band, runs=runs, wanted_runs=wanted)

        altered_gradient = judged(gradients.altered, "one that is larger")
        observation.judge("gradient", "train", judged(gradients.worst, gradients.where), control=altered_gradient)
    observation.judge(
        "update",
        "train",
        _update(optimizer.worst, optimizer.where),
        control=_update(optimizer.altered, "one that has moved further"),
    )
    observation.judge("loss", "train", _loss(before, after), control=_loss(after, before))


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


def _steps(recipe: Recipe, steps: int, batches: Batches) -> Judgement:
    """Judge how much was trained on, and how often each document was."""
    tokens, labels = batches.wanted(recipe.steps * BATCH)
    times = [batches.times[document] for document in batches.known]
    wanted = "as many" if labels == tokens else f"{labels:g}"
    return Judgement(
        value=steps,
        band=f"== {recipe.steps} optimizer steps, {tokens:g} tokens and {wanted} labels",
        passed=(steps, batches.tokens, batches.labels) == (recipe.steps, tokens, labels)
        and batches.wrong == 0
        and len(set(times)) == 1,
        detail=f"the loss was computed of {batches.tokens} tokens, {batches.labels} of which had a label; "
        f"{batches.wrong} labels are not the sequences' own; a sequence was seen {min(times)} to {max(times)} times",
    )


def _balancing(trainer: Any) -> Balancing | None:
    """Return the loss of routers that a trainer adds, or None."""
    if not getattr(trainer, "aux_loss_enabled", False):
        return None
    config = trainer.model.config.get_text_config()
    return Balancing(top_k=config.num_experts_per_tok, coefficient=config.router_aux_loss_coef)


def _update(worst: float, where: str) -> Judgement:
    return Judgement(
        value=worst,
        band="<= 1, a share of what rounding allows",
        passed=worst <= 1,
        detail=f"a weight did not move as AdamW moves it: {where}",
    )


def _loss(before: float, after: float) -> Judgement:
    return Judgement(value=after - before, band="< 0", passed=after < before, detail="the loss did not fall")
