"""The products themselves: by one kernel for all experts where torch has it, else by one call for each.

A packed weight is unpacked and multiplied a run of experts at a time. So no more than a run of it is ever there, and a
GPU does not wait for the calls.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from harness.experts.grouped.groups import Groups, Run

ALIGNMENT = 16
"""``torch.nn.functional.grouped_mm`` wants rows and addresses to be a multiple of this many bytes.

True of torch 2.13, and of 2.10 also on CPU.
"""
GROUPED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GROUPED_CAPABILITY = (8, 0)
"""The CUDA compute capability from which ``grouped_mm`` runs.

Source: ``transformers.integrations.moe._can_use_grouped_mm`` (5.23).
"""
KERNEL_CAPABILITIES = (9, 10)
"""The major CUDA compute capabilities for which ``grouped_mm`` has a kernel of its own, for bfloat16 alone.

For all else on CUDA it waits for the device, copies ``offs`` to the host and loops. Source:
``aten/native/cuda/GroupedBlas.cpp`` (2.10).
"""

Way = Literal["grouped_mm", "loop"]


def is_packed(weight: torch.Tensor) -> bool:
    """Whether a weight is stored packed.

    A packed weight is a tensor subclass with ``run_length``, how many experts to unpack at once, and
    ``dequantize_run(experts)``, which unpacks (experts, out, in) of a slice or of (experts,) integers.
    """
    return hasattr(type(weight), "dequantize_run")


def way(*operands: torch.Tensor) -> Way:
    """Return how a product of these runs.

    It is ``grouped_mm`` where torch has that for their device, dtypes and strides. Else it is a loop over experts.
    """
    takes = hasattr(torch.nn.functional, "grouped_mm") and all(_grouped_mm_takes(operand) for operand in operands)
    return "grouped_mm" if takes else "loop"


def way_of_packed(weight: Any) -> Way:
    """Return how products with a packed weight's runs go, for rows that ``grouped_mm`` takes."""
    length = min(weight.run_length, 2)  # two experts stand for any more
    return _way_of_run(torch.empty(length, *weight.shape[1:], dtype=weight.dtype, device=weight.device))


def multiply(x: torch.Tensor, weight: torch.Tensor, groups: Groups, *, across: bool) -> torch.Tensor:
    """Return x times each expert's (out, in) matrix, or times its transpose unless ``across``.

    The product is in the dtype of x, whatever autocast says.
    """
    if way(x, weight) == "grouped_mm":
        product: torch.Tensor = torch.nn.functional.grouped_mm(x, weight if across else weight.mT, offs=groups.ends)
        return product
    out = x.new_empty(x.shape[0], weight.shape[2] if across else weight.shape[1])
    with torch.autocast(x.device.type, enabled=False):
        if is_packed(weight):
            for run in groups.runs(weight.run_length):
                _multiply_run(x, weight, groups, run, out, across=across)
            return out
        for expert, start, end in groups.spans:
            matrix = weight[expert]
            torch.mm(x[start:end], matrix if across else matrix.mT, out=out[start:end])
    return out


def _multiply_run(x: torch.Tensor, weight: Any, groups: Groups, run: Run, out: torch.Tensor, *, across: bool) -> None:
    """Write the products of a run's rows; what was unpacked is gone on return, before the next run is."""
    matrices = weight.dequantize_run(run.experts)
    rows, products = x[run.start : run.end], out[run.start : run.end]
    turned = matrices if across else matrices.mT
    if _way_of_run(matrices, rows) == "grouped_mm":
        ends = groups.ends[run.experts] - run.start
        products.copy_(torch.nn.functional.grouped_mm(rows, turned, offs=ends))
        return
    for matrix, (start, end) in zip(turned.unbind(), run.spans, strict=True):
        torch.mm(x[start:end], matrix, out=out[start:end])


def _way_of_run(matrices: torch.Tensor, *rows: torch.Tensor) -> Way:
    """Return how rows are multiplied by a run's (experts, out, in)."""
    if matrices.shape[0] == 1 or _grouped_mm_waits(matrices):  # one matrix needs no kernel for several
        return "loop"
    return way(matrices, *rows)


def outer(grad: torch.Tensor, x: torch.Tensor, groups: Groups, weight: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the weight, (num_experts, out, in)."""
    if way(grad, x) == "grouped_mm":
        product: torch.Tensor = torch.nn.functional.grouped_mm(grad.mT, x, offs=groups.ends)
        return product
    out = grad.new_zeros(weight.shape)
    with torch.autocast(grad.device.type, enabled=False):
        for expert, start, end in groups.spans:
            torch.mm(grad[start:end].mT, x[start:end], out=out[expert])
    return out


def _grouped_mm_takes(operand: torch.Tensor) -> bool:
    """Whether ``grouped_mm`` has a kernel for this operand; a packed one has none."""
    if type(operand) not in (torch.Tensor, torch.nn.Parameter) or operand.dtype not in GROUPED_DTYPES:
        return False
    if operand.device.type == "cuda":
        if torch.cuda.get_device_capability(operand.device) < GROUPED_CAPABILITY:
            return False
    elif operand.device.type != "cpu":
        return False
    *leading, rows, columns = operand.stride()
    long = [*leading, rows] if columns == 1 else [*leading, columns]
    aligned = all(stride > 0 and stride * operand.element_size() % ALIGNMENT == 0 for stride in long)
    return 1 in (rows, columns) and aligned and operand.numel() > 0 and operand.data_ptr() % ALIGNMENT == 0


def _grouped_mm_waits(operand: torch.Tensor) -> bool:
    """Whether ``grouped_mm`` waits for the device to know where groups end, which ``Groups`` knows already."""
    if operand.device.type != "cuda":
        return False
    major, _ = torch.cuda.get_device_capability(operand.device)
    return operand.dtype != torch.bfloat16 or major not in KERNEL_CAPABILITIES
