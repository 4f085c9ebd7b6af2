# SPDX-License-Identifier: Apache-2.0
"""Where distilled batches are kept, so that a run that was killed goes on where it stopped."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from intonly.core.files import write_atomic

Arrays = Mapping[str, npt.NDArray[Any]]
NAME = "//name"
"""Entry of a file that holds the name it stands for; no array is called so."""


class Store(Protocol):
    """Keeps arrays under names; a name stands for everything that they depend on."""

    def get(self, name: str) -> dict[str, npt.NDArray[Any]] | None:
        """Return what was put under `name`, or None."""

    def put(self, name: str, arrays: Arrays) -> None:
        """Keep `arrays` under `name`."""


class Forgetful:
    """Keeps nothing: every run starts anew."""

    def get(self, name: str) -> dict[str, npt.NDArray[Any]] | None:
        """Return None."""

    def put(self, name: str, arrays: Arrays) -> None:
        """Do nothing."""


class Folder:
    """Keeps one `.npz` file a name. A file is there whole or not at all; several processes may share the folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)

    def _file(self, name: str) -> Path:
        return self.path / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.npz"

    def get(self, name: str) -> dict[str, npt.NDArray[Any]] | None:
        """Return what was put under `name`, or None when there is no such file or it does not hold that."""
        try:
            with np.load(self._file(name), allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
            return None
        return arrays if str(arrays.pop(NAME, "")) == name else None

    def put(self, name: str, arrays: Arrays) -> None:
        """Write `arrays` atomically."""
        text = io.BytesIO()
        np.savez(text, **{**arrays, NAME: np.asarray(name)})  # type: ignore[arg-type]
        write_atomic(self._file(name), lambda file: file.write(text.getbuffer()))
