"""What an adapter holds besides lora pairs: fully trained or resized tensors, trained tokens, and biases on lora_B.

Sources: ``peft.utils.other.ModulesToSaveWrapper`` and ``TrainableTokensWrapper``,
``peft.tuners.trainable_tokens.TrainableTokensLayer.merge``, ``peft.tuners.lora.layer.Linear.merge`` for lora_bias
(0.18.0 to 0.21.2).
"""

from __future__ import annotations

from math import prod

from harness.merge.adapter.adapter import EMBEDDINGS, Adapter, FullTensor
from harness.merge.adapter.patterns import names_suffix, suffixes
from harness.merge.base.index import Index
from harness.merge.base.names import PARAMETER_OF, expert_module, fused_parameter, split
from harness.merge.base.weight import Weight
from harness.merge.errors import (
    AdapterMismatchError,
    MalformedAdapterError,
    UnsupportedAdapterError,
)
from harness.merge.plan.lora_targets import NOT_THIS_BASE, Match
from harness.merge.plan.merge_plan import Contribution, TensorContribution, Term
from harness.merge.plan.regions import Action, Claim


def resized_by(index: Index, adapter: Adapter) -> dict[str, tuple[int, ...]]:
    """Return the output shapes of the embeddings that the adapter replaces with another number of rows, by key.

    Raises:
        AdapterMismatchError: another difference of shape than the number of rows.
    """
    resized: dict[str, tuple[int, ...]] = {}
    for tensor in adapter.full:
        module, _, leaf = tensor.path.rpartition(".")
        weight = index.find(tensor.path) if names_suffix(module, EMBEDDINGS) else None
        if weight is None or leaf not in {"weight", "bias"} or weight.shape == tensor.info.shape:
            continue
        if weight.shape[1:] != tensor.info.shape[1:]:
            raise AdapterMismatchError(
                f"the adapter's {tensor.path} has shape {list(tensor.info.shape)}, the base's {list(weight.shape)}.",
                NOT_THIS_BASE,
            )
        resized[weight.key] = tensor.info.shape
    return resized


def _columns(shape: tuple[int, ...]) -> int:
    return shape[-1] if len(shape) > 1 else 1


def claim_full(index: Index, tensor: FullTensor, contribution: int, resized: dict[str, tuple[int, ...]]) -> list[Claim]:
    """Return the claims of a tensor that replaces the base's, wherever its parts are on disk.

    Raises:
        AdapterMismatchError: the base has no such tensor, or one of another shape.
    """
    action: Action = "replace_below" if tensor.wrapped else "replace"
    shape = tensor.info.shape
    weight = index.find(tensor.path)
    if weight is not None:
        index.check_dtype(weight)
        if shape != resized.get(weight.key, weight.shape):
            raise AdapterMismatchError(
                f"the adapter's {tensor.path} has shape {list(shape)}, the base's {weight.key} {list(weight.shape)}.",
                NOT_THIS_BASE,
            )
        columns = _columns(shape)
        rows = prod(shape) // columns
        term = Term(contribution=contribution, expert=None, offset=0)
        return [Claim(key=weight.key, start=0, rows=rows, columns=columns, term=term, action=action)]
    spelling = index.common(tensor.path)
    if (fused := fused_parameter(spelling)) is not None and (
        parameter := index.expert_parameters(fused[0]).get(fused[1])
    ):
        if shape != (parameter.num_experts, parameter.rows, parameter.columns):
            raise AdapterMismatchError(
                f"the adapter's {tensor.path} has shape {list(shape)}, the base's experts"
                f" {[parameter.num_experts, parameter.rows, parameter.columns]}.",
                NOT_THIS_BASE,
            )
        return [
            Claim(
                key=place.key,
                start=place.start,
                rows=place.rows,
                columns=parameter.columns,
                term=Term(contribution=contribution, expert=expert, offset=place.offset),
                action=action,
            )
            for expert in range(parameter.num_experts)
            for place in parameter.places(expert)
        ]
    single = expert_module(spelling.removesuffix(".weight"))
    if single is not None and spelling.endswith(".weight"):
        parameter = index.expert_parameters(single[0]).get(PARAMETER_OF.get(single[2], ""))
        if parameter is not None and single[1] < parameter.num_experts:
            (place,) = parameter.places(single[1], single[2])
            if shape == (place.rows, parameter.columns):
                term = Term(contribution=contribution, expert=None, offset=0)
                return [
                    Claim(
                        key=place.key,
                        start=place.start,
                        rows=place.rows,
                        columns=parameter.columns,
                        term=term,
                        action=action,
                    )
                ]
    raise AdapterMismatchError(f"the base has no {tensor.path}, which the adapter holds whole.", NOT_THIS_BASE)


def _indices(adapter: Adapter, module: str) -> tuple[int, ...]:
    """Return the token numbers that belong to the trained rows of a module."""
    given = adapter.config.trainable_token_indices
    named = given.keys() & set(suffixes(module))
    indices = next((given[name] for name in given if name in named), given.get(None))
    if indices is None or len(indices) != adapter.tokens[module].shape[0]:
        raise MalformedAdapterError(
            f"the adapter holds {adapter.tokens[module].shape[0]} trained tokens of {module}, and"
            " trainable_token_indices in"
            f" adapter_config.json names {len(indices) if indices is not None else 'none'}.",
            "The configuration does not belong to these weights; save the adapter again.",
        )
    return indices


def claim_tokens(
    index: Index, adapter: Adapter, module: str, contribution: int, resized: dict[str, tuple[int, ...]]
) -> list[Claim]:
    """Return the claims of trained tokens: one row each, the row of the adapter that has its number.

    Raises:
        MalformedAdapterError: adapter_config.json does not say which tokens they are.
        AdapterMismatchError: the base has no such embedding, or no such token.
    """
    weight = index.find(f"{module}.weight")
    if weight is None:
        raise AdapterMismatchError(f"the base has no {module}.weight, whose tokens the adapter trained.", NOT_THIS_BASE)
    index.check_dtype(weight)
    shape = resized.get(weight.key, weight.shape)
    indices = _indices(adapter, module)
    rows = adapter.tokens[module]
    if len(shape) != 2 or rows.shape[1] != shape[1] or max(indices) >= shape[0]:  # noqa: PLR2004 - (vocabulary, features)
        raise AdapterMismatchError(
            f"the adapter's trained tokens of {module} (features {rows.shape[1]}, highest number {max(indices)}) do"
            " not fit"
            f" {weight.key} with shape {list(shape)}.",
            NOT_THIS_BASE,
        )
    return [
        Claim(
            key=weight.key,
            start=token * shape[1],
            rows=1,
            columns=shape[1],
            term=Term(contribution=contribution, expert=None, offset=number),
            action="replace_tokens",
        )
        for number, token in enumerate(indices)
    ]


def claim_bias(index: Index, match: Match, contribution: int) -> Claim:
    """Return the claim of a bias on lora_B, which PEFT adds to the layer's own bias.

    Raises:
        UnsupportedAdapterError: the layer has none; in PEFT's words.
        AdapterMismatchError: it has one of another length.
        UnsupportedBaseError: it is not floating point.
    """
    if match.bias is None:
        raise UnsupportedAdapterError(
            f"{match.pair.module}: Impossible to merge LoRA with `lora_bias=True` because the base layer has no bias."
        )
    index.check_dtype(match.bias)
    added = match.pair.bias
    if added is None or match.bias.shape != added.shape:
        raise AdapterMismatchError(
            f"{match.pair.module}: the bias on lora_B has shape {list(added.shape) if added else None}, the base's"
            f" {match.bias.key} {list(match.bias.shape)}.",
            NOT_THIS_BASE,
        )
    term = Term(contribution=contribution, expert=None, offset=0)
    return Claim(key=match.bias.key, start=0, rows=prod(match.bias.shape), columns=1, term=term, action="add")


def claim_rest(
    index: Index,
    adapter: Adapter,
    position: int,
    contributions: list[Contribution],
    resized: dict[str, tuple[int, ...]],
) -> list[Claim]:
    """Return the claims of all full tensors and trained tokens of an adapter, and append what they read to
    ``contributions``.
    """
    claims: list[Claim] = []
    for tensor in adapter.full:
        contributions.append(TensorContribution(module=tensor.path, role="full", info=tensor.info, adapter=position))
        claims += claim_full(index, tensor, len(contributions) - 1, resized)
    for module, info in adapter.tokens.items():
        contributions.append(
            TensorContribution(module=module, role="trainable_tokens_delta", info=info, adapter=position)
        )
        claims += claim_tokens(index, adapter, module, len(contributions) - 1, resized)
    return claims


def missing_biases(index: Index, adapter: Adapter, covered: set[str]) -> list[str]:
    """Return the biases that the adapter's ``bias`` setting trained and its file does not hold.

    ``all`` trains every bias of the model, ``lora_only`` those of modules with a LoRA (``peft.tuners.tuners_utils``).
    PEFT up to 0.20 does not save the latter: it looks for ``module.bias`` where the module has
    ``module.base_layer.bias``.
    """
    if adapter.config.bias == "none":
        return []
    if adapter.config.bias == "lora_only":
        found = [index.find(f"{pair.module}.bias") for pair in adapter.pairs]
        wanted = {weight.key for weight in found if weight is not None}
    else:
        layers = index.base.num_hidden_layers
        wanted = {key for key in index.weights.by_key if "bias" in key.rpartition(".")[2] and _in_model(key, layers)}
    return sorted(wanted - covered)


def _in_model(key: str, layers: int | None) -> bool:
    """Return whether a key is in the decoder proper, multi-token-prediction layers after the last left out."""
    parts = split(key)
    if parts is None:
        return False
    number = parts[1].removeprefix("layers.").partition(".")[0]
    return not number.isdigit() or layers is None or int(number) < layers


def weight_of(index: Index, key: str) -> Weight:
    """Return a weight of the base by its key, the head that a tied base does not store among them."""
    if index.head is not None and key == index.head.key:
        return index.head
    return index.weights[key]
