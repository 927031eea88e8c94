"""A tensor that looks like a fused experts parameter, (num_experts, out, in) in the compute dtype, and keeps codes.

Libraries see an ordinary floating-point parameter. Shapes, dtype and device are the logical ones, so that PEFT sizes
and casts its LoRA by them. Whatever reads values decodes them: one expert where one is indexed, all of them where an
operation knows no better. A merge writes values: it adds a delta in place. That decodes, adds and quantises again.
Taking the very same delta away afterwards puts back exactly the codes of before.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch.utils._pytree import tree_map

from harness.experts.errors import NotWritableError
from harness.experts.quantization.packed import PackedExperts, pack

MERGES_KEPT = 4
"""Merges that can be undone to the very codes: each keeps the codes of before."""
aten = torch.ops.aten
Handler = Callable[..., Any]


class _Store:
    """The codes, which a tensor and its aliases share.

    ``before``: what the codes were before each merge that was not undone yet.
    """

    def __init__(self, packed: PackedExperts) -> None:
        self.packed = packed
        self.before: list[tuple[str, PackedExperts]] = []

    def add(self, delta: torch.Tensor, sign: int, dtype: torch.dtype) -> None:
        """Add or take away a delta, (num_experts, out, in), one expert at a time."""
        mark = _digest(delta)
        if sign < 0 and self.before and self.before[-1][0] == mark:
            _, self.packed = self.before.pop()
            return
        if sign < 0 and self.before:
            warnings.warn(
                "A delta is taken away from quantised experts that is not, to the bit, the last that was added (of "
                "another dtype, say), so the codes of before are not put back, and the result is quantised once more.",
                stacklevel=2,
            )
        old = self.packed
        self.packed = pack(_Sum(old, delta, sign, dtype), old.scheme, "merged experts")
        if sign > 0:
            self.before = [*self.before, (mark, old)][-MERGES_KEPT:]
        else:
            self.before.clear()  # taking an addition away no longer leads back to what was before it


class _Sum:
    """Base plus delta, an expert at a time: the whole sum in 16 bits never exists."""

    def __init__(self, packed: PackedExperts, delta: torch.Tensor, sign: int, dtype: torch.dtype) -> None:
        self.packed, self.delta, self.sign, self.dtype = packed, delta, sign, dtype
        self.shape = packed.shape

    def __getitem__(self, number: int) -> torch.Tensor:
        base = self.packed.expert(number, torch.float32)
        return base.add(self.delta[number].float(), alpha=self.sign).to(self.dtype)


def _digest(delta: torch.Tensor) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for expert in delta.detach():
        digest.update(expert.contiguous().view(torch.uint8).cpu().numpy())
    return digest.hexdigest()


class QuantizedExperts(torch.Tensor):  # type: ignore[misc]
    """See the module. Made by ``wrap``; never by a constructor of torch's."""

    _store: _Store

    @staticmethod
    def __new__(cls: type[QuantizedExperts], store: _Store, dtype: torch.dtype) -> QuantizedExperts:  # noqa: PYI034 - torch makes it
        """Make the outside of it."""
        made: QuantizedExperts = torch.Tensor._make_wrapper_subclass(
            cls, store.packed.shape, dtype=dtype, device=store.packed.device, requires_grad=False
        )
        made._store = store
        return made

    def __init__(self, store: _Store, dtype: torch.dtype) -> None:
        """Nothing: it is all in ``__new__``, as for every tensor."""

    @property
    def packed(self) -> PackedExperts:
        """What it keeps."""
        return self._store.packed

    @property
    def stored_bytes(self) -> int:
        """Bytes of what it keeps, and of the codes of before merges that were not undone."""
        return self.packed.nbytes + sum(packed.nbytes for _, packed in self._store.before)

    def dequantize(self) -> torch.Tensor:
        """Return all weights, (num_experts, out, in), as an ordinary tensor."""
        return self.packed.dense(self.dtype)

    @property
    def run_length(self) -> int:
        """How many experts ``dequantize_run`` may be asked for at once."""
        return self.packed.run_length(self.dtype)

    def dequantize_run(self, experts: slice | torch.Tensor) -> torch.Tensor:
        """Return some experts' weights, (experts, out, in), as an ordinary tensor; see ``PackedExperts.run``."""
        return self.packed.run(experts, self.dtype)

    def snapshot(self) -> QuantizedExperts:
        """Return the weights as they are now: what is merged into this tensor later does not reach them.

        Nothing is copied.
        """
        return wrap(self.packed, self.dtype)

    def __repr__(self, *, tensor_contents: object = None) -> str:
        """Say what it is without decoding it."""
        return f"QuantizedExperts({tuple(self.shape)}, {self.packed.scheme}, dtype={self.dtype}, device={self.device})"

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        """Copy codes and all."""
        if id(self) in memo:
            known: torch.Tensor = memo[id(self)]
            return known
        copied: torch.Tensor = _clone(self)
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, requires_grad=self.requires_grad)
        memo[id(self)] = copied
        return copied

    def __tensor_flatten__(self) -> tuple[list[str], tuple[Any, ...]]:
        """Name the tensors inside, as ``nn.Module.to`` and torch.compile ask for them."""
        return [f"_part_{name}" for name in self.packed.parts], (self.packed.scheme, self.packed.shape, self.dtype)

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, torch.Tensor], context: tuple[Any, ...], _size: Any, _stride: Any
    ) -> QuantizedExperts:
        """Put it together again."""
        scheme, shape, dtype = context
        parts = {name.removeprefix("_part_"): part for name, part in inner.items()}
        return QuantizedExperts(_Store(PackedExperts(scheme, shape, parts)), dtype)

    def __getattr__(self, name: str) -> torch.Tensor:
        """Find what ``__tensor_flatten__`` names."""
        if name.startswith("_part_") and "_store" in self.__dict__:
            return self.packed.parts[name.removeprefix("_part_")]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let assignments to ``.data`` reach the codes; everything else goes on to ``__torch_dispatch__``."""
        # By equality: the setter is a new object each time it is looked up.
        if func == torch.Tensor.data.__set__ and isinstance(args[0], QuantizedExperts):
            return _assign(*args)
        if func == torch.Tensor.__setitem__ and isinstance(args[0], QuantizedExperts):
            _refuse("assigning to a part")
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation's handler, if it has one; decode for every other operation."""
        handler = HANDLERS.get(func)
        kwargs = kwargs or {}
        if handler is not None and isinstance(args[0], QuantizedExperts):
            done = handler(*args, **kwargs)
            if done is not NotImplemented:
                return done
        if func._schema.is_mutable and any(isinstance(arg, QuantizedExperts) for arg in _written(func, args, kwargs)):
            _refuse(func)
        return func(*tree_map(_dense, args), **tree_map(_dense, kwargs))


def wrap(packed: PackedExperts, dtype: torch.dtype) -> QuantizedExperts:
    """Return packed experts as a tensor of ``dtype``, the dtype that values are decoded to."""
    return QuantizedExperts(_Store(packed), dtype)


def _dense(value: Any) -> Any:
    return value.dequantize() if isinstance(value, QuantizedExperts) else value


def _written(func: Any, args: Any, kwargs: Any) -> list[Any]:
    """Return the arguments that an operation writes to."""
    named = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
    written: list[Any] = []
    for argument in func._schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write and argument.name in named:
            value = named[argument.name]
            written += value if isinstance(value, (list, tuple)) else [value]  # _foreach_ operations take lists
    return written


def _refuse(func: object) -> NoReturn:
    raise NotWritableError(
        f"{func} would write to quantised experts, which only take += and -= of a tensor of the same shape, copy_ and "
        ".data."
    )


def _assign(target: QuantizedExperts, value: torch.Tensor) -> None:
    """``target.data = value``: codes as they are, values quantised."""
    made = value if isinstance(value, QuantizedExperts) else _packed_like(target, value)
    with torch._C.DisableTorchFunctionSubclass():
        torch.Tensor.data.__set__(target, made)
    target._store = made._store


def _packed_like(target: QuantizedExperts, value: torch.Tensor) -> QuantizedExperts:
    return wrap(pack(value.detach(), target.packed.scheme, "assigned experts"), value.dtype)


def _alias(tensor: QuantizedExperts) -> QuantizedExperts:
    return QuantizedExperts(tensor._store, tensor.dtype)


def _clone(tensor: QuantizedExperts, **_: Any) -> QuantizedExperts:
    store = _Store(tensor.packed.map(torch.clone))
    store.before = list(tensor._store.before)
    return QuantizedExperts(store, tensor.dtype)


def _to_copy(tensor: QuantizedExperts, *, dtype: Any = None, device: Any = None, **options: Any) -> Any:
    if dtype is not None and not dtype.is_floating_point:
        return NotImplemented
    move = {"device": device or tensor.device, "non_blocking": options.get("non_blocking", False), "copy": True}
    store = _Store(tensor.packed.map(lambda part: part.to(**move)))
    if dtype is not None and dtype != tensor.dtype:
        store.packed.check(dtype)  # kernels are chosen by dtype, and were looked at in another
    store.before = [(mark, packed.map(lambda part: part.to(**move))) for mark, packed in tensor._store.before]
    return QuantizedExperts(store, dtype or tensor.dtype)


def _select(tensor: QuantizedExperts, dim: int, index: int) -> Any:
    if dim not in (0, -3):
        return NotImplemented
    return tensor.packed.expert(int(index), tensor.dtype)


def _index(tensor: QuantizedExperts, indices: Any) -> Any:
    """``weights[expert_ids]``: decode each expert that is asked for once."""
    first = indices[0] if indices else None
    if len(indices) != 1 or first is None or first.dtype not in (torch.int32, torch.int64):
        return NotImplemented
    numbers, places = torch.unique(first, return_inverse=True)
    return tensor.packed.chosen(numbers, tensor.dtype)[places]


def _add(tensor: QuantizedExperts, other: Any, *, alpha: Any = 1) -> Any:
    return _accumulate(tensor, other, alpha, 1)


def _sub(tensor: QuantizedExperts, other: Any, *, alpha: Any = 1) -> Any:
    return _accumulate(tensor, other, alpha, -1)


def _accumulate(tensor: QuantizedExperts, other: Any, alpha: Any, sign: int) -> Any:
    if not isinstance(other, torch.Tensor) or other.shape != tensor.shape or alpha != 1:
        return NotImplemented
    tensor._store.add(_dense(other), sign, tensor.dtype)
    return tensor


def _copy(tensor: QuantizedExperts, source: torch.Tensor, _non_blocking: bool = False) -> Any:
    if source.shape != tensor.shape:
        return NotImplemented
    if isinstance(source, QuantizedExperts):  # its codes, not the values that they mean
        tensor._store.packed = source.packed.map(lambda part: part.to(tensor.device, copy=True))
        tensor._store.before = []
        return tensor
    tensor._store.packed, tensor._store.before = _packed_like(tensor, source.to(tensor.device)).packed, []
    return tensor


def _set(tensor: QuantizedExperts, source: torch.Tensor) -> Any:
    # torch.nn.utils.parametrize sets a parameter to itself.
    if not isinstance(source, QuantizedExperts):
        return NotImplemented
    tensor._store = source._store
    return tensor


HANDLERS: dict[Any, Handler] = {
    aten.detach.default: _alias,
    aten.alias.default: _alias,
    aten.clone.default: _clone,
    aten._to_copy.default: _to_copy,
    aten.select.int: _select,
    aten.index.Tensor: _index,
    aten.add_.Tensor: _add,
    aten.sub_.Tensor: _sub,
    aten.copy_.default: _copy,
    aten.set_.source_Tensor: _set,
}
"""Operations that must reach the codes, or need not decode all of them.

A handler returns NotImplemented where it cannot do the operation after all.
"""
