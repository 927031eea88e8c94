"""Enabling the grouped forward on a model, reporting on it, and taking it off again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

from harness.experts.errors import IneligibleError, NothingToEnableError
from harness.experts.grouped.blocks import Block, BlockReport, Replacement, Session
from harness.experts.grouped.fused import check_fused, innermost, looks_fused, read_fused
from harness.experts.grouped.linears import looks_listed, read_listed, replaced_method


@dataclass(frozen=True)
class GroupedForward:
    """The grouped forward on one model: live, until it is disabled. A context manager that disables on leaving."""

    model: Any
    session: Session
    hooked: tuple[Block, ...]
    refused: tuple[BlockReport, ...]

    @property
    def blocks(self) -> tuple[BlockReport, ...]:
        """Every block with experts, as of now: adapters may have been switched, merged or removed since."""
        return (*(block.report() for block in self._live()), *self.refused)

    def disable(self) -> None:
        """Give every module its own forward back."""
        for block in self._live():
            block.disable()

    def _live(self) -> list[Block]:
        """The blocks that were hooked, and copies of them that have come to the model since."""
        found = [
            own.block
            for module in self.model.modules()
            for own in vars(module).values()
            if isinstance(own, Replacement)
        ]
        copies = [block for block in found if block.session is self.session and block not in self.hooked]
        return [*self.hooked, *copies]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disable()


def enable_grouped_forward(model: Any) -> GroupedForward:
    """Let the experts of a model run with their LoRA factored, wherever that is known to compute the same.

    At each call each block decides anew. The library's own forward runs where the adapter is of a kind that is not
    understood, or is disabled or merged. So a model can be enabled before or after an adapter is attached, loaded,
    switched or removed. No class and no library is patched.

    Args:
        model: a transformers model, in PEFT or not.

    Raises:
        NothingToEnableError: there are no experts in the model, or it is enabled already.
    """
    hooked: list[Block] = []
    refused: list[BlockReport] = []
    session = Session()
    places = list(_places(model, session))  # all before any is hooked, so that a refusal leaves nothing behind
    for name, find in places:
        try:
            block = find()
            block.enable()
        except IneligibleError as error:
            refused.append(BlockReport(name=name, state="refused", reason=str(error)))
        else:
            hooked.append(block)
    if not hooked and not refused:
        raise NothingToEnableError(f"{type(model).__name__} has no experts")
    return GroupedForward(model, session, tuple(hooked), tuple(refused))


def _places(model: Any, session: Session) -> Iterator[tuple[str, Callable[[], Block]]]:
    """Yield the name of each place where experts are called, and what makes a block of it or refuses."""
    for name, owner in list(model.named_modules()):
        if any(isinstance(own, Replacement) for own in vars(owner).values()):
            raise NothingToEnableError(
                f"{name or type(model).__name__} is enabled already; what enable_grouped_forward returned then is "
                "still live, and its disable() ends it."
            )
        if looks_listed(owner):
            yield f"{name}.experts", partial(_listed, name, owner, session)
        for child, module in list(owner.named_children()):
            if child != "base_layer" and looks_fused(innermost(module)):
                yield f"{name}.{child}", partial(_fused, name, owner, child, session)


def _fused(name: str, owner: Any, child: str, session: Session) -> Block:
    check_fused(innermost(getattr(owner, child)))
    return Block(f"{name}.{child}", owner, child, "forward", read_fused, session)


def _listed(name: str, owner: Any, session: Session) -> Block:
    return Block(f"{name}.experts", owner, None, replaced_method(owner), read_listed, session)
