"""A base in 4 or 8 bits: loading it, counting what is quantised, and the checkpoint that its codes mean.

Two truths follow from one training run. The model that was trained is the *dequantised* base (what the codes decode to)
with the LoRA. What most people merge into is the *original*. So the decoded values are kept as a checkpoint of their
own, and both are merged and judged.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from harness.worker.checkpoints.family import Checkpoint
from harness.worker.observation import Judgement, Observation
from harness.worker.recipes.quantization import Quantization
from harness.worker.releases import loaded_in, release
from harness.worker.request import Request
from harness.worker.stages.load import checked
from harness.worker.stages.rewriting import write_like
from harness.worker.stages.tensor_gate import slices_of

DEQUANTIZED = "base-dequantized"
"""The directory, in the work directory, of the checkpoint that the codes mean."""
MERGED_DEQUANTIZED = "merged-dequantized"
"""The directory of its merge, and the name of what the merged model says."""
LORA_DTYPES = "lora-dtypes.json"


def quantization_config(quantization: Quantization, checkpoint: Checkpoint) -> Any:
    """Return the config for ``from_pretrained``.

    Ours where experts are fused parameters, transformers' own where they are Linears. 4-bit Linears compute in float32,
    so that nothing but the codes stands between the trained model and its decoded weights.
    """
    import torch
    import transformers
    from transformers import BitsAndBytesConfig

    if release(transformers.__version__) >= (5, 0):  # where experts became parameters
        from harness.experts import ExpertQuantizationConfig

        return ExpertQuantizationConfig(
            quantization.code, double_quant=quantization.double_quant, compute_dtype=torch.float32
        )
    # Routers are Linears there; in 4 bits transformers packs some of them to a shape that it cannot use afterwards.
    routers = [f"model.layers.{layer}.mlp.gate" for layer in checkpoint.layers_with_experts]
    skipped = [*routers, "lm_head"]
    if quantization.code == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.code,
        bnb_4bit_use_double_quant=quantization.double_quant,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=skipped,
    )


def load_quantized(directory: Path, request: Request, quantization: Quantization, checkpoint: Checkpoint) -> Any:
    """Load a causal language model quantised, on the cell's device.

    It is in training mode, for good. In evaluation mode bitsandbytes' 4-bit Linears compute in bfloat16 on some CPUs,
    whatever they were told. None of these models has dropout, so nothing else changes.

    Raises:
        WeightsNotLoadedError: some parameter did not come from the checkpoint.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = checked(
        AutoModelForCausalLM.from_pretrained(
            directory,
            **loaded_in(torch.float32),
            output_loading_info=True,
            device_map={"": request.device},
            quantization_config=quantization_config(quantization, checkpoint),
        )
    )
    return model.train()


def check_quantized(observation: Observation, model: Any) -> None:
    """Count by kind what is quantised, and fail by name where experts are not.

    Raises:
        WrongDecodeError: bitsandbytes' kernels return other values for some Linear than its codes mean.
    """
    from harness.experts import quantization_report
    from harness.experts.quantization.linears import check_linears

    check_linears(model)  # transformers 4's own config looks at nothing; ours has looked while it loaded
    report = quantization_report(model)
    observation.data["quantization"] = {
        "kinds": {
            kind: {
                "quantized": row.quantized,
                "plain": row.plain,
                "stored_bytes": row.stored,
                "bf16_bytes": row.bytes_in_16_bits,
            }
            for kind, row in report.items()
            if row.quantized or row.plain
        }
    }
    experts = report["experts"]
    total = experts.quantized + experts.plain

    def judged(plain: int) -> Judgement:
        return Judgement(
            value=f"{total - plain}/{total}",
            band=f"== {total}/{total} weights of experts",
            passed=total > 0 and plain == 0,
            detail=f"{plain} weights of routed experts stayed as they were",
        )

    observation.judge("quantized", "load", judged(experts.plain), control=judged(experts.plain + 1))


def schemes_of(model: Any) -> set[str]:
    """Return the codes that the model's quantised weights are in, in words, as ``nf4, double quantised``."""
    from harness.experts import QuantizedExperts
    from harness.experts.quantization.linears import packed_linears, scheme_of

    experts = [p.packed.scheme for p in model.parameters() if isinstance(p, QuantizedExperts)]
    return {str(scheme) for scheme in (*experts, *(scheme_of(module) for module in packed_linears(model).values()))}


def save_dequantized(model: Any, request: Request, checkpoint: Checkpoint) -> None:
    """Write the checkpoint that the codes mean.

    It has the base's own files, with every quantised tensor's values replaced by its decoded ones.

    Raises:
        LookupError: something is quantised that the checkpoint's description does not know.
    """
    decoded = _decoded(model)
    slices = [(spec.key, *found) for spec in checkpoint.tensors for found in slices_of(spec, decoded)]
    unused = decoded.keys() - {name for _, name, _ in slices}
    if unused:
        raise LookupError(f"quantised, but nothing on disk is known to hold it: {', '.join(sorted(unused)[:4])}")
    values = {key: part for key, _, part in slices}
    out = request.work / DEQUANTIZED
    write_like(request.base, out, lambda key, tensor: values[key].to(tensor.dtype) if key in values else tensor)


def _decoded(model: Any) -> dict[str, Any]:
    """Return the decoded weights by module, or ``module:parameter`` for fused experts, in float32 on the CPU."""
    from harness.experts import QuantizedExperts, decode_linear
    from harness.experts.quantization.linears import packed_linears

    found = {path: decode_linear(module).cpu() for path, module in packed_linears(model).items()}
    for path, module in model.named_modules():
        for leaf, weights in module.named_parameters(recurse=False):
            if isinstance(weights, QuantizedExperts):
                found[f"{path}:{leaf}"] = weights.dequantize().float().cpu()
    return found


def save_lora_dtypes(observation: Observation, peft_model: Any, work: Path) -> None:
    """Keep the dtype of every LoRA tensor, and count them.

    Releases of TRL cast them. A reloaded adapter is compared as it was trained.
    """
    dtypes = {
        name: str(p.dtype).removeprefix("torch.") for name, p in peft_model.named_parameters() if ".lora_" in name
    }
    (work / LORA_DTYPES).write_text(json.dumps(dtypes))
    observation.data.setdefault("training", {})["lora_dtypes"] = dict(sorted(Counter(dtypes.values()).items()))


def cast_lora(peft_model: Any, work: Path) -> None:
    """Give LoRA tensors the dtypes that they were trained in.

    Raises:
        KeyError: the model has a LoRA tensor that was not trained.
    """
    import torch

    dtypes = json.loads((work / LORA_DTYPES).read_text())
    for name, parameter in peft_model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(getattr(torch, dtypes[name]))
