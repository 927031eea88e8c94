"""Run in a stack's environment: fused experts quantised on load, PEFT on them, beside plain PEFT on decoded weights.

They are held against plain PEFT on decoded weights. Answers with one JSON object a line, ``{"scenario": …, …}``.
"""

from __future__ import annotations

import copy
import itertools
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes.functional
import peft
import peft.tuners.lora.bnb
import torch
import transformers
import transformers.core_model_loading
import transformers.integrations.bitsandbytes
import transformers.integrations.moe
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

sys.path.extend([sys.argv[1], str(Path(__file__).parent)])
from quantization_models import CODES, FAMILIES, PARAMETERS, X, attach, config, decoded, load, lora, packed, tiny

WATCHED = (
    torch.Tensor, torch.nn.Module, torch.nn.functional, torch.nn.utils.parametrize,
    transformers.core_model_loading, transformers.integrations.bitsandbytes, transformers.integrations.moe,
    transformers.PreTrainedModel, transformers.quantizers.auto.AutoHfQuantizer,
    transformers.quantizers.quantizer_bnb_4bit.Bnb4BitHfQuantizer,
    transformers.quantizers.quantizer_bnb_8bit.Bnb8BitHfQuantizer,
    transformers.models.qwen3_moe.modeling_qwen3_moe.Qwen3MoeExperts,
    peft.PeftModel, peft.tuners.lora.layer, peft.tuners.lora.layer.ParamWrapper, peft.tuners.lora.bnb,
    peft.tuners.tuners_utils,
    bitsandbytes.functional, bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt,
)  # fmt: skip
"""Modules and classes whose callables must be the same objects afterwards."""


def callables() -> dict[str, int]:
    """Return the identity of every callable of what is watched."""
    return {
        f"{owner.__name__}.{name}": id(value)
        for owner in WATCHED
        for name, value in vars(owner).items()
        if callable(value) or isinstance(value, (property, classmethod, staticmethod))
    }


load(tiny(), BitsAndBytesConfig(load_in_4bit=True))  # transformers adds methods to torch's classes when it first loads
BEFORE = callables()

from harness.experts import (  # noqa: E402 - after the identities were taken
    ExpertsError,
    QuantizedExperts,
    quantization_report,
)
from harness.experts.quantization import packed as packed_experts  # noqa: E402
from harness.experts.quantization.packed import pack  # noqa: E402
from harness.worker.checkpoints.family import build  # noqa: E402
from harness.worker.checkpoints.geometry import geometry  # noqa: E402
from harness.worker.checkpoints.writer import write_checkpoint  # noqa: E402


def differences(one: Any, other: Any, implementation: str) -> dict[str, float]:
    """Return the largest differences of logits and of gradients, and the smallest gradient norm."""
    grads = []
    logits = []
    for model in (one, other):
        model.base_model.model.set_experts_implementation(implementation)
        model.zero_grad()
        out = model(input_ids=X, labels=X)
        out.loss.backward()
        logits.append(out.logits.detach())
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert grads[0]
    return {
        "logits": float((logits[0] - logits[1]).abs().max()),
        "gradients": max(float((grads[0][name] - grads[1][name]).abs().max()) for name in grads[0]),
        "smallest": min(float(grad.norm()) for grad in grads[0].values()),
        "tensors": len(grads[0]),
    }


def loads() -> Any:
    """Every family in every code, one after the other in this process; and by transformers alone."""
    for family in FAMILIES:
        folder = Path(tempfile.mkdtemp()) / "base"
        write_checkpoint(build(family, geometry("blocks"), "published"), folder, seed=1, dtype="bf16")
        alone = quantization_report(
            load(folder, BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["gate", "shared_expert_gate"]))
        )
        plain = dict(load(folder).named_parameters())
        for code in CODES:
            model = load(folder, config(code))
            report = quantization_report(model)["experts"]
            errors, same, tables = [], [], []
            for name, weights in model.named_parameters():
                if not isinstance(weights, QuantizedExperts):
                    continue
                if code != "int8":
                    tables.append(weights.packed.parts["map"].tolist())
                original = plain[name].detach()
                errors.append(float((weights.dequantize() - original).norm() / original.norm()))
                same.append(torch.equal(weights.detach()[1], by_bitsandbytes(original[1], config(code))))
            yield {
                "family": family, "code": code, "quantized": report.quantized, "plain": report.plain,
                "bytes_of_16_bits": report.stored / (2 * report.quantized),
                "left_by_transformers": alone["experts"].plain,
                "quantized_by_transformers": alone["experts"].quantized,
                "error": max(errors), "as_bitsandbytes": all(same), "tables": tables,
            }  # fmt: skip
        shutil.rmtree(folder)


def by_bitsandbytes(weight: torch.Tensor, wanted: Any) -> torch.Tensor:
    """Quantise and decode one matrix by bitsandbytes' own two functions."""
    functional = bitsandbytes.functional
    if wanted.load_in_8bit:
        codes, scales, _ = functional.int8_vectorwise_quant(weight)
        return functional.int8_vectorwise_dequant(codes, scales)
    coded, state = functional.quantize_4bit(
        weight,
        blocksize=64,
        compress_statistics=wanted.bnb_4bit_use_double_quant,
        quant_type=wanted.bnb_4bit_quant_type,
    )
    return functional.dequantize_4bit(coded, state)


def forwards() -> Any:
    """Logits and the gradient of every LoRA tensor, against plain PEFT on the decoded weights."""
    cases: dict[str, tuple[dict[str, int], tuple[str, ...]]] = {
        "plain": ({}, PARAMETERS),
        "one expert, square": ({"experts": 1, "hidden": 128, "intermediate": 64}, PARAMETERS[:1]),
        "square down": ({"hidden": 128, "intermediate": 128}, PARAMETERS),
        "gate_up only": ({}, PARAMETERS[:1]),
        "down only": ({}, PARAMETERS[1:]),
    }
    for case, (sizes, parameters) in cases.items():
        folder = tiny(**sizes)
        for code in CODES:
            model = load(folder, config(code))
            one, other = attach(decoded(model), lora(1, parameters)), attach(model, lora(1, parameters))
            for implementation in ("eager", "batched_mm", "grouped_mm"):
                yield {"case": case, "code": code, "path": implementation, **differences(one, other, implementation)}


def runs() -> Any:
    """Runs of experts beside the same experts one by one, to the bit: of all lengths and in any order."""
    for code in CODES:
        wanted = config(code)
        # An expert of (320, 192) has 960 scales: nested blocks of 256, 256, 256 and 192.
        for dtype, shape in itertools.product((torch.float32, torch.bfloat16, torch.float16), ((64, 64), (320, 192))):
            torch.manual_seed(0)
            weights = pack(torch.randn(7, *shape, dtype=dtype), wanted.experts, "weights")
            single = torch.stack([weights.expert(number, dtype) for number in range(7)])
            chosen = torch.tensor([5, 0, 0, 6])
            taken = [slice(first, end) for first in range(7) for end in range(first + 1, 8)]
            yield {
                "code": code, "dtype": str(dtype), "scales": shape[0] * shape[1] // 64,
                "runs": all(torch.equal(weights.run(run, dtype), single[run]) for run in taken),
                "chosen": torch.equal(weights.run(chosen, dtype), single[chosen]),
                "double": torch.equal(weights.run(slice(2, 5), torch.float64).float(), single[2:5].float())
                if dtype == torch.float32 else True,
                "collected": [_in_runs_of(length, weights, single, chosen, dtype) for length in (1, 3, 7)],
            }  # fmt: skip


def _in_runs_of(length: int, weights: Any, single: torch.Tensor, chosen: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether all experts, and some, are right where a run has ``length`` of them."""
    limit = packed_experts.RUN_BYTES_ON_CPU
    float32 = weights.scheme.code == "int8"
    packed_experts.RUN_BYTES_ON_CPU = length * single[0].numel() * (4 if float32 else dtype.itemsize)
    try:
        seen = weights.run_length(dtype) == length
        return (
            seen
            and torch.equal(weights.dense(dtype), single)
            and torch.equal(weights.chosen(chosen, dtype), single[chosen])
        )
    finally:
        packed_experts.RUN_BYTES_ON_CPU = limit


def merges() -> Any:
    """Merging requantises; unmerging puts the codes back; a second adapter, switched to and off."""
    folder = tiny()
    for code in CODES:
        for safe in (False, True):
            model = attach(load(folder, config(code)), lora(1))
            before, plain = packed(model), decoded(model)
            with torch.no_grad():
                unmerged = model(input_ids=X).logits
                model.merge_adapter(safe_merge=safe)
                plain.merge_adapter()
                wanted = {n: p for n, p in plain.named_parameters() if n in before}
                errors = [
                    float((weights.dense(torch.float32) - wanted[name]).norm() / wanted[name].norm())
                    for name, weights in packed(model).items()
                ]
                changed = [packed(model)[name] is not before[name] for name in before]
                model.unmerge_adapter()
                after = packed(model)
                restored = [
                    all(torch.equal(after[name].parts[part], before[name].parts[part]) for part in before[name].parts)
                    for name in before
                ]
                again = model(input_ids=X).logits
            yield {
                "code": code, "safe": safe, "error": max(errors), "changed": all(changed), "restored": all(restored),
                "logits_after": float((again - unmerged).abs().max()),
            }  # fmt: skip


def adapters() -> Any:
    """Two adapters, switched, disabled, saved and loaded again; then merged for good and decoded."""
    folder = tiny()
    for code in ("nf4", "int8"):
        model = load(folder, config(code))
        one = attach(decoded(model), lora(1))
        other = attach(model, lora(1))
        seen: dict[str, Any] = {"refused": None}
        try:
            for peft_model in (one, other):
                torch.manual_seed(2)
                peft_model.add_adapter("second", lora(2)[1])
        except ValueError as error:  # before 0.20 PEFT itself has none beside the first
            seen["refused"] = str(error)
        with torch.no_grad():
            for name in ("second", "default") if seen["refused"] is None else ("default",):
                logits = []
                for peft_model in (one, other):
                    peft_model.set_adapter(name)
                    logits.append(peft_model(input_ids=X).logits)
                seen[name] = float((logits[0] - logits[1]).abs().max())
            with other.disable_adapter():
                off = other(input_ids=X).logits
            seen["disabled"] = float((off - load(folder, config(code))(input_ids=X).logits).abs().max())
            seen["active"] = float((off - other(input_ids=X).logits).abs().max())
            saved = Path(tempfile.mkdtemp())
            other.save_pretrained(saved)
            again = PeftModel.from_pretrained(load(folder, config(code)), saved).train()
            seen["reloaded"] = float((again(input_ids=X).logits - other(input_ids=X).logits).abs().max())
            merged = again.merge_and_unload()
            requantised = merged(input_ids=X).logits
            dense = merged.dequantize()
            left = [name for name, p in dense.named_parameters() if isinstance(p, QuantizedExperts)]
            # Linears dequantise in their own way; the experts' values must be those that were merged.
            folder_merged = Path(tempfile.mkdtemp())
            dense.save_pretrained(folder_merged)
            reloaded = load(folder_merged)
            seen["dequantised"] = float((reloaded(input_ids=X).logits - requantised).abs().max())
            tokens = again.generate(input_ids=X[:1], max_new_tokens=3, do_sample=False, pad_token_id=0).shape[1]
        yield {"code": code, "left": left, "generated": tokens - X.shape[1], **seen}


def tensors() -> Any:
    """What the tensor itself keeps to."""
    weights = load(tiny(), config("nf4")).model.layers[0].mlp.experts.gate_up_proj
    dense = weights.dequantize()
    first = weights.packed
    half = weights.detach().to(torch.bfloat16)
    copied = copy.deepcopy(weights)
    copied.data += torch.ones_like(dense)
    assigned = copy.deepcopy(weights)
    assigned.data = dense * 2
    second = torch.randn_like(dense)
    shuffled = copy.deepcopy(weights)
    for sign, delta in ((1, dense), (-1, second), (-1, dense)):
        shuffled.data.add_(delta) if sign > 0 else shuffled.data.sub_(delta)
    writes: dict[str, Callable[[], Any]] = {
        "mul_": lambda: weights.data.mul_(2),
        "one expert": lambda: weights.data.__setitem__(1, dense[0]),
        "+= on one expert": lambda: exec("w.data[1] += 1", {"w": weights}),  # noqa: S102 - as people write it
        "foreach": lambda: torch._foreach_mul_([weights.data], 2.0),
        "another shape": lambda: weights.data.copy_(torch.ones(1, 64, 64)),
        "broadcast": lambda: weights.data.add_(1.0),
    }
    refused = {}
    for name, write in writes.items():
        try:
            write()
        except ExpertsError as error:
            refused[name] = type(error).__name__
    yield {
        "select": torch.equal(weights[2], dense[2]),
        "index": torch.equal(weights[torch.tensor([3, 0, 3])], dense[torch.tensor([3, 0, 3])]),
        "row": torch.equal(weights[1, 5], dense[1, 5]),
        "transposed": torch.equal(weights.transpose(1, 2), dense.transpose(1, 2)),
        "half": [
            str(half.dtype),
            type(half).__name__,
            torch.equal(half.dequantize().float(), dense.bfloat16().float()),
        ],
        "copy apart": weights.packed is first and not torch.equal(copied.dequantize(), dense),
        "copy is": type(copied).__name__,
        "assigned": float((assigned.dequantize() - 2 * dense).norm() / dense.norm()),
        "written otherwise": refused,
        "another order": float((shuffled.dequantize() - (dense - second)).norm() / (dense - second).norm()),
        "unharmed": torch.equal(weights.dequantize(), dense),
    }


def ways_to_load() -> Any:
    """By a dictionary, and onto a device that is looked for; and a router that is a Linear, which stays one."""
    folder = tiny()
    wanted = config("nf4")
    for case, options in {
        "dictionary": {"quantization_config": wanted.to_dict()},
        "auto": {"quantization_config": wanted, "device_map": "auto"},
        "cpu": {"quantization_config": wanted, "device_map": "cpu"},
    }.items():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
        report = quantization_report(model)
        yield {"case": case, "plain": report["experts"].plain, "quantized": report["experts"].quantized}
    again = type(wanted).from_dict(wanted.to_dict())
    yield {"case": "round trip", "same": again.to_dict() == wanted.to_dict() and again.experts == wanted.experts}
    torch.manual_seed(0)
    other = transformers.HunYuanMoEV1ForCausalLM(
        transformers.HunYuanMoEV1Config(
            hidden_size=64, intermediate_size=64, moe_intermediate_size=64, num_experts=4, moe_topk=2,
            num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=16, vocab_size=128,
        )
    )  # fmt: skip
    folder = Path(tempfile.mkdtemp())
    other.save_pretrained(folder)
    kinds = {
        name: type(module).__name__
        for name, module in load(folder, wanted).named_modules()
        if name.endswith((".wg", "q_proj"))
    }
    yield {"case": "router", "kinds": sorted(kinds.values())}


def casts() -> Any:
    """What people do to a quantised model before training: neither changes a code."""
    for case, cast in {
        "prepare_model_for_kbit_training": peft.prepare_model_for_kbit_training,
        "float16": lambda model: model.to(torch.float16),
        "load_state_dict": _loaded,
    }.items():
        folder = tiny()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=config("nf4"))
        before = packed(model)
        after = packed(cast(model))
        yield {
            "case": case,
            "same": all(
                torch.equal(after[name].parts[part], codes.parts[part])
                for name, codes in before.items()
                for part in codes.parts
            ),
            "left": sorted(before.keys() ^ after.keys()),
        }


def _loaded(model: Any) -> Any:
    """Load a model's own experts into it: bitsandbytes' Linears have state dicts that they do not take back."""
    model.load_state_dict(
        {n: p for n, p in model.state_dict().items() if isinstance(p, QuantizedExperts)}, strict=False
    )
    return model


def patched() -> Any:
    """Say what is another object now than before anything of ours was imported."""
    after = callables()
    yield {"changed": sorted(name for name in BEFORE.keys() | after.keys() if BEFORE.get(name) != after.get(name))}


for scenario in (
    loads,
    forwards,
    runs,
    merges,
    adapters,
    tensors,
    ways_to_load,
    casts,
    patched,
):
    for found in scenario():
        sys.stdout.write(json.dumps({"scenario": scenario.__name__, **found}) + "\n")
