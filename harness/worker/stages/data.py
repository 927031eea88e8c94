"""Token ids for training and evaluation, made from the counter-based generator: the same in every stack."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.worker.checkpoints.random_bits import random_integers
from harness.worker.checkpoints.tokenizer import SPECIAL

if TYPE_CHECKING:
    import torch

TRAINING_SEQUENCES = 16
TRAINING_LENGTH = 32
LONGER = (24, 16, 21, 18)
"""Lengths of sequences that are not equal. Each has another beside it, with which it fills a row."""
PROMPTS = 8
PROMPT_LENGTH = 24
SAMPLES = 3
SAMPLE_PROMPT_LENGTH = 8
SAMPLE_NEW_TOKENS = 16


def training_sequences(vocab: int, seed: int) -> list[list[int]]:
    """Return sequences with something to learn: each repeats a random phrase of eight tokens."""
    phrases = random_tokens("training", vocab, seed, TRAINING_SEQUENCES * 8).reshape(TRAINING_SEQUENCES, 8)
    return [(phrase.tolist() * (TRAINING_LENGTH // 8))[:TRAINING_LENGTH] for phrase in phrases]


def unequal_sequences(vocab: int, seed: int) -> list[list[int]]:
    """Return twice as many sequences, of several lengths, that fill as many rows of ``TRAINING_LENGTH`` exactly."""
    phrases = random_tokens("unequal", vocab, seed, 2 * TRAINING_SEQUENCES * 8).reshape(2 * TRAINING_SEQUENCES, 8)
    found = []
    for number, phrase in enumerate(phrases):
        longer = LONGER[number // 2 % len(LONGER)]
        length = longer if number % 2 == 0 else TRAINING_LENGTH - longer
        found.append((phrase.tolist() * (TRAINING_LENGTH // 8))[:length])
    return found


def evaluation_prompts(vocab: int, seed: int) -> torch.Tensor:
    """Return held-out prompts: (PROMPTS, PROMPT_LENGTH) int64."""
    import torch

    return torch.from_numpy(
        random_tokens("evaluation", vocab, seed, PROMPTS * PROMPT_LENGTH).reshape(PROMPTS, PROMPT_LENGTH).copy()
    )


# numpy is typed only where it is installed.
def random_tokens(name: str, vocab: int, seed: int, count: int):  # type: ignore[no-untyped-def]  # noqa: ANN201
    """Return ordinary tokens, (count,) int64; the name chooses which."""
    numbers = random_integers(seed, f"tokens/{name}", count)
    return abs(numbers) % (vocab - len(SPECIAL)) + len(SPECIAL)
