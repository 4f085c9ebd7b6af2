# SPDX-License-Identifier: Apache-2.0
"""The open vocabulary of weight formats: one file each, one line here."""

from __future__ import annotations

from intonly.core.errors import UnsupportedFormatError
from intonly.core.number_format import NumberFormat
from intonly.formats import binary, uniform

FORMATS: dict[str, NumberFormat] = {fmt.name: fmt for module in (uniform, binary) for fmt in module.FORMATS}


def weight_format(bits: int, name: str | None = None) -> NumberFormat:
    """Return the format called `name`, or the usual one of `bits` bits.

    Raises:
        UnsupportedFormatError: when there is none.
    """
    if name is not None:
        if name not in FORMATS:
            raise UnsupportedFormatError(f"unknown weight format {name!r}; known are {', '.join(FORMATS)}", format=name)
        return FORMATS[name]
    for fmt in FORMATS.values():
        if fmt.bits == bits:
            return fmt
    raise UnsupportedFormatError(f"no weight format of {bits} bits; known are {', '.join(FORMATS)}")
