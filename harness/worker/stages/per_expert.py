"""The saved adapter once more, with a pair for every expert's Linear, as transformers 4 has it: it must say the same.

The rewriting is by the definition of a fused pair, so it is exact, and PEFT's way back is what is looked at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from harness.worker.checkpoints.family import Checkpoint
from harness.worker.observation import Observation
from harness.worker.request import Request
from harness.worker.stages.deltas import PAIRS
from harness.worker.stages.functional import judge_kl
from harness.worker.stages.targets import ROLES_OF_LINEARS

PER_EXPERT = "adapter-per-expert"
"""The directory, in the work directory, where the rewritten adapter lies."""
_PREFIX = "base_model.model."


def split_pair(a: Any, b: Any, roles: tuple[str, ...], experts: int, *, swapped: bool) -> dict[tuple[int, str], Any]:
    """Return (expert, role of a Linear) → (lora_A, lora_B) of one fused pair.

    Args:
        a: (E r, in), the rows of an expert together.
        b: (out, r E), rank by rank: column j belongs to expert j % E. ``out`` holds the roles one after the other.
        roles: of the Linears in the fused parameter, in the order of its rows: each has as many.
        experts: E.
        swapped: whether lora_A faces the output instead (PEFT up to 0.19.0): then what is called out here is the input.
    """
    found = {}
    for expert in range(experts):
        first, second = a.reshape(experts, -1, a.shape[-1])[expert], b[:, expert::experts]
        if swapped:
            first, second = second.T, first.T
        for role, rows in zip(roles, second.chunk(len(roles)), strict=True):
            found[expert, role] = (first.clone(), rows.clone())
    return found


def per_expert(tensors: Mapping[str, Any], pairs: Mapping[str, str], experts: int, *, swapped: bool) -> dict[str, Any]:
    """Return an adapter's tensors with a pair for every expert's Linear; what is no expert's is as it was.

    Args:
        tensors: of the saved adapter, by key.
        pairs: prefix of a pair's keys → ``<module>``, or ``<module>:<parameter>`` where it is a fused one's.
        experts: how many a fused parameter has.
        swapped: as ``split_pair`` has it.
    """
    found: dict[str, Any] = {}
    for prefix, name in pairs.items():
        a, b = (tensors[f"{prefix}.{part}.weight"] for part in ("lora_A", "lora_B"))
        module, _, parameter = name.partition(":")
        if not parameter:
            found |= {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}
            continue
        split = split_pair(a, b, ROLES_OF_LINEARS[parameter], experts, swapped=swapped)
        for (expert, role), made in split.items():
            for part, tensor in zip(("lora_A", "lora_B"), made, strict=True):
                found[f"{_PREFIX}{module}.{expert}.{role}.{part}.weight"] = tensor.contiguous()
    return found


def write_per_expert(request: Request, checkpoint: Checkpoint, *, swapped: bool) -> None:
    """Write the saved adapter anew, with its own configuration but for what it targets: every Linear by its name."""
    from safetensors.torch import load_file, save_file

    pairs = json.loads((request.work / PAIRS).read_text())
    saved = load_file(request.adapter / "adapter_model.safetensors")
    tensors = per_expert(saved, pairs, checkpoint.num_experts, swapped=swapped)
    config = json.loads((request.adapter / "adapter_config.json").read_text())
    config["target_modules"] = sorted({key.removeprefix(_PREFIX).rsplit(".", 2)[0] for key in tensors})
    config["target_parameters"] = None
    out = request.work / PER_EXPERT
    out.mkdir()
    save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))


def check_per_expert(
    observation: Observation,
    request: Request,
    checkpoint: Checkpoint,
    base: Any,
    *,
    logits: Any,
    clear: Any,
    vocab: int,
) -> None:
    """Record what the base with the rewritten adapter says, against what the trained model said.

    Args:
        observation: where the check goes.
        request: the cell.
        checkpoint: what was written to disk.
        base: the base, loaded anew.
        logits: the trained model's, (P, T, V) float32.
        clear: (P, T) bool, False where routing is a near tie.
        vocab: how many tokens the model knows.
    """
    from peft import PeftModel

    from harness.worker.stages.evaluate import logits_of

    write_per_expert(request, checkpoint, swapped=observation.data["adapter"]["io_layout"] == "swapped")
    model = PeftModel.from_pretrained(base, request.work / PER_EXPERT)
    # Once more, because only this says what of the file fitted nothing.
    left = model.load_adapter(request.work / PER_EXPERT, model.active_adapter).unexpected_keys
    judgement, control = judge_kl(
        logits, logits_of(model, request, vocab), clear, band=request.bands.adapter_reload_kl_max
    )
    judgement = replace(
        judgement, passed=judgement.passed and not left, detail=f"{len(left)} keys fit nothing: {left[:4]}"
    )
    observation.judge("per_expert", "reload-adapter", judgement, control=control)
