"""The smallest form of a model that takes images too: its text model's, inside the smallest of everything else.

No image is ever given to it. What is not the text model is there because the model cannot be had without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.worker.introspection.catalogue import Known, parts_named
from harness.worker.introspection.sizes import HIDDEN, tiny
from harness.worker.introspection.smallest import NotDerivedError, Smallest, by_whom, on_meta, related, smallest

TEXT = "text_config"
DEPTHS = ("depth", "num_hidden_layers", "num_layers", "n_layers", "encoder_layers")
TO_TEXT = ("out_hidden_size", "text_hidden_size", "output_dim", "projector_output_dim", "adapter_out_dim")
"""What parts that are not the text model call its width."""


def smallest_of(it: Known) -> Smallest:
    """Return the smallest form of a model type, alone or inside what takes images.

    Raises:
        NotDerivedError: the rules do not lead to one.
    """
    text_class = it.text_config
    if text_class is None:
        return smallest(it.config_class, it.model_class)
    default = it.config_class()
    parts = {
        name: _part(getattr(default, name).to_dict())
        for name in parts_named(it.config_class)
        if name != TEXT and getattr(default, name, None) is not None
    }
    own = tiny({name: value for name, value in default.to_dict().items() if not isinstance(value, dict)})
    said = getattr(default, TEXT).to_dict()
    text = related(tiny(said), said, takes_images=True)
    whole = _whole(it.config_class, {**own, **parts, TEXT: text})
    try:
        inside = _text_model(on_meta(it.model_class, whole), text_class)
    except NotDerivedError as error:
        raise by_whom(error, it.model_class, default) from error
    made = smallest(text_class, inside, takes_images=True)
    config = _whole(it.config_class, {**own, **parts, TEXT: made.config.to_dict()})
    on_meta(it.model_class, config)
    return Smallest(config=config, model_class=it.model_class, layers=made.layers)


def _whole(config_class: type, settings: Mapping[str, Any]) -> Any:
    try:
        return config_class(**settings)
    except Exception as error:
        raise NotDerivedError(f"{config_class.__name__} refuses the sizes: {type(error).__name__}: {error}") from error


def _part(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what becomes of a part that is not the text model: tiny, one layer deep, as wide as the text where it says
    so.
    """
    made = {name: value for name, value in settings.items() if not isinstance(value, dict)} | tiny(settings)
    made |= {
        name: _part(value) for name, value in settings.items() if isinstance(value, dict) and "model_type" in value
    }
    depths = {settings[name] for name in DEPTHS if type(settings.get(name)) is int}
    made |= {name: 1 for name in DEPTHS if type(settings.get(name)) is int}
    made |= {name: it[:1] for name, it in made.items() if isinstance(it, list) and len(it) in depths and len(it) > 1}
    made |= {name: HIDDEN for name in TO_TEXT if type(settings.get(name)) is int}
    made |= {name: 4 for name in ("num_heads",) if type(settings.get(name)) is int}
    if settings.get("deepstack_visual_indexes"):
        made["deepstack_visual_indexes"] = [0]
    return made


def _text_model(model: Any, text_class: type) -> type:
    """Return the class of the text model inside."""
    for module in model.modules():
        if type(getattr(module, "config", None)) is text_class and hasattr(module, "layers"):
            found: type = type(module)
            return found
    raise NotDerivedError(f"{type(model).__name__} has no text model inside that was found")
