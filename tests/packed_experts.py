"""A tensor that stands for a packed weight of experts, for tests of what happens to one."""

from __future__ import annotations

from typing import Any, Self

import torch


class Packed(torch.Tensor):
    """Stands for a packed weight: looks like (E, out, in) and gives one expert at a time. Anything else fails."""

    full: torch.Tensor
    unpacked: list[int]

    @classmethod
    def of(cls, full: torch.Tensor) -> Self:
        """Pack (E, out, in)."""
        packed: Self = torch.Tensor._make_wrapper_subclass(cls, full.shape, dtype=full.dtype, device=full.device)
        packed.full, packed.unpacked = full, []
        return packed

    def dequantize_expert(self, expert: int) -> torch.Tensor:
        """Unpack one expert, and remember that."""
        self.unpacked.append(expert)
        return self.full[expert].clone()

    def __getitem__(self, expert: int) -> torch.Tensor:
        return self.dequantize_expert(expert)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func != torch.ops.aten.detach.default:
            raise NotImplementedError(f"{func} on a packed weight")
        alias = cls.of(args[0].full)
        alias.unpacked = args[0].unpacked
        return alias
