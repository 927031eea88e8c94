"""Run in a stack's environment: fused experts quantised on load by the real transformers, with the real PEFT on top, held against plain PEFT on decoded weights.

Answers with one JSON object a line, ``{"scenario": …, …}``.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
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
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Qwen3MoeConfig, Qwen3MoeForCausalLM

sys.path.insert(0, sys.argv[1])

WATCHED = (
    torch.Tensor, torch.nn.Module, torch.nn.functional, torch.nn.utils.parametrize,
    transformers.core_model_loading, transformers.integrations.bitsandbytes, transformers.integrations.moe,
    transformers.PreTrainedModel, transformers.quantizers.auto.AutoHfQuantizer,
    transformers.quantizers.quantizer_bnb_4bit.Bnb4BitHfQuantizer, transformers.quantizers.quantizer_bnb_8bit.Bnb8BitHfQuantizer,
    transformers.models.qwen3_moe.modeling_qwen3_moe.Qwen3MoeExperts,
    peft.PeftModel, peft.tuners.lora.layer, peft.tuners.lora.layer.ParamWrapper, peft.tuners.lora.bnb, peft.tuners.tuners_utils,
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


SIZES = {"hidden": 64, "intermediate": 128, "experts": 4}


def tiny(**sizes: int) -> Path:
    """Write a qwen3_moe of given sizes with transformers itself."""
    wanted = {**SIZES, **sizes}
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            hidden_size=wanted["hidden"], intermediate_size=64, moe_intermediate_size=wanted["intermediate"],
            num_experts=wanted["experts"], num_experts_per_tok=min(2, wanted["experts"]), num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16, vocab_size=128,
        )
    )  # fmt: skip
    folder = Path(tempfile.mkdtemp())
    model.save_pretrained(folder)
    return folder


def load(folder: Path, quantization: Any = None) -> Any:
    """Load in float32, quantised or not, in training mode: on some CPUs 4-bit Linears compute in bfloat16 in the other."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=quantization).train()


load(tiny(), BitsAndBytesConfig(load_in_4bit=True))  # transformers adds methods to torch's classes when it first loads
BEFORE = callables()

from harness.experts import (  # noqa: E402 - after the identities were taken
    ExpertQuantizationConfig,
    ExpertsError,
    QuantizedExperts,
    check_qlora,
    quantization_report,
)
from harness.worker.checkpoints.family import build  # noqa: E402
from harness.worker.checkpoints.geometry import geometry  # noqa: E402
from harness.worker.checkpoints.writer import write_checkpoint  # noqa: E402

FAMILIES = ("qwen3_moe", "glm4_moe", "deepseek_v3", "qwen3_5_moe")
CODES: dict[str, dict[str, Any]] = {
    "nf4": {}, "nf4 single": {"code": "nf4", "double_quant": False}, "fp4": {}, "int8": {},
}  # fmt: skip
PARAMETERS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
X = torch.randint(0, 128, (2, 9), generator=torch.Generator().manual_seed(3))


def config(code: str) -> ExpertQuantizationConfig:
    """Return the config of one of ``CODES``, with Linears that compute in float32."""
    return ExpertQuantizationConfig(**{"code": code, **CODES[code]}, compute_dtype=torch.float32)


def decoded(model: Any) -> Any:
    """Return a copy whose experts are the plain parameters that the codes mean."""
    plain = copy.deepcopy(model)
    for module in plain.modules():
        for name, weights in list(module.named_parameters(recurse=False)):
            if isinstance(weights, QuantizedExperts):
                setattr(module, name, torch.nn.Parameter(weights.dequantize(), requires_grad=False))
    return plain


def packed(model: Any) -> dict[str, Any]:
    """Return what every quantised experts parameter keeps."""
    return {name: p.packed for name, p in model.named_parameters() if isinstance(p, QuantizedExperts)}


def lora(seed: int, parameters: tuple[str, ...] = PARAMETERS) -> tuple[int, LoraConfig]:
    """Return a LoRA whose weights are random, not zero."""
    options = {"r": 4, "lora_alpha": 8, "init_lora_weights": False, "target_modules": []}
    return seed, LoraConfig(**options, target_parameters=list(parameters))


def attach(model: Any, chosen: tuple[int, LoraConfig]) -> Any:
    """Attach it."""
    torch.manual_seed(chosen[0])
    return get_peft_model(model, chosen[1])


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
            errors, same = [], []
            for name, weights in model.named_parameters():
                if not isinstance(weights, QuantizedExperts):
                    continue
                original = plain[name].detach()
                errors.append(float((weights.dequantize() - original).norm() / original.norm()))
                same.append(torch.equal(weights.detach()[1], by_bitsandbytes(original[1], config(code))))
            yield {
                "family": family, "code": code, "quantized": report.quantized, "plain": report.plain,
                "bytes_of_16_bits": report.stored / (2 * report.quantized), "left_by_transformers": alone["experts"].plain,
                "quantized_by_transformers": alone["experts"].quantized, "error": max(errors), "as_bitsandbytes": all(same),
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
        "+= on one expert": lambda: exec("w.data[1] += 1", {"w": weights}),  # noqa: S102 - an assignment, as people write it
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


@contextmanager
def planted(name: str, made: Callable[..., Any]) -> Any:
    """Put something in the place of a function of bitsandbytes within the block."""
    right = getattr(bitsandbytes.functional, name)
    setattr(bitsandbytes.functional, name, lambda *given, **named: made(right, *given, **named))
    try:
        yield
    finally:
        setattr(bitsandbytes.functional, name, right)


def refusals() -> Any:
    """What is refused, and as what."""

    def missing(module: str, code: str) -> None:
        folder = tiny()
        from safetensors.torch import load_file, save_file  # noqa: PLC0415

        path = folder / "model.safetensors"
        kept = {k: v for k, v in load_file(path).items() if not re.search(rf"layers\.1\..*{module}", k)}
        save_file(kept, path, metadata={"format": "pt"})
        load(folder, config(code))

    def not_finite() -> None:
        folder = tiny()
        from safetensors.torch import load_file, save_file  # noqa: PLC0415

        path = folder / "model.safetensors"
        values = load_file(path)
        next(v for k, v in values.items() if "experts" in k).view(-1)[7] = torch.nan
        save_file(values, path, metadata={"format": "pt"})
        load(folder, config("nf4"))

    def wrong_decode(shape: tuple[int, int]) -> None:
        def wrong(right: Any, codes: torch.Tensor, state: Any, *given: Any, **named: Any) -> torch.Tensor:
            return right(codes, state, *given, **named) * (1.25 if tuple(state.shape) == shape else 1)

        with planted("dequantize_4bit", wrong):
            load(tiny(), config("nf4"))

    def no_kernel() -> None:
        def absent(*_: Any, **__: Any) -> None:
            raise NotImplementedError("Could not run 'bitsandbytes::quantize_4bit'")

        with planted("quantize_4bit", absent):
            load(tiny(), config("nf4"))

    cases: dict[str, Callable[[], Any]] = {
        "unknown code": lambda: ExpertQuantizationConfig("nf5"),  # type: ignore[arg-type]
        "double int8": lambda: ExpertQuantizationConfig("int8", double_quant=True),
        "odd shape": lambda: load(tiny(hidden=24, intermediate=10), config("nf4")),
        "missing experts": lambda: missing("mlp.experts.*down_proj", "nf4"),
        "missing Linear, 4 bits": lambda: missing("q_proj", "nf4"),
        "missing Linear, 8 bits": lambda: missing("q_proj", "int8"),
        "wrong decode": lambda: wrong_decode((256, 64)),
        "wrong decode of a Linear": lambda: wrong_decode((64, 64)),
        "no kernel": no_kernel,
        "not finite": not_finite,
    }
    for case, attempt in cases.items():
        try:
            attempt()
        except ExpertsError as error:
            yield {"case": case, "refused": type(error).__name__, "message": str(error)}
        else:
            yield {"case": case, "refused": None, "message": ""}


def configs() -> Any:
    """What cannot be trained, said before anything is loaded; and what PEFT makes of it once the model is there."""
    model_folder, quantization = tiny(), config("nf4")
    plain: dict[str, Any] = {"target_modules": ["q_proj"], "target_parameters": list(PARAMETERS)}
    cases: dict[str, dict[str, Any]] = {
        "fine": plain,
        "rslora": {**plain, "use_rslora": True},
        "gaussian": {**plain, "init_lora_weights": "gaussian"},
        "dropout on Linears alone": {"target_modules": ["q_proj"], "lora_dropout": 0.1},
        "dropout": {**plain, "lora_dropout": 0.1},
        "DoRA": {**plain, "use_dora": True},
        "bias": {**plain, "lora_bias": True},
        "fan_in_fan_out": {**plain, "fan_in_fan_out": True},
        "orthogonal": {**plain, "init_lora_weights": "orthogonal"},
        "PiSSA": {**plain, "init_lora_weights": "pissa_niter_4"},
        "PiSSA on Linears alone": {"target_modules": ["q_proj"], "init_lora_weights": "pissa"},
        "OLoRA on Linears alone": {"target_modules": ["q_proj"], "init_lora_weights": "olora"},
        "a Linear's weight": {**plain, "target_parameters": [*PARAMETERS, "self_attn.v_proj.weight"]},
    }
    for case, options in cases.items():
        wanted = LoraConfig(r=4, **options)
        yield {"case": case, "refused": _refusal(quantization, wanted), "peft": _pefts_own(model_folder, wanted)}
    yield {"case": "no adapter", "refused": _refusal(quantization, None), "peft": None}
    alone = BitsAndBytesConfig(load_in_4bit=True)
    yield {"case": "not ours", "refused": _refusal(alone, LoraConfig(**plain)), "peft": None}
    yield {"case": "another adapter", "refused": _refusal(quantization, peft.IA3Config()), "peft": None}


def _refusal(quantization: Any, adapter: Any) -> str | None:
    try:
        check_qlora(quantization, adapter)
    except ExpertsError as error:
        return f"{type(error).__name__}: {error}"
    return None


def _pefts_own(folder: Path, wanted: LoraConfig) -> str | None:
    """Say how attaching, or the first forward and backward, ends; what the LoRA then is of the wrong shape for counts as an end."""
    try:
        model = get_peft_model(load(folder, config("nf4")), wanted)
        model(input_ids=X, labels=X).loss.backward()
    except Exception as error:  # noqa: BLE001 - whatever it is, a row says so
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return None


def patched() -> Any:
    """Say what is another object now than before anything of ours was imported."""
    after = callables()
    yield {"changed": sorted(name for name in BEFORE.keys() | after.keys() if BEFORE.get(name) != after.get(name))}


for scenario in (loads, forwards, merges, adapters, tensors, refusals, configs, patched):
    for found in scenario():
        sys.stdout.write(json.dumps({"scenario": scenario.__name__, **found}) + "\n")
