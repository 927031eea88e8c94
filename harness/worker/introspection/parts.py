"""What a model in memory is made of: its experts, its routers, and which of its weights a LoRA can cover.

Nothing is known of a family here. Experts are modules of that name that hold a parameter with an axis of experts, or a
list of modules. Around them lies a block, and what is in it besides is their router, or shared. A LoRA can cover a
Linear whose forward is a Linear's own, and a parameter of experts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harness.contract.tensors import Kind

MATRIX, STACK = 2, 3
"""Dimensions of a Linear's weight, and of a parameter that holds one for each expert."""

_EXPERTS = re.compile("experts?", re.IGNORECASE)
_SHARED = re.compile("shared", re.IGNORECASE)
_ROUTER = re.compile(r"(?:^|\.)(?:\w*router\w*|gate|wg|gate_network)(?:\.|$)")
_MIXER = re.compile("Attention|Attn|Mixer|Mamba|Conv|Delta|SSM|MLA|KDA|Lightning")
"""In the name of a class: it mixes tokens."""
_WHOLE = re.compile("(Layer|Block|Model)$")
"""At the end of the name of a class: it holds what mixes tokens, and other things."""
_INDEXER = re.compile("indexer|compressor", re.IGNORECASE)
"""It chooses which tokens attention reads, and no gradient comes back through a choice."""
_OTHER_SENSES = re.compile(r"(?:^|\.)\w*(?:visual|vision|vit|image|audio|talker|code_predictor)\w*\.")
"""In a path: it is not of the text model."""
_IN_LAYER = re.compile(r"(?:^|\.)(?:layers|blocks|h)\.\d+\.")


def _in_text(path: str) -> bool:
    """Say whether a module lies in a layer of the text model."""
    return bool(_IN_LAYER.search(f"{path}.")) and not _OTHER_SENSES.search(f"{path}.")


@dataclass(frozen=True, kw_only=True)
class Experts:
    """The routed experts of one place in the model.

    Attributes:
        path: the module that holds them.
        block: the module that they are part of, with their router.
        count: how many they are.
        parameters: names of the parameters that hold one matrix for each; empty where each expert is a module.
    """

    path: str
    block: str
    count: int
    parameters: tuple[str, ...]


def experts_of(model: Any) -> list[Experts]:
    """Return the routed experts of a model, in the order of its modules."""
    import torch

    found: list[Experts] = []
    for path, module in model.named_modules():
        leaf = path.rpartition(".")[2]
        named = _EXPERTS.search(leaf) or _EXPERTS.search(type(module).__name__)
        if not _in_text(path) or not named or _SHARED.search(path):
            continue
        if any(path.startswith(f"{other.path}.") for other in found):
            continue
        block = path.rpartition(".")[0]
        stacks = {
            name: int(p.shape[0])
            for name, p in module.named_parameters(recurse=False)
            if p.dim() == STACK and p.shape[0] > 1
        }
        if stacks:
            found.append(Experts(path=path, block=block, count=min(stacks.values()), parameters=tuple(stacks)))
        elif isinstance(module, torch.nn.ModuleList) and len(module) > 1:
            found.append(Experts(path=path, block=block, count=len(module), parameters=()))
    return found


def mixes_tokens(module: Any) -> bool:
    """Say whether a module has something in it that mixes tokens, so that it is more than a block of experts."""
    return any(_mixes(inside) for inside in module.modules())


def has_experts(model: Any) -> bool:
    """Say whether a model has routed experts."""
    return bool(experts_of(model))


@dataclass(frozen=True, kw_only=True)
class Part:
    """One weight that a LoRA can cover.

    Attributes:
        module: the module that holds it.
        parameter: its name where the parameter itself is to be named: those of experts, and a router's that is no
            Linear.
        kind: what it is part of.
        name: of the parameter in the model.
    """

    module: str
    parameter: str | None
    kind: Kind

    @property
    def name(self) -> str:
        """The parameter's own name in the model."""
        return f"{self.module}.{self.parameter or 'weight'}"

    @property
    def delta(self) -> str:
        """The name of its delta (``stages.deltas``)."""
        return self.module if self.parameter in {None, "weight"} else f"{self.module}:{self.parameter}"


def parts_of(model: Any) -> list[Part]:
    """Return every weight of a model that a LoRA can cover, and what it is part of."""
    experts = experts_of(model)
    mixers = [path for path, module in model.named_modules() if path and _mixes(module)]
    mixers = [
        path
        for path in mixers
        if _in_text(path) and not any(it.path == path or it.path.startswith(f"{path}.") for it in experts)
    ]
    return list(_parts(model, experts, mixers))


def _mixes(module: Any) -> bool:
    name = type(module).__name__
    return bool(_MIXER.search(name)) and not _WHOLE.search(name)


# Shared experts that are parameters, several of one shape in a module, are left out: no key of a saved adapter says on
# which of them a pair is.
def _parts(model: Any, experts: list[Experts], mixers: list[str]) -> Iterator[Part]:
    import torch

    linear = torch.nn.Linear.forward
    counts = {it.block: it.count for it in experts}
    ends = {id(model.get_input_embeddings()): "embedding", id(model.get_output_embeddings()): "head"}
    for path, module in model.named_modules():
        held = next((it for it in experts if it.path == path), None)
        if id(module) in ends:
            yield Part(module=path, parameter=None, kind=ends[id(module)])  # type: ignore[arg-type]
        elif held is not None:
            for name in held.parameters:
                yield Part(module=path, parameter=name, kind="expert")
        elif isinstance(module, torch.nn.Linear) and type(module).forward is linear and path:
            yield Part(module=path, parameter=None, kind=_kind(path, experts, mixers))
        elif (block := path.rpartition(".")[0]) in counts and _ROUTER.search(path):
            weight = getattr(module, "weight", None)
            if isinstance(weight, torch.nn.Parameter) and weight.dim() == MATRIX and weight.shape[0] >= counts[block]:
                yield Part(module=path, parameter="weight", kind="router")


def _kind(path: str, experts: list[Experts], mixers: list[str]) -> Kind:
    """Return what a Linear is part of."""
    if not _in_text(path) or _INDEXER.search(path):
        return "other"
    if any(path.startswith(f"{it.path}.") for it in experts):
        return "expert"
    if any(path == mixer or path.startswith(f"{mixer}.") for mixer in mixers):
        return "attention"
    leaf = path.rpartition(".")[2]
    if _SHARED.search(path):
        return "other" if leaf.endswith("gate") else "shared_expert"
    if any(path.startswith(f"{it.block}.") for it in experts) and _ROUTER.search(path):
        return "router"
    return "dense" if re.search(r"mlp|feed_forward|ffn", path) else "other"


def by_kind(parts: list[Part]) -> Mapping[Kind, list[Part]]:
    """Return the parts of each kind."""
    found: dict[Kind, list[Part]] = {}
    for part in parts:
        found.setdefault(part.kind, []).append(part)
    return found
