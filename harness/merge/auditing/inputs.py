"""What an audit reads, shared by its threads: the adapters' tensors, and those of base and merged checkpoint."""

from __future__ import annotations

import threading
from collections import OrderedDict
from contextlib import ExitStack

import torch

from harness.merge.adapter.packing import Factors
from harness.merge.auditing.merged_checkpoint import MergedCheckpoint
from harness.merge.errors import NonFiniteError
from harness.merge.files.input_files import InputFiles
from harness.merge.plan.merge_plan import Contribution, MergePlan, PairContribution, TensorContribution, Term
from harness.merge.write.adapter_values import AdapterValues, split_experts
from harness.merge.write.checkpoint_values import BaseValues, StoredTensors
from harness.merge.write.tensors import all_finite

KEPT_READINGS = 4


class AdapterReader:
    """The adapter's tensors, read once for all threads; NaN and infinity in them are refused by name."""

    def __init__(self, plan: MergePlan) -> None:
        self._plan = plan
        self._open = ExitStack()
        self._files = self._open.enter_context(InputFiles())
        self._values = AdapterValues(plan, self._files)
        self._readings: OrderedDict[tuple[PairContribution, bool], Factors] = OrderedDict()
        self._finite: set[int] = set()
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the files."""
        self._open.close()

    def factors(self, number: int) -> Factors:
        """Return the float32 factors of contribution ``number`` of the plan, by expert.

        Raises:
            NonFiniteError: they hold NaN or infinity.
        """
        with self._lock:
            factors = self._values.factors(number)
            if number not in self._finite:
                for role, factor in zip(("lora_A", "lora_B"), factors, strict=True):
                    _check_finite(factor, self._plan.contributions[number], role)
                self._finite.add(number)
            return factors

    def magnitude(self, contribution: PairContribution) -> torch.Tensor:
        """Return DoRA's magnitude vector in float32."""
        with self._lock:
            return _check_finite(self._values.magnitude(contribution), contribution, "lora_magnitude_vector")

    def rows(self, contribution: TensorContribution, term: Term, first: int, last: int, columns: int) -> torch.Tensor:
        """Return rows of a tensor that the adapter holds as it is, (last - first, columns), in its dtype."""
        with self._lock:
            return _check_finite(
                self._values.rows(contribution, term, first, last, columns), contribution, contribution.role
            )

    def misread(self, contribution: PairContribution, *, mixed_a: bool) -> Factors:
        """Return factors read in another way than planned.

        With ``mixed_a``, lora_A's rows too are taken as rank-major.
        """
        wanted = (contribution, mixed_a)
        with self._lock:
            if wanted not in self._readings:
                lora_a, lora_b = (
                    self._values.read(contribution.adapter, info).float()
                    for info in (contribution.pair.lora_A, contribution.pair.lora_B)
                )
                if mixed_a:
                    count = contribution.num_experts or 1
                    lora_a = lora_a.reshape(contribution.rank, count, -1).transpose(0, 1).reshape(lora_a.shape)
                self._readings[wanted] = split_experts(lora_a, lora_b, contribution)
                if len(self._readings) > KEPT_READINGS:
                    self._readings.popitem(last=False)
            self._readings.move_to_end(wanted)
            return self._readings[wanted]


def _check_finite(values: torch.Tensor, contribution: Contribution, role: str) -> torch.Tensor:
    if not all_finite(values):
        raise NonFiniteError(
            f"the adapter's {role} of {contribution.module} holds NaN or infinity.",
            "The training diverged or the file is damaged; there is nothing to compare with.",
        )
    return values


class Checkpoints:
    """The files of base and merged checkpoint, opened once for all threads.

    Every file is held against the header that was read before anything was compared.
    """

    def __init__(self, plan: MergePlan, merged: MergedCheckpoint) -> None:
        self._open = ExitStack()
        self._files = [self._open.enter_context(InputFiles(whose)) for whose in ("", " of the merged checkpoint")]
        self.base = BaseValues(plan.base, self._files[0])
        self.merged = StoredTensors(merged, self._files[1], "merged")

    def close(self) -> None:
        """Close the files."""
        self._open.close()

    @property
    def bytes_read(self) -> int:
        """Bytes of tensors that were read so far, of both."""
        return sum(files.bytes_read for files in self._files)
