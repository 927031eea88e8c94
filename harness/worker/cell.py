"""One cell, from a request to an observation, readable top to bottom.

The parent imports the libraries under test and then only forks: each group of stages runs in a child that is as fresh as a
new process. What stages need of each other lies in the work directory; what is known of the cell lies in the observation.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.worker.checkpoints.family import Checkpoint, build
from harness.worker.checkpoints.geometry import geometry
from harness.worker.checkpoints.writer import write_checkpoint
from harness.worker.observation import Observation, StageStoppedError
from harness.worker.processes import peak_rss_mb, run_in_child
from harness.worker.recipes.recipe import recipe
from harness.worker.request import Request, read_request

PACKAGES = (
    "transformers", "peft", "trl", "torch", "bitsandbytes", "accelerate", "datasets", "safetensors", "tokenizers",
    "huggingface-hub", "numpy",
)  # fmt: skip
"""Packages whose versions a result records, where they are installed."""


def run_cell(request: Request) -> None:
    """Run every stage that can run; never raises for what a stage does."""
    start = time.perf_counter()
    observation = Observation(request.observation)
    observation.data |= {
        "versions": _versions(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": request.threads,
        "device": request.device,
    }
    try:
        with observation.stage("import"):
            _import_libraries(request)
    except StageStoppedError:
        _finish(observation, start)
        return
    sizes = geometry(request.geometry)
    checkpoint = build(request.family, sizes, request.variant)

    def child(stages: Callable[[Observation, Request, Checkpoint], None]) -> bool:
        return run_in_child(observation, lambda seen: stages(seen, request, checkpoint))

    if child(_build) and child(_load_attach_train_save):
        child(_reload_adapter)
        if child(_merge):
            child(_reload_merged)
            if child(_compare):
                child(_controls)
    _finish(observation, start)


def _import_libraries(request: Request) -> None:
    """Import everything that the children need, and run no tensor operation."""
    import torch

    torch.set_num_threads(request.threads)
    # On a GPU float32 must mean float32: TF32 convolutions would drown the comparison.
    torch.backends.cudnn.allow_tf32 = False
    import datasets  # noqa: F401
    import peft
    import safetensors.torch  # noqa: F401
    import transformers
    from transformers import AutoModelForCausalLM  # noqa: F401
    from trl import SFTConfig, SFTTrainer  # noqa: F401

    # PEFT imports bitsandbytes only when it attaches, which would be once per child. An interpreter that a user gave may
    # lack it, which is nothing to a recipe that does not quantise.
    # With a GPU it would start CUDA in the parent, after which no forked child can.
    if request.device == "cpu" and importlib.util.find_spec("bitsandbytes") is not None:
        import peft.tuners.lora.bnb  # noqa: F401

    transformers.utils.logging.disable_progress_bar()
    # Keys of the prediction layers are unexpected in every load, by design; the checks say what matters.
    transformers.utils.logging.set_verbosity_error()


def _build(observation: Observation, request: Request, checkpoint: Checkpoint) -> None:
    with observation.stage("build"):
        digest = write_checkpoint(checkpoint, request.base, seed=request.seed, dtype=request.dtype)
        observation.data["base_sha256"] = digest


def _load_attach_train_save(observation: Observation, request: Request, checkpoint: Checkpoint) -> None:
    from harness.worker.stages.attach import attach_and_check
    from harness.worker.stages.deltas import check_saved, save_deltas
    from harness.worker.stages.evaluate import logits_of, near_ties, samples_of, save_view
    from harness.worker.stages.experts_watch import ExpertWatch
    from harness.worker.stages.forward_paths import check_forward_paths
    from harness.worker.stages.load import load_base, load_tokenizer
    from harness.worker.stages.quantized import check_quantized, save_dequantized, save_lora_dtypes
    from harness.worker.stages.train import train

    plan = recipe(request.recipe)
    vocab = _vocab(checkpoint)
    with observation.stage("load"):
        model = load_base(lambda: _load_for_training(request, checkpoint))
        if plan.quantization is not None:
            check_quantized(observation, model)
            save_dequantized(model, request, checkpoint)
        tokenizer = load_tokenizer(request.base)
        base_logits = logits_of(model, request, vocab)
    with observation.stage("attach"):
        rank = geometry(request.geometry).rank
        peft_model, targets = attach_and_check(observation, model, checkpoint, plan, request, rank)
    with observation.stage("train"):
        watch = ExpertWatch(peft_model, checkpoint)
        train(observation, peft_model, tokenizer, targets, recipe=plan, request=request, vocab=vocab, watch=watch)
        logits, gaps = near_ties(watch, peft_model, request, vocab)
        _check_coverage(observation, watch)
        samples = samples_of(peft_model, request, vocab)
        save_view(request.work, "trained", {"logits": logits, "base_logits": base_logits, "gaps": gaps}, samples)
        watch.remove()
        check_forward_paths(observation, peft_model, request, gaps=gaps, vocab=vocab, on_experts="expert" in plan.kinds)
    with observation.stage("save"):
        save_lora_dtypes(observation, peft_model, request.work)
        peft_model.save_pretrained(request.adapter)
        check_saved(observation, peft_model, request)
        save_deltas(peft_model, request.work)
    _record_vram(observation, request)


def _reload_adapter(observation: Observation, request: Request, checkpoint: Checkpoint) -> None:
    from harness.worker.shims import shimmed
    from harness.worker.stages.compare import Truth
    from harness.worker.stages.evaluate import logits_of
    from harness.worker.stages.functional import distance
    from harness.worker.stages.quantized import cast_lora

    with observation.stage("reload-adapter"):
        from peft import PeftModel

        base = _load_for_training(request, checkpoint)
        with shimmed(recipe(request.recipe).shims) as applied:
            model = PeftModel.from_pretrained(base, request.adapter)
        observation.data["shims"] = applied
        cast_lora(model, request.work)
        truth = Truth(request)
        seen = distance(truth.logits, logits_of(model, request, _vocab(checkpoint)), truth.clear)
        observation.data["metrics"]["kl_trained_adapter"] = seen.kl
        band = request.bands.adapter_reload_kl_max
        observation.check("adapter_reload", "reload-adapter", seen.kl, f"<= {band:g}", passed=seen.kl <= band)


def _merge(observation: Observation, request: Request, checkpoint: Checkpoint) -> None:
    from harness.worker.stages.merge import ENGINE_REPORT
    from harness.worker.stages.planting import merge_as_asked
    from harness.worker.stages.quantized import DEQUANTIZED, MERGED_DEQUANTIZED

    with observation.stage("merge"):
        adapter = observation.data["adapter"]
        said = merge_as_asked(request, checkpoint, adapter, out=request.merged)
        (request.work / ENGINE_REPORT).write_text(json.dumps(said))
        if recipe(request.recipe).quantization is not None:
            dequantized = request.work / DEQUANTIZED
            merge_as_asked(request, checkpoint, adapter, out=request.work / MERGED_DEQUANTIZED, base=dequantized)


def _reload_merged(observation: Observation, request: Request, checkpoint: Checkpoint) -> None:
    from harness.worker.stages.evaluate import logits_of, samples_of, save_view
    from harness.worker.stages.load import load_model
    from harness.worker.stages.quantized import MERGED_DEQUANTIZED

    with observation.stage("reload-merged"):
        model = load_model(request.merged, request)
        vocab = _vocab(checkpoint)
        save_view(
            request.work, "merged", {"logits": logits_of(model, request, vocab)}, samples_of(model, request, vocab)
        )
        if recipe(request.recipe).quantization is not None:
            model = load_model(request.work / MERGED_DEQUANTIZED, request)
            save_view(request.work, MERGED_DEQUANTIZED, {"logits": logits_of(model, request, vocab)}, [])


def _compare(observation: Observation, request: Request, checkpoint: Checkpoint) -> None:
    from harness.worker.stages.compare import compare
    from harness.worker.stages.merge import ENGINE_REPORT
    from harness.worker.stages.quantization_gap import compare_quantized
    from harness.worker.stages.reference import save_reference

    with observation.stage("compare"):
        quantized = recipe(request.recipe).quantization is not None
        if quantized or request.dtype != "float32":
            save_reference(request, checkpoint, _vocab(checkpoint))
        engine: dict[str, Any] = json.loads((request.work / ENGINE_REPORT).read_text())
        compare(observation, request, checkpoint, engine)
        if quantized:
            compare_quantized(observation, request, checkpoint, _vocab(checkpoint))


def _controls(observation: Observation, request: Request, checkpoint: Checkpoint) -> None:
    from harness.worker.stages.controls import run_controls

    with observation.stage("controls"):
        run_controls(observation, request, checkpoint, _vocab(checkpoint))


def _load_for_training(request: Request, checkpoint: Checkpoint) -> Any:
    """Load the base as the recipe trains on it: as it is, or quantised."""
    from harness.worker.stages.load import load_model
    from harness.worker.stages.quantized import load_quantized

    quantization = recipe(request.recipe).quantization
    if quantization is None:
        return load_model(request.base, request)
    return load_quantized(request.base, request, quantization, checkpoint)


def _check_coverage(observation: Observation, watch: Any) -> None:
    """Every expert of every layer must see tokens in training (to have a delta) and in evaluation (to be seen)."""
    fewest = {phase: watch.fewest(phase) for phase in ("training", "evaluation")}
    observation.data["training"]["tokens_per_expert_min"] = {phase: count for phase, (count, _) in fewest.items()}
    worst, where = min(fewest.values())
    observation.check("coverage", "train", worst, ">= 1", passed=worst >= 1, detail=f"no token reached {where}")


def _vocab(checkpoint: Checkpoint) -> int:
    config = checkpoint.config.get("text_config", checkpoint.config)
    return int(config["vocab_size"])


def _record_vram(observation: Observation, request: Request) -> None:
    if request.device != "cuda":
        return
    import torch

    observation.data["peak_vram_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    observation.data["device"] = torch.cuda.get_device_name()
    observation.save()


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _finish(observation: Observation, start: float) -> None:
    observation.data["peak_rss_mb"] = peak_rss_mb()
    observation.data["timings"]["worker"] = round(time.perf_counter() - start, 3)
    observation.data["done"] = True
    observation.save()


def main(path: str) -> None:
    """Entry point of the worker's process: run the cell that a request file describes."""
    request = read_request(Path(path))
    os.chdir(request.work)
    run_cell(request)
