"""One cell, readable top to bottom: what each stage does, and at the end the table of them all.

What stages need of each other lies in the work directory. What is known of the cell lies in the observation. So a stage
can run in any process that has imported the libraries. ``harness.worker.run`` decides in which.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from harness.worker.checkpoints.family import Checkpoint
from harness.worker.checkpoints.geometry import geometry
from harness.worker.checkpoints.writer import write_checkpoint
from harness.worker.import_order import USUAL
from harness.worker.introspection.building import build_introspected
from harness.worker.observation import Judgement, Observation, StageStoppedError
from harness.worker.recipes.recipe import recipe
from harness.worker.request import Request
from harness.worker.steps import Step

if TYPE_CHECKING:
    from harness.worker.stages.peft_names import Target


def _import(observation: Observation, request: Request, checkpoint: Checkpoint) -> None:  # noqa: ARG001
    from harness.worker.libraries import import_libraries

    with observation.stage("import"):
        import_libraries(threads=request.threads, device=request.device, first=request.import_first)
    if request.import_first != USUAL:
        observation.data["import_first"] = request.import_first
        said = f"imports when {request.import_first} comes first; when {USUAL} does: {request.import_failure}"
        observation.data["stages"]["import"]["reason"] = said
        observation.save()


def _build(observation: Observation, request: Request, checkpoint: Checkpoint) -> None:
    with observation.stage("build"):
        if checkpoint.introspected is not None:
            digest = build_introspected(observation, request, checkpoint.introspected.model_type)
        else:
            digest = write_checkpoint(checkpoint, request.base, seed=request.seed, dtype=request.dtype)
        observation.data["base_sha256"] = digest


def _load(observation: Observation, request: Request, checkpoint: Checkpoint) -> tuple[Any, Any, Any, Any]:
    """Return the base model, its tokenizer, its logits, and which positions are no near ties."""
    from harness.worker.stages.coding import check_coding
    from harness.worker.stages.definition import check_definition
    from harness.worker.stages.evaluate import logprobs_of, near_ties
    from harness.worker.stages.experts_watch import watch_experts
    from harness.worker.stages.load import load_base, load_tokenizer
    from harness.worker.stages.quantized import check_quantized, save_dequantized, schemes_of
    from harness.worker.stages.vocabulary import save_resized

    plan = recipe(request.recipe)
    quantization = plan.quantization
    with observation.stage("load"):
        model = load_base(lambda: _load_for_training(request, checkpoint))
        if quantization is not None:
            check_quantized(observation, model)
            save_dequantized(model, request, checkpoint)
            check_coding(observation, request, checkpoint, quantization, schemes_of(model))
        if plan.new_tokens:
            save_resized(model, request, checkpoint)
        tokenizer = load_tokenizer(request.base)
        watch = watch_experts(model, checkpoint)
        logits, gaps = near_ties(watch, model, request, _vocab(request, checkpoint))
        watch.remove()
        clear = gaps >= request.bands.near_tie_epsilon
        if not plan.new_tokens:  # whose rows each stack draws for itself
            observation.data["base_logprobs"] = logprobs_of(logits, clear, request, _vocab(request, checkpoint))
        check_definition(observation, "load", request, name="base", logits=logits, clear=clear)
    return model, tokenizer, logits, clear


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """What the stages after training are about: the model, what it said, and where it lies clear of router ties."""

    model: Any
    targets: dict[str, set[Target]]
    gaps: Any


def _train_and_use(observation: Observation, request: Request, checkpoint: Checkpoint) -> None:
    """Load, attach and train. Then save, generate and try forward paths, none of which can stop another.

    The adapter is saved first, so that whatever becomes of this process the rest of the cell has it.
    """
    trained = _load_attach_train(observation, request, checkpoint)
    for stage in (_save, _generate, _forward_paths):
        try:
            stage(observation, request, checkpoint, trained)
        except StageStoppedError as stopped:
            print(f"    {stopped} ended; what does not need it goes on", flush=True)


def _load_attach_train(observation: Observation, request: Request, checkpoint: Checkpoint) -> _Trained:
    from harness.worker.stages.attach import attach_and_check, lora_layers
    from harness.worker.stages.biases import trained_biases
    from harness.worker.stages.consistency import check_modes, check_unchanged
    from harness.worker.stages.evaluate import near_ties, save_view
    from harness.worker.stages.experts_watch import watch_experts
    from harness.worker.stages.funnel import record, with_delta, with_gradient
    from harness.worker.stages.targets import by_kind
    from harness.worker.stages.train import train
    from harness.worker.stages.two_adapters import TRAINED, frozen_alone
    from harness.worker.stages.whole import whole_modules

    plan, vocab = recipe(request.recipe), _vocab(request, checkpoint)
    model, tokenizer, base_logits, clear = _load(observation, request, checkpoint)
    with observation.stage("attach"):
        rank = geometry(request.geometry).rank
        peft_model, targets = attach_and_check(observation, model, checkpoint, plan, request, rank)
    with observation.stage("train"):
        watch = watch_experts(peft_model, checkpoint)
        before = base_logits
        if plan.frozen:
            with frozen_alone(peft_model):
                before, gaps = near_ties(watch, peft_model, request, vocab)
            clear = gaps >= request.bands.near_tie_epsilon
            watch.counts.clear()
        check_unchanged(observation, peft_model, request, base_logits=before, clear=clear, vocab=vocab)
        norms = train(
            observation, peft_model, tokenizer, targets, recipe=plan, request=request, vocab=vocab, watch=watch
        )
        if plan.resumed:
            _resume(observation, request, checkpoint, peft_model, tokenizer, targets)
        layers = lora_layers(peft_model)
        layers = {**layers, **trained_biases(layers, request.work), **whole_modules(peft_model)}
        record(observation, "gradient", by_kind(checkpoint, with_gradient(layers, norms)))
        record(observation, "moved", by_kind(checkpoint, with_delta(layers, TRAINED)))
        logits, gaps = near_ties(watch, peft_model, request, vocab)
        watch.remove()
        _check_coverage(observation, watch)
        _check_precision(observation, watch, "bfloat16" if plan.autocast else "float32")
        save_view(request.work, "trained", {"logits": logits, "base_logits": base_logits, "gaps": gaps})
        if plan.quantization is None:
            clear = gaps >= request.bands.near_tie_epsilon
            awake = plan.dropout > 0
            check_modes(observation, peft_model, request, logits=logits, clear=clear, vocab=vocab, dropout=awake)
    return _Trained(model=peft_model, targets=targets, gaps=gaps)


def _generate(observation: Observation, request: Request, checkpoint: Checkpoint, trained: _Trained) -> None:
    from harness.worker.stages.consistency import check_generated
    from harness.worker.stages.evaluate import save_samples
    from harness.worker.stages.experts_watch import watching

    with observation.stage("generate"), watching(trained.model, checkpoint) as watch:
        samples = check_generated(observation, trained.model, request, watch=watch, vocab=_vocab(request, checkpoint))
        save_samples(request.work, "trained", samples)


def _forward_paths(observation: Observation, request: Request, checkpoint: Checkpoint, trained: _Trained) -> None:
    from harness.worker.stages.forward_paths import check_forward_paths

    # Our own forward takes the LoRA of one adapter, and says so where experts have two.
    on_experts = "expert" in trained.targets and "expert" not in recipe(request.recipe).frozen
    with observation.stage("forward-paths"):
        check_forward_paths(
            observation,
            trained.model,
            request,
            gaps=trained.gaps,
            vocab=_vocab(request, checkpoint),
            on_experts=on_experts,
        )


def _resume(
    observation: Observation, request: Request, checkpoint: Checkpoint, peft_model: Any, tokenizer: Any, targets: Any
) -> None:
    """Train once more from a checkpoint, with a model whose LoRA begins with other numbers."""
    from harness.worker.stages.attach import attach
    from harness.worker.stages.resumed import check_resumed

    plan, another = recipe(request.recipe), replace(request, seed=request.seed + 1)
    fresh = attach(_load_for_training(request, checkpoint), targets, plan, geometry(request.geometry).rank, another)
    vocab = _vocab(request, checkpoint)
    check_resumed(observation, peft_model, fresh, tokenizer, targets, recipe=plan, request=request, vocab=vocab)


def _save(observation: Observation, request: Request, checkpoint: Checkpoint, trained: _Trained) -> None:
    from harness.worker.stages.compare import Truth
    from harness.worker.stages.definition import check_definition
    from harness.worker.stages.deltas import check_saved, save_deltas
    from harness.worker.stages.derivative import check_derivative
    from harness.worker.stages.evaluate import logits_of
    from harness.worker.stages.forward_paths import lora_in_float32
    from harness.worker.stages.funnel import record
    from harness.worker.stages.quantized import save_lora_dtypes
    from harness.worker.stages.targets import by_kind

    vocab, peft_model = _vocab(request, checkpoint), trained.model
    with observation.stage("save"):
        save_lora_dtypes(observation, peft_model, request.work)
        peft_model.save_pretrained(request.adapter)
        record(observation, "saved", by_kind(checkpoint, check_saved(observation, peft_model, request)))
        clear = Truth(request).clear
        with lora_in_float32(peft_model):
            logits = logits_of(peft_model, request, vocab)
            check_derivative(observation, peft_model, request, clear=clear, vocab=vocab)
        check_definition(observation, "save", request, name="adapted", logits=logits, clear=clear)
        save_deltas(peft_model, request.work, new_tokens=recipe(request.recipe).new_tokens)


def _reload_adapter(observation: Observation, request: Request, checkpoint: Checkpoint) -> None:
    from harness.worker.shims import shimmed
    from harness.worker.stages.compare import Truth
    from harness.worker.stages.definition import check_definition
    from harness.worker.stages.deltas import check_reloaded
    from harness.worker.stages.evaluate import logits_of
    from harness.worker.stages.forward_paths import lora_in_float32
    from harness.worker.stages.functional import judge_kl
    from harness.worker.stages.funnel import record
    from harness.worker.stages.per_expert import check_per_expert
    from harness.worker.stages.quantized import cast_lora
    from harness.worker.stages.targets import by_kind
    from harness.worker.stages.two_adapters import load_adapters

    with observation.stage("reload-adapter"):
        # Whoever resizes a vocabulary again draws other rows.
        base = _load_for_training(replace(request, seed=request.seed + 1), checkpoint)
        with shimmed(recipe(request.recipe).shims) as applied:
            model = load_adapters(base, request)
        observation.data["shims"] = applied
        record(observation, "reloaded", by_kind(checkpoint, check_reloaded(observation, model, request)))
        cast_lora(model, request.work)
        truth = Truth(request)
        said = logits_of(model, request, _vocab(request, checkpoint))
        band = request.bands.adapter_reload_kl_max
        judgement, control = judge_kl(truth.logits, said, truth.clear, band=band)
        observation.data["metrics"]["kl_trained_adapter"] = judgement.value
        observation.judge("adapter_reload", "reload-adapter", judgement, control=control)
        with lora_in_float32(model):
            logits = logits_of(model, request, _vocab(request, checkpoint))
        check_definition(observation, "reload-adapter", request, name="adapted", logits=logits, clear=truth.clear)
        if recipe(request.recipe).per_expert:
            base, vocab = _load_for_training(request, checkpoint), _vocab(request, checkpoint)
            check_per_expert(
                observation, request, checkpoint, base, logits=truth.logits, clear=truth.clear, vocab=vocab
            )


def _merge(observation: Observation, request: Request, checkpoint: Checkpoint) -> None:
    from harness.worker.stages.merge import EDITED, ENGINE_REPORT
    from harness.worker.stages.planting import merge_as_asked
    from harness.worker.stages.quantized import DEQUANTIZED, MERGED_DEQUANTIZED

    with observation.stage("merge"):
        adapter = observation.data["adapter"]
        said = merge_as_asked(request, checkpoint, adapter, out=request.merged)
        if recipe(request.recipe).quantization is not None:
            base, out = request.work / DEQUANTIZED, request.work / MERGED_DEQUANTIZED
            said[EDITED] += merge_as_asked(request, checkpoint, adapter, out=out, base=base)[EDITED]
        (request.work / ENGINE_REPORT).write_text(json.dumps(said))


def _reload_merged(observation: Observation, request: Request, checkpoint: Checkpoint) -> None:
    from harness.worker.stages.evaluate import logits_of, samples_of, save_samples, save_view
    from harness.worker.stages.load import load_model
    from harness.worker.stages.quantized import MERGED_DEQUANTIZED
    from harness.worker.stages.reference import judged_by_reference, save_reference_samples

    vocab = _vocab(request, checkpoint)
    with observation.stage("reload-merged"):
        merged = load_model(request.merged, request)
        save_view(request.work, "merged", {"logits": logits_of(merged, request, vocab)})
        if recipe(request.recipe).quantization is not None:
            model = load_model(request.work / MERGED_DEQUANTIZED, request)
            save_view(request.work, MERGED_DEQUANTIZED, {"logits": logits_of(model, request, vocab)})
    if observation.completed("generate"):  # else there is nothing to hold samples against
        with observation.stage("generate-merged"):
            save_samples(request.work, "merged", samples_of(merged, request, vocab))
            if judged_by_reference(request):
                save_reference_samples(request, checkpoint, vocab)


def _compare(observation: Observation, request: Request, checkpoint: Checkpoint) -> None:
    from harness.worker.stages.compare import compare
    from harness.worker.stages.merge import ENGINE_REPORT
    from harness.worker.stages.quantization_gap import compare_quantized
    from harness.worker.stages.reference import judged_by_reference, save_reference

    with observation.stage("compare"):
        quantized = recipe(request.recipe).quantization is not None
        if judged_by_reference(request):
            save_reference(request, checkpoint, _vocab(request, checkpoint))
        engine: dict[str, Any] = json.loads((request.work / ENGINE_REPORT).read_text())
        compare(observation, request, checkpoint, engine)
        if quantized:
            compare_quantized(observation, request, checkpoint, _vocab(request, checkpoint))


def _controls(observation: Observation, request: Request, checkpoint: Checkpoint) -> None:
    from harness.worker.stages.controls import run_controls

    with observation.stage("controls"):
        run_controls(observation, request, checkpoint, _vocab(request, checkpoint))


def _load_for_training(request: Request, checkpoint: Checkpoint) -> Any:
    """Load the base as the recipe trains on it: as it is, with more tokens, or quantised."""
    from harness.worker.stages.load import load_model
    from harness.worker.stages.quantized import load_quantized
    from harness.worker.stages.vocabulary import resize

    plan = recipe(request.recipe)
    first = None
    if plan.loaded_before is not None:  # as in a notebook: of what it left behind nothing may reach the next
        first = load_quantized(request.base, request, plan.loaded_before, checkpoint)
    if plan.quantization is None:
        model = load_model(request.base, request)
        resize(model, request, checkpoint)
    else:
        model = load_quantized(request.base, request, plan.quantization, checkpoint)
    del first
    return model


def _check_coverage(observation: Observation, watch: Any) -> None:
    """Every expert of every layer must see tokens in training (to have a delta) and in evaluation (to be seen)."""
    fewest = {phase: watch.fewest(phase) for phase in ("training", "evaluation")}
    observation.data["training"]["tokens_per_expert_min"] = {phase: count for phase, (count, _) in fewest.items()}
    worst, where = min(fewest.values())

    def judged(count: int) -> Judgement:
        return Judgement(value=count, band=">= 1", passed=count >= 1, detail=f"no token reached {where}")

    observation.judge("coverage", "train", judged(worst), control=judged(0))


def _check_precision(observation: Observation, watch: Any, wanted: str) -> None:
    """Training must compute in what the recipe asks for: TRL 1.x computes in bfloat16 unless it is told not to."""

    def judged(seen: Mapping[str, int]) -> Judgement:
        others = {dtype: calls for dtype, calls in seen.items() if dtype != wanted}
        return Judgement(
            value=sum(others.values()),
            band=f"== 0 of {sum(seen.values())} calls of experts in another dtype than {wanted}",
            passed=not others and bool(seen),
            detail=f"calls by dtype: {dict(sorted(seen.items()))}",
        )

    observation.judge("precision", "train", judged(watch.precisions), control=judged({**watch.precisions, "other": 1}))


def _vocab(request: Request, checkpoint: Checkpoint) -> int:
    from harness.worker.stages.vocabulary import vocabulary_size

    return vocabulary_size(checkpoint, recipe(request.recipe))


IMPORT = Step(stages=("import",), run=_import)

GROUPS: tuple[tuple[Step, ...], ...] = (
    (
        Step(stages=("build",), run=_build),
        Step(stages=("load", "attach", "train", "save", "generate", "forward-paths"), run=_train_and_use),
    ),
    (Step(stages=("reload-adapter",), run=_reload_adapter),),
    (Step(stages=("merge",), run=_merge),),
    (
        Step(stages=("reload-merged", "generate-merged"), run=_reload_merged),
        Step(stages=("compare",), run=_compare),
        Step(stages=("controls",), run=_controls),
    ),
)
"""All stages after the imports, in order.

Where a process can be forked, each step has one of its own. Where none can, because CUDA is in use, each group has one.
There are as few groups as the meaning needs. These must not share the memory of a process: what was trained, what a
user loads the adapter into, what merges, and what is published.
"""
