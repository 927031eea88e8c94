"""Run in a stack's environment: what quantising experts and training on them refuses, beside what PEFT itself does.

Beside it stands what the real transformers and PEFT do. Answers with one JSON object a line, ``{"scenario": …, …}``.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bitsandbytes.functional
import peft
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

sys.path.extend([sys.argv[1], str(Path(__file__).parent)])
from quantization_models import PARAMETERS, X, config, load, tiny

from harness.experts import ExpertQuantizationConfig, ExpertsError, check_attached, check_qlora
from harness.worker.checkpoints.family import build
from harness.worker.checkpoints.geometry import geometry
from harness.worker.checkpoints.writer import write_checkpoint


@contextmanager
def planted(name: str, made: Callable[..., Any]) -> Any:
    """Put something in the place of a function of bitsandbytes within the block."""
    right = getattr(bitsandbytes.functional, name)
    setattr(bitsandbytes.functional, name, lambda *given, **named: made(right, *given, **named))
    try:
        yield
    finally:
        setattr(bitsandbytes.functional, name, right)


def missing(module: str, code: str) -> None:
    folder = tiny()
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    path = folder / "model.safetensors"
    kept = {k: v for k, v in load_file(path).items() if not re.search(rf"layers\.1\..*{module}", k)}
    save_file(kept, path, metadata={"format": "pt"})
    load(folder, config(code))


def holding(value: float, part: str, code: str = "nf4") -> None:
    folder = tiny()
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    path = folder / "model.safetensors"
    values = {k: v.bfloat16() for k, v in load_file(path).items()}
    next(v for k, v in values.items() if part in k).view(-1)[7] = value
    save_file(values, path, metadata={"format": "pt"})
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=config(code))


def of_other_sizes() -> None:
    folder = tiny()
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | {"moe_intermediate_size": 64}))
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


def refusals() -> Any:
    """What is refused, and as what."""
    cases: dict[str, Callable[[], Any]] = {
        "unknown code": lambda: ExpertQuantizationConfig("nf5"),  # type: ignore[arg-type]
        "nearly a code": lambda: ExpertQuantizationConfig("NF-4"),  # type: ignore[arg-type]
        "another's setting": lambda: ExpertQuantizationConfig(load_in_4bit=True),
        "no dtype": lambda: ExpertQuantizationConfig("nf4", compute_dtype="bf16"),
        "double int8": lambda: ExpertQuantizationConfig("int8", double_quant=True),
        "odd shape": lambda: load(tiny(hidden=24, intermediate=10), config("nf4")),
        "missing experts": lambda: missing("mlp.experts.*down_proj", "nf4"),
        "missing Linear, 4 bits": lambda: missing("q_proj", "nf4"),
        "missing Linear, 8 bits": lambda: missing("q_proj", "int8"),
        "wrong decode": lambda: wrong_decode((256, 64)),
        "wrong decode of a Linear": lambda: wrong_decode((64, 64)),
        "no kernel": no_kernel,
        "not finite": lambda: holding(torch.nan, "experts"),
        "not finite in a Linear": lambda: holding(torch.inf, "q_proj"),
        "too large for the kernel": lambda: holding(3e38, "experts", "int8"),
        "an expert less": lambda: missing(r"mlp\.experts\.0\.", "int8"),
        "a projection less": lambda: missing(r"mlp.experts.1.down_proj", "nf4"),
        "other sizes": of_other_sizes,
        "no such device": lambda: AutoModelForCausalLM.from_pretrained(
            tiny(), quantization_config=config("nf4"), device_map={"": "cuda:0"}
        ),
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
        "a pattern": {**plain, "target_modules": r".*\.q_proj"},
        "all-linear": {**plain, "target_modules": "all-linear"},
        "PiSSA on Linears alone": {"target_modules": ["q_proj"], "init_lora_weights": "pissa"},
        "OLoRA on Linears alone": {"target_modules": ["q_proj"], "init_lora_weights": "olora"},
        "orthogonal on Linears alone": {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"},
    }
    for case, options in cases.items():
        wanted = LoraConfig(r=4, **options)
        yield {"case": case, "refused": _refusal(quantization, wanted), "peft": _pefts_own(model_folder, wanted)}
    # The shared experts of GLM-4, by the names that its fused experts would have.
    glm4 = Path(tempfile.mkdtemp()) / "base"
    write_checkpoint(build("glm4_moe", geometry("blocks"), "published"), glm4, seed=1, dtype="bf16")
    wanted = LoraConfig(
        r=4, target_modules=["q_proj", "gate_proj", "up_proj", "down_proj"], target_parameters=list(PARAMETERS)
    )
    refused = _refusal(quantization, wanted)
    got = [name for name, _ in get_peft_model(load(glm4, config("nf4")), wanted).named_parameters() if "lora_A" in name]
    yield {
        "case": "gate_proj",
        "refused": refused,
        "peft": None,
        "shared": sum("shared_experts" in name for name in got),
    }
    yield {"case": "no adapter", "refused": _refusal(quantization, None), "peft": None}
    alone = BitsAndBytesConfig(load_in_4bit=True)
    yield {"case": "not ours", "refused": _refusal(alone, LoraConfig(**plain)), "peft": None}
    yield {"case": "another adapter", "refused": _refusal(quantization, peft.IA3Config()), "peft": None}


def attachments() -> Any:
    """What got a LoRA, by the names that were asked for; and names that nothing has."""
    options: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "self_attn.v_proj"]}
    cases = {
        "fine": options | {"target_parameters": list(PARAMETERS)},
        "misspelt parameter": options | {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.dwn_proj"]},
        "a Linear's weight": options | {"target_parameters": [*PARAMETERS, "self_attn.o_proj.weight"]},
        "a router": options | {"target_parameters": [*PARAMETERS, "mlp.gate.weight"]},
        "experts to save": options | {"modules_to_save": ["experts"]},
        "misspelt Linear": options | {"target_modules": ["q_proj", "query"], "target_parameters": list(PARAMETERS)},
    }
    for case, given in cases.items():
        model = get_peft_model(load(tiny(), config("nf4")), LoraConfig(**given))
        row: dict[str, Any] = {"case": case, "refused": None, "counts": None}
        try:
            row["counts"] = check_attached(model)
        except ExpertsError as error:
            row["refused"] = str(error)
        yield row


def _refusal(quantization: Any, adapter: Any) -> str | None:
    try:
        check_qlora(quantization, adapter)
    except ExpertsError as error:
        return f"{type(error).__name__}: {error}"
    return None


def _pefts_own(folder: Path, wanted: LoraConfig) -> str | None:
    """Say how attaching, or the first forward and backward, fails; None where neither does."""
    try:
        model = get_peft_model(load(folder, config("nf4")), wanted)
        model(input_ids=X, labels=X).loss.backward()
    except (RuntimeError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return None


for scenario in (refusals, configs, attachments):
    for found in scenario():
        sys.stdout.write(json.dumps({"scenario": scenario.__name__, **found}) + "\n")
