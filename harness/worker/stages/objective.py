"""What a batch's loss should be, from the model's logits and its routers' by the formulas themselves.

The libraries differ in two ways, and each is right by its own account. transformers divides the sum of cross entropies
by the number of labels, which is one more for each sequence than there are predictions (4.57.6, 5.5.0). Or it divides
by the number of predictions (5.23.0). TRL adds the load-balancing loss of the routers by the coefficient of the model's
configuration: where the configuration asks for it (0.25.1), or always (1.16.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.worker.observation import Judgement

BAND = 1e-4
"""How far, relative to it, the loss may be from ours."""


def next_token_loss(logits: Any, tokens: Any, *, ahead: int = 1) -> float:
    """Return the mean cross entropy of the token that many places ahead: nats.

    Args:
        logits: (sequences, length, vocabulary).
        tokens: (sequences, length).
        ahead: at least 1.
    """
    import torch

    return float(torch.nn.functional.cross_entropy(logits[:, :-ahead].flatten(0, 1), tokens[:, ahead:].flatten()))


def load_balancing_loss(router_logits: Mapping[int, Any], top_k: int) -> float:
    """Return how unevenly tokens are spread over experts (arXiv 2101.03961, equation 4, over all layers together).

    It is ``E * sum of f_e p_e``: the share of choices that fell on expert e, as a multiple of the tokens, and its mean
    probability.

    Args:
        router_logits: layer → (tokens, E).
        top_k: experts chosen for each token.
    """
    import torch

    probabilities = torch.cat([router_logits[layer].double().softmax(-1) for layer in sorted(router_logits)])
    chosen = torch.zeros_like(probabilities).scatter_(-1, probabilities.topk(top_k, dim=-1)[1], 1.0)
    return float(probabilities.shape[-1] * (chosen.mean(0) * probabilities.mean(0)).sum())


def judge_objective(told: float, cross_entropy: float, balance: float, length: int) -> Judgement:
    """Judge a loss of sequences of one length.

    Args:
        told: the loss that was trained on.
        cross_entropy: mean over predictions, nats.
        balance: what is added to it.
        length: tokens of a sequence, of which the first is predicted by nothing.
    """
    meant = [cross_entropy * share + balance for share in (1.0, (length - 1) / length)]
    nearest = min(meant, key=lambda loss: abs(told - loss))
    difference = abs(told - nearest) / nearest
    return Judgement(
        value=difference,
        band=f"<= {BAND:g}",
        passed=difference <= BAND,
        detail=f"the first loss was {told:.6g}, where {' or '.join(f'{loss:.6g}' for loss in meant)} is right",
    )
