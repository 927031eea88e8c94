"""Which experts see tokens, and how near each position's routing is to another choice.

Tokens are counted where they are dispatched: on the experts module itself, not on what the router says it would do. The
gap is computed from the router's input and weight by the family's own rule. What routers return differs between
releases (raw logits, softmaxed logits, tuples in two orders).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from harness.worker.checkpoints.family import Checkpoint, Routing

_EXPERTS = re.compile(r"layers\.(\d+)\.mlp\.experts((?:\.base_layer)*)$")
_ONE_EXPERT = re.compile(r"layers\.(\d+)\.mlp\.experts\.(\d+)$")
_ROUTER = re.compile(r"layers\.(\d+)\.mlp\.gate$")


class NoRouterFoundError(RuntimeError):
    """The model has no router or experts module under the names this family is known by."""


class ExpertWatch:
    """Counts tokens per (phase, layer, expert) and router gaps, by forward hooks that change nothing.

    Attributes:
        counts: phase → layer → tokens per expert, (E,) int64 on the CPU.
        precisions: the dtypes that experts computed in while training, and in how many calls.
        gaps: the smallest router gap over layers for each token of the last ``recording`` pass, in call order. A list
            with one (tokens,) float32 tensor per layer.
        router_logits: layer → (tokens, E) float32 of the same pass, before any bias, with their gradient function.
    """

    def __init__(self, model: Any, checkpoint: Checkpoint) -> None:
        self._phase: str | None = None
        self._recording = False
        self.counts: dict[str, dict[int, Any]] = {}
        self.precisions: Counter[str] = Counter()
        self.gaps: dict[int, Any] = {}
        self.router_logits: dict[int, Any] = {}
        self._num_experts = checkpoint.num_experts
        self._hooks: list[Any] = []
        self._hook(model, checkpoint)

    def _hook(self, model: Any, checkpoint: Checkpoint) -> None:
        """Put hooks on experts and routers, under the names that families with a file have for them."""
        if checkpoint.routing is None:
            raise NoRouterFoundError("nothing says how this family's router chooses")
        self._routing = checkpoint.routing
        layers = set()
        for name, module in model.named_modules():
            if found := _EXPERTS.search(name):
                if hasattr(module, "gate_up_proj") and not hasattr(module, "lora_A"):
                    hook = self._count_fused(int(found[1]))
                    self._hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))
                    layers.add(int(found[1]))
            elif found := _ONE_EXPERT.search(name):
                hook = self._count_one(int(found[1]), int(found[2]))
                self._hooks.append(module.register_forward_pre_hook(hook))
                layers.add(int(found[1]))
            elif found := _ROUTER.search(name):
                hook = self._measure_gap(int(found[1]), module)
                self._hooks.append(module.register_forward_pre_hook(hook))
        if layers != set(checkpoint.layers_with_experts):
            raise NoRouterFoundError(
                f"experts were found in layers {sorted(layers)}, not {checkpoint.layers_with_experts}"
            )

    def remove(self) -> None:
        """Take the hooks off; what was counted stays."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    @contextmanager
    def counting(self, phase: str) -> Iterator[None]:
        """Count tokens under a phase's name while the block runs."""
        self._phase = phase
        try:
            yield
        finally:
            self._phase = None

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Count nothing while the block runs, whatever phase it is in."""
        phase, self._phase = self._phase, None
        try:
            yield
        finally:
            self._phase = phase

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep router gaps of one forward pass."""
        self._recording = True
        self.gaps, self.router_logits = {}, {}
        try:
            yield
        finally:
            self._recording = False

    def fewest(self, phase: str) -> tuple[int, str]:
        """Return the tokens seen by the expert that saw the fewest in a phase, and which it is."""
        counts = self.counts.get(phase)
        if not counts:
            return 0, f"no expert of any layer in {phase}"
        layer, fewest = min(counts.items(), key=lambda item: int(item[1].min()))
        return int(fewest.min()), f"layer {layer}, expert {int(fewest.argmin())} in {phase}"

    def runs(self, phase: str, positions: int) -> float:
        """Return how often a token went through the experts of a layer: twice where layers are computed again."""
        counts = self.counts.get(phase, {})
        if not counts or not positions:
            return 0.0
        return sum(int(count.sum()) for count in counts.values()) / (positions * self._routing.top_k * len(counts))

    def _add(self, layer: int, tokens: Any, hidden: Any) -> None:
        if self._phase == "training":
            self.precisions[precision_of(hidden)] += 1
        if self._phase is not None:
            layers = self.counts.setdefault(self._phase, {})
            layers[layer] = layers[layer] + tokens if layer in layers else tokens

    def _count_fused(self, layer: int) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG001
            import torch

            index = args[1] if len(args) > 1 else kwargs["top_k_index"]
            self._add(layer, torch.bincount(index.detach().flatten().cpu(), minlength=self._num_experts), args[0])

        return hook

    def _count_one(self, layer: int, expert: int) -> Any:
        def hook(module: Any, args: tuple[Any, ...]) -> None:  # noqa: ARG001
            import torch

            tokens = torch.zeros(self._num_experts, dtype=torch.int64)
            tokens[expert] = args[0].reshape(-1, args[0].shape[-1]).shape[0]
            self._add(layer, tokens, args[0])

        return hook

    def _measure_gap(self, layer: int, router: Any) -> Any:
        def hook(module: Any, args: tuple[Any, ...]) -> None:  # noqa: ARG001
            if self._recording:
                hidden = args[0].reshape(-1, args[0].shape[-1]).float()
                weight = routing_weight(router)
                self.router_logits[layer] = hidden @ weight.T
                self.gaps[layer] = router_gap(args[0].detach(), weight.detach(), bias_of(router), self._routing).cpu()

        return hook


@contextmanager
def watching(model: Any, checkpoint: Checkpoint) -> Iterator[ExpertWatch]:
    """Watch a model within the block. No hook is left on it, whatever happens in there."""
    watch = watch_experts(model, checkpoint)
    try:
        yield watch
    finally:
        watch.remove()


def watch_experts(model: Any, checkpoint: Checkpoint) -> ExpertWatch:
    """Watch a model until told not to, by its family's own rule or by what it does (``introspection.watch``)."""
    if checkpoint.introspected is None:
        return ExpertWatch(model, checkpoint)
    from harness.worker.introspection.watch import ChoiceWatch

    return ChoiceWatch(model, checkpoint)


def precision_of(hidden: Any) -> str:
    """Return the dtype that a product with these activations is computed in here and now."""
    import torch

    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    return str(dtype).removeprefix("torch.")


STEEPEST_SIGMOID = 0.25
"""The largest slope of a sigmoid."""


def routing_weight(router: Any) -> Any:
    """Return what a router multiplies with, (E, H) float32, its active LoRA included; it can be differentiated."""
    if not hasattr(router, "get_base_layer"):
        return router.weight.float()
    weight = router.get_base_layer().weight.float()
    if router.disable_adapters or router.merged:
        return weight
    return weight + sum(router.get_delta_weight(name) for name in router.active_adapters if name in router.lora_A)


def bias_of(router: Any) -> Any:
    """Return the correction bias of a router, (E,) float32; None where it has none."""
    base = router.get_base_layer() if hasattr(router, "get_base_layer") else router
    bias = getattr(base, "e_score_correction_bias", None)
    return None if bias is None else bias.float()


def router_gap(hidden: Any, weight: Any, bias: Any, routing: Routing) -> Any:
    """Return how far each token is from choosing other experts: (tokens,) float32, in router logits.

    It is the distance between the last expert chosen and the
    first not chosen. DeepSeek-V3 chooses experts within the best groups, a group's score being the sum of its two best.
    There it is the smaller of that distance and the distance between groups. Infinite where every expert is chosen.

    Args:
        hidden: (…, H).
        weight: the router's, (E, H) float32.
        bias: for sigmoid routing the correction bias, (E,) float32.
        routing: the family's rule.
    """
    import torch

    logits = torch.nn.functional.linear(hidden.reshape(-1, hidden.shape[-1]).float(), weight)
    num_experts = logits.shape[-1]
    # A sharp softmax brings every loser near zero. Logits have the same order, and say how far apart experts are.
    scores = logits if routing.scores == "softmax" else logits.sigmoid() + bias
    infinite = torch.full((logits.shape[0],), float("inf"))
    gap = infinite.to(logits.device)
    if routing.n_group > 1:
        groups = scores.view(-1, routing.n_group, num_experts // routing.n_group)
        ranked, order = groups.topk(2, dim=-1)[0].sum(-1).sort(-1, descending=True)
        if routing.topk_group < routing.n_group:
            gap = ranked[:, routing.topk_group - 1] - ranked[:, routing.topk_group]
        kept = torch.zeros_like(ranked, dtype=torch.bool).scatter_(1, order[:, : routing.topk_group], value=True)
        scores = groups.masked_fill(~kept.unsqueeze(-1), float("-inf")).flatten(1)
    ranked = scores.sort(-1, descending=True)[0]
    if routing.top_k < num_experts:
        gap = torch.minimum(gap, ranked[:, routing.top_k - 1] - ranked[:, routing.top_k])
    # In logits for every family. A logit that moves by less than four gaps moves its sigmoid by less than the gap.
    return gap if routing.scores == "softmax" else gap / STEEPEST_SIGMOID
