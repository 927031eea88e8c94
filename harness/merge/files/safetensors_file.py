"""Safetensors by hand: a strictly validated header and byte ranges, nothing decoded.

The format (safetensors 0.4 and later, README "Format"): an unsigned 64-bit little-endian length N, N bytes of JSON that
map each tensor name to ``dtype``, ``shape`` and ``data_offsets`` (relative to the end of the header), then the data. It
is read here rather than through the library because a merge copies what does not change byte for byte, header included,
and because planning must not allocate anything that an untrusted header asks for.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from harness.merge.errors import CorruptFileError, InputChangedError, UnreadableInputError
from harness.merge.files.json_file import MAX_JSON_BYTES, parse_object, plain_file_size

LENGTH_BYTES = 8
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How the text begins that Git keeps in place of a large file (git-lfs, docs/spec.md)."""
MAX_NAME = 1000
"""Characters of a tensor's name.

Published ones have up to a hundred and a half, and every name is matched against patterns.
"""
MAX_PARTS = 64
"""Dotted parts of a tensor's name.

Published ones have up to fifteen, and each could be where a configured name begins.
"""
MAX_DIMENSIONS = 8
MAX_DIMENSION = 2**48

DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""Bits per element of every dtype that the format defines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One tensor of a file: its dtype by the format's name, its shape, and its bytes ``[start, stop)`` in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """The tensor's size in bytes."""
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """A validated safetensors file.

    ``tensors`` is in order of position in the file. ``name`` is the name within its directory, ``path`` what to open
    (for a link, where it leads). ``header_sha256`` covers the length field and the JSON.
    """

    name: str
    path: Path
    size: int
    data_start: int
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    header_sha256: str


def _entry(name: str, value: Any, *, what: str, data_start: int) -> TensorInfo:
    """Return one header entry as a ``TensorInfo``; anything unexpected about it is a ``CorruptFileError``."""
    bad = f"{what}: tensor {name[:200]!r}"
    if len(name) > MAX_NAME:
        raise CorruptFileError(f"{bad} has a name of {len(name)} characters; more than {MAX_NAME} is not read.")
    if name.count(".") >= MAX_PARTS:
        raise CorruptFileError(
            f"{bad} has a name of {name.count('.') + 1} dotted parts; more than {MAX_PARTS} are not read."
        )
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise CorruptFileError(f"{bad} should have exactly dtype, shape and data_offsets.")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CorruptFileError(f"{bad} has the unknown dtype {str(dtype)[:40]!r}.")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(type(size) is int for size in shape):
        raise CorruptFileError(f"{bad} has a shape that is not a list of at most {MAX_DIMENSIONS} integers.")
    if not all(0 < size <= MAX_DIMENSION for size in shape):
        raise CorruptFileError(f"{bad} has a shape with a zero, negative or absurd dimension.")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(offset) is int for offset in offsets):  # noqa: PLR2004 - begin and end
        raise CorruptFileError(f"{bad} has data_offsets that are not two integers.")
    begin, end = offsets
    if not 0 <= begin <= end:
        raise CorruptFileError(f"{bad} has data_offsets that run backwards.")
    if prod(shape) * DTYPE_BITS[dtype] != (end - begin) * 8:
        raise CorruptFileError(f"{bad}: shape {shape} of {dtype} does not fill the {end - begin} bytes it is given.")
    return TensorInfo(dtype=dtype, shape=tuple(shape), start=data_start + begin, stop=data_start + end)


def _metadata(value: Any, what: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise CorruptFileError(f"{what}: __metadata__ should map strings to strings.")
    return value


def read_header(path: Path, *, name: str | None = None) -> TensorFile:
    """Return the validated header of a safetensors file.

    Raises:
        CorruptFileError: the file is truncated or longer than its tensors, the header is malformed, or tensors overlap
            or leave gaps; zero-size tensors and unknown dtypes are refused too.
        UnreadableInputError: the file cannot be opened or read.
        UnsafePathError: it is not a regular file.
    """
    what = name or path.name
    size = plain_file_size(path)
    try:
        with path.open("rb") as file:
            prefix = file.read(LENGTH_BYTES)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == LENGTH_BYTES else 0
            if not 2 <= length <= min(MAX_JSON_BYTES, size - LENGTH_BYTES):  # noqa: PLR2004 - the shortest JSON object
                if prefix + file.read(len(LFS_POINTER) - len(prefix)) == LFS_POINTER:
                    raise CorruptFileError(
                        f"{what} is a Git LFS pointer: it stands for the weights, which were not downloaded.",
                        "Run git lfs pull in its repository, or download the file again.",
                    )
                raise CorruptFileError(
                    f"{what} is not a safetensors file, or is truncated: its header claims {length} bytes of {size}."
                )
            raw = file.read(length)
    except OSError as error:
        raise UnreadableInputError(f"{what} cannot be read: {error.strerror or error}.") from error
    if len(raw) != length:
        raise CorruptFileError(f"{what} is truncated: the header ends after {len(raw)} of {length} bytes.")
    header = parse_object(raw, f"the header of {what}")
    metadata = _metadata(header.pop("__metadata__", {}), what)
    data_start = LENGTH_BYTES + length
    entries = {key: _entry(key, value, what=what, data_start=data_start) for key, value in header.items()}
    tensors = dict(sorted(entries.items(), key=lambda item: item[1].start))
    position = data_start
    for key, info in tensors.items():
        if info.start != position:
            problem = "overlaps the tensor before it" if info.start < position else "leaves a gap before it"
            raise CorruptFileError(f"{what}: tensor {key!r} {problem}.")
        position = info.stop
    if position != size:
        reason = "truncated" if size < position else "followed by bytes that belong to no tensor"
        raise CorruptFileError(f"{what} is {reason}: its tensors end at byte {position}, the file at {size}.")
    digest = hashlib.sha256(prefix + raw).hexdigest()
    return TensorFile(
        name=what, path=path, size=size, data_start=data_start, tensors=tensors, metadata=metadata, header_sha256=digest
    )


def encode_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of a header (length field included) for tensors stored one after the other.

    Args:
        tensors: (name, dtype, shape), in the order in which their data follows.
        metadata: the ``__metadata__`` to write, left out when empty.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, dtype, shape in tensors:
        stop = position + prod(shape) * DTYPE_BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # Data starts at a multiple of eight so that a reader may map it; spaces are what the format pads with.
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def read_into(descriptor: int, view: memoryview, start: int, *, what: str) -> None:
    """Fill ``view`` with the bytes of an open file from ``start`` on.

    Raises:
        InputChangedError: the file ends too early, though it did not when it was planned.
        UnreadableInputError: the read itself failed.
    """
    done = 0
    while done < len(view):
        try:
            count = os.preadv(descriptor, [view[done:]], start + done)
        except OSError as error:
            raise UnreadableInputError(f"{what} cannot be read: {error.strerror or error}.") from error
        if count == 0:
            raise InputChangedError(f"{what} became shorter while it was being read.")
        done += count


def read_range(descriptor: int, start: int, stop: int, *, what: str) -> bytearray:
    """Return the bytes ``[start, stop)`` of an open file; raises as ``read_into`` does."""
    buffer = bytearray(stop - start)
    read_into(descriptor, memoryview(buffer), start, what=what)
    return buffer
