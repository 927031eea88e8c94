"""Loading a checkpoint directory as a user would, and refusing what does not fit it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.worker.observation import UnsupportedError
from harness.worker.releases import loaded_in
from harness.worker.request import Request

_NOT_KNOWN_HERE = (
    "does not recognize this architecture",
    "Unrecognized model identifier",
    "Unrecognized configuration class",
)
"""What transformers says of a model_type that it has no classes for.

Said by 4.57 and 5.x, ``AutoConfig`` and ``AutoModelForCausalLM``.
"""


class WeightsNotLoadedError(RuntimeError):
    """transformers loaded the directory but left parameters at random values or skipped some that do not fit."""


def auto_class(directory: Path) -> Any:
    """Return the class of transformers that loads a checkpoint: of one that takes images too that for images and text.

    Causal language models come first. What is neither is left to them, who say so.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if "text_config" not in json.loads((directory / "config.json").read_text()):
        return AutoModelForCausalLM
    from transformers import AutoModelForImageTextToText

    config = type(AutoConfig.from_pretrained(directory))
    mappings = (it._model_mapping for it in (AutoModelForCausalLM, AutoModelForImageTextToText))  # noqa: SLF001
    causal, with_images = (config in mapping for mapping in mappings)
    return AutoModelForImageTextToText if with_images and not causal else AutoModelForCausalLM


def load_base(load: Callable[[], Any]) -> Any:
    """Load the base for the first time, by ``load``, where the stack may say that it has no such family.

    Raises:
        UnsupportedError: this transformers has no classes for the family, in its own words. From any later stage the
            same words are an error: the family was there a moment ago.
        WeightsNotLoadedError: some parameter did not come from the checkpoint.
    """
    try:
        return load()
    except ValueError as error:
        if any(text in str(error) for text in _NOT_KNOWN_HERE):
            raise UnsupportedError(" ".join(str(error).split())) from error
        raise


def load_model(directory: Path, request: Request) -> Any:
    """Load a causal language model in float32 on the cell's device, in eval mode.

    Raises:
        WeightsNotLoadedError: some parameter did not come from the checkpoint.
    """
    import torch

    loaded = auto_class(directory).from_pretrained(directory, output_loading_info=True, **loaded_in(torch.float32))
    return checked(loaded).to(request.device).eval()


def checked(loaded: tuple[Any, dict[str, Any]]) -> Any:
    """Return the model of ``from_pretrained(…, output_loading_info=True)``.

    Raises:
        WeightsNotLoadedError: some parameter did not come from the checkpoint.
    """
    model, info = loaded
    wrong = {name: sorted(map(str, info[name])) for name in ("missing_keys", "mismatched_keys") if info[name]}
    if wrong:
        raise WeightsNotLoadedError(f"not every parameter came from the checkpoint: {wrong}")
    return model


def load_tokenizer(directory: Path) -> Any:
    """Load the checkpoint's own tokenizer, whatever class the family's config would choose."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(directory)
