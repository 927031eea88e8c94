"""What the trainer computes its losses and gradients of, held against our own account of it, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from harness.worker.observation import Judgement, Observation
from harness.worker.recipes.recipe import Recipe
from harness.worker.request import Request
from harness.worker.stages.documents import Batches
from harness.worker.stages.experts_watch import ExpertWatch
from harness.worker.stages.gradient_watch import GradientWatch, Off, RandomState, judge_gradient
from harness.worker.stages.objective import Balancing, Objective, judge_objective
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
        objectives: what a step's loss was and should be, by the step's number, of those that were looked at.
    """

    recipe: Recipe
    request: Request
    batches: Batches
    gradients: GradientWatch
    watch: ExpertWatch
    objectives: dict[int, Objective] = field(default_factory=dict)
    _drawn: list[RandomState] = field(default_factory=list)
    _step: int = 0

    def take(self, inputs: Any) -> None:
        """Count what a loss is about to be computed of, and note by which random numbers."""
        self.batches.take(inputs["input_ids"].tolist(), inputs["labels"].tolist())
        self._drawn.append(RandomState.now())

    def before_step(self, trainer: Any, model: Any) -> None:
        """Look at a step, when gradients are clipped and nothing has moved."""
        self._step += 1
        if self._step in steps_to_look_at(self.recipe):
            self.objectives[self._step] = self.gradients.look(
                model, self.batches, step=self._step, drawn=self._drawn, balancing=_balancing(trainer)
            )
        self._drawn.clear()
        self.batches.step_taken()

    def judge(self, observation: Observation, steps: int, norms: Mapping[int, float]) -> None:
        """Record what was seen.

        Args:
            observation: where the checks go.
            steps: how many optimizer steps were taken.
            norms: by step, how large the trainer says that its gradient was before it was clipped.
        """
        batches = self.batches
        masked = replace(batches, labels=batches.labels - 1, wrong=batches.wrong + 1)
        control = judge_steps(self.recipe, steps, masked)
        observation.judge("steps", "train", judge_steps(self.recipe, steps, batches), control=control)
        altered = {step: objective.after_the_next() for step, objective in self.objectives.items()}
        observation.judge("objective", "train", judge_objective(self.objectives), control=judge_objective(altered))
        gradients = self.gradients
        gradients.compare_norms(norms)

        def distance(off: Off | None) -> Judgement:
            return judge_gradient(
                off,
                gradients.describe(),
                all_seen=list(gradients.norms) == steps_to_look_at(self.recipe),
                runs=self.watch.runs("training", batches.positions),
                wanted_runs=2 if self.recipe.checkpointing else 1,
            )

        observation.judge("gradient", "train", distance(gradients.worst), control=distance(gradients.altered))


def steps_to_look_at(recipe: Recipe) -> list[int]:
    """Return the numbers of steps whose loss and gradient are computed again.

    Where all batches are alike, what is wrong with a step is wrong with the first, or once there is something before
    it and every tensor has a gradient, which a lora_A has not in the first.
    """
    return [1, recipe.steps] if recipe.plain_batches else list(range(1, recipe.steps + 1))


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
