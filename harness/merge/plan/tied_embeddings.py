"""Embeddings and head: tied ones that stop being equal, and vocabularies that the training resized.

With ``tie_word_embeddings`` the two are one tensor, stored once. A LoRA, or a fully trained copy, on one of them leaves
the other as it was in the trained model. PEFT's own merge adds the delta to the shared tensor and so changes both. Here
they are untied: both are written, and config.json says so. Trained tokens are the exception. PEFT ties them too
(``TrainableTokensWrapper`` with ``tied_adapter``), so one tensor remains right.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from harness.merge.base.index import Index
from harness.merge.base.weight import Weight
from harness.merge.errors import InconsistentCheckpointError, MalformedAdapterError
from harness.merge.plan.regions import Claim


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What becomes of them.

    Attributes:
        claims: claims to add.
        new: new tensors to write, whatever claims them.
        config: settings of config.json that change.
        notes: what is worth knowing.
    """

    claims: tuple[Claim, ...]
    new: tuple[Weight, ...]
    config: dict[str, object]
    notes: tuple[str, ...]


def _mirrored(embedding: Weight, head: Weight, claims: list[Claim]) -> tuple[Claim, ...]:
    """Return the trained tokens of the embedding as claims on the head, where both are to be written."""
    if any(claim.key == head.key and claim.action == "replace_tokens" for claim in claims):
        return ()
    return tuple(
        replace(claim, key=head.key)
        for claim in claims
        if claim.key == embedding.key and claim.action == "replace_tokens"
    )


def settle_vocabulary(index: Index, claims: list[Claim], resized: dict[str, tuple[int, ...]]) -> Vocabulary:
    """Return how embedding and head end up.

    Args:
        index: the base.
        claims: everything that the adapters claim.
        resized: output shapes of embeddings that change their number of rows, by key.

    Raises:
        MalformedAdapterError: embedding and head would have different numbers of rows.
        InconsistentCheckpointError: the base ties two tensors that cannot be one.
    """
    embedding, head = index.embedding, index.find("lm_head.weight")
    claimed = {claim.key for claim in claims}
    mirrored: tuple[Claim, ...] = ()
    new: tuple[Weight, ...] = ()
    config: dict[str, object] = {}
    notes: tuple[str, ...] = ()
    if embedding is not None and head is not None and index.base.ties_word_embeddings:
        stored = head is not index.head
        if stored or head.key in claimed:
            mirrored = _mirrored(embedding, head, claims)
            if mirrored and head.shape != embedding.shape:
                raise InconsistentCheckpointError(
                    f"config.json ties {head.key} {list(head.shape)} to {embedding.key} {list(embedding.shape)}, whose"
                    " shape is another."
                )
            if mirrored:
                index.check_dtype(head)
        tokens_only = all(claim.action == "replace_tokens" for claim in claims if claim.key == embedding.key)
        if head.key in claimed or (embedding.key in claimed and not tokens_only):
            config["tie_word_embeddings"] = False
            notes = (
                (
                    "lm_head and embed_tokens were tied and no longer are equal: both are written, tie_word_embeddings"
                    " is false."
                ),
            )
            new = () if stored else (head,)
    if resized:
        rows = {
            weight.key: resized.get(weight.key, weight.shape)[0]
            for weight in (embedding, head)
            if weight is not None and weight.shape and (weight is not index.head or new)
        }
        rows |= {key: shape[0] for key, shape in resized.items()}
        if len(set(rows.values())) > 1:
            told = ", ".join(f"{key} {count}" for key, count in sorted(rows.items()))
            raise MalformedAdapterError(
                f"the vocabulary was resized, but not everywhere: {told} rows.",
                "Save the adapter with save_embedding_layers=True, so that it holds both.",
            )
        config["vocab_size"] = next(iter(rows.values()))
    return Vocabulary(claims=mirrored, new=new, config=config, notes=notes)
