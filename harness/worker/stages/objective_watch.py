"""What the trainer computes its losses and gradients of, held against our own account of it, step by step."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from harness.worker.observation import Judgement, Observation
from harness.worker.recipes.recipe import Recipe
from harness.worker.request import Request
from harness.worker.stages.documents import Batches
from harness.worker.stages.experts_watch import ExpertWatch
from harness.worker.stages.gradient_watch import GradientWatch, judge_gradient
from harness.worker.stages.objective import BAND, Balancing, Objective, Said, said_of
from harness.worker.stages.trainer_options import BATCH


@dataclass(kw_only=True)
class ObjectiveWatch:
    """Looks at every batch, and at every step before it is taken.

    Attributes:
        recipe: what is trained.
        request: the cell.
        batches: what losses were computed of.
        gradients: what gradients are held against.
        watch: of the model's experts.
        objective: what the first step's loss was and should be, once it is known.
    """

    recipe: Recipe
    request: Request
    batches: Batches
    gradients: GradientWatch
    watch: ExpertWatch
    objective: Objective | None = None
    _first: list[Said] = field(default_factory=list)

    def take(self, inputs: Any) -> None:
        """Count what a loss is about to be computed of."""
        self.batches.take(inputs["input_ids"].tolist(), inputs["labels"].tolist())

    def say_again(self, trainer: Any, model: Any) -> None:
        """In the first step, let the model say the documents of the last batch, each alone."""
        import torch

        if self.objective is None:
            with torch.no_grad():
                part, balancing = self.batches.parts[-1], _balancing(trainer)
                said = said_of(model, part, watch=self.watch, balancing=balancing, device=self.request.device)
                self._first.append(said)

    def before_step(self, trainer: Any, model: Any) -> None:
        """Look at a step, when gradients are clipped and nothing has moved."""
        batches = self.batches
        if self.objective is None:
            self.objective = Objective.of(self._first, told=batches.told, labels=batches.labels_of_step)
        if not self.recipe.plain_batches:
            divisor = batches.labels_of_step if self.objective.by_labels else batches.predictions_of_step
            self.gradients.look(model, batches.parts, balancing=_balancing(trainer), divisor=divisor)
        batches.step_taken()

    def judge(self, observation: Observation, steps: int) -> None:
        """Record what was seen, after that many optimizer steps."""
        batches = self.batches
        masked = replace(batches, labels=batches.labels - 1, wrong=batches.wrong + 1)
        control = judge_steps(self.recipe, steps, masked)
        observation.judge("steps", "train", judge_steps(self.recipe, steps, batches), control=control)
        never = Judgement(value=None, band=f"<= {BAND:g}", passed=False, detail="no loss was ever computed")
        judged = never if self.objective is None else self.objective.judged()
        altered = never if self.objective is None else self.objective.judged_after_next()
        observation.judge("objective", "train", judged, control=altered)
        if self.recipe.plain_batches:
            return
        runs, wanted_runs = self.watch.runs("training", batches.positions), 2 if self.recipe.checkpointing else 1

        band = self.request.bands.paths_max

        def distance(value: float) -> Judgement:
            what = self.gradients.describe(band)
            return judge_gradient(value, what, band=band, runs=runs, wanted_runs=wanted_runs)

        observation.judge("gradient", "train", distance(self.gradients.worst), control=distance(self.gradients.altered))


def judge_steps(recipe: Recipe, steps: int, batches: Batches) -> Judgement:
    """Judge how much was trained on, and how often each document was."""
    tokens, labels = batches.wanted(recipe.steps * BATCH)
    times = [batches.times[document] for document in batches.known]
    wanted = "as many" if labels == tokens else f"{labels:g}"
    counted = (steps, batches.tokens, batches.labels) == (recipe.steps, tokens, labels)
    return Judgement(
        value=steps,
        band=f"== {recipe.steps} optimizer steps, {tokens:g} tokens and {wanted} labels",
        passed=counted and batches.wrong == 0 and len(set(times)) == 1,
        detail=f"the loss was computed of {batches.tokens} tokens, {batches.labels} of which had a label; "
        f"{batches.wrong} labels are not the sequences' own; a sequence was seen {min(times)} to {max(times)} times",
    )


def _balancing(trainer: Any) -> Balancing | None:
    """Return the loss of routers that a trainer adds, or None."""
    if not getattr(trainer, "aux_loss_enabled", False):
        return None
    config = trainer.model.config.get_text_config()
    return Balancing(top_k=config.num_experts_per_tok, coefficient=config.router_aux_loss_coef)
