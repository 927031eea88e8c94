"""The adapters' tensors while a merge or an audit runs: read when first needed, flat or by expert.

Nothing larger than one pair's factors, or the rows asked for, is held.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import RLock

import torch

from harness.merge.adapter.packing import Factors, split_by_expert
from harness.merge.errors import NonFiniteError
from harness.merge.files.copying import CHUNK
from harness.merge.files.input_files import InputFiles
from harness.merge.files.safetensors_file import TensorInfo
from harness.merge.plan.merge_plan import Contribution, MergePlan, PairContribution, TensorContribution, Term
from harness.merge.write.tensors import TORCH_DTYPES, all_finite, tensor_of
from harness.merge.write.threads import Lanes, share_out

CACHED_PAIRS = 4
"""Pairs kept decoded: those of one layer's experts, which the rows of a layer take turns to use."""


class AdapterValues:
    """The adapters' tensors, read when first needed; shared by threads."""

    def __init__(self, plan: MergePlan, files: InputFiles) -> None:
        self._plan = plan
        self._files = files
        self._kept: OrderedDict[int, Factors] = OrderedDict()
        self._lock = RLock()

    def read(self, adapter: int, info: TensorInfo) -> torch.Tensor:
        """Return a tensor of an adapter as it is stored."""
        data = self._files.read(self._plan.parts[adapter].adapter.file, info.start, info.stop)
        return tensor_of(data, info.dtype, info.shape)

    def check_finite(self, threads: int = 1) -> None:
        """Read every tensor that is used once and refuse NaN and infinity.

        Raises:
            NonFiniteError: names a module that has one.
        """
        pieces = [
            (contribution, role, info, start)
            for contribution in self._plan.contributions
            for role, info in contribution.tensors.items()
            for start in range(info.start, info.stop, CHUNK)
        ]
        share_out(Lanes([iter(pieces)], 1), self._check_piece, lambda: None, threads=threads, poll=lambda: None)

    def _check_piece(self, _state: None, piece: tuple[Contribution, str, TensorInfo, int]) -> None:
        contribution, role, info, start = piece
        file = self._plan.parts[contribution.adapter].adapter.file
        data = self._files.read(file, start, min(start + CHUNK, info.stop))
        if not all_finite(torch.frombuffer(data, dtype=TORCH_DTYPES[info.dtype])):
            raise NonFiniteError(
                f"the adapter's {role} of {contribution.module} holds NaN or infinity.",
                "The training diverged or the file is damaged; nothing was merged.",
            )

    def factors(self, number: int) -> Factors:
        """Return the factors of contribution ``number`` of the plan, which is a pair, by expert in float32."""
        with self._lock:
            if number not in self._kept:
                contribution = self._plan.contributions[number]
                assert isinstance(contribution, PairContribution)  # noqa: S101 - the caller looked
                first, second = (
                    self.read(contribution.adapter, contribution.pair.lora_A),
                    self.read(contribution.adapter, contribution.pair.lora_B),
                )
                self._kept[number] = split_experts(first.float(), second.float(), contribution)
                if len(self._kept) > CACHED_PAIRS:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(number)
            return self._kept[number]

    def magnitude(self, contribution: PairContribution) -> torch.Tensor:
        """Return DoRA's magnitude vector (out_features,) in float32."""
        assert contribution.magnitude is not None  # noqa: S101 - the caller looked
        return self.read(contribution.adapter, contribution.magnitude).float()

    def rows(self, contribution: TensorContribution, term: Term, first: int, last: int, columns: int) -> torch.Tensor:
        """Return rows ``first:last`` of a region as a tensor of the adapter has them, (last - first, columns), as
        stored there.
        """
        info = contribution.info
        size = TORCH_DTYPES[info.dtype].itemsize
        # A (num_experts, rows, columns) tensor is num_experts times rows rows.
        skipped = (term.expert or 0) * (info.shape[1] if term.expert is not None else 0) + term.offset
        start = info.start + (skipped + first) * columns * size
        data = self._files.read(
            self._plan.parts[contribution.adapter].adapter.file, start, start + (last - first) * columns * size
        )
        return tensor_of(data, info.dtype, (last - first, columns))


def split_experts(lora_a: torch.Tensor, lora_b: torch.Tensor, contribution: PairContribution) -> Factors:
    """Return the factors of a pair by expert, in the dtypes given.

    Anything but a fused parameter counts as one expert.
    """
    return split_by_expert(
        lora_a,
        lora_b,
        num_experts=contribution.num_experts or 1,
        rank=contribution.rank,
        packing="grouped_by_expert" if contribution.grouped_by_expert else "rank_major",
    )
