# SPDX-License-Identifier: Apache-2.0
"""Where finished pieces of work are kept, so that a run that was killed goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

from intonly.core.files import write_atomic


class Store(Protocol):
    """Keeps JSON data under names; a name stands for everything that its data depend on."""

    def get(self, name: str) -> Any | None:
        """Return what was put under `name`, or None."""

    def put(self, name: str, data: Any) -> None:
        """Keep `data` under `name`."""


class Forgetful:
    """Keeps nothing: every run starts anew."""

    def get(self, name: str) -> Any | None:
        """Return None."""

    def put(self, name: str, data: Any) -> None:
        """Do nothing."""


class Folder:
    """Keeps one JSON file a name in a folder. A file is there whole or not at all; several processes may share the folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)

    def _file(self, name: str) -> Path:
        return self.path / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"

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
