# SPDX-License-Identifier: Apache-2.0
"""A second reader of `.intonly` files, written from docs/format.md alone. Imports nothing of ours and nothing but Python."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

MASK = (1 << 64) - 1


class PlainFile:
    """The integers of a file, as nested lists flattened in C order.

    `params` holds (name, codes) in file order, bodies included; `rescales` one dict for each rescale.
    """

    def __init__(self, data: bytes) -> None:
        length = int.from_bytes(data[:8], "little")
        self.header = json.loads(data[8 : 8 + length])
        self.metadata = self.header.pop("__metadata__")
        self.sealed = hashlib.sha256(data[:-32]).digest() == data[-32:]
        body = data[8 + length :]
        self.blobs = [body[slice(*entry["data_offsets"])] for name, entry in self.header.items() if name not in ("small", "checksum")]
        self.small = body[slice(*self.header["small"]["data_offsets"])] if "small" in self.header else b""
        self.params: list[tuple[str, list[int]]] = []
        self.rescales: list[dict[str, Any]] = []
        top = json.loads(self.metadata["graph"])
        self.formats = top["formats"]
        self._graph(top)

    def _graph(self, graph: dict[str, Any]) -> None:
        for name, fmt, shape, *stored in graph["params"]:
            count = math.prod(shape)
            if stored:
                self.params.append((name, self._fields(count, *stored)))
            else:
                bits = self.formats[fmt]["bits"]
                codes = bit_stream(self.blobs.pop(0), count, bits)
                if self.formats[fmt].get("qmin", 0) < 0:
                    codes = [c - (1 << bits) if c >> (bits - 1) else c for c in codes]
                self.params.append((name, codes))
        for _, _, _, *rest in graph["nodes"]:
            for value in (rest[0] if rest else {}).values():
                if isinstance(value, dict):
                    self._rescale(*value["rescale"])
            if len(rest) == 3:
                self._graph(rest[2])

    def _rescale(self, m: Any, s: Any, zero: int, lo: int, hi: int, k: int = 0, x_zero: Any = 0, *joining: Any) -> None:
        rm, rz, rs = (*joining, None)[:3] if joining else (None, 0, None)
        arrays = {"multiplier": m, "shift": s, "x_zero": x_zero, "residual_multiplier": rm, "residual_shift": rs}
        read = {k: self._fields(math.prod(v[2:]), *v[:2]) if isinstance(v, list) else v for k, v in arrays.items()}
        self.rescales.append({**read, "zero_point": zero, "lo": lo, "hi": hi, "fraction_bits": k, "residual_zero": rz})

    def _fields(self, count: int, base: int, width: int) -> list[int]:
        size = (count * width + 7) // 8
        data, self.small = self.small[:size], self.small[size:]
        values = [base + v for v in bit_stream(data, count, width)]
        return [v - (1 << 64) if width == 64 and v >> 63 else v for v in values]


def bit_stream(data: bytes, count: int, bits: int) -> list[int]:
    """Return `count` unsigned codes of `bits` bits."""
    assert len(data) == (count * bits + 7) // 8
    whole = int.from_bytes(data, "little")
    return [whole >> (i * bits) & ((1 << bits) - 1) for i in range(count)]


def golden_code(seed: int, k: int, i: int, qmin: int, qmax: int) -> int:
    """Return element i of golden input k."""
    z = seed + (k * 2**40 + i + 1) * 0x9E3779B97F4A7C15 & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    z = z ^ z >> 31
    low, high = max(qmin, -(2**31)), min(qmax, 2**31 - 1)
    return low + ((z >> 32) * (high - low + 1) >> 32)
