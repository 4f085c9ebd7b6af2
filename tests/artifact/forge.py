# SPDX-License-Identifier: Apache-2.0
"""Files whose checksum fits but whose content does not: what a stranger could send."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from typing import Any

from intonly.artifact.container import Tensor, seal, unseal

JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 255, 1 << 31, -(1 << 31), (1 << 63) - 1, 1.5),
    *("", "x", "N", "conv2d", "exp", [], [1], [[]], {}, [0] * 9),
)


def compact(data: Any) -> str:
    """Return JSON text as files hold it."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def resealed(data: bytes, edits: Mapping[str, Callable[[Any], Any]], tensors: list[Tensor] | None = None) -> bytes:
    """Return the file with some of its JSON texts edited in place or replaced, and a fitting checksum."""
    metadata, stored = unseal(data)
    for key, edit in edits.items():
        content = json.loads(metadata[key])
        changed = edit(content)
        metadata[key] = compact(content if changed is None else changed)
    return seal(metadata, stored if tensors is None else tensors)


def raw(header: str | bytes, body: bytes = b"", length: int | None = None) -> bytes:
    """Return a file with this header text, this data and a fitting checksum."""
    text = header.encode() if isinstance(header, str) else header
    start = (len(text) if length is None else length).to_bytes(8, "little") + text + body
    return start + hashlib.sha256(start).digest()


def header_of(data: bytes) -> dict[str, Any]:
    """Return the parsed header."""
    header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header


def with_header(data: bytes, edit: Callable[[dict[str, Any]], Any]) -> bytes:
    """Return the file with its header edited in place, the data as they were, and a fitting checksum."""
    header = header_of(data)
    edit(header)
    return raw(compact(header), data[8 + int.from_bytes(data[:8], "little") : -32])


def mutated(document: Any, rng: random.Random) -> Any:
    """Return a copy of a JSON document with one to three random changes anywhere in it."""
    document = json.loads(compact(document))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        paths = list(_paths(document))
        path = rng.choice(paths)
        if not path:
            return _copy(rng.choice(JUNK))
        _change(document, path, paths, rng)
    return document


def _change(document: Any, path: tuple[Any, ...], paths: list[tuple[Any, ...]], rng: random.Random) -> None:
    parent, key = _at(document, path[:-1]), path[-1]
    kind = rng.randrange(6)
    if kind == 0:
        del parent[key]
    elif kind == 1:
        parent[key] = _copy(_at(document, rng.choice(paths)))
    elif kind == 2 and isinstance(parent[key], int):
        parent[key] += rng.choice((-1, 1, 1 << 20, -(1 << 40)))
    elif kind == 3 and isinstance(parent, list):
        parent.insert(key, _copy(rng.choice(JUNK)))
    elif kind == 4 and isinstance(parent, list):
        rng.shuffle(parent)
    else:
        parent[key] = _copy(rng.choice(JUNK))


def _at(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def _copy(data: Any) -> Any:
    return json.loads(json.dumps(data))


def _paths(document: Any, path: tuple[Any, ...] = ()) -> Any:
    yield path
    if isinstance(document, dict):
        for key, value in document.items():
            yield from _paths(value, (*path, key))
    elif isinstance(document, list):
        for i, value in enumerate(document):
            yield from _paths(value, (*path, i))
