"""The smallest configuration of a model type that still has every kind of layer, derived from its class.

Sizes are tiny by name (``sizes``). The depth is found by looking: the model is built on the meta device with tiny sizes
and the depth that its class has by default, and as many layers are kept from the front as show every kind that is
there. Two layers are of a kind where their modules and the shapes of their parameters are the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.worker.introspection.sizes import DEPTH, HEADS, HIDDEN, WINDOW, tiny

FEWEST = 2
MOST = 12
"""Layers of the smallest form. Where the kinds do not all show in so many from the front, there is no such form."""
_LAYER = re.compile(r"^(?P<path>.*?\blayers|.*?\bblocks|.*?\bh)\.(?P<number>\d+)\.(?P<rest>.+)$")


class NotDerivedError(RuntimeError):
    """The rules give no small model of this type; the message says which rule gave what."""


@dataclass(frozen=True, kw_only=True)
class Smallest:
    """The smallest form of a family.

    Attributes:
        config: the configuration, of the class that the model's own class takes.
        model_class: the causal language model.
        layers: how many layers it has.
    """

    config: Any
    model_class: type
    layers: int


def smallest(config_class: type, model_class: type, *, takes_images: bool = False) -> Smallest:
    """Derive the smallest form, and prove by building it on the meta device that it has every kind of layer.

    Args:
        config_class: the configuration's class of the text model.
        model_class: its causal language model.
        takes_images: whether it is the text model of one that takes images too.

    Raises:
        NotDerivedError: the rules do not lead to one.
    """
    default = config_class()
    settings = {**default.to_dict()}
    depth_names = [name for name in DEPTH if type(getattr(default, name, None)) is int]
    if not depth_names:
        raise NotDerivedError(f"{config_class.__name__} has none of {', '.join(DEPTH)}")
    depth = getattr(default, depth_names[0])
    sizes = related(tiny(settings), settings, takes_images=takes_images)
    types = _types_of_layers(config_class, model_class, sizes, depth_names, getattr(default, "layer_types", ()))
    if types:
        depth, sizes = len(types), {**sizes, "layer_types": types}
    full = _made(config_class, sizes, depth_names, depth, {})
    try:
        kinds = _kinds(model_class, full)
    except NotDerivedError as error:
        raise by_whom(error, model_class, default) from error
    every = set(kinds)
    layers = max(FEWEST, min(n for n in range(1, len(kinds) + 1) if set(kinds[:n]) == every))
    if layers > MOST:
        raise NotDerivedError(f"the first {MOST} of {depth} layers do not show all {len(every)} kinds of them")
    built = _made(config_class, sizes, depth_names, layers, _cut(full.to_dict(), depth, layers))
    small = _kinds(model_class, built)
    if set(small) != every:
        raise NotDerivedError(
            f"with {layers} layers the model has {len(set(small))} kinds of layers, with {depth} it has {len(every)}"
        )
    return Smallest(config=built, model_class=model_class, layers=layers)


def by_whom(error: NotDerivedError, model_class: type, default: Any) -> NotDerivedError:
    """Return the error, or that of the configuration's own defaults where these cannot be built either."""
    try:
        on_meta(model_class, default)
    except NotDerivedError as own:
        return NotDerivedError(f"not even with its configuration's own defaults: {own}")
    return error


def _types_of_layers(
    config_class: type, model_class: type, sizes: Mapping[str, Any], depth_names: Sequence[str], said: Any
) -> list[str]:
    """Return a layer of each type that makes a layer of another kind, where a configuration names none, or one.

    Such a class leaves it to each checkpoint which layers it has. Nothing where the configuration itself has several
    types, or none at all.
    """
    if said == () or (said and len(set(said)) > 1):
        return []
    from transformers import configuration_utils

    allowed = getattr(configuration_utils, "ALLOWED_LAYER_TYPES", ())
    kinds: dict[str, str] = {}
    for name in dict.fromkeys((*(said or ()), *allowed)):
        try:
            built = _made(config_class, {**sizes, "layer_types": [name] * FEWEST}, depth_names, FEWEST, {})
            last = _kinds(model_class, built)[-1].partition("\n")[2]
        except NotDerivedError:
            continue
        kinds.setdefault(last, name)
    # Dense first layers come first, and each type is to be seen with experts too.
    return [*kinds.values(), *kinds.values()] if len(kinds) > 1 else []


def _made(
    config_class: type, sizes: Mapping[str, Any], depth_names: Sequence[str], depth: int, cut: Mapping[str, Any]
) -> Any:
    """Return a configuration of these sizes and so many layers."""
    try:
        made = config_class(**{**sizes, **dict.fromkeys(depth_names, depth), **cut})
    except Exception as error:
        raise NotDerivedError(f"{config_class.__name__} refuses the sizes: {type(error).__name__}: {error}") from error
    return made


def _cut(settings: Mapping[str, Any], depth: int, layers: int) -> dict[str, Any]:
    """Return what the configuration says layer by layer, of the layers that are kept."""
    cut: dict[str, Any] = {
        name: value[:layers] for name, value in settings.items() if isinstance(value, list) and len(value) == depth
    }
    for name, value in settings.items():
        if isinstance(value, dict) and value and all(str(key).isdigit() for key in value) and "label" not in name:
            cut[name] = {key: it for key, it in value.items() if int(key) < layers}
    return cut


def related(sizes: dict[str, Any], settings: Mapping[str, Any], *, takes_images: bool) -> dict[str, Any]:
    """Return the sizes with what else hangs on them: sections of rotary dimensions add up to half of them."""
    rope = settings.get("rope_parameters") or settings.get("rope_scaling")
    slides = "sliding_attention" in (settings.get("layer_types") or ()) or "num_sliding_attention_heads" in settings
    if settings.get("sliding_window") is None and slides:
        sizes["sliding_window"] = WINDOW
    # A model that takes images has sections by default where its configuration names none.
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        return sizes
    if "mrope_section" in rope or takes_images:
        head = sizes.get("head_dim") or settings.get("head_dim") or HIDDEN // HEADS
        factor = rope.get("partial_rotary_factor") or settings.get("partial_rotary_factor") or 1.0
        rotary = int(head * factor) // 2
        first = rotary - 2 * (rotary // 3)
        sizes["rope_parameters"] = {**rope, "mrope_section": [first, rotary // 3, rotary // 3]}
    return sizes


def _kinds(model_class: type, config: Any) -> list[str]:
    """Return what each layer of a model consists of, in order: its modules' classes and its parameters' shapes."""
    model = on_meta(model_class, config)
    layers: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        if found := _LAYER.match(name):
            parameters = [f"{leaf}{tuple(p.shape)}" for leaf, p in module.named_parameters(recurse=False)]
            said = f"{found['rest']}:{type(module).__name__}:{','.join(parameters)}"
            layers.setdefault(int(found["number"]), []).append(said)
    if not layers:
        raise NotDerivedError(f"{model_class.__name__} has no layers by any name that is known")
    types = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or []
    return [
        "\n".join([str(types[number]) if number < len(types) else "", *layers[number]]) for number in sorted(layers)
    ]


def on_meta(model_class: type, config: Any) -> Any:
    """Build a model on the meta device, where it takes no memory.

    Raises:
        NotDerivedError: it cannot be built.
    """
    import torch

    try:
        with torch.device("meta"):
            return model_class._from_config(config)  # type: ignore[attr-defined]  # noqa: SLF001 - of every model
    except Exception as error:
        raise NotDerivedError(f"{model_class.__name__} cannot be built: {type(error).__name__}: {error}") from error
