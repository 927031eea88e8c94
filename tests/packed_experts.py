"""A tensor that stands for a packed weight of experts, for tests of what happens to one."""

from __future__ import annotations

from typing import Any, Self

import torch


class Packed(torch.Tensor):
    """Stands for a packed weight: looks like (E, out, in) and gives runs of experts. Anything else fails."""

    full: torch.Tensor
    unpacked: list[list[int]]
    run_length: int

    @classmethod
    def of(cls, full: torch.Tensor, *, run_length: int = 1) -> Self:
        """Pack (E, out, in), to be unpacked ``run_length`` experts at once."""
        packed: Self = torch.Tensor._make_wrapper_subclass(cls, full.shape, dtype=full.dtype, device=full.device)
        packed.full, packed.unpacked, packed.run_length = full, [], run_length
        return packed

    def dequantize_run(self, experts: slice | torch.Tensor) -> torch.Tensor:
        """Unpack some experts, and remember which."""
        self.unpacked.append(torch.arange(len(self.full))[experts].tolist())
        return self.full[experts].clone()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func != torch.ops.aten.detach.default:
            raise NotImplementedError(f"{func} on a packed weight")
        alias = cls.of(args[0].full, run_length=args[0].run_length)
        alias.unpacked = args[0].unpacked
        return alias
