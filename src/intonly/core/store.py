# SPDX-License-Identifier: Apache-2.0
"""Where finished pieces of work are kept, so that a run that was killed goes on where it stopped."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from intonly.core.files import write_atomic

T = TypeVar("T")
Arrays = dict[str, npt.NDArray[Any]]
NAME = "//name"
"""Entry of a file of arrays that holds the name it stands for; no array is called so."""


class Store(Protocol[T]):
    """Keeps data under names; a name stands for everything that its data depend on."""

    def get(self, name: str) -> T | None:
        """Return what was put under `name`, or None."""

    def put(self, name: str, data: T) -> None:
        """Keep `data` under `name`."""


class Forgetful:
    """Keeps nothing: every run starts anew."""

    def get(self, name: str) -> None:
        """Return None."""

    def put(self, name: str, data: Any) -> None:
        """Do nothing."""


class Files:
    """One file a name in a folder. A file is there whole or not at all; several processes may share the folder."""

    suffix = ""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)

    def _file(self, name: str) -> Path:
        return self.path / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}{self.suffix}"


class Folder(Files):
    """Keeps JSON data."""

    suffix = ".json"

    def get(self, name: str) -> Any | None:
        """Return what was put under `name`, or None when there is no such file or it holds no JSON of that name."""
        try:
            held = json.loads(self._file(name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return held["data"] if isinstance(held, dict) and held.get("name") == name else None

    def put(self, name: str, data: Any) -> None:
        """Write `data` atomically."""
        text = json.dumps({"name": name, "data": data})
        write_atomic(self._file(name), lambda file: file.write(text.encode()))


class ArrayFolder(Files):
    """Keeps arrays by name, in `.npz` files."""

    suffix = ".npz"

    def get(self, name: str) -> Arrays | None:
        """Return what was put under `name`, or None when there is no such file or it does not hold that."""
        try:
            with np.load(self._file(name), allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
            return None
        return arrays if str(arrays.pop(NAME, "")) == name else None

    def put(self, name: str, data: Arrays) -> None:
        """Write `data` atomically."""
        held: dict[str, Any] = {**data, NAME: np.asarray(name)}
        text = io.BytesIO()
        np.savez(text, **held)
        write_atomic(self._file(name), lambda file: file.write(text.getbuffer()))
