"""What a batch's loss should be, from the model's logits and its routers' by the formulas themselves.

Each document is said alone, beside others of its length only, so without padding and without a neighbour in its row.
The libraries differ in two ways, and each is right by its own account. transformers divides the sum of cross entropies
by the number of labels, which is one more for each sequence than there are predictions (4.57.6, 5.5.0). Or it divides
by the number of predictions (5.23.0). TRL adds the load-balancing loss of the routers by the coefficient of the model's
configuration: where the configuration asks for it (0.25.1), or always (1.16.0).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.worker.observation import Judgement
from harness.worker.stages.documents import Document
from harness.worker.stages.experts_watch import ExpertWatch

BAND = 2e-6
"""How far, relative to it, the loss may be from ours: float32 and the order of sums. Measured at most 2.6e-7."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a model said of some documents.

    Attributes:
        losses: the sum of cross entropies of the tokens that count, () in nats.
        predictions: how many those are. The first token of a document is predicted by nothing.
        balance: the load-balancing loss of the routers by its coefficient, (); 0 where there is none.
        after_next: the mean cross entropy of the token after next.
    """

    losses: Any
    predictions: int
    balance: Any
    after_next: float


@dataclass(frozen=True, kw_only=True)
class Balancing:
    """The load-balancing loss of routers: how many experts a token chooses, and what it is multiplied with."""

    top_k: int
    coefficient: float


def said_of(
    model: Any, documents: Sequence[Document], *, watch: ExpertWatch, balancing: Balancing | None, device: str
) -> Said:
    """Let a model say documents, each alone. What it returns can be differentiated where gradients are enabled.

    Args:
        model: in the mode that is asked about.
        documents: at least one.
        watch: its routers are recorded, and no token is counted.
        balancing: the loss of routers that is asked for, or None.
        device: where the model is.
    """
    import torch

    losses: list[Any] = []
    after_next: list[Any] = []
    routers: dict[int, list[Any]] = defaultdict(list)
    for tokens, counted in _by_length(documents):
        ids, kept = torch.tensor(tokens, device=device), torch.tensor(counted, device=device)
        with watch.pausing(), watch.recording():
            logits = model(input_ids=ids, use_cache=False).logits.float()
        for layer, of_layer in watch.router_logits.items():
            routers[layer].append(of_layer)
        losses.append(cross_entropies(logits, ids, kept))
        after_next.append(cross_entropies(logits, ids, kept, ahead=2).detach())
    each = torch.cat(losses)
    logits_of_all = {layer: torch.cat(parts) for layer, parts in routers.items()}
    return Said(
        losses=each.sum(),
        predictions=len(each),
        balance=0.0 if balancing is None else _balance(logits_of_all, balancing),
        after_next=float(torch.cat(after_next).mean()),
    )


def _balance(router_logits: Mapping[int, Any], balancing: Balancing) -> Any:
    return balancing.coefficient * load_balancing_loss(router_logits, balancing.top_k)


def _by_length(documents: Sequence[Document]) -> list[tuple[list[tuple[int, ...]], list[tuple[bool, ...]]]]:
    groups: dict[int, list[Document]] = defaultdict(list)
    for document in documents:
        groups[len(document.tokens)].append(document)
    return [([one.tokens for one in group], [one.counted for one in group]) for group in groups.values()]


def cross_entropies(logits: Any, tokens: Any, counted: Any, *, ahead: int = 1) -> Any:
    """Return the cross entropy of each token that counts and has one that many places before it: (tokens,) in nats.

    Args:
        logits: (sequences, length, vocabulary).
        tokens: (sequences, length).
        counted: (sequences, length) bool.
        ahead: at least 1.
    """
    import torch

    kept = counted[:, ahead:]
    return torch.nn.functional.cross_entropy(logits[:, :-ahead][kept], tokens[:, ahead:][kept], reduction="none")


def load_balancing_loss(router_logits: Mapping[int, Any], top_k: int) -> Any:
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
    return probabilities.shape[-1] * (chosen.mean(0) * probabilities.mean(0)).sum()


def _number(value: Any) -> float:
    """Return a tensor of one number, or a number, as it is."""
    return float(value.detach() if hasattr(value, "detach") else value)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What the loss of a step was, and what it should be.

    Attributes:
        told: the loss that was differentiated, over all batches of the step.
        cross_entropy: the mean over predictions, nats.
        after_next: that of the token after next.
        balance: what is added to it, the mean over batches.
        predicted: predictions as a share of labels; the first token of a sequence can have a label.
    """

    told: float
    cross_entropy: float
    after_next: float
    balance: float
    predicted: float

    @classmethod
    def of(cls, said: Sequence[Said], *, told: float, labels: int) -> Objective:
        """Take together what a model said of a step's batches."""
        predictions = sum(part.predictions for part in said)
        return cls(
            told=told,
            cross_entropy=sum(_number(part.losses) for part in said) / predictions,
            after_next=sum(part.after_next for part in said) / len(said),
            balance=sum(_number(part.balance) for part in said) / len(said),
            predicted=predictions / labels,
        )

    @property
    def _meant(self) -> tuple[float, float]:
        return self.cross_entropy + self.balance, self.cross_entropy * self.predicted + self.balance

    @property
    def by_labels(self) -> bool:
        """Whether the loss is rather a mean over labels."""
        over_predictions, over_labels = (abs(self.told - meant) for meant in self._meant)
        return over_labels < over_predictions

    @property
    def difference(self) -> float:
        """How far the loss that was told is from the nearer of both, relative to it."""
        nearest = min(self._meant, key=lambda loss: abs(self.told - loss))
        difference = abs(self.told - nearest) / nearest
        return difference if math.isfinite(difference) else math.inf

    def after_the_next(self) -> Objective:
        """Return what would be seen if the token after next had been learnt, the control."""
        return replace(self, told=self.after_next + self.balance)

    def describe(self) -> str:
        """Return what the loss was and what is right, in words."""
        right = " or ".join(f"{loss:.6g}" for loss in self._meant)
        return f"was {self.told:.6g}, where {right} is right"


def judge_objective(objectives: Mapping[int, Objective]) -> Judgement:
    """Judge the losses of some steps, by number; all are means over the same, predictions or labels."""
    if not objectives:
        return Judgement(value=None, band=f"<= {BAND:g}", passed=False, detail="no loss was ever computed")
    worst = max(objectives, key=lambda step: objectives[step].difference)
    value, accounts = objectives[worst].difference, {objective.by_labels for objective in objectives.values()}
    another = "; the loss of one step is a mean over labels, that of another over predictions"
    return Judgement(
        value=value,
        band=f"<= {BAND:g}",
        passed=value <= BAND and len(accounts) == 1,
        detail=f"the loss of step {worst} {objectives[worst].describe()}{another if len(accounts) > 1 else ''}",
    )
