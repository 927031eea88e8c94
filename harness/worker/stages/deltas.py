"""The truth about every delta, from PEFT itself: ``get_delta_weight`` of the trained model in float64.

What a merge should have added is taken in memory from the release of PEFT that made the adapter. It is never taken from
a reading of the saved file. So neither the io layout nor the packing of lora_B can be misread here in the same way as
in an engine. Of DoRA it is what PEFT's own merge in float64 has changed, because there is no delta without the base.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.worker.observation import Judgement, Observation
from harness.worker.recipes.recipe import recipe
from harness.worker.request import Request
from harness.worker.stages.attach import MAGNITUDE, adapters_of, factors_of, lora_layers, magnitudes
from harness.worker.stages.biases import biases_of, trained_biases
from harness.worker.stages.peft_names import Target
from harness.worker.stages.targets import HEAD
from harness.worker.stages.two_adapters import BEFORE, TRAINED
from harness.worker.stages.vocabulary import EMBEDDING
from harness.worker.stages.whole import COPIES, trained_weight, whole_modules

DELTAS = "deltas.safetensors"
PAIRS = "pairs.json"
SCALINGS = "scalings.json"

NO_EXPERTS = (None, "weight")
"""What of a target's parameter is not the routed experts': a Linear, or a router that is none."""


def save_deltas(peft_model: Any, directory: Path, *, new_tokens: int = 0) -> None:
    """Write every delta in float64, that of all adapters together, and which saved LoRA pair it belongs to.

    The model is float64 meanwhile, and afterwards what it was. Of ``new_tokens``, rows that the vocabulary was resized
    by, the delta is the whole row.

    ``deltas.safetensors`` has ``<module>`` → (out, in) for Linears and routers, ``<module>:<parameter>`` → (E, …) for
    fused experts and ``<module>:bias`` → (out,) for a Linear's bias. ``pairs.json`` has the adapter's key prefix → that
    name. ``scalings.json`` has the prefix → what PEFT multiplies the product of the trained adapter's pair with.
    """
    import torch
    from safetensors.torch import save_file

    deltas: dict[str, Any] = {}
    pairs: dict[str, str] = {}
    scalings: dict[str, float] = {}
    with torch.no_grad(), in_float64(peft_model):
        for key, ((module, parameter), layer) in lora_layers(peft_model).items():
            name = module if parameter in NO_EXPERTS else f"{module}:{parameter}"
            base = layer.get_base_layer()
            # Of a Linear by what it says of itself: the weight of a quantised one has the shape of its codes.
            if parameter is not None or layer.lora_embedding_A:
                shape = layer.get_param().shape if parameter is not None else base.weight.shape
            else:
                shape = (base.out_features, base.in_features)
            plain = (layer.get_delta_weight(adapter) for adapter in adapters_of(layer))
            delta = _merged_delta(layer) if magnitudes(layer) else sum(plain)
            deltas[name] = delta.reshape(shape).contiguous().cpu()
            pairs[key], scalings[key] = name, float(layer.scaling[TRAINED])
        for key, ((module, parameter), bias) in trained_biases(lora_layers(peft_model), directory).items():
            name = f"{module}:{parameter}"
            deltas[name], pairs[key] = bias.delta.contiguous(), name
        whole = whole_modules(peft_model)
        for key, ((module, _), wrapper) in whole.items():
            deltas[module] = (trained_weight(wrapper) - wrapper.original_module.weight).contiguous().cpu()
            pairs[key] = module
        for key, (module, end) in resized_ends(peft_model).items() if new_tokens else ():
            # Rows that the base does not have are new as a whole.
            deltas[module] = deltas[module] if key in whole else torch.zeros_like(end.weight, device="cpu")
            deltas[module][-new_tokens:] = (trained_weight(end) if key in whole else end.weight)[-new_tokens:]
            pairs[key] = module
    save_file(deltas, directory / DELTAS)
    for file, content in ((PAIRS, pairs), (SCALINGS, scalings)):
        (directory / file).write_text(json.dumps(content, indent=1, sort_keys=True))


def resized_ends(peft_model: Any) -> dict[str, tuple[str, Any]]:
    """Return embeddings and head: their path in a saved adapter → (module, itself or PEFT's wrapper of it)."""
    ends = {EMBEDDING: peft_model.get_input_embeddings(), HEAD: peft_model.get_output_embeddings()}
    return {f"base_model.model.{module}": (module, end) for module, end in ends.items()}


@contextmanager
def in_float64(model: Any) -> Iterator[None]:
    """Have a model in float64 within the block. Afterwards it has the very parameters and numbers that it had.

    What is quantised stays so. Gradients are dropped.
    """
    model.zero_grad(set_to_none=True)
    held = [
        (tensors, name, tensor, None if tensor is None else tensor.data)
        for module in model.modules()
        for tensors in (module._parameters, module._buffers)  # noqa: SLF001 - so that a replaced one comes back too
        for name, tensor in tensors.items()
    ]
    model.double()
    try:
        yield
    finally:
        for tensors, name, tensor, data in held:
            if tensor is not None:
                tensor.data = data
            tensors[name] = tensor


def _merged_delta(layer: Any) -> Any:
    """Return what PEFT's own merge adds to a Linear's weight. The layer is not merged afterwards."""
    before = layer.get_base_layer().weight.detach().clone()
    layer.merge(adapter_names=[TRAINED])
    try:
        return layer.get_base_layer().weight.detach() - before
    finally:
        layer.unmerge()


def check_saved(observation: Observation, peft_model: Any, request: Request) -> set[Target]:
    """Hold the saved adapter against the LoRA weights in memory, bit for bit, and record what it is.

    One that was not trained is held against what it was before.

    Returns:
        The targets whose trained pair is in the file as it is in memory.
    """
    saved, memory = read_adapter(request.adapter), _named(request.work / BEFORE)
    rightly: set[Target] = set()
    memory |= _copies(peft_model, saved) | _resized(peft_model, request)
    layouts: set[str] = set()
    experts: set[int] = set()
    ranks: set[int] = set()
    for key, (target, layer) in lora_layers(peft_model).items():
        own = parts_of(key, layer, TRAINED)
        memory |= own
        rightly |= {target} if all(n in saved and _same_bits(tensor, saved[n]) for n, tensor in own.items()) else set()
        ranks.add(int(layer.r[TRAINED]))
        if target[1] not in NO_EXPERTS:
            layouts.add(_io_layout(layer))
            experts.add(int(layer.get_param().shape[0]))
    for name, (target, bias) in trained_biases(lora_layers(peft_model), request.work).items():
        memory[name] = bias.parameter.detach().cpu()
        rightly |= {target} if name in saved and _same_bits(memory[name], saved[name]) else set()
    for key, (target, wrapper) in whole_modules(peft_model).items():
        name = f"{key}.weight"
        memory[name] = trained_weight(wrapper).detach().cpu()
        rightly |= {target} if name in saved and _same_bits(memory[name], saved[name]) else set()
    config = json.loads((request.adapter / "adapter_config.json").read_text())
    named = config.get("base_model_name_or_path")
    misnamed = [] if named == str(request.base) else [f"the base, which is named {named}"]
    altered = {name: tensor.clone() for name, tensor in list(saved.items())[:1]}
    for tensor in altered.values():
        tensor.flatten()[:1] += 1
    observation.judge(
        "attached", "save", _as_in(memory, saved, misnamed), control=_as_in(memory, {**saved, **altered}, [])
    )
    observation.data["adapter"] = {
        "io_layout": min(layouts, default=None),
        "b_packing": config.get("lora_B_layout", "rank_major") if layouts else None,
        "num_experts": max(experts, default=None),
        "rank": max(ranks),
        "tensors": len(saved),
        "peft_version": config.get("peft_version"),
    }
    return rightly


def parts_of(key: str, layer: Any, adapter: str) -> dict[str, Any]:
    """Return what a layer holds of an adapter, by the names that it is saved under."""
    if layer.lora_embedding_A:
        return {f"{key}.{part}": getattr(layer, part)[adapter].detach().cpu() for part in factors_of(layer)}
    parts = {f"{key}.{part}.weight": getattr(layer, part)[adapter] for part in factors_of(layer)}
    if magnitudes(layer):
        parts[f"{key}.{MAGNITUDE}"] = magnitudes(layer)[adapter]
    return {name: module.weight.detach().cpu() for name, module in parts.items()}


def _copies(peft_model: Any, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is in memory of weights that PEFT saves beside a LoRA on embeddings or head: the base's, mostly."""
    held = {f"{key}.base_layer.weight": layer.get_base_layer() for key, (_, layer) in lora_layers(peft_model).items()}
    for key, (_, wrapper) in whole_modules(peft_model).items():  # and beside a copy, where the vocabulary was resized
        held[f"{key}.original_module.weight"] = wrapper.original_module
        held[f"{key}.{COPIES}.weight"] = getattr(wrapper, COPIES)[TRAINED]
    return {name: held[name].weight.detach().cpu() for name in saved if name in held}


def _resized(peft_model: Any, request: Request) -> dict[str, Any]:
    """Return embeddings and head where the vocabulary was resized: PEFT saves them then, trained or not."""
    if not recipe(request.recipe).new_tokens:
        return {}
    ends = {key: end for key, (_, end) in resized_ends(peft_model).items() if key not in whole_modules(peft_model)}
    return {f"{key}.weight": end.weight.detach().cpu() for key, end in ends.items()}


def check_reloaded(observation: Observation, peft_model: Any, request: Request) -> set[Target]:
    """Hold the LoRA of a model that has loaded the adapter again against the file, number by number.

    PEFT may load in another dtype, and does so with bf16.

    Returns:
        The targets whose pairs are as the file has them.
    """
    saved = read_adapter(request.adapter)
    loaded: dict[str, Any] = _copies(peft_model, saved) | _resized(peft_model, request)
    rightly: set[Target] = set()
    for key, (target, layer) in lora_layers(peft_model).items():
        own: dict[str, Any] = {}
        for adapter in adapters_of(layer):
            folder = "" if adapter == TRAINED else f"{adapter}/"
            own |= {f"{folder}{name}": tensor for name, tensor in parts_of(key, layer, adapter).items()}
        loaded |= {name: tensor.to(saved[name].dtype) if name in saved else tensor for name, tensor in own.items()}
        rightly |= {target} if all(n in saved and _same_bits(loaded[n], saved[n]) for n in own) else set()
    for name, (target, bias) in biases_of(lora_layers(peft_model)).items():
        if name in saved:
            loaded[name] = bias.parameter.detach().cpu()
            rightly |= {target} if _same_bits(loaded[name], saved[name]) else set()
    for key, (target, wrapper) in whole_modules(peft_model).items():
        name = f"{key}.weight"
        loaded[name] = trained_weight(wrapper).detach().cpu()
        rightly |= {target} if name in saved and _same_bits(loaded[name], saved[name]) else set()
    altered = {name: tensor.clone() for name, tensor in list(loaded.items())[:1]}
    for tensor in altered.values():
        tensor.flatten()[:1] += 1
    observation.judge(
        "attached", "reload-adapter", _as_in(saved, loaded, []), control=_as_in(saved, {**loaded, **altered}, [])
    )
    return rightly


def read_adapter(directory: Path) -> dict[str, Any]:
    """Return the tensors of the adapter in a directory, and of those in folders below it."""
    from safetensors.torch import load_file

    return {**load_file(directory / "adapter_model.safetensors"), **_named(directory)}


def _named(directory: Path) -> dict[str, Any]:
    """Return the tensors of the adapters in folders below a directory: folder/key → tensor."""
    from safetensors.torch import load_file

    files = sorted(directory.glob("*/adapter_model.safetensors"))
    return {f"{file.parent.name}/{key}": tensor for file in files for key, tensor in load_file(file).items()}


def _as_in(memory: dict[str, Any], saved: dict[str, Any], misnamed: list[str]) -> Judgement:
    different = misnamed + sorted(
        name
        for name in memory.keys() | saved.keys()
        if name not in memory or name not in saved or not _same_bits(memory[name], saved[name])
    )
    return Judgement(
        value=f"{len(memory) - len([n for n in different if n in memory])}/{len(memory)}",
        band=f"== {len(memory)}/{len(memory)}",
        passed=not different,
        detail=f"not in one as in the other: {different[:4]}",
    )


def _same_bits(a: Any, b: Any) -> bool:
    """Whether two tensors are the same bit for bit: NaN is like itself here, and 0 unlike -0."""
    import torch

    return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(
        a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)
    )


def _io_layout(layer: Any) -> str:
    """Return which layout PEFT itself uses: whether lora_A faces the input (last axis) of an (E, out, in) parameter.

    Asked of the layer's own attributes, so square parameters are no riddle. ``_did_swap_in_out_features`` exists from
    PEFT 0.19.1 (peft#3165). It is true where the roles are the standard ones. Before, they were swapped.
    """
    return "standard" if getattr(layer, "_did_swap_in_out_features", False) else "swapped"
