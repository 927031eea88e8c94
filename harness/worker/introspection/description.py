"""What is written of a family that no file describes, and what is known of it afterwards, kept in the work directory.

The first stage makes a description from what transformers says. All others read it: what was written stays what it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from harness.worker.checkpoints.family import Checkpoint, Introspected
from harness.worker.checkpoints.tensors import Init, Kind, TensorSpec
from harness.worker.checkpoints.tokenizer import BOS, EOS, PAD
from harness.worker.introspection.catalogue import known, may_have_experts
from harness.worker.introspection.composite import smallest_of
from harness.worker.introspection.layout import OnDisk, read_layout, save_tensors
from harness.worker.introspection.parts import Experts, Part, experts_of, parts_of
from harness.worker.introspection.sizes import EXPERTS
from harness.worker.introspection.smallest import NotDerivedError
from harness.worker.observation import UnsupportedError

DESCRIPTION = "description.json"
SEED = 0
NEAR = 4
"""The exponent of what lies near a value: norms, biases, decays."""
GRAIN = 8
"""Values that something lies near are whole multiples of 1/8, so that no library's last digit is in them."""
DECAY = "A_log"
"""The end of the key of linear attention's decay, which is drawn around 1 as in the family that has a file. As models
begin, they forget in one step, and rounding is all that is left of the rest.
"""
ROUTER, HEAD = 1, 2
"""Exponents of what is scaled otherwise than by its fan-in, as in the families that have a file."""


class NoExpertsError(UnsupportedError):
    """The model has no routed experts, so there is nothing here to be tested: no failure of the stack."""

    def __init__(self, model_class: type) -> None:
        super().__init__(f"{model_class.__name__} has no routed experts that the harness can judge")


def describe(model_type: str) -> Checkpoint:
    """Return the smallest checkpoint of a model type, as the installed transformers writes it.

    Raises:
        UnsupportedError: this transformers has no causal language model of that type.
        NotDerivedError: the rules do not lead to a small model.
        NoExpertsError: it has no routed experts.
    """
    import torch

    it = known(model_type)
    try:
        made = smallest_of(it)
    except NotDerivedError:
        if not may_have_experts(model_type):  # that there is no small form of it is no finding then
            raise NoExpertsError(it.model_class) from None
        raise
    torch.manual_seed(SEED)
    model = made.model_class._from_config(made.config)  # type: ignore[attr-defined]  # noqa: SLF001 - of every model
    experts = experts_of(model)
    if not experts:
        raise NoExpertsError(made.model_class)
    parts = parts_of(model)
    refused = refused_by_peft(model, parts)
    parts = [part for part in parts if part.parameter is not None or _leaf(part) not in refused]
    initial, config = save_tensors(model)
    tied = bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
    counts = {f"{one.path}.{name}": one.count for one in experts for name in one.parameters}
    counts |= {part.name: int(model.get_parameter(part.name).shape[0]) for part in parts if _stacked(model, part)}
    layout = read_layout(model, counts)
    by_name = {part.name: part for part in parts}
    specs = [_spec(key, on_disk, by_name, initial[key], tied=tied) for key, on_disk in layout.items()]
    return Checkpoint(
        config=_in_float32(config),
        tensors=tuple(specs),
        routing=None,
        layers_with_experts=tuple(range(len(experts))),
        num_experts=max(one.count for one in experts),
        generation_config={"bos_token_id": BOS, "eos_token_id": [EOS, BOS], "pad_token_id": PAD},
        introspected=Introspected(
            model_type=it.model_type, experts=tuple(experts), parts=tuple(parts), refused=refused
        ),
    )


def _in_float32(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration that says float32 wherever it says a dtype: the layout was read from a float64 model."""
    said = {name: _in_float32(value) if isinstance(value, dict) else value for name, value in config.items()}
    return said | ({"dtype": "float32"} if "dtype" in said else {})


def _leaf(part: Part) -> str:
    return part.module.rpartition(".")[2]


def refused_by_peft(model: Any, parts: Sequence[Part]) -> dict[str, str]:
    """Return the names of modules that PEFT refuses in a model of this type, each with its words.

    It looks at the last part of a name (``tuners_utils``, 0.17 to 0.21.2), and says so as it attaches.
    """
    import peft
    from peft.tuners import tuners_utils

    check: Any = getattr(tuners_utils, "_check_lora_target_modules_mamba", None)
    found: dict[str, str] = {}
    if check is None:
        return found
    for name in sorted({_leaf(part) for part in parts if part.parameter is None}):
        try:
            check(peft.LoraConfig(target_modules=[name]), model, name)
        except ValueError as error:
            found[name] = " ".join(str(error).split())
    return found


def _stacked(model: Any, part: Part) -> bool:
    return part.parameter not in {None, "weight"} and model.get_parameter(part.name).dim() > 2  # noqa: PLR2004


def _spec(key: str, on_disk: OnDisk, parts: Mapping[str, Part], initial: Any, *, tied: bool) -> TensorSpec:
    """Return what is to be written of one tensor."""
    of = [parts[name] for name in on_disk.parameters if name in parts]
    kind: Kind = of[0].kind if of else "other"
    spec = TensorSpec(
        key=key,
        shape=on_disk.shape,
        kind=kind,
        module=of[0].module if of else None,
        role=of[0].parameter if of and kind in {"expert", "shared_expert"} else None,
        expert=on_disk.expert if kind == "expert" else None,
        sources=tuple(dict.fromkeys(part.delta for part in of)),
    )
    return replace(spec, **_values(spec, on_disk, initial, tied=tied))


def _values(spec: TensorSpec, on_disk: OnDisk, initial: Any, *, tied: bool) -> dict[str, Any]:
    """Return how a tensor is filled: matrices at random, by fan-in; what begins near a value, near that.

    What no parameter says and what is not the same everywhere was computed (the decay of linear attention, say) or is
    a table. It stays what transformers makes of it.
    """
    if not on_disk.floating:
        initial = _spread(initial)
        return {"literal": initial.contiguous().numpy().tobytes().hex(), "stored_as": str(initial.dtype)}
    values = initial.double()
    mean, spread = float(values.mean()), float(values.std()) if values.numel() > 1 else 0.0
    if not on_disk.parameters and spread > 0:
        return {"literal": initial.float().contiguous().numpy().tobytes().hex(), "stored_as": "torch.float32"}
    is_matrix = len(spec.shape) > 1 and spread > 0 and abs(mean) < spread
    if spec.key.endswith(DECAY):
        return {"exponent": 1}
    if not is_matrix:
        init: Init = "random"
        return {"init": init, "exponent": NEAR, "offset": round(mean * GRAIN) / GRAIN}
    exponents = {"router": ROUTER, "head": HEAD, "embedding": HEAD if tied else 0}
    return {"exponent": exponents.get(spec.kind)}


def _spread(table: Any) -> Any:
    """Return a table of whole numbers; one that is all zero, (tokens, experts of each), with every expert in it.

    A model that chooses experts by token begins with such a table and is published with another. Where each token goes
    to the next experts in turn, every expert is as much used.
    """
    import torch

    if table.dim() != 2 or bool(table.any()) or table.dtype == torch.bool:  # noqa: PLR2004 - (tokens, experts of each)
        return table
    tokens, each = table.shape
    return (torch.arange(tokens).unsqueeze(1) * each + torch.arange(each)).remainder(EXPERTS).to(table.dtype)


def write_description(checkpoint: Checkpoint, work: Path) -> None:
    """Keep a description for the stages that follow."""
    (work / DESCRIPTION).write_text(json.dumps(asdict(checkpoint)))


def described(checkpoint: Checkpoint, work: Path) -> Checkpoint:
    """Return what is known of a checkpoint by now: as it is where a file describes it, else as the build left it."""
    path = work / DESCRIPTION
    if checkpoint.introspected is None or not path.exists():
        return checkpoint
    told = json.loads(path.read_text())
    inside = told["introspected"]
    return Checkpoint(
        **{
            **told,
            "tensors": tuple(TensorSpec(**_tuples(one)) for one in told["tensors"]),
            "layers_with_experts": tuple(told["layers_with_experts"]),
            "prefixes": tuple(told["prefixes"]),
            "introspected": Introspected(
                model_type=inside["model_type"],
                experts=tuple(Experts(**_tuples(one)) for one in inside["experts"]),
                parts=tuple(Part(**one) for one in inside["parts"]),
                refused=inside["refused"],
            ),
        }
    )


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
