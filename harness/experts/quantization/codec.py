"""One expert's weight to codes, and one or several back, by bitsandbytes.

4 bits: two codes a byte, the high nibble first, over the flattened (out, in) weight. A value is ``map[code] * absmax``
of its block of 64. Double quantised, absmax is itself a code of 8 bits:
``nested_map[absmax] * nested_absmax + offset``, in blocks of 256. 8 bits: a value is ``code * scale / 127`` with one
scale a row. Source: ``bitsandbytes.functional`` (0.48 to 0.50).

Codes are also decoded by their definition, to check what the kernels return. The CPU kernels of 0.49 and 0.50 return
wrong values for some shapes. So nothing they packed is used before both ways to decode it were compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from harness.experts.errors import NotFiniteError, UnpackableShapeError, UnsupportedStackError, WrongDecodeError
from harness.experts.quantization.scheme import BLOCKSIZE, Scheme

NESTED_BLOCKSIZE = 256
INT8_STEPS = 127
SHARED = frozenset({"map", "nested_map"})
"""Parts that are tables, the same for every expert."""

Parts = Mapping[str, torch.Tensor]


def check_packable(scheme: Scheme, shape: tuple[int, ...], name: str) -> None:
    """Refuse a shape that bitsandbytes cannot pack expert by expert.

    Raises:
        UnpackableShapeError: not three dimensions, or an expert's weights are no whole number of blocks.
    """
    if len(shape) != 3 or 0 in shape:  # noqa: PLR2004 - (num_experts, out, in)
        raise UnpackableShapeError(f"{name} has shape {tuple(shape)}, which is not (num_experts, out, in).")
    if scheme.code != "int8" and (shape[1] * shape[2]) % BLOCKSIZE:
        raise UnpackableShapeError(
            f"{name}: an expert has {shape[1]} x {shape[2]} weights, which is no multiple of {BLOCKSIZE}; {scheme} "
            "packs whole blocks of that; int8 packs any."
        )


def check_backend(scheme: Scheme, device: Any, dtype: torch.dtype) -> None:
    """Pack and decode a few weights on a device. A device that cannot is then known before anything is loaded.

    Raises:
        UnsupportedStackError: bitsandbytes has no kernel there.
        WrongDecodeError: it has one that decodes wrong.
    """
    shape = (2, BLOCKSIZE)
    try:
        # Transformers asks while the meta device is the default, which would take bitsandbytes' own tables too.
        with torch.device(device):
            weight = torch.arange(2 * BLOCKSIZE, dtype=torch.float32).sub(BLOCKSIZE).reshape(shape).to(dtype)
            check_decode(scheme, encode(scheme, weight), shape, dtype, f"a test on {device}")
    # RuntimeError, or its NotImplementedError: torch has no kernel there. AssertionError: torch was built without CUDA.
    except (RuntimeError, AssertionError) as error:
        raise UnsupportedStackError(
            f"bitsandbytes cannot quantise to {scheme} on {device} here: {' '.join(str(error).split())[:300]}"
        ) from error


def encode(scheme: Scheme, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the parts of one expert's ``weight``, (out, in), on its device."""
    from bitsandbytes import functional  # noqa: PLC0415 - only who quantises needs it

    if scheme.code == "int8":
        # The CUDA kernel takes float16 alone, as bitsandbytes' own Int8Params gives it.
        codes, scales, _ = functional.int8_vectorwise_quant(weight.half() if weight.is_cuda else weight)
        return {"codes": codes, "scales": scales.float()}
    codes, state = functional.quantize_4bit(
        weight.contiguous(), blocksize=BLOCKSIZE, compress_statistics=scheme.double_quant, quant_type=scheme.code
    )
    parts = {"codes": codes.reshape(-1), "absmax": state.absmax, "map": state.code}
    if scheme.double_quant:
        nested = state.state2
        parts |= {"nested_absmax": nested.absmax, "nested_map": nested.code, "nested_offset": state.offset.reshape(1)}
    return parts


def decode(scheme: Scheme, parts: Parts, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """Return one expert's weight, (out, in) in ``dtype``, by bitsandbytes' kernels."""
    from bitsandbytes import functional  # noqa: PLC0415 - only who quantises needs it

    if dtype == torch.float64:  # no kernel decodes to it
        return decode(scheme, parts, shape, torch.float32).double()
    if scheme.code == "int8":
        dense: torch.Tensor = functional.int8_vectorwise_dequant(parts["codes"], parts["scales"])
        return dense.to(dtype)
    nested = {}
    if scheme.double_quant:
        inner = functional.QuantState(
            absmax=parts["nested_absmax"], code=parts["nested_map"], blocksize=NESTED_BLOCKSIZE, dtype=torch.float32
        )
        nested = {"offset": parts["nested_offset"].reshape(()), "state2": inner}
    state = functional.QuantState(
        absmax=parts["absmax"],
        shape=torch.Size(shape),
        code=parts["map"],
        blocksize=BLOCKSIZE,
        quant_type=scheme.code,
        dtype=dtype,
        **nested,
    )
    unpacked: torch.Tensor = functional.dequantize_4bit(parts["codes"].reshape(-1, 1), state)
    return unpacked


def decode_run(scheme: Scheme, parts: Parts, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """Return several experts' weights, (experts, out, in) in ``dtype``, by one call of bitsandbytes' kernel.

    Args:
        scheme: the code.
        parts: as ``encode`` returns them, with a leading dimension of experts; tables have none.
        shape: (out, in) of each.
        dtype: of the weights.
    """
    from bitsandbytes import functional  # noqa: PLC0415 - only who quantises needs it

    if dtype == torch.float64:  # no kernel decodes to it
        return decode_run(scheme, parts, shape, torch.float32).double()
    codes = parts["codes"]
    stacked = torch.Size((codes.shape[0], *shape))
    if scheme.code == "int8":
        dense: torch.Tensor = functional.int8_vectorwise_dequant(codes.flatten(0, 1), parts["scales"].flatten())
        return dense.to(dtype).view(stacked)
    state = functional.QuantState(
        absmax=absmax_of_run(scheme, parts).flatten(),
        shape=stacked,
        code=parts["map"],
        blocksize=BLOCKSIZE,
        quant_type=scheme.code,
        dtype=dtype,
    )
    unpacked: torch.Tensor = functional.dequantize_4bit(codes.reshape(-1, 1), state)
    return unpacked


def absmax_of_run(scheme: Scheme, parts: Parts) -> torch.Tensor:
    """Return the scale of each block, (experts, blocks) in float32, of ``parts`` of several experts.

    Double quantised, each expert has nested blocks and an offset of its own, which one call of bitsandbytes' kernel
    cannot be given.
    """
    absmax = parts["absmax"]
    if not scheme.double_quant:
        return absmax
    nested = parts["nested_absmax"]
    scales = nested.unsqueeze(-1).expand(*nested.shape, NESTED_BLOCKSIZE).flatten(1)[:, : absmax.shape[1]]
    decoded = parts["nested_map"].index_select(0, absmax.flatten().int()).view(absmax.shape)
    return decoded.mul_(scales).add_(parts["nested_offset"])


def decode_by_definition(scheme: Scheme, parts: Parts, shape: tuple[int, int]) -> torch.Tensor:
    """Return one expert's weight, (out, in) in float32, by the definition of the code alone."""
    if scheme.code == "int8":
        return parts["codes"].float() * (parts["scales"].reshape(-1, 1) / INT8_STEPS)
    packed = parts["codes"].long()
    codes = torch.stack((packed >> 4, packed & 0xF), dim=-1).reshape(-1, BLOCKSIZE)
    absmax = parts["absmax"]
    if scheme.double_quant:
        outer = torch.arange(absmax.numel(), device=absmax.device) // NESTED_BLOCKSIZE
        absmax = parts["nested_map"][absmax.long()] * parts["nested_absmax"][outer] + parts["nested_offset"]
    return (parts["map"][codes] * absmax.reshape(-1, 1)).reshape(shape)


def check_run(scheme: Scheme, parts: Parts, shape: tuple[int, int], run: torch.Tensor) -> None:
    """Compare a run, as ``decode_run`` returned it for ``parts``, with its experts decoded one by one.

    One by one they were compared with the definition when they were packed; the kernels may yet differ by the shape
    they are given.

    Raises:
        WrongDecodeError: some value is not the same to the bit.
    """
    for number, weights in enumerate(run):
        expert = {name: part if name in SHARED else part[number] for name, part in parts.items()}
        if not torch.equal(weights, decode(scheme, expert, shape, run.dtype)):
            import bitsandbytes  # noqa: PLC0415 - only who quantises needs it

            raise WrongDecodeError(
                f"bitsandbytes {bitsandbytes.__version__} on {run.device.type} decodes {len(run)} experts of shape "
                f"{shape} at once to other values than one by one ({scheme}, {run.dtype}). Another release of "
                "bitsandbytes may do, or int8, or sizes that are multiples of 64."
            )


def check_decode(scheme: Scheme, parts: Parts, shape: tuple[int, int], dtype: torch.dtype, name: str) -> None:
    """Decode both ways and compare, once for everything that is packed.

    Raises:
        WrongDecodeError: the kernel's values differ by more than the rounding of ``dtype``.
        NotFiniteError: the codes mean NaN or infinity.
    """
    meant = decode_by_definition(scheme, parts, shape)
    if not bool(torch.isfinite(meant).all()):
        raise NotFiniteError(f"{name} holds weights so large that {scheme} means infinity by their codes.")
    got = decode(scheme, parts, shape, dtype)
    # Two roundings: float32 arithmetic in another order, and the one to dtype. The smallest numbers of a dtype are no
    # finer than one step.
    room = 2 * (torch.finfo(dtype).eps + torch.finfo(torch.float32).eps)
    step = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    off = ~((got.float() - meant).abs() <= room * meant.abs() + step)
    if bool(off.any()):
        import bitsandbytes  # noqa: PLC0415 - only who quantises needs it

        error = float((got.float() - meant).norm() / meant.norm())
        raise WrongDecodeError(
            f"{name}: bitsandbytes {bitsandbytes.__version__} on {got.device.type} decodes {int(off.sum())} of "
            f"{off.numel()} weights of a matrix of shape {shape} wrong ({scheme}; relative error {error:.2g}). Another "
            "release of bitsandbytes may do, or int8, or sizes that are multiples of 64."
        )
