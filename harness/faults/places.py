"""Places where several faults are planted: parts of a model, a trainer's batches, what a generation scores, codes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from harness.faults.patching import after_training_begins, replace


def modeling(family: str) -> Any:
    """Return the module of transformers that has a family's model code."""
    return importlib.import_module(f"transformers.models.{family}.modeling_{family}")


def parts(model: Any, *names: str) -> list[Any]:
    """Return the modules of a model that have all of these attributes, in order.

    Raises:
        AttributeError: none has, so a fault cannot be planted there.
    """
    found = [module for module in model.modules() if all(hasattr(module, name) for name in names)]
    if not found:
        raise AttributeError(f"no module of {type(model).__name__} has {', '.join(names)}")
    return found


def lora_layers(model: Any) -> list[Any]:
    """Return the layers of a model that have a LoRA, in order."""
    return [layer for layer in parts(model, "lora_A", "lora_B", "scaling") if len(layer.lora_A)]


def lora_weights(model: Any) -> list[tuple[str, Any]]:
    """Return the LoRA's weights by name."""
    return [(name, weight) for name, weight in model.named_parameters() if ".lora_" in name]


def before_attaching(patches: ExitStack, change: Callable[[Any, Any], None]) -> None:
    """Change the model, or the configuration, that ``peft.get_peft_model`` is given."""
    import peft

    def make(original: Any) -> Any:
        def get_peft_model(model: Any, peft_config: Any, *args: Any, **kwargs: Any) -> Any:
            change(model, peft_config)
            return original(model, peft_config, *args, **kwargs)

        return get_peft_model

    replace(patches, peft, "get_peft_model", make)


def after_collating(patches: ExitStack, change: Callable[[Any, int], None]) -> None:
    """Change every batch that a trainer's collator makes; ``change`` is given how many were made before it too."""

    def change_trainer(trainer: Any) -> None:
        collate = trainer.data_collator
        made = 0

        def changed(examples: Any) -> Any:
            nonlocal made
            batch = collate(examples)
            change(batch, made)
            made += 1
            return batch

        trainer.data_collator = changed

    after_training_begins(patches, change_trainer)


def at_each_step(patches: ExitStack, step: Callable[[Any, Callable[[], None], int], None]) -> None:
    """Take optimizer steps another way.

    Args:
        patches: what a fault of code is given.
        step: is given the optimizer, what takes a step, and how many were asked for before.
    """
    from accelerate.optimizer import AcceleratedOptimizer

    def make(original: Any) -> Any:
        asked = 0

        def take(self: Any, *args: Any, **kwargs: Any) -> None:
            nonlocal asked
            step(self.optimizer, lambda: original(self, *args, **kwargs), asked)
            asked += 1

        return take

    replace(patches, AcceleratedOptimizer, "step", make)


def optimizer_options(patches: ExitStack, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what a trainer makes its optimizer with."""
    from transformers import Trainer

    def make(original: Any) -> Any:
        def get(*args: Any, **kwargs: Any) -> Any:
            optimizer, options = original(*args, **kwargs)
            change(options)
            return optimizer, options

        return get

    replace(patches, Trainer, "get_optimizer_cls_and_kwargs", make)


def scores_of_generation(patches: ExitStack, processor: Callable[[], Any]) -> None:
    """Have each generation pass the scores of its next tokens through a processor of its own, after all others."""
    from transformers import GenerationMixin

    def make(original: Any) -> Any:
        def get(self: Any, *args: Any, **kwargs: Any) -> Any:
            processors = original(self, *args, **kwargs)
            processors.append(processor())
            return processors

        return get

    replace(patches, GenerationMixin, "_get_logits_processor", make)


def inputs_of_generation(patches: ExitStack, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what each forward of a generation is given."""
    from transformers import GenerationMixin

    def make(original: Any) -> Any:
        def prepare(self: Any, *args: Any, **kwargs: Any) -> Any:
            inputs = original(self, *args, **kwargs)
            change(inputs)
            return inputs

        return prepare

    replace(patches, GenerationMixin, "prepare_inputs_for_generation", make)


def codes_of_4_bits(patches: ExitStack, change: Callable[[Any, Any, Any], Any]) -> None:
    """Change codes that bitsandbytes packs, of Linears and of experts alike.

    Args:
        patches: what a fault of code is given.
        change: is given weights, their codes and their state, which it may change, and returns the codes.
    """
    from bitsandbytes import functional

    def make(original: Any) -> Any:
        def quantize(weights: Any, *args: Any, **kwargs: Any) -> Any:
            codes, state = original(weights, *args, **kwargs)
            return change(weights, codes, state), state

        return quantize

    replace(patches, functional, "quantize_4bit", make)


def packing_of_linears(patches: ExitStack, change: Callable[[Any], None]) -> None:
    """Change what each Linear in 4 bits is told, before its weight is packed."""
    from bitsandbytes.nn import Params4bit

    def make(original: Any) -> Any:
        def quantize(self: Any, *args: Any, **kwargs: Any) -> Any:
            change(self)
            return original(self, *args, **kwargs)

        return quantize

    replace(patches, Params4bit, "_quantize", make)


def after_saving_merged(patches: ExitStack, change: Callable[[Path], None]) -> None:
    """Change the directory that a model saves itself to once PEFT has merged it."""
    from peft.tuners.tuners_utils import BaseTuner

    def make(original: Any) -> Any:
        def merge_and_unload(self: Any, *args: Any, **kwargs: Any) -> Any:
            merged = original(self, *args, **kwargs)
            save = merged.save_pretrained

            def save_pretrained(save_directory: Any, *others: Any, **options: Any) -> None:
                save(save_directory, *others, **options)
                change(Path(save_directory))

            merged.save_pretrained = save_pretrained
            return merged

        return merge_and_unload

    replace(patches, BaseTuner, "merge_and_unload", make)


def sigmoid_weights(router: Any, scores: Any, chosen: Any) -> Any:
    """Return the weights of chosen experts as a router of DeepSeek-V3 has them, (tokens, top_k).

    Args:
        router: has whether they are normalised, and what they are multiplied with.
        scores: of all experts, (tokens, E).
        chosen: (tokens, top_k) int64.
    """
    weights = scores.gather(1, chosen)
    if router.norm_topk_prob:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return weights * router.routed_scaling_factor
