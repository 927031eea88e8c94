"""Embeddings and head: vocabularies that are resized before training, and ends that were tied and no longer are.

Both change what a right merge is, beside its deltas. A resized vocabulary has more rows, and ``config.json`` says how
many. Ends that are tied are one tensor on disk. A LoRA on one of them, or a copy of it that is trained, leaves the
other as it was, so a right merge writes both and ``tie_word_embeddings`` is false.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.worker.checkpoints.family import Checkpoint
from harness.worker.checkpoints.tensors import TensorSpec
from harness.worker.recipes.recipe import Recipe, recipe
from harness.worker.request import Request
from harness.worker.stages.rewriting import write_like
from harness.worker.stages.shards import INDEX
from harness.worker.stages.targets import HEAD

EMBEDDING = "model.embed_tokens"
"""The module in memory."""
HEAD_KEY = "lm_head.weight"
CONFIG = "config.json"
RESIZED = "base-resized"
"""The directory, in the work directory, of the base with the vocabulary that was trained on."""


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return what of a config.json is about the text model, which may be all of it."""
    text: dict[str, Any] = config.get("text_config", config)
    return text


def vocabulary_size(checkpoint: Checkpoint, plan: Recipe) -> int:
    """Return how many tokens the model knows when it is trained."""
    return int(text_config(checkpoint.config)["vocab_size"]) + plan.new_tokens


def grown(tensor: Any, rows: int) -> Any:
    """Return a tensor with zeros below it, until it has so many rows: one that has them is returned itself."""
    from torch.nn.functional import pad

    missing = rows - len(tensor)
    return pad(tensor, (0, 0, 0, missing)) if missing > 0 else tensor


def resize(model: Any, request: Request, checkpoint: Checkpoint) -> None:
    """Resize the vocabulary as a user does, where the recipe asks for it; new rows are drawn by the request's seed."""
    import torch

    plan = recipe(request.recipe)
    if plan.new_tokens:
        torch.manual_seed(request.seed)
        model.resize_token_embeddings(vocabulary_size(checkpoint, plan))


def save_resized(model: Any, request: Request, checkpoint: Checkpoint) -> None:
    """Write the base as a model holds it whose vocabulary was resized: its ends in float32, all else as it is."""
    ends = {EMBEDDING: model.get_input_embeddings(), HEAD: model.get_output_embeddings()}
    modules = [(spec.key, ends[spec.module]) for spec in checkpoint.tensors if spec.module in ends]
    held = {key: module.weight.detach().float().cpu() for key, module in modules}
    write_like(request.base, request.work / RESIZED, held.get)


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What a right merge makes of embeddings and head.

    Attributes:
        checkpoint: the merge: the base's description with all tensors that it has.
        config: settings of config.json that are others than the base's.
        grown: keys of tensors that have more rows than the base's.
        untied: the key of the tensor that a head, which the base does not store, begins as; None: there is none.
    """

    checkpoint: Checkpoint
    config: Mapping[str, object]
    grown: frozenset[str] = frozenset()
    untied: str | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint, deltas: Mapping[str, Any]) -> Vocabulary:
        """Return it for a base and the deltas of ``stages.deltas``, which have the rows of what was trained."""
        config: dict[str, object] = {}
        tensors: list[TensorSpec] = []
        larger: set[str] = set()
        untied = None
        for spec in checkpoint.tensors:
            rows = len(deltas[spec.module]) if spec.module in (EMBEDDING, HEAD) and spec.module in deltas else None
            if rows is not None and rows != spec.shape[0]:
                config["vocab_size"] = rows
                larger.add(spec.key)
                tensors.append(replace(spec, shape=(rows, *spec.shape[1:])))
            else:
                tensors.append(spec)
        if checkpoint.config.get("tie_word_embeddings") and {EMBEDDING, HEAD} & deltas.keys():
            config["tie_word_embeddings"] = False
            (own,) = (spec for spec in tensors if spec.module == EMBEDDING)
            untied = own.key
            tensors.append(replace(own, key=HEAD_KEY, kind="head", module=HEAD))
            larger |= {HEAD_KEY} if own.key in larger else set()
        merged = replace(checkpoint, tensors=tuple(tensors))
        return cls(checkpoint=merged, config=config, grown=frozenset(larger), untied=untied)

    def before(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Return the base's tensors as deltas are added to them: grown by rows of zeros, and the head beside."""
        found = dict(tensors)
        if self.untied is not None:
            found[HEAD_KEY] = found[self.untied]
        for spec in self.checkpoint.tensors:
            if spec.key in found and spec.module in (EMBEDDING, HEAD):
                found[spec.key] = grown(found[spec.key], spec.shape[0])
        return found

    def says(self, base: Path, merged: Path) -> bool:
        """Whether a merge's config.json says what the base's does, but for what must change."""
        ours, theirs = (json.loads((directory / CONFIG).read_bytes()) for directory in (base, merged))
        self.configure(ours)
        return bool(ours == theirs)

    def finish(self, merged: Path, head: Any) -> None:
        """Give a directory that has the base's files, and grown tensors, all else that a right merge has.

        Args:
            merged: the directory.
            head: the head to be written where it is tied no more.
        """
        from safetensors import safe_open
        from safetensors.torch import load_file, save_file

        if not self.config:
            return
        config = json.loads((merged / CONFIG).read_text())
        self.configure(config)
        (merged / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        index = json.loads((merged / INDEX).read_text()) if (merged / INDEX).exists() else None
        size = 0
        for path in sorted(merged.glob("*.safetensors")):
            tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
            if self.untied in tensors:
                with safe_open(path, framework="pt") as shard:
                    metadata = shard.metadata()
                tensors[HEAD_KEY] = head.contiguous()
                save_file(tensors, path, metadata=metadata)
                if index is not None:
                    index["weight_map"][HEAD_KEY] = path.name
            size += sum(tensor.nbytes for tensor in tensors.values())
        if index is not None:
            index["metadata"]["total_size"] = size
            (merged / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

    def prepare(self, model: Any) -> None:
        """Give a model of the base the tensors that deltas are added to: grown by rows of zeros, and untied."""
        import torch

        if "vocab_size" in self.config:
            known = len(model.get_input_embeddings().weight)
            model.resize_token_embeddings(self.config["vocab_size"], mean_resizing=False)
            with torch.no_grad():
                for end in (model.get_input_embeddings(), model.get_output_embeddings()):
                    end.weight[known:] = 0
        if self.untied is not None:
            model.get_output_embeddings().weight = torch.nn.Parameter(
                model.get_input_embeddings().weight.detach().clone()
            )

    def configure(self, config: dict[str, Any]) -> None:
        """Change the settings of a base's config.json to those of a right merge."""
        for name, value in self.config.items():
            (config if name in config else text_config(config))[name] = value
