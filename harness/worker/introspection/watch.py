"""Which experts see tokens, and where a choice is a near tie, of a model whose routing no file describes.

What is chosen is read where it is dispatched: in the call of the experts. Near ties are found by asking again: the
block around the experts is given what it was given, changed by a ten-thousandth, several times. Where it ever chooses
other experts, rounding may make it choose them too. So no rule of any router is needed. Softmax or sigmoid, biases,
groups and tables are all in what the block does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from harness.worker.checkpoints.family import Checkpoint
from harness.worker.introspection.parts import Experts, mixes_tokens
from harness.worker.stages.experts_watch import ExpertWatch, NoRouterFoundError

ASKED = 8
"""How often a block is asked again. A tie goes the other way each time with a chance of a half."""
CHANGED_BY = 1e-4
"""How much, relative to it, each number that a block is given is changed by, at random: its standard deviation."""


@dataclass(kw_only=True)
class _Place:
    """One experts module while it is watched.

    Attributes:
        number: which it is.
        experts: what it is.
        heard: what it was last called with, (tokens, E) bool; None where a call tells no more than how many.
        given: expert → tokens, of what is asked of experts that are modules.
        calls: how often it was called since recording began.
    """

    number: int
    experts: Experts
    heard: Any = None
    given: dict[int, int] = field(default_factory=dict)
    calls: int = 0

    def last(self, output: Any) -> Any:  # noqa: ARG002 - the same call as ``said``
        """Return what the experts were last called with."""
        return self.heard

    def said(self, output: Any) -> Any:
        """Return what a router says is chosen."""
        return chosen(output if isinstance(output, tuple | list) else [output], self.experts.count)


@dataclass(kw_only=True)
class _Seen:
    """Tokens that went through each place in a phase."""

    tokens: dict[int, int] = field(default_factory=dict)


class ChoiceWatch(ExpertWatch):
    """Counts tokens per (phase, place, expert), and sees near ties, by hooks that change nothing."""

    def _hook(self, model: Any, checkpoint: Checkpoint) -> None:
        inside = checkpoint.introspected
        if inside is None:
            raise NoRouterFoundError("the family was not looked at")
        self._asking = False
        self._seen: dict[str, _Seen] = {}
        self._passes = 1
        root = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._places = [_Place(number=number, experts=one) for number, one in enumerate(inside.experts)]
        for place in self._places:
            holder, block = innermost(root.get_submodule(place.experts.path)), root.get_submodule(place.experts.block)
            if place.experts.parameters:
                self._hooks.append(holder.register_forward_pre_hook(self._heard(place), with_kwargs=True))
            else:
                for expert, module in enumerate(holder):
                    self._hooks.append(module.register_forward_pre_hook(self._heard_one(place, expert)))
                self._hooks.append(block.register_forward_hook(self._ask_each_alone(place), with_kwargs=True))
                continue
            asked, heard = block, place.last
            if mixes_tokens(block):
                asked, heard = _router_of(block), place.said
            self._hooks.append(asked.register_forward_hook(self._ask_again(place, heard), with_kwargs=True))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep near ties of one forward pass."""
        for place in self._places:
            place.calls = 0
        with super().recording():
            yield
        self._passes = max([place.calls for place in self._places] + [1])

    def runs(self, phase: str, positions: int) -> float:
        """Return how often a token went through the experts of a place, where once is what a forward pass has."""
        seen = self._seen.get(phase, _Seen()).tokens
        if not seen or not positions:
            return 0.0
        return max(seen.values()) / (positions * self._passes)

    def _add_tokens(self, place: _Place, counts: Any, tokens: int, hidden: Any) -> None:
        self._add(place.number, counts, hidden)
        self._saw(place, tokens)

    def _heard(self, place: _Place) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG001
            place.heard = chosen([*args, *kwargs.values()], place.experts.count)
            if not self._asking:
                hidden = next(value for value in (*args, *kwargs.values()) if is_real(value))
                self._add_tokens(place, place.heard.sum(0), len(place.heard), hidden)

        return hook

    def _heard_one(self, place: _Place, expert: int) -> Any:
        def hook(module: Any, args: tuple[Any, ...]) -> None:  # noqa: ARG001
            import torch

            rows = args[0].reshape(-1, args[0].shape[-1]).shape[0]
            place.given[expert] = place.given.get(expert, 0) + rows
            if not self._asking:
                counts = torch.zeros(place.experts.count, dtype=torch.int64)
                counts[expert] = rows
                self._add(place.number, counts, args[0])

        return hook

    def _ask_each_alone(self, place: _Place) -> Any:
        """Ask about every token by itself: experts that are modules are given so many tokens, and not told which."""

        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:  # noqa: ARG001
            if self._asking:
                return
            import torch

            hidden = next(value for value in (*args, *kwargs.values()) if is_real(value)).detach()
            tokens = hidden.reshape(-1, 1, 1, hidden.shape[-1])
            self._saw(place, len(tokens))
            if not self._recording:
                return
            generator = torch.Generator().manual_seed(place.number)
            self._asking = True
            try:
                with torch.no_grad():
                    told = [self._chosen_by(module, place, token) for token in tokens]
                    same = [
                        all(self._chosen_by(module, place, _changed(token, generator)) == it for _ in range(ASKED))
                        for token, it in zip(tokens, told, strict=True)
                    ]
            finally:
                self._asking = False
            self.gaps[place.number] = torch.where(torch.tensor(same), torch.inf, 0.0)

        return hook

    def _chosen_by(self, block: Any, place: _Place, token: Any) -> frozenset[int]:
        place.given = {}
        block(token)
        return frozenset(expert for expert, rows in place.given.items() if rows)

    def _saw(self, place: _Place, tokens: int) -> None:
        """Count a call of a place, and the tokens that go through it."""
        place.calls += 1
        if self._phase is not None:
            seen = self._seen.setdefault(self._phase, _Seen()).tokens
            seen[place.number] = seen.get(place.number, 0) + tokens

    def _ask_again(self, place: _Place, heard: Callable[[Any], Any]) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if not self._recording or self._asking:
                return
            import torch

            kept, told, same = place.heard, heard(output), None
            generator = torch.Generator().manual_seed(place.number)
            self._asking = True
            try:
                with torch.no_grad():
                    for _ in range(ASKED):
                        again = module(*(_changed(a, generator) for a in args), **_changed_all(kwargs, generator))
                        alike = (heard(again) == told).all(-1)
                        same = alike if same is None else same & alike
            finally:
                self._asking = False
                place.heard = kept
            gap = torch.where(same, torch.inf, 0.0)
            before = self.gaps.get(place.number)
            self.gaps[place.number] = gap if before is None or before.shape != gap.shape else torch.minimum(before, gap)

        return hook


def innermost(module: Any) -> Any:
    """Return what PEFT has wrapped, however often."""
    while hasattr(module, "base_layer"):
        module = module.base_layer
    return module


def is_real(value: Any) -> bool:
    """Say whether it is a tensor of real numbers."""
    import torch

    return isinstance(value, torch.Tensor) and value.is_floating_point()


def chosen(values: Sequence[Any], experts: int) -> Any:
    """Return which experts each token goes to, from what an experts module is called with: (tokens, E) bool.

    It is called with the chosen experts' numbers, (tokens, k), of which those beyond E are none. Or every expert is
    given every token, one after the other, and what it is not to see is zero (Llama 4).

    Raises:
        NoRouterFoundError: it is called in another way.
    """
    import torch

    for value in values:
        if isinstance(value, torch.Tensor) and not is_real(value) and value.dim() == 2:  # noqa: PLR2004 - (tokens, k)
            index = value.detach().cpu().long()
            none = (index < 0) | (index >= experts)
            seen = torch.zeros(len(index), experts + 1, dtype=torch.bool)
            return seen.scatter_(1, index.masked_fill(none, experts), value=True)[:, :experts]
    hidden = values[0] if len(values) == 1 and is_real(values[0]) else None
    if hidden is not None and hidden.dim() == 2 and len(hidden) % experts == 0:  # noqa: PLR2004 - (E * tokens, H)
        return hidden.detach().view(experts, -1, hidden.shape[-1]).any(-1).T.cpu()
    raise NoRouterFoundError("experts are called with nothing that says which tokens are whose")


def _router_of(block: Any) -> Any:
    """Return the router of experts that lie in a layer beside its attention."""
    for name, module in block.named_children():
        if "router" in name or name == "gate":
            return module
    raise NoRouterFoundError(f"{type(block).__name__} has experts and attention, and no router by that name")


def _changed(value: Any, generator: Any) -> Any:
    import torch

    if not is_real(value):
        return value
    noise = torch.randn(value.shape, generator=generator, dtype=torch.float32).to(value.device, value.dtype)
    return value.detach() * (1 + CHANGED_BY * noise)


def _changed_all(values: Mapping[str, Any], generator: Any) -> dict[str, Any]:
    return {name: _changed(value, generator) for name, value in values.items()}
