"""Scenarios of ``grouped_cells``: is it the same function with the same gradients, and what is kept for backward."""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import torch
import transformers
from grouped_models import FUSED, IDS, ROLES, apart, base_model, calls, fill, logits, lora, lora_model, reasons, states
from packed_experts import Packed
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from harness.experts import enable_grouped_forward

if FUSED:
    from harness.experts import ExpertQuantizationConfig
    from harness.experts.quantization import packed as packed_experts


def steps(case: dict[str, Any]) -> dict[str, Any]:
    """Three steps of training, plain and grouped side by side: logits and every gradient at each."""
    plain = lora_model(case)
    if "reentrant" in case:
        plain.enable_input_require_grads()
        plain.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": case["reentrant"]})
    ours = copy.deepcopy(plain)
    grouped = enable_grouped_forward(ours)
    report = {"states": states(grouped), "reasons": reasons(grouped), "blocks": len(grouped.blocks)}
    differences, gradients, same_tensors = [], [], True
    first = logits(plain)
    for _ in range(3):
        both = []
        for model in (plain, ours):
            model.train()
            model.zero_grad(set_to_none=True)
            out = model(input_ids=IDS, labels=IDS)
            out.loss.backward()
            both.append(
                (out.logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
            )
        (theirs, their_gradients), (mine, my_gradients) = both
        differences.append(apart(mine, theirs))
        same_tensors &= my_gradients.keys() == their_gradients.keys()
        gradients += [apart(my_gradients[name], gradient) for name, gradient in their_gradients.items()]
        for model, step in ((plain, their_gradients), (ours, my_gradients)):
            for name, gradient in step.items():
                model.get_parameter(name).data -= 0.05 * gradient / gradient.abs().max()
    return {
        **report,
        "calls": calls(grouped),
        "logits": max(differences),
        "gradients": max(gradients),
        "same_tensors": same_tensors,
        "moved": apart(logits(plain), first),
    }


def single(case: dict[str, Any]) -> dict[str, Any]:
    """One expert: as PEFT, where PEFT can."""
    try:
        logits(lora_model(case))
    except RuntimeError as error:
        model = lora_model(case)
        grouped = enable_grouped_forward(model)
        try:
            logits(model)
        except RuntimeError as ours:
            return {"theirs": str(error), "ours": str(ours), "states": states(grouped)}
        return {"theirs": str(error), "ours": "ran", "states": states(grouped)}
    return steps(case)


def saved(case: dict[str, Any]) -> dict[str, Any]:
    """Elements of the largest pile of matrices that autograd keeps, parameters aside: plain PEFT's and ours."""
    plain, ours = lora_model(case), lora_model(case)
    enable_grouped_forward(ours)
    weights = [module for module in plain.modules() if hasattr(module, "act_fn") and hasattr(module, "num_experts")]
    return {
        "plain": _largest_saved(plain, weights[0].num_experts),
        "ours": _largest_saved(ours, weights[0].num_experts),
        "weight": min(getattr(weights[0], role).numel() for role in ROLES),
    }


def _largest_saved(model: Any, num_experts: int) -> int:
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes = [0]

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        stacked = tensor.ndim == 3 and tensor.shape[0] == num_experts and tensor.is_floating_point()
        if stacked and tensor.untyped_storage().data_ptr() not in own:
            sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=IDS[:, :4], labels=IDS[:, :4]).loss.backward()
    return max(sizes)


def packed(case: dict[str, Any]) -> dict[str, Any]:
    """Experts packed: the same numbers, a run of them unpacked at a time, in forward and in backward, and none kept."""
    plain, ours = lora_model(case), lora_model(case)
    weights = []
    for module in ours.modules():
        if all(isinstance(vars(module).get("_parameters", {}).get(role), torch.nn.Parameter) for role in ROLES):
            for role in ROLES:
                weights.append(Packed.of(module._parameters[role].data, run_length=3))
                module._parameters[role] = torch.nn.Parameter(weights[-1], requires_grad=False)
    grouped = enable_grouped_forward(ours)
    kept = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(any(not isinstance(tensor, Packed) and tensor.shape[-2:] == w.shape[1:] for w in weights))
        return tensor

    results = []
    for model in (plain, ours):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = model(input_ids=IDS, labels=IDS)
        forward = [[len(run) for run in w.unpacked] for w in weights]
        out.loss.backward()
        results.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    theirs, mine = results
    return {
        "gradients": max(apart(mine[name], theirs[name]) for name in theirs),
        "forward": forward,
        "both": [[len(run) for run in w.unpacked] for w in weights],
        "kept": any(kept),
        "reasons": reasons(grouped),
        "calls": calls(grouped),
    }


def halves(case: dict[str, Any]) -> list[list[float]]:
    """One block's experts in bfloat16 in every way people train: plain PEFT's error and ours, of the largest value."""
    model = lora_model({**case, "dtype": "float32"})
    torch.manual_seed(3)
    hidden, index = torch.randn(40, 48), torch.randint(8, (40, 2))
    weights = torch.rand(40, 2)
    exact = _experts(copy.deepcopy(model).double(), "float64")(hidden.double(), index, weights.double())
    seen = []
    for base, adapter, autocast in (
        ("bfloat16", "bfloat16", False),
        ("bfloat16", "float32", False),
        ("float32", "float32", True),
    ):
        halved = copy.deepcopy(model).to(getattr(torch, base))
        for name, parameter in halved.named_parameters():
            if "lora_" in name:
                parameter.data = model.get_parameter(name).data.to(getattr(torch, adapter))
        given = (hidden.to(getattr(torch, base)), index, weights.to(getattr(torch, base)))
        errors = []
        for enable in (False, True):
            grouped = enable_grouped_forward(halved) if enable else None
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                errors.append(apart(_experts(halved, "float32")(*given).double(), exact))
        seen.append([*errors, calls(grouped)[0]])
    return seen


def _experts(model: Any, dtype: str) -> Any:
    """The first block's experts, eager in float64."""
    module = model.base_model.model.model.layers[0].mlp
    module.experts.get_base_layer().config._experts_implementation = "eager" if dtype == "float64" else "grouped_mm"
    return module.experts


def quantised(case: dict[str, Any]) -> dict[str, Any]:
    """QLoRA in 4 bits, in training mode: Linears by bitsandbytes, fused experts by our quantiser, a LoRA on each."""
    if FUSED:
        options = ExpertQuantizationConfig("nf4", compute_dtype=torch.float32)
    else:
        # A router of Linear4bit is quantised too, and then asserts on its shape.
        options = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.float32,
            llm_int8_skip_modules=["lm_head", *(f"model.layers.{layer}.mlp.gate" for layer in range(2))],
        )
    with tempfile.TemporaryDirectory() as folder:
        base_model(case).save_pretrained(folder)
        plain = AutoModelForCausalLM.from_pretrained(folder, quantization_config=options, dtype=torch.float32)
    plain = fill(get_peft_model(plain, lora(case))).train()
    experts = plain.base_model.model.model.layers[0].mlp.experts
    weight = experts.get_base_layer().down_proj if FUSED else experts[0].down_proj.get_base_layer()

    def gradients(before_backward: Any = lambda: None) -> dict[str, torch.Tensor]:
        plain.zero_grad(set_to_none=True)
        loss = plain(input_ids=IDS, labels=IDS).loss
        before_backward()
        loss.backward()
        return {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}

    theirs = gradients()
    with enable_grouped_forward(plain) as grouped:
        mine, said, ran = gradients(), reasons(grouped), calls(grouped)
        in_runs = {}
        for length in (1, 2, 8) if FUSED else ():
            packed_experts.RUN_BYTES_ON_CPU = length * weight[0].numel() * weight.element_size()
            found = gradients()
            in_runs[weight.run_length] = max(apart(found[name], theirs[name]) for name in theirs)
        late = gradients(before_backward=plain.merge_adapter) if FUSED else mine
    return {
        "in_runs": list(in_runs.items()),
        "merged_before_backward": max(apart(late[name], mine[name]) for name in mine),
        "kind": type(weight).__name__,
        "reasons": said,
        "calls": ran,
        "same_tensors": mine.keys() == theirs.keys(),
        "gradients": max(apart(mine[name], theirs[name]) for name in theirs),
    }
