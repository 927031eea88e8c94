"""What is trained on: documents, each with the tokens that count, and where they lie in a batch.

A batch can hold them one a row, padded to the longest, or several a row. What the trainer made of them is read off the
batch by looking for them in it, not by its masks or positions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.worker.checkpoints.tokenizer import PAD
from harness.worker.recipes.recipe import Recipe
from harness.worker.stages.chats import conversations, rendered
from harness.worker.stages.data import TRAINING_LENGTH, training_sequences, unequal_sequences

IGNORED = -100
"""A label that the loss leaves out (``torch.nn.CrossEntropyLoss``)."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text.

    Attributes:
        tokens: its ids.
        counted: which of them are trained on.
    """

    tokens: tuple[int, ...]
    counted: tuple[bool, ...]

    @classmethod
    def whole(cls, tokens: Sequence[int]) -> Document:
        """Return a text all of which is trained on."""
        return cls(tokens=tuple(tokens), counted=(True,) * len(tokens))


def training_documents(recipe: Recipe, vocab: int, seed: int) -> list[Document]:
    """Return what a recipe trains on."""
    if recipe.texts == "chats":
        return [
            Document(tokens=tokens, counted=counted) for tokens, counted in map(rendered, conversations(vocab, seed))
        ]
    sequences = training_sequences if recipe.texts == "equal" else unequal_sequences
    return [Document.whole(tokens) for tokens in sequences(vocab, seed)]


def dataset(recipe: Recipe, vocab: int, seed: int) -> dict[str, list[Any]]:
    """Return the columns that the trainer is given: texts as messages where it is to render them itself."""
    if recipe.texts == "chats":
        return {"messages": conversations(vocab, seed)}
    return {"input_ids": [list(document.tokens) for document in training_documents(recipe, vocab, seed)]}


def documents_in(row: Sequence[int], known: Sequence[Document]) -> list[tuple[int, Document]]:
    """Return the documents of one row and where each begins; what is none that is known is taken as one text.

    Padding behind them is left out.
    """
    found: list[tuple[int, Document]] = []
    at = 0
    while at < len(row) and not all(token == PAD for token in row[at:]):
        here = [document for document in known if tuple(row[at : at + len(document.tokens)]) == document.tokens]
        longest = max(here, key=lambda document: len(document.tokens), default=Document.whole(row[at:]))
        found.append((at, longest))
        at += len(longest.tokens)
    return found


@dataclass(kw_only=True)
class Batches:
    """What the trainer computed its losses of, over all steps and of the current one.

    Attributes:
        known: what it should be.
        packed: whether rows hold several documents; then the first token of each is predicted by nothing, and has no
            label.
        tokens: how many tokens the documents had.
        positions: how many there were with padding.
        labels: how many of them had a label.
        wrong: how many positions had another label than the documents say, or one where they say none.
        times: how often each document was there.
        parts: the documents of each batch since the last optimizer step.
        told: the sum of the losses that were differentiated since then.
    """

    known: Sequence[Document]
    packed: bool
    tokens: int = 0
    positions: int = 0
    labels: int = 0
    wrong: int = 0
    times: Counter[Document] = field(default_factory=Counter)
    parts: list[list[Document]] = field(default_factory=list)
    told: float = 0.0

    def take(self, rows: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> list[Document]:
        """Count one batch, and return its documents."""
        part: list[Document] = []
        for row, told in zip(rows, labels, strict=True):
            meant = [IGNORED] * len(row)
            for at, document in documents_in(row, self.known):
                part.append(document)
                for offset, (token, counts) in enumerate(zip(document.tokens, document.counted, strict=True)):
                    if counts and not (self.packed and offset == 0):
                        meant[at + offset] = token
            self.positions += len(row)
            self.labels += sum(label != IGNORED for label in told)
            self.wrong += sum(label != right for label, right in zip(told, meant, strict=True))
        self.tokens += sum(len(document.tokens) for document in part)
        self.times.update(part)
        self.parts.append(part)
        return part

    @property
    def predictions_of_step(self) -> int:
        """How many tokens of the current step are predicted and count."""
        return sum(sum(document.counted[1:]) for part in self.parts for document in part)

    @property
    def labels_of_step(self) -> int:
        """How many labels the current step should have."""
        return sum(self._labels(document) for part in self.parts for document in part)

    def _labels(self, document: Document) -> int:
        return sum(document.counted[1 if self.packed else 0 :])

    def step_taken(self) -> None:
        """Begin a new step."""
        self.parts.clear()
        self.told = 0.0

    def wanted(self, rows: int) -> tuple[float, float]:
        """Return how many tokens, and how many labels, that many rows should have, of documents drawn equally often.

        A packed row is full.
        """
        tokens = sum(len(document.tokens) for document in self.known)
        labels = sum(self._labels(document) for document in self.known)
        times = rows / (tokens / TRAINING_LENGTH if self.packed else len(self.known))
        return times * tokens, times * labels
