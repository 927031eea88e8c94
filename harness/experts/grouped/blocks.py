"""One MoE block of a model: where its experts' forward is replaced, and whether the replacement runs at a call.

The replacement is an attribute of a module instance. The module's class and every library stay as they are. What
stands as the experts can change: PEFT wraps them when an adapter is attached, and unwraps them when it is unloaded. So
a hook before the block's forward moves the attribute along.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch

from harness.experts.errors import ExpertsError, IneligibleError

State = Literal["grouped", "library", "refused"]


@dataclass(frozen=True, kw_only=True)
class BlockReport:
    """What happens in one block.

    ``state``: ``grouped`` (would run now), ``library`` (the original forward would run now) or ``refused`` (never
    touched). ``reason``: how the products run, or why not. ``grouped_calls`` and ``library_calls``: how often each ran
    so far.
    """

    name: str
    state: State
    reason: str
    grouped_calls: int = 0
    library_calls: int = 0


class Experts(Protocol):
    """The experts of a block as of now, called as the replaced method is.

    ``dimensions``: how many dimensions each tensor of the call has.
    """

    dimensions: ClassVar[tuple[int, ...]]

    def __call__(self, *args: Any) -> Any:
        """Run them."""

    def ways(self) -> str:
        """How the products run."""


class Session:
    """One enabling. Copies of its blocks belong to it as well: PEFT's layer_replication copies layers."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Session:
        return self


@dataclass(eq=False)
class Block:
    """A hooked block.

    ``owner``: the module that calls the experts. ``child``: its attribute that is called, whatever stands there; None
    where the owner calls a method of its own. ``method``: the method that is replaced. ``read``: returns the
    replacement as of now, or raises an ExpertsError. ``session``: the enabling that it belongs to.
    """

    name: str
    owner: Any
    child: str | None
    method: str
    read: Callable[[Any], Experts]
    session: Session
    grouped_calls: int = field(default=0, init=False)
    library_calls: int = field(default=0, init=False)
    enabled: bool = field(default=False, init=False)
    replacement: Replacement | None = field(default=None, init=False)
    handle: Any = field(default=None, init=False)

    def enable(self) -> None:
        """Hook the block.

        Raises:
            IneligibleError: the method has been replaced on the instance by somebody else.
        """
        self._check_free()
        self.enabled = True
        if self.child is not None:
            self.handle = self.owner.register_forward_pre_hook(self._follow)
        self._attach()

    def disable(self) -> None:
        """Undo: nothing of ours stays on any module.

        Somebody may have wrapped our forward since (accelerate, say). Then the original is behind it.
        """
        self.enabled = False
        self._detach()
        if self.handle is not None:
            self.handle.remove()
            self.handle = None

    def report(self) -> BlockReport:
        """What would happen if the block were called now."""
        state: State = "grouped"
        try:
            if not self.enabled:
                raise IneligibleError("disabled")
            self._follow()
            self._check_free()
            reason = self.read(self.standing).ways()
        except ExpertsError as error:
            state, reason = "library", str(error)
        return BlockReport(
            name=self.name,
            state=state,
            reason=reason,
            grouped_calls=self.grouped_calls,
            library_calls=self.library_calls,
        )

    @property
    def standing(self) -> Any:
        """The module whose method the owner calls now."""
        return self.owner if self.child is None else getattr(self.owner, self.child)

    @torch.compiler.disable  # type: ignore[untyped-decorator] # torch is not followed
    def _follow(self, *_: Any) -> None:
        """Move to what stands as the experts now."""
        if self.replacement is None or self.standing is not self.replacement.module:
            self._detach()
            self._attach()

    def _attach(self) -> None:
        if self.method not in vars(self.standing):
            self.replacement = Replacement(self, self.standing)
            setattr(self.standing, self.method, self.replacement)

    def _check_free(self) -> None:
        """Refuse to cover, or to speak for, a method that somebody else put on the instance.

        accelerate's offloading does that.
        """
        ours = self.replacement is not None and self.replacement.module is self.standing
        if not ours and self.method in vars(self.standing):
            raise IneligibleError(f"{type(self.standing).__name__} has a {self.method} of its own")

    def _detach(self) -> None:
        replacement, self.replacement = self.replacement, None
        if replacement is not None and vars(replacement.module).get(self.method) is replacement:
            delattr(replacement.module, self.method)


@dataclass(eq=False)
class Replacement:
    """What stands in for a method of one module.

    It is not a closure, so that a copied model calls its own experts and not the original's.
    """

    block: Block
    module: Any

    # Whether it may run is decided in Python from live modules: a compiled graph would remember the answer.
    @torch.compiler.disable  # type: ignore[untyped-decorator] # torch is not followed
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the grouped forward if it may stand in now, else the library's own."""
        try:
            if self.block.replacement is not self:
                raise IneligibleError("disabled, or moved elsewhere")  # somebody kept this
            grouped = self.block.read(self.module)
            _check_call(grouped.dimensions, args, kwargs)
        except ExpertsError:
            self.block.library_calls += 1
            return getattr(type(self.module), self.block.method)(self.module, *args, **kwargs)
        self.block.grouped_calls += 1
        return grouped(*args)


def _check_call(dimensions: tuple[int, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a call with anything but tensors of these dimensions: PEFT passes adapter_names by keyword."""
    if kwargs or [getattr(one, "ndim", None) for one in args] != list(dimensions):
        raise IneligibleError("called with other arguments")
    if args[0].numel() == 0:
        raise IneligibleError("called with no tokens")
