"""A few steps with the real ``trl.SFTTrainer``, watched.

Gradients per kind, the loss on one fixed batch and tokens per expert are recorded.
TRL renames and drops options between releases. All of them are set in ``trainer_options``. An option that this release
does not have is left out only when it is listed as one that came or went. So a new rename fails instead of being
ignored.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.worker.observation import Judgement, Observation
from harness.worker.recipes.recipe import Recipe
from harness.worker.request import Request
from harness.worker.stages.attach import lora_tensors, trainable_outside_lora
from harness.worker.stages.data import TRAINING_LENGTH, training_sequences
from harness.worker.stages.evaluate import set_mode
from harness.worker.stages.experts_watch import ExpertWatch
from harness.worker.stages.objective import BAND as OBJECTIVE
from harness.worker.stages.objective import judge_objective, load_balancing_loss, next_token_loss
from harness.worker.stages.optimizer_watch import OptimizerWatch
from harness.worker.stages.peft_names import Target

BATCH = 8
IGNORED = -100
"""A label that the loss leaves out (``torch.nn.CrossEntropyLoss``)."""

OPTIONAL = {"average_tokens_across_devices", "use_cpu", "include_num_input_tokens_seen"}
"""Options that some supported release lacks, and without which training means the same."""

RENAMED = {"max_length": "max_seq_length"}
"""Today's name → the name in older releases."""


class NotTrainableError(RuntimeError):
    """Something beside the LoRA would be trained: the comparison with base + delta would be meaningless."""


def trainer_options(config_class: Any, request: Request, recipe: Recipe, output: Path) -> dict[str, Any]:
    """Return the options of SFTConfig, under the names that this release of TRL has for them.

    Raises:
        TypeError: this release lacks an option that is neither optional nor renamed.
    """
    wanted = {
        "output_dir": str(output),
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": 1,
        "max_steps": recipe.steps,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch",
        "bf16": False,
        "fp16": False,
        "gradient_checkpointing": False,
        "max_length": TRAINING_LENGTH,
        "packing": False,
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
    known = {field.name for field in dataclasses.fields(config_class)}
    options = {name if name in known else RENAMED.get(name, name): value for name, value in wanted.items()}
    unknown = sorted(set(options) - known - OPTIONAL)
    if unknown:
        raise TypeError(f"this release of trl has no SFTConfig option {', '.join(unknown)}")
    return {name: value for name, value in options.items() if name in known}


def fixed_batch_loss(model: Any, batch: Any) -> float:
    """Return the next-token cross entropy of one fixed batch: nats per token.

    It is computed here, in the mode for evaluation.
    """
    import torch

    set_mode(model)
    with torch.no_grad():
        return next_token_loss(model(input_ids=batch).logits.float(), batch)


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
    sequences = training_sequences(vocab, request.seed)
    batch = torch.tensor(sequences[:BATCH], device=request.device)
    tensors = lora_tensors(peft_model, targets)
    largest = dict.fromkeys(tensors, 0.0)
    per_tensor = {name: 0.0 for members in tensors.values() for name in members}
    everything = {name: tensor for members in tensors.values() for name, tensor in members.items()}
    optimizer = OptimizerWatch(tensors=everything, learning_rate=recipe.learning_rate)
    seen = {"tokens": 0, "labels": 0}
    sequences_seen: Counter[tuple[int, ...]] = Counter()
    objective: list[tuple[Judgement, Judgement]] = []

    class GradientNorms(TrainerCallback):  # type: ignore[misc]  # the base class is untyped on the host
        """Keeps the largest gradient norm per kind and per tensor, just before each optimizer step."""

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            optimizer.before_step()
            for kind, members in tensors.items():
                norms = {name: float(t.grad.float().norm()) for name, t in members.items() if t.grad is not None}
                per_tensor.update({name: max(per_tensor[name], norm) for name, norm in norms.items()})
                largest[kind] = max(largest[kind], sum(norm**2 for norm in norms.values()) ** 0.5)

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            optimizer.after_step()

    class CountingTrainer(SFTTrainer):  # type: ignore[misc]  # as above
        """Counts what the loss is computed of, and computes the first one again."""

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            seen["tokens"] += inputs["input_ids"].numel()
            seen["labels"] += int((inputs["labels"] != IGNORED).sum())
            sequences_seen.update(map(tuple, inputs["input_ids"].tolist()))
            ids, drawn = inputs["input_ids"], torch.get_rng_state()
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            if not objective:
                told = float((loss[0] if isinstance(loss, tuple) else loss).detach())
                with torch.random.fork_rng():
                    torch.set_rng_state(drawn)  # where there is dropout, it leaves out the same
                    objective.append(_first_loss(self, model, ids, told, watch))
            return loss

    before = fixed_batch_loss(peft_model, batch)
    trainer = CountingTrainer(
        model=peft_model,
        args=SFTConfig(**trainer_options(SFTConfig, request, recipe, request.work / "trainer")),
        train_dataset=Dataset.from_dict({"input_ids": sequences}),
        processing_class=tokenizer,
        callbacks=[GradientNorms()],
    )
    with watch.counting("training"):
        outcome = trainer.train()
    optimizer.finish()
    after = fixed_batch_loss(peft_model, batch)
    record = observation.data.setdefault("training", {})
    record["loss"] = [before, after]
    record["steps"] = int(outcome.global_step)
    record["grad_norm"] = {kind: float(norm) for kind, norm in largest.items()}
    silent = sorted(kind for kind, norm in largest.items() if not norm > 0.0)
    altered = {**per_tensor, next(iter(per_tensor), ""): 0.0}
    observation.judge("gradients", "train", _gradients(per_tensor, silent), control=_gradients(altered, []))
    steps, tokens, labels = optimizer.steps, seen["tokens"], seen["labels"]
    times = {sequences_seen[tuple(sequence)] for sequence in sequences}
    observation.judge(
        "steps",
        "train",
        _steps(recipe, steps, tokens, labels, times),
        control=_steps(recipe, steps, tokens, labels - 1, times),
    )
    never = Judgement(value=None, band=f"<= {OBJECTIVE:g}", passed=False, detail="no loss was ever computed")
    judgement, control = objective[0] if objective else (never, never)
    observation.judge("objective", "train", judgement, control=control)
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


def _steps(recipe: Recipe, steps: int, tokens: int, labels: int, times: set[int]) -> Judgement:
    """Judge how much was trained on; ``times`` are how often the sequences were seen."""
    wanted = recipe.steps * BATCH * TRAINING_LENGTH
    return Judgement(
        value=steps,
        band=f"== {recipe.steps} optimizer steps, {wanted} tokens and as many labels",
        passed=(steps, tokens, labels) == (recipe.steps, wanted, wanted) and len(times) == 1,
        detail=f"the loss was computed of {tokens} tokens, {labels} of which had a label; a sequence was seen "
        f"{min(times)} to {max(times)} times",
    )


def _first_loss(trainer: Any, model: Any, tokens: Any, told: float, watch: ExpertWatch) -> tuple[Judgement, Judgement]:
    """Judge the loss of a batch, and that of the token after next, the control."""
    import torch

    with watch.pausing(), watch.recording(), torch.no_grad():
        logits = model(input_ids=tokens).logits.float()
    balance = 0.0
    if getattr(trainer, "aux_loss_enabled", False):
        config = trainer.model.config.get_text_config()
        balance = config.router_aux_loss_coef * load_balancing_loss(watch.router_logits, config.num_experts_per_tok)
    cross_entropy, after_next = (next_token_loss(logits, tokens, ahead=ahead) for ahead in (1, 2))
    length = int(tokens.shape[1])
    judged = judge_objective(told, cross_entropy, balance, length)
    return judged, judge_objective(after_next + balance, cross_entropy, balance, length)


def _update(worst: float, where: str) -> Judgement:
    return Judgement(
        value=worst,
        band="<= 1, a share of what rounding allows",
        passed=worst <= 1,
        detail=f"a weight did not move as AdamW moves it: {where}",
    )


def _loss(before: float, after: float) -> Judgement:
    return Judgement(value=after - before, band="< 0", passed=after < before, detail="the loss did not fall")
