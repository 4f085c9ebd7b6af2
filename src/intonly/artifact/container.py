# SPDX-License-Identifier: Apache-2.0
"""The safetensors container of an `.intonly` file, sealed by a checksum (docs/format.md, section 1).

Any safetensors reader opens it. This one is stricter than most: the bytes must be exactly what `seal` writes for some
content, so that two readers can never see two contents. The header is therefore written and read here, in the open.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from intonly.artifact import strict_json as js
from intonly.artifact.schema import MAX_RANK
from intonly.core.errors import ArtifactError

FORMAT_VERSION = 2
MAX_HEADER_BYTES = 8 << 20
CHECKSUM = "checksum"
CHECKSUM_BYTES = 32
DTYPE_BYTES = {"I8": 1, "U8": 1, "I16": 2, "U16": 2}
FLOAT_DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Never written; read so that `verify` can say that a float is left, instead of calling the file damaged."""

_PREFIX = '{"__metadata__":{"format_version":"'
_VERSION = re.compile(re.escape(_PREFIX.encode()) + rb'([0-9]{1,9})"')


@dataclass(frozen=True)
class Tensor:
    """One entry of the container: `data` are its bytes, little-endian, C order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview


def seal(metadata: Mapping[str, str], tensors: Sequence[Tensor]) -> bytes:
    """Return the bytes of a file that holds `metadata` (without the format version) and `tensors`, in this order."""
    header: dict[str, object] = {"__metadata__": {"format_version": str(FORMAT_VERSION), **metadata}}
    offset = 0
    for name, dtype, shape, size in [*((t.name, t.dtype, t.shape, len(t.data)) for t in tensors), (CHECKSUM, "U8", (32,), 32)]:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = js.dump(header).encode("utf-8")
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise ArtifactError(f"the description of this network takes {len(text)} bytes, more than the {MAX_HEADER_BYTES} of the file format")
    body = b"".join([len(text).to_bytes(8, "little"), text, *(t.data for t in tensors)])
    return body + hashlib.sha256(body).digest()


def unseal(data: bytes | bytearray | memoryview) -> tuple[dict[str, str], list[Tensor]]:
    """Return (metadata without the format version, tensors without the checksum) of a file made by `seal`.

    Raises:
        ArtifactError: when the bytes are no `.intonly` file, of an unknown version, damaged, or inconsistent.
    """
    view = memoryview(data).cast("B")
    length = int.from_bytes(view[:8], "little")
    if len(view) < 8 + len(_PREFIX) or not bytes(view[8 : 8 + len(_PREFIX)]) == _PREFIX.encode():
        raise ArtifactError("is no .intonly file")
    if length > MAX_HEADER_BYTES or 8 + length + CHECKSUM_BYTES > len(view):
        raise ArtifactError(f"is damaged: its header claims {length} bytes, the file has {len(view)}; copy it again")
    version = _VERSION.match(bytes(view[8 : 8 + len(_PREFIX) + 16]))
    if version is None or int(version[1]) != FORMAT_VERSION:
        found = int(version[1]) if version else "unknown"
        raise ArtifactError(
            f"has format version {found}; this version of intonly reads {FORMAT_VERSION}. Update intonly, or make the file again"
        )
    if hashlib.sha256(view[:-CHECKSUM_BYTES]).digest() != view[-CHECKSUM_BYTES:]:
        raise ArtifactError("is damaged: its checksum does not fit its content; copy it again, or make it again")
    try:
        text = str(view[8 : 8 + length], "utf-8")
    except UnicodeDecodeError as problem:
        raise ArtifactError(f"is inconsistent: its header is no UTF-8 ({problem.reason})") from None
    header = js.parse(text, "header")
    metadata = {key: _text(value, key) for key, value in js.members(header, "header", ["__metadata__"], header)["__metadata__"].items()}
    metadata.pop("format_version")
    return metadata, _tensors({k: v for k, v in header.items() if k != "__metadata__"}, view[8 + length :])


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise ArtifactError(f"header: metadata {key!r:.80} must be text, got {js.shown(value)}")
    return value


def _tensors(header: Mapping[str, object], data: memoryview) -> list[Tensor]:
    """Return the tensors; they must tile `data` in the order in which they are listed, the checksum last."""
    tensors: list[Tensor] = []
    at = 0
    for key, entry in header.items():
        where = f"tensor {js.name(key, 'header')!r:.80}"
        record = js.members(entry, where, ("dtype", "shape", "data_offsets"))
        dtype = record["dtype"]
        size = DTYPE_BYTES.get(dtype, FLOAT_DTYPES.get(dtype, 0)) if isinstance(dtype, str) else 0
        if not size:
            raise ArtifactError(f"{where}: unknown type {js.shown(dtype)}")
        shape = tuple(js.integer(d, where, 0, 1 << 40) for d in js.entries(record["shape"], where, 0, MAX_RANK))
        begin, end = (js.integer(v, where, 0, len(data)) for v in js.entries(record["data_offsets"], where, 2, 2))
        if begin != at or end - begin != math.prod(shape) * size:
            raise ArtifactError(f"{where}: shape {shape} of {dtype} does not fit bytes {begin}..{end}, {at} being the next")
        at = end
        tensors.append(Tensor(key, dtype, shape, data[begin:end]))
    if at != len(data) or not tensors or (tensors[-1].name, tensors[-1].dtype, tensors[-1].shape) != (CHECKSUM, "U8", (CHECKSUM_BYTES,)):
        raise ArtifactError(f"is inconsistent: its tensors cover {at} of {len(data)} bytes and must end with the checksum")
    return tensors[:-1]
