# SPDX-License-Identifier: Apache-2.0
"""JSON for files from strangers: bounded before it is parsed, and nothing in it that JSON readers disagree about."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

import numpy as np

from intonly.core.errors import ArtifactError

MAX_DEPTH = 64
"""Deepest nesting of lists and objects."""
MAX_ITEMS = 1 << 20
"""Most entries of lists and objects together."""
MAX_NUMBER = 64
"""Most characters of one number."""

_WIDE_ESCAPE = re.compile(r"\\u(?!00[01])")


def dump(data: Any) -> str:
    """Return `data` as JSON text without spaces, keys in the order given.

    Raises:
        ArtifactError: when it holds something that JSON has no word for (NaN, infinity, half of a surrogate pair).
    """
    try:
        text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as problem:
        raise ArtifactError(f"cannot be written as JSON: {problem}") from None
    return text


def parse(text: str, where: str) -> Any:
    """Return what JSON `text` says: objects as dict, lists, str, bool, None, finite float, and int within int64.

    Raises:
        ArtifactError: naming `where`, when the text is no JSON, is nested too deeply or holds too many entries, repeats a
            key, or holds NaN, infinity, an integer beyond int64, or an escape for what UTF-8 can say directly.
    """
    _check_size(text, where)

    def number(digits: str) -> int:
        value = int(digits) if len(digits) <= MAX_NUMBER else 1 << 64
        if not -(1 << 63) <= value < 1 << 63:
            raise ArtifactError(f"{where}: the integer {digits:.24} does not fit in 64 bits")
        return value

    def real(digits: str) -> float:
        value = float(digits) if len(digits) <= MAX_NUMBER else math.inf
        if not math.isfinite(value):
            raise ArtifactError(f"{where}: the number {digits:.24} is not finite")
        return value

    def constant(word: str) -> NoReturn:
        raise ArtifactError(f"{where}: {word} is no number")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            left = dict(result)
            twice = next(key for key, _ in pairs if left.pop(key, pairs) is pairs)
            raise ArtifactError(f"{where}: key {shown(twice)} stands twice")
        return result

    try:
        return json.loads(text, parse_int=number, parse_float=real, parse_constant=constant, object_pairs_hook=unique)
    except (ValueError, RecursionError) as problem:
        raise ArtifactError(f"{where}: no JSON: {problem}") from None


def _check_size(text: str, where: str) -> None:
    """Raise unless the nesting and the number of entries are within limits; costs one pass and no recursion."""
    if sum(text.count(mark) for mark in ",[{") > MAX_ITEMS:
        raise ArtifactError(f"{where}: more than {MAX_ITEMS} entries")
    bare = text.replace("\\\\", "").replace('\\"', "")
    if _WIDE_ESCAPE.search(bare):
        raise ArtifactError(f"{where}: text must be UTF-8; only control characters are escaped")
    raw = np.frombuffer(bare.encode("utf-8"), np.uint8)
    outside = ~np.logical_xor.accumulate(raw == ord('"')) if raw.size else np.zeros(0, bool)
    opening = (raw == ord("[")) | (raw == ord("{"))
    closing = (raw == ord("]")) | (raw == ord("}"))
    steps = (opening.astype(np.int8) - closing)[outside & (opening | closing)]
    if steps.size and int(np.cumsum(steps, dtype=np.int64).max()) > MAX_DEPTH:
        raise ArtifactError(f"{where}: nested more than {MAX_DEPTH} deep")


_SHORT = reprlib.Repr()
_SHORT.maxlist = _SHORT.maxdict = 3
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 60


def shown(data: Any) -> str:
    """Return `data` as a message shows it, at the cost of a few entries."""
    return _SHORT.repr(data)


def members(data: Any, where: str, required: Collection[str], optional: Collection[str] = ()) -> Mapping[str, Any]:
    """Return `data` if it is an object with all the required keys and no unknown one."""
    if not isinstance(data, dict):
        raise ArtifactError(f"{where}: expected an object, got {shown(data)}")
    missing = [key for key in required if key not in data]
    unknown = [key for key in data if key not in required and key not in optional]
    if missing or unknown:
        raise ArtifactError(f"{where}: key {missing[0]!r} is missing" if missing else f"{where}: unknown key {unknown[0]!r:.80}")
    return data


def entries(data: Any, where: str, least: int = 0, most: int = MAX_ITEMS) -> list[Any]:
    """Return `data` if it is a list of `least` to `most` entries."""
    if not isinstance(data, list) or not least <= len(data) <= most:
        raise ArtifactError(f"{where}: expected a list of {least} to {most} entries, got {shown(data)}")
    return data


def integer(data: Any, where: str, lo: int, hi: int) -> int:
    """Return `data` if it is an integer (no bool) in lo..hi."""
    if type(data) is not int or not lo <= data <= hi:
        raise ArtifactError(f"{where}: expected an integer in {lo}..{hi}, got {shown(data)}")
    return data


def name(data: Any, where: str, *, empty: bool = False) -> str:
    """Return `data` if it is a text of at most 4096 characters, not empty unless `empty`."""
    if not isinstance(data, str) or len(data) > 4096 or not (data or empty):
        raise ArtifactError(f"{where}: expected a name of at most 4096 characters, got {shown(data)}")
    return data
