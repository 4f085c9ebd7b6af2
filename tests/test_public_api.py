# SPDX-License-Identifier: Apache-2.0
"""What `import intonly` offers, and what it costs."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import intonly
from intonly import _HOMES

SOURCE = str(Path(intonly.__file__).parents[1])
WITHOUT_EXTRAS = (
    "import sys\nfor name in ('torch', 'onnx', 'onnxruntime', 'PIL', 'typer', 'rich', 'highspy'):\n    sys.modules[name] = None\n"
)


def python(code: str, *arguments: str) -> str:
    """Run code in an interpreter of its own; return what it prints."""
    path = os.pathsep.join(p for p in (SOURCE, os.environ.get("PYTHONPATH")) if p)
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_costs_numpy_only():
    """`import intonly` would load torch, onnx or another heavy package, and take seconds."""
    code = (
        "import sys, numpy\nbefore = set(sys.modules)\nimport intonly\n"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)\nprint(sorted(new))"
    )
    assert python(code).strip() == "['intonly']"


def test_submodules_leave_heavy_packages_alone():
    """The modules behind the public names would load torch or onnx before a user asks for either."""
    code = (
        "import sys, intonly\nfor name in intonly.__all__: getattr(intonly, name)\nimport intonly.info\n"
        "print(sorted({'torch', 'onnx', 'PIL', 'typer', 'rich', 'highspy'} & set(sys.modules)))"
    )
    assert python(code).strip() == "[]"


def test_public_names_exist_and_are_documented():
    """A name that the package promises would be missing, or undocumented."""
    assert set(intonly.__all__) == set(_HOMES)
    assert intonly.__all__ == sorted(intonly.__all__)
    assert set(intonly.__all__) <= set(dir(intonly))
    for name in intonly.__all__:
        thing = getattr(intonly, name)
        assert inspect.getdoc(thing), name
        assert thing.__module__.startswith("intonly.")


def test_no_module_hides_a_public_name():
    """After `import intonly.something`, a module of that name would stand where the function was."""
    code = (
        "import importlib, pkgutil, types, intonly\n"
        "for m in pkgutil.walk_packages(intonly.__path__, 'intonly.'):\n"
        "    if not m.name.endswith('__main__'): importlib.import_module(m.name)\n"
        "print([n for n in intonly.__all__ if isinstance(getattr(intonly, n), types.ModuleType)])"
    )
    assert python(code).strip() == "[]"


def test_unknown_names_are_unknown():
    """A misspelt name would import something else, or fail without its name."""
    with pytest.raises(AttributeError, match="quantise"):
        _ = intonly.quantise


def test_version_is_the_package_version():
    """The version that people report would not be one."""
    assert [part.isdecimal() for part in intonly.__version__.split(".")] == [True] * 3


def test_an_artifact_needs_no_torch(tmp_path):
    """A machine that only runs artifacts would need PyTorch, ONNX or the packages of the command line."""
    torch = pytest.importorskip("torch", reason="the artifact is made with PyTorch")
    from tests.small_nets import IMAGES, SmallNet, images

    assert torch is not None
    x = images(12)
    q = intonly.quantize(SmallNet().eval(), "w8a8", x, inputs=IMAGES)
    q.save(tmp_path / "net.intonly")
    np.savez(tmp_path / "data.npz", x=x, y=q(x).argmax(axis=1))
    code = (
        f"{WITHOUT_EXTRAS}import numpy as np, intonly\nfrom intonly.info import info\n"
        "q = intonly.load(sys.argv[1])\nintonly.verify(q).raise_if_failed()\n"
        "x = np.load(sys.argv[2])['x']\n"
        "print(q(x).sum(), info(q).totals.macs, intonly.evaluate(q, sys.argv[2]).top1)"
    )
    total, macs, top1 = python(code, str(tmp_path / "net.intonly"), str(tmp_path / "data.npz")).split()
    assert int(total) == q(x).sum()
    assert int(macs) > 0
    assert float(top1) == 100.0
