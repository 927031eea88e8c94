"""Scenarios of ``grouped_cells``: what becomes of an enabled model in a user's hands."""

from __future__ import annotations

import copy
import functools
import tempfile
from typing import Any

import torch
import transformers
from grouped_models import (
    ELSEWHERE,
    FUSED,
    IDS,
    SEVERAL,
    apart,
    base_model,
    calls,
    fill,
    logits,
    lora,
    lora_model,
    reasons,
    states,
    traces,
)
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from harness.experts import ExpertsError, enable_grouped_forward


def life(case: dict[str, Any]) -> list[Any]:
    """Everything PEFT does to a model after it was enabled, done to a plain twin too.

    Returned are how far apart they are after each, and what the report says.
    """
    ours, plain = base_model(case), base_model(case)
    grouped = enable_grouped_forward(ours)
    seen: list[Any] = []
    last = logits(plain) * 2

    def look(event: str) -> None:
        nonlocal last
        theirs = logits(plain)
        before = calls(grouped)
        mine = logits(ours)
        ran = [now - then for now, then in zip(calls(grouped), before, strict=True)]
        seen.append([event, apart(mine, theirs), apart(theirs, last), ran, states(grouped), reasons(grouped)])
        last = theirs

    def both(event: str, act: Any) -> None:
        nonlocal ours, plain
        ours, plain = (act(model) or model for model in (ours, plain))
        look(event)

    def reload(model: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder, selected_adapters=["default"])
            fill(model, 10)
            model.load_adapter(folder, "default")

    both("enabled", lambda _: None)
    both("attached", lambda model: fill(get_peft_model(model, lora(case))))
    both("changed", lambda model: fill(model, 3))
    both("elsewhere added", lambda model: model.add_adapter("elsewhere", ELSEWHERE))
    both("elsewhere", lambda model: model.set_adapter("elsewhere"))
    both("back", lambda model: model.set_adapter("default"))
    if SEVERAL:
        both("added", lambda model: model.add_adapter("other", lora(case, rank=2)))
        both("filled", lambda model: fill(model, 4))
        both("switched", lambda model: model.set_adapter("other"))
        both("two", lambda model: model.base_model.set_adapter(["default", "other"]))
        both("one", lambda model: model.set_adapter("default"))
        both("other merged", lambda model: model.merge_adapter(["other"]))
        both("other unmerged", lambda model: model.unmerge_adapter())
        both("deleted", lambda model: model.delete_adapter("other"))
    with ours.disable_adapter(), plain.disable_adapter():
        look("disabled")
    look("able")
    both("merged", lambda model: model.merge_adapter())
    both("unmerged", lambda model: model.unmerge_adapter())
    both("refilled", lambda model: fill(model, 9))
    both("reloaded", reload)
    both("unloaded", lambda model: model.merge_and_unload())
    grouped.disable()
    look("over")
    seen.append(traces(ours))
    return seen


def again(case: dict[str, Any]) -> dict[str, Any]:
    """An adapter loaded from disk onto a base that is enabled.

    Its block is called past the hook that would have noticed.
    """
    plain = lora_model(case)
    base = base_model(case)
    with tempfile.TemporaryDirectory() as folder:
        plain.save_pretrained(folder)
        with enable_grouped_forward(base) as grouped:
            ours = PeftModel.from_pretrained(base, folder)
            early = states(grouped)
            x = torch.randn(1, 5, 48, dtype=torch.float64)
            mine, theirs = (model.base_model.model.model.layers[0].mlp.forward(x) for model in (ours, plain))
            past = apart(*(out[0] if isinstance(out, tuple) else out for out in (mine, theirs)))
            before = calls(grouped)
            found = {"past": past, "logits": apart(logits(ours), logits(plain)), "calls": calls(grouped)}
    ran = [now - then for now, then in zip(found["calls"], before, strict=True)]
    return {**found, "calls": ran, "traces": traces(ours), "states": states(grouped), "early": early}


def replicated(case: dict[str, Any]) -> dict[str, Any]:
    """Layers that PEFT copies, what is on them included: the same numbers, and nothing left of it afterwards."""
    plain, ours = base_model(case), base_model(case)
    grouped = enable_grouped_forward(ours)
    config = lora(case)
    config.layer_replication = [(0, 1), (0, 1)]
    ours, plain = (fill(get_peft_model(model, config)) for model in (ours, plain))
    found = {"logits": apart(logits(ours), logits(plain)), "layers": len(ours.base_model.model.model.layers)}
    grouped.disable()
    with enable_grouped_forward(ours) as afterwards:
        once_more = apart(logits(ours), logits(plain))
        states_then = states(afterwards)
    return {**found, "again": once_more, "states": states_then, "traces": traces(ours)}


def callables(case: dict[str, Any]) -> dict[str, Any]:
    """The very same functions after as before, and twice enabling refused without a trace."""
    model = lora_model(case)
    methods = [name for name in ("forward", "moe") for m in model.modules() if hasattr(m, name)]
    before = [getattr(m, name).__func__ for name in ("forward", "moe") for m in model.modules() if hasattr(m, name)]
    grouped = enable_grouped_forward(model)
    during = len(traces(model))
    try:
        enable_grouped_forward(model)
        twice = "accepted"
    except ExpertsError as error:
        twice = str(error)
    grouped.disable()
    after = [getattr(m, name).__func__ for name in ("forward", "moe") for m in model.modules() if hasattr(m, name)]
    same = len(methods) == len(after) and all(x is y for x, y in zip(before, after, strict=True))
    return {"during": during, "after": traces(model), "same": same, "twice": twice}


def copied(case: dict[str, Any]) -> dict[str, Any]:
    """A deep copy of an enabled model, with another LoRA.

    It runs its own experts, and is disabled apart from the original.
    """
    plain, ours = lora_model(case), lora_model(case)
    grouped = enable_grouped_forward(ours)
    twin = copy.deepcopy(ours)
    fill(twin, 5)
    before = calls(grouped)
    found = {"twin": apart(logits(twin), logits(fill(copy.deepcopy(plain), 5))), "ran": calls(grouped) == before}
    grouped.disable()
    return {**found, "original": apart(logits(ours), logits(plain)), "traces": traces(ours), "left": len(traces(twin))}


def compiled(case: dict[str, Any]) -> list[Any]:
    """A compiled model, its adapter changed, disabled and enabled again: each time as the plain model, and who ran."""
    plain, ours = lora_model(case), lora_model(case)
    grouped = enable_grouped_forward(ours)
    fast = torch.compile(ours, backend=case["backend"])
    seen = [[apart(logits(fast), logits(plain)), states(grouped)]]
    for model in (plain, ours):
        fill(model, 6)
    seen.append([apart(logits(fast), logits(plain)), states(grouped)])
    with plain.disable_adapter(), ours.disable_adapter():
        seen.append([apart(logits(fast), logits(plain)), states(grouped)])
    for model in (plain, ours):
        model.add_adapter("elsewhere", ELSEWHERE)
        model.set_adapter("elsewhere")
    seen.append([apart(logits(fast), logits(plain)), states(grouped)])
    for model in (plain, ours):
        fill(model, 7).set_adapter("default")
    seen.append([apart(logits(fast), logits(plain)), states(grouped)])
    seen.append(calls(grouped))
    grouped.disable()
    seen.append([apart(logits(fast), logits(plain)), states(grouped)])
    return seen


def hooked(case: dict[str, Any]) -> dict[str, Any]:
    """A user's hook on the innermost module: it is called, by the library's own forward."""
    model = lora_model(case)
    grouped = enable_grouped_forward(model)
    inner = [
        m for n, m in model.named_modules() if n.endswith("experts.base_layer.base_layer" if FUSED else "experts.0")
    ]
    seen: list[int] = []
    handles = [module.register_forward_hook(lambda *_: seen.append(1)) for module in inner]
    logits(model)
    found = {"hooks": len(inner), "seen": len(seen), "calls": calls(grouped), "reasons": reasons(grouped)}
    for handle in handles:
        handle.remove()
    return {**found, "then": states(grouped)}


def wrapped(case: dict[str, Any]) -> dict[str, Any]:
    """Somebody wraps forwards on instances, as accelerate does to move weights about: before enabling, and after."""

    def wrap(model: Any) -> None:
        for name, module in model.named_modules():
            if name.endswith("mlp.experts" if FUSED else "mlp"):
                for method in {"forward", "moe"} & set(dir(module)):
                    setattr(module, method, functools.partial(_call, getattr(module, method)))

    plain, before, after = lora_model(case), lora_model(case), lora_model(case)
    wrap(before)
    with enable_grouped_forward(before) as grouped:
        found = {"before": [apart(logits(before), logits(plain)), states(grouped), reasons(grouped)]}
    with enable_grouped_forward(after) as grouped:
        wrap(after)
        found["after"] = [apart(logits(after), logits(plain)), calls(grouped)]
    found["over"] = [apart(logits(after), logits(plain)), calls(grouped)]
    return found


def _call(forward: Any, *args: Any, **kwargs: Any) -> Any:
    return forward(*args, **kwargs)


def mixed(case: dict[str, Any]) -> list[str]:
    """A batch that names an adapter for each row: PEFT's own answer, from both."""
    said = []
    for enable in (False, True):
        model = lora_model(case).eval()
        model.add_adapter("elsewhere", ELSEWHERE)
        fill(model, 8)
        if enable:
            enable_grouped_forward(model)
        try:
            with torch.no_grad():
                out = model(input_ids=IDS, adapter_names=["default", "elsewhere"]).logits
            said.append(f"{out.double().square().sum().item():.12e}")
        except ValueError as error:
            said.append(str(error))
    return said


def refused(_case: dict[str, Any]) -> dict[str, Any]:
    """Models that are not understood."""
    sizes = {
        "vocab_size": 104,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_experts_per_tok": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    gpt_oss = transformers.GptOssConfig(**sizes, head_dim=16, num_local_experts=4, layer_types=["full_attention"])
    olmoe = transformers.OlmoeConfig(**sizes, num_experts=4)
    said = {}
    for name, config in (("gpt_oss", gpt_oss), ("olmoe", olmoe)):
        model = AutoModelForCausalLM.from_config(config)
        with enable_grouped_forward(model) as grouped:
            said[name] = [[report.state, report.reason] for report in grouped.blocks]
        said[f"{name} after"] = traces(model)
    try:
        enable_grouped_forward(torch.nn.Linear(2, 2))
    except ExpertsError as error:
        said["linear"] = str(error)
    return said
