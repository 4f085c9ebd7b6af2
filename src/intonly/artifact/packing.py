# SPDX-License-Identifier: Apache-2.0
"""Where the integers of a graph go: large parameters get a tensor each, small arrays share one (docs/format.md, section 3)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from intonly.artifact import strict_json as js
from intonly.artifact.container import CHECKSUM, FLOAT_DTYPES, Tensor
from intonly.core.errors import ArtifactError, UnsupportedFormatError
from intonly.core.number_format import INT64, NumberFormat, uniform

Array = npt.NDArray[Any]
LARGE_COUNT, LARGE_BITS = 256, 16
"""A parameter of this many codes or more, of at most this width, gets a tensor of its own."""
MAX_SMALL = 1 << 24
"""Most integers in the shared tensor."""
MAX_CONSTANTS = 1 << 20
"""Most integers in one array of a rescale."""
SHARED = "small"
CHUNK = 1 << 16
"""Codes packed at once: a multiple of 8, so that every piece begins on a byte."""


def pack(fmt: NumberFormat, codes: Array) -> bytes:
    """Return `fmt.pack(codes)`, made piece by piece so that temporary memory stays small."""
    flat = np.ascontiguousarray(codes).reshape(-1)
    return b"".join(fmt.pack(flat[at : at + CHUNK]).tobytes() for at in range(0, flat.size, CHUNK))


def unpack(fmt: NumberFormat, data: bytes | memoryview, count: int, what: str) -> Array:
    """Return the `count` codes that `pack` wrote, in `fmt.dtype`.

    Raises:
        ArtifactError: naming `what`, when the bytes have another length, or hold a code that the format does not have.
    """
    if len(data) != (count * fmt.bits + 7) // 8:
        raise ArtifactError(f"{what}: {count} codes of {fmt.bits} bits do not fit {len(data)} bytes")
    raw = np.frombuffer(data, np.uint8)
    codes = np.empty(count, fmt.dtype)
    step = CHUNK * fmt.bits // 8
    try:
        for i, at in enumerate(range(0, count, CHUNK)):
            codes[at : at + CHUNK] = fmt.unpack(raw[i * step : (i + 1) * step], min(CHUNK, count - at))
    except UnsupportedFormatError as problem:
        raise ArtifactError(f"{what}: {problem}") from None
    return codes


def field_format(base: int, width: int, what: str) -> NumberFormat:
    """Return the format of the stored fields of a small array: unsigned below 64 bits, int64 itself at 64."""
    if not 1 <= width <= 64 or (width == 64 and base != 0) or (width < 64 and base + (1 << width) > 1 << 63):
        raise ArtifactError(f"{what}: fields of {width} bits from {base} on do not fit in 64 bits")
    return INT64 if width == 64 else uniform(width, signed=False)


class Store(Protocol):
    """Takes the integers of a graph; what it returns stands for them in the graph's JSON."""

    def param(self, name: str, fmt: NumberFormat, codes: Array) -> list[Any]:
        """Take a parameter."""

    def constants(self, array: Array) -> list[Any]:
        """Take an array of a rescale."""


class FileStore:
    """Collects the tensors of a file."""

    def __init__(self) -> None:
        self._large: list[Tensor] = []
        self._small: list[bytes] = []
        self._names = {CHECKSUM, SHARED, "__metadata__"}

    def tensors(self) -> list[Tensor]:
        """Return the large tensors in order of appearance, then the shared one."""
        small = b"".join(self._small)
        return [*self._large, *([Tensor(SHARED, "U8", (len(small),), small)] if small else [])]

    def param(self, name: str, fmt: NumberFormat, codes: Array) -> list[Any]:
        """Store a parameter; [] when it has a tensor of its own, else [base, width]."""
        if codes.size < LARGE_COUNT or fmt.bits > LARGE_BITS:
            return self._shared(codes)
        label, count = name, 1
        while label in self._names:
            count += 1
            label = f"{name}#{count}"
        self._names.add(label)
        data = pack(fmt, codes)
        dtype, shape = tensor_type(fmt, codes.shape)
        self._large.append(Tensor(label, dtype, shape, data))
        return []

    def constants(self, array: Array) -> list[Any]:
        """Store an array of a rescale; [base, width, *shape]."""
        return [*self._shared(array), *array.shape]

    def _shared(self, array: Array) -> list[Any]:
        flat = array.reshape(-1).astype(np.int64)
        base, top = (int(flat.min()), int(flat.max())) if flat.size else (0, 0)
        width = max(1, (top - base).bit_length())
        if width == 64 or base + (1 << width) > 1 << 63:
            base, width = 0, 64
        self._small.append(pack(field_format(base, width, "array"), flat if width == 64 else flat - base))
        return [base, width]


class DigestStore:
    """Stands hashes in for integers, so that a graph's digest does not depend on how a file stores them."""

    def param(self, name: str, fmt: NumberFormat, codes: Array) -> list[Any]:
        """Return [SHA-256 of the codes, little-endian in the format's array type]."""
        del name
        return [hashlib.sha256(np.ascontiguousarray(codes, fmt.dtype.newbyteorder("<")).tobytes()).hexdigest()]

    def constants(self, array: Array) -> list[Any]:
        """Return [SHA-256 of the little-endian int64 integers, *shape]."""
        return [hashlib.sha256(np.ascontiguousarray(array, "<i8").tobytes()).hexdigest(), *array.shape]


def tensor_type(fmt: NumberFormat, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Return (dtype, shape) of the tensor that holds a large parameter: bytes, unless codes fill whole ones."""
    if fmt.bits in (8, 16):
        return f"{'I' if fmt.signed else 'U'}{fmt.bits}", shape
    return "U8", ((math.prod(shape) * fmt.bits + 7) // 8,)


class FileReader:
    """Hands out, in the order of writing, what `FileStore` stored."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        last = tensors[-1] if tensors and tensors[-1].name == SHARED else None
        self._large = list(tensors[: len(tensors) - (last is not None)])
        self._small = memoryview(last.data if last is not None else b"")
        self._next, self._at, self._count = 0, 0, 0

    @property
    def next_is_float(self) -> bool:
        """Whether the next large parameter is stored as real numbers."""
        return self._next < len(self._large) and self._large[self._next].dtype in FLOAT_DTYPES

    def param(self, what: str, fmt: NumberFormat, shape: tuple[int, ...], record: list[Any]) -> Array:
        """Return the codes of a parameter, in `fmt.dtype`; `record` is what `FileStore.param` returned."""
        if record:
            values = self._fields(record, shape, what)
            if values.size and (values.min() < fmt.qmin or values.max() > fmt.qmax):
                raise ArtifactError(f"{what}: a stored code lies outside {fmt.qmin}..{fmt.qmax} of format {fmt.name!r}")
            return values.astype(fmt.dtype).reshape(shape)
        if self._next == len(self._large):
            raise ArtifactError(f"{what}: its tensor is missing")
        tensor = self._large[self._next]
        self._next += 1
        if (tensor.dtype, tensor.shape) != tensor_type(fmt, shape):
            raise ArtifactError(f"{what}: tensor {tensor.name!r:.80} is {tensor.dtype} {tensor.shape}, expected {tensor_type(fmt, shape)}")
        return unpack(fmt, tensor.data, math.prod(shape), what).reshape(shape)

    def constants(self, what: str, record: list[Any]) -> Array:
        """Return an array of a rescale, int64; `record` is what `FileStore.constants` returned."""
        js.entries(record, what, 3, 5)
        shape = tuple(js.integer(d, what, 1, MAX_CONSTANTS) for d in record[2:])
        js.integer(math.prod(shape), f"{what}: size", 1, MAX_CONSTANTS)
        return self._fields(record[:2], shape, what).reshape(shape)

    def finish(self) -> None:
        """Raise unless everything stored was read."""
        if self._next != len(self._large) or self._at != len(self._small):
            raise ArtifactError("is inconsistent: it stores integers that the graph does not use")

    def _fields(self, record: list[Any], shape: tuple[int, ...], what: str) -> Array:
        base, width = (js.integer(v, what, -(1 << 63), (1 << 63) - 1) for v in js.entries(record, what, 2, 2))
        fmt = field_format(base, width, what)
        count = math.prod(shape)
        self._count += count
        size = (count * width + 7) // 8
        if self._count > MAX_SMALL or size > len(self._small) - self._at:
            raise ArtifactError(f"{what}: {count} fields of {width} bits are not in the file")
        data = self._small[self._at : self._at + size]
        self._at += size
        return unpack(fmt, data, count, what).astype(np.int64) + base
