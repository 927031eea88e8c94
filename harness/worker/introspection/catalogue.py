"""Which model types the installed transformers knows that have routed experts, found by building them.

A model type is looked at where its own module says anything of experts. That is a cheap first look; what decides is the
model, built on the meta device, or the reason why it cannot be.
"""

from __future__ import annotations

import difflib
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.worker.observation import UnsupportedError

_SAYS_EXPERTS = re.compile("experts", re.IGNORECASE)
_HAS_EXPERTS = re.compile(r"class \w*Experts?\w*\(|use_experts_implementation")
NEAREST = 3
SAYS_NEXT_TOKENS = ("ForConditionalGeneration", "ForCausalLM")
"""What the names of models end with that say one token after the other. One that fills in blocks is none."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """A model type that has a causal language model.

    Attributes:
        model_type: as its config.json says it: the text model's own, where that can be built alone.
        config_class: of that model.
        model_class: the causal language model, or one that takes images too.
    """

    model_type: str
    config_class: type
    model_class: type

    @property
    def text_config(self) -> type | None:
        """The configuration's class of the text model inside; None where the model is that alone."""
        found: type | None = parts_named(self.config_class).get("text_config")
        return found


def parts_named(config_class: type) -> dict[str, type]:
    """Return the configurations inside a configuration, by the names of the settings that hold them."""
    found = getattr(config_class, "sub_configs", {})
    return found if isinstance(found, dict) else {}  # a property in some classes of transformers 4.57


def known(model_type: str) -> Known:
    """Return the classes of a model type. Of one that takes images too it is the text model alone, where it can be had.

    Raises:
        UnsupportedError: this transformers has none, in its own words and with the nearest names.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    try:
        config_class = CONFIG_MAPPING[model_type]
    except KeyError:
        raise UnsupportedError(_not_known(AutoConfig, model_type, list(CONFIG_MAPPING_NAMES))) from None
    text = parts_named(config_class).get("text_config")
    candidates: tuple[Any, ...] = (config_class, text)
    for candidate in candidates:
        if candidate is None or "text_config" in parts_named(candidate):
            continue
        if candidate in AutoModelForCausalLM._model_mapping:  # noqa: SLF001 - there is no public way
            found = AutoModelForCausalLM._model_mapping[candidate]  # noqa: SLF001 - as above
            return Known(model_type=candidate.model_type, config_class=candidate, model_class=found)
    if text is not None and config_class in AutoModelForImageTextToText._model_mapping:  # noqa: SLF001 - as above
        found = AutoModelForImageTextToText._model_mapping[config_class]  # noqa: SLF001 - as above
        if found.__name__.endswith(SAYS_NEXT_TOKENS):
            return Known(model_type=config_class.model_type, config_class=config_class, model_class=found)
    raise UnsupportedError(_no_causal_model(text or config_class))


def _not_known(auto: Any, model_type: str, names: list[str]) -> str:
    """Return what transformers says of a model type that it does not know, and names that are near."""
    try:
        auto.for_model(model_type)
    except ValueError as error:
        said = " ".join(str(error).split()).partition(" Should contain one of")[0]
    else:
        said = f"{model_type} is no model type"
    near = difflib.get_close_matches(model_type, names, n=NEAREST)
    return f"{said.rstrip('.')}; near it are {', '.join(near)}" if near else said


def _no_causal_model(config_class: type) -> str:
    """Return what transformers says of a configuration that it has no causal language model for."""
    from transformers import AutoModelForCausalLM

    try:
        AutoModelForCausalLM.from_config(config_class())
    except Exception as error:  # noqa: BLE001 - its words are what is asked for
        return " ".join(str(error).split()).partition(" Model type should be one of")[0]
    return f"{config_class.__name__} has a model that is none of AutoModelForCausalLM's own"


def with_experts() -> dict[str, str | None]:
    """Return the model types whose causal language model has routed experts: name → why it is not known whether.

    None where it is known. Names of one text model are one: its own. Where a module says that it has experts and none
    of its models is a causal language model, it is there by its own name, with what transformers says of that.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES, model_type_to_module_name

    found: dict[str, str | None] = {}
    looked_at: set[str] = set()
    without: dict[str, str] = {}
    for name in CONFIG_MAPPING_NAMES:
        if not may_have_experts(name):
            continue
        module = model_type_to_module_name(name)
        try:
            it = known(name)
        except UnsupportedError as error:
            if may_have_experts(name, _HAS_EXPERTS):
                without.setdefault(module, str(error))
            continue
        looked_at.add(module)
        if it.model_type not in found:
            said = _look(it)
            if not isinstance(said, bool):
                found[it.model_type] = said
    found |= {module: said for module, said in without.items() if module not in looked_at}
    return dict(sorted(found.items()))


def _look(it: Known) -> str | bool | None:
    """Return None where a model has experts, False where it has none, and the reason where it cannot be built."""
    from harness.worker.introspection.composite import smallest_of
    from harness.worker.introspection.parts import has_experts
    from harness.worker.introspection.smallest import NotDerivedError, on_meta

    try:
        made = smallest_of(it)
    except NotDerivedError as error:
        return str(error)
    return None if has_experts(on_meta(made.model_class, made.config)) else False


def may_have_experts(model_type: str, said: re.Pattern[str] = _SAYS_EXPERTS) -> bool:
    """Say whether the module of a model type, or that of another whose model it uses, says ``said``."""
    import transformers
    from transformers.models.auto.configuration_auto import model_type_to_module_name

    name = model_type_to_module_name(model_type)
    path = Path(transformers.__file__).parent / "models" / name / f"modeling_{name}.py"
    if not path.exists():
        try:
            path = Path(str(sys.modules[known(model_type).model_class.__module__].__file__))
        except UnsupportedError:
            return False
    return bool(said.search(path.read_text(encoding="utf-8")))
