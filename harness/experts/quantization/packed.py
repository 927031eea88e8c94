"""A fused experts parameter as codes and scales.

It is packed expert by expert, so that no more than one expert is ever decoded for packing. It is decoded in runs of
experts, because a GPU waits for the calls where each decodes one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

from harness.experts.errors import NotFiniteError
from harness.experts.quantization.codec import (
    SHARED,
    check_decode,
    check_packable,
    check_run,
    decode,
    decode_run,
    encode,
)
from harness.experts.quantization.scheme import Scheme

RUN_BYTES = 64 * 2**20
"""The most that the experts of a run take when decoded; a larger expert is a run of its own."""
RUN_BYTES_ON_CPU = 4 * 2**20
"""The same on a CPU, where calls are cheap and a run that leaves the cache is slow.

Measured in CPU time (nf4 in bfloat16, one thread): 128 experts of 6 MiB and of 3 MiB take 2.4 times as long in runs of
64 MiB as one by one, 64 experts of 16 KiB and of 8 KiB two thirds in runs of 1 MiB and more.
"""

_COMPARED: set[tuple[Scheme, torch.Size, torch.dtype, torch.device]] = set()
"""Shapes of runs whose values were compared with those of single experts in this process."""


@dataclass(frozen=True, eq=False)
class PackedExperts:
    """The codes of (num_experts, out, in) weights; immutable, so that aliases may share it.

    ``parts``: tensors by name, (num_experts, …) each, and tables that all experts share; see ``codec``.
    """

    scheme: Scheme
    shape: tuple[int, int, int]
    parts: dict[str, torch.Tensor]

    @property
    def device(self) -> torch.device:
        """Where the codes are."""
        return self.parts["codes"].device

    @property
    def nbytes(self) -> int:
        """Bytes that the codes, scales and tables take."""
        return sum(part.numel() * part.element_size() for part in self.parts.values())

    def expert(self, number: int, dtype: torch.dtype) -> torch.Tensor:
        """Return one expert's weight, (out, in) in ``dtype``."""
        parts = {name: part if name in SHARED else part[number] for name, part in self.parts.items()}
        return decode(self.scheme, parts, self.shape[1:], dtype)

    def run_length(self, dtype: torch.dtype) -> int:
        """Return how many experts are decoded to ``dtype`` at once: at least one."""
        count, out, inward = self.shape
        most = RUN_BYTES_ON_CPU if self.device.type == "cpu" else RUN_BYTES
        # int8 becomes float32 before it becomes anything else.
        itemsize: int = max(dtype.itemsize, torch.float32.itemsize) if self.scheme.code == "int8" else dtype.itemsize
        return min(count, max(1, most // (out * inward * itemsize)))

    def run(self, experts: slice | torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return some experts' weights, (experts, out, in) in ``dtype``, decoded at once: to the bit as one by one.

        Args:
            experts: which, at least one: a slice of step 1, or (experts,) integers on the device of the codes.
            dtype: of the weights.

        Raises:
            WrongDecodeError: the first run of its shape is not what its experts are one by one.
        """
        parts = {name: part if name in SHARED else part[experts] for name, part in self.parts.items()}
        weights = decode_run(self.scheme, parts, self.shape[1:], dtype)
        seen = (self.scheme, weights.shape, dtype, weights.device)
        if seen not in _COMPARED:
            check_run(self.scheme, parts, self.shape[1:], weights)
            _COMPARED.add(seen)
        return weights

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """Return all of it, (num_experts, out, in) in ``dtype``."""
        count, length = self.shape[0], self.run_length(dtype)
        return self._collect(count, (slice(at, min(at + length, count)) for at in range(0, count, length)), dtype)

    def chosen(self, experts: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return those of ``experts``, (chosen,) integers on its device: (chosen, out, in) in ``dtype``."""
        count, length = experts.shape[0], self.run_length(dtype)
        return self._collect(count, (experts[at : at + length] for at in range(0, count, length)), dtype)

    def _collect(self, count: int, runs: Iterable[slice | torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        weights = torch.empty((count, *self.shape[1:]), dtype=dtype, device=self.device)
        at = 0
        for run in runs:
            decoded = self.run(run, dtype)
            weights[at : at + len(decoded)] = decoded
            at += len(decoded)
            del decoded  # before the next is made
        return weights

    def check(self, dtype: torch.dtype) -> None:
        """Check what the kernels make of the first expert in a dtype.

        Raises:
            WrongDecodeError: see ``codec``.
        """
        parts = {name: part if name in SHARED else part[0] for name, part in self.parts.items()}
        check_decode(self.scheme, parts, self.shape[1:], dtype, "experts[0]")

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> PackedExperts:
        """Return it with every part changed: moved, or copied."""
        return replace(self, parts={name: change(part) for name, part in self.parts.items()})


def pack(weights: torch.Tensor, scheme: Scheme, name: str) -> PackedExperts:
    """Quantise ``weights``, (num_experts, out, in) floating point, and check what the kernels make of every expert.

    Args:
        weights: anything with ``shape`` and ``[e]``. It is read one expert at a time.
        scheme: the code.
        name: what errors call it.

    Raises:
        NotFiniteError: some weight is NaN or infinite.
        UnpackableShapeError, WrongDecodeError: see ``codec``.
    """
    count, out, inward = weights.shape
    check_packable(scheme, (count, out, inward), name)
    parts: dict[str, torch.Tensor] = {}
    for number in range(count):
        plain = weights[number]
        if not bool(torch.isfinite(plain).all()):
            raise NotFiniteError(f"{name}[{number}] holds NaN or infinity.")
        expert = encode(scheme, plain)
        check_decode(scheme, expert, (out, inward), weights.dtype, f"{name}[{number}]")
        if not parts:
            parts = {
                key: part if key in SHARED else part.new_empty((count, *part.shape)) for key, part in expert.items()
            }
        for key in expert.keys() - SHARED:
            parts[key][number] = expert[key]
    return PackedExperts(scheme, (count, out, inward), parts)
