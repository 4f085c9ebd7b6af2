# SPDX-License-Identifier: Apache-2.0
"""Who may import whom, read from the sources; and what `import intonly` costs, seen from a fresh process.

cli, report
pipeline and everything else that stands beside it
steps            backends        artifact
torch_exec
ops    formats
core
"""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "src"
PACKAGE = SOURCES / "intonly"

ALLOWED = {
    "core": {"core"},
    "formats": {"core", "formats"},
    "ops": {"core", "ops"},
    "torch_exec": {"core", "ops", "torch_exec"},
    "steps": {"core", "formats", "ops", "torch_exec"},
    "backends": {"core", "backends", "_native"},
    "artifact": {"core", "artifact"},
}
"""Rooms that each room may import; a step also its own sub-package. Rooms not listed stand beside `pipeline`."""

TOP = {"cli", "report", "__main__"}
"""Rooms that nothing below them may import."""

LAZY = {"core", "formats", "ops", "artifact", "backends"}
"""Rooms where heavy libraries may be imported inside functions only."""

OWN = {"intonly.backends.torch": "torch"}
"""Packages of lazy rooms that are one library's own: they import it themselves, and others import them inside functions only."""

HEAVY = {"torch", "onnx", "onnxruntime", "onnx_ir", "transformers", "highspy", "typer", "rich", "plotly", "jinja2"}
DYNAMIC = {"importlib.import_module", "import_module", "__import__"}
CORE_OUTSIDE = {"numpy"}


def room_of(module: str) -> str:
    """Return the first part below the package: "core" for intonly.core.arith, "" for the package itself."""
    return [*module.split("."), ""][1]


def step_of(module: str) -> str:
    """Return the step that a module of `steps` belongs to."""
    return [*module.split("."), "", ""][2]


def imports(tree: ast.Module, module: str, is_package: bool) -> Iterator[tuple[str, int, bool]]:
    """Yield (imported module, line, whether it happens when the module is imported)."""
    base = module if is_package else module.rpartition(".")[0]

    def visit(node: ast.AST, eager: bool) -> Iterator[tuple[str, int, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, eager) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), base) if node.level else node.module or ""
            shallow = source in ("intonly", "intonly.steps")  # what is named decides the room or the step
            yield from (
                (f"{source}.{alias.name}" if shallow else source, node.lineno, eager) for alias in node.names[: None if shallow else 1]
            )
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in DYNAMIC and node.args and isinstance(node.args[0], ast.Constant):
            yield str(node.args[0].value), node.lineno, eager
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for child in ast.iter_child_nodes(node):
            yield from visit(child, eager and not inside and not typing_only)

    yield from visit(tree, True)


def place(module: str) -> str:
    """Return how messages call the room of a module; a step goes by its own name."""
    room = room_of(module)
    return f"step {step_of(module)}" if room == "steps" and step_of(module) else room or "intonly"


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """Return what a module imports against the rule, one line each."""
    room, found = room_of(module), []
    for name, line, eager in imports(ast.parse(source), module, is_package):
        top = name.split(".")[0]
        own = next((package for package in OWN if f"{name}.".startswith(f"{package}.")), None)
        if own and eager and not f"{module}.".startswith(f"{own}."):
            found.append(f"{module}:{line} imports {name}, and with it {OWN[own]}; move it into the function that needs it")
        elif top == "intonly":
            if not may_import(module, name):
                found.append(f"{module}:{line} imports {name}, but {place(module)} may not import {place(name)}")
        elif top in HEAVY and room in LAZY and eager and OWN.get(".".join(module.split(".")[:3])) != top:
            found.append(f"{module}:{line} imports {name} where it is imported itself; move it into the function that needs it")
        elif room == "core" and top not in CORE_OUTSIDE and top not in sys.stdlib_module_names:
            found.append(f"{module}:{line} imports {name}; core uses the standard library and NumPy only")
    return found


def may_import(module: str, name: str) -> bool:
    """Whether the import rule lets `module` import `name`, both inside the package."""
    room, target = room_of(module), room_of(name)
    if target in ("", "_version", "__version__"):
        return room not in ALLOWED or target != ""
    if room in TOP or room == "":
        return True
    if room not in ALLOWED:
        return target not in TOP
    if room == target == "steps":
        return step_of(module) == step_of(name) != ""
    return target in ALLOWED[room]


def modules() -> list[tuple[str, Path]]:
    """Return (dotted name, file) of every module of the package."""
    files = sorted(PACKAGE.rglob("*.py"))
    return [(".".join(f.relative_to(SOURCES).with_suffix("").parts).removesuffix(".__init__"), f) for f in files]


def test_sources_keep_the_layering() -> None:
    """A layer would come to depend on one above it, and could no longer be used, tested or replaced alone."""
    found = [line for name, f in modules() for line in violations(f.read_text(), name, f.name == "__init__.py")]
    assert not found, "\n".join(found)


def test_the_sources_are_there() -> None:
    """The test above would look at nothing."""
    rooms = {room_of(name) for name, _ in modules()}
    assert set(ALLOWED) - {"artifact"} <= rooms
    assert sum(1 for name, f in modules() for _ in imports(ast.parse(f.read_text()), name, f.name == "__init__.py")) > 200


WRONG = [
    ("intonly.core.arith", "from intonly.ops import OPS", "core may not import ops"),
    ("intonly.core.spec", "def f():\n    import intonly.backends.interpreter", "core may not import backends"),
    ("intonly.core.spec", "from ..steps import quantize", "core may not import step quantize"),
    ("intonly.core.primitives.base", "from ...torch_exec import TorchRunner", "core may not import torch_exec"),
    ("intonly.core.spec", "from intonly import pipeline", "core may not import pipeline"),
    ("intonly.core.spec", "import intonly", "core may not import intonly"),
    ("intonly.core.spec", "def f():\n    import torch", "standard library and NumPy only"),
    ("intonly.core.spec", "import scipy.special", "standard library and NumPy only"),
    ("intonly.core.lowering", "if TYPE_CHECKING:\n    from intonly.ops import OPS", "core may not import ops"),
    ("intonly.ops.add", "import torch", "move it into the function"),
    ("intonly.ops.add", "class A:\n    from torch import nn", "move it into the function"),
    ("intonly.ops.add", "try:\n    import onnx\nexcept ImportError:\n    pass", "move it into the function"),
    ("intonly.ops.add", "from intonly.formats import FORMATS", "ops may not import formats"),
    ("intonly.formats.uniform", "from intonly.ops import OPS", "formats may not import ops"),
    ("intonly.torch_exec", "from intonly.steps.quantize import quantize", "torch_exec may not import step quantize"),
    ("intonly.steps.quantize", "from intonly.steps.calibrate import observe", "step quantize may not import step calibrate"),
    ("intonly.steps.capture.onnx_import", "from ..lower import lower", "step capture may not import step lower"),
    ("intonly.steps.capture.onnx_import", "from intonly.steps import lower", "step capture may not import step lower"),
    ("intonly.steps.lower.fuse", "from intonly.backends.interpreter import Interpreter", "step lower may not import backends"),
    ("intonly.steps.lower.fuse", "import importlib\nimportlib.import_module('intonly.artifact')", "step lower may not import artifact"),
    ("intonly.backends.native", "from intonly.ops.conv2d import SPEC", "backends may not import ops"),
    ("intonly.backends.native", "import onnxruntime as ort", "move it into the function"),
    ("intonly.backends.torch.linear", "import onnx", "move it into the function"),
    ("intonly.backends.interpreter", "from intonly.backends.torch import TorchIntegers", "and with it torch; move it into the function"),
    ("intonly.artifact.save", "from intonly.pipeline import quantize", "artifact may not import pipeline"),
    ("intonly.pipeline", "from intonly.cli import app", "pipeline may not import cli"),
    ("intonly.search", "from intonly.report import write", "search may not import report"),
]


@pytest.mark.parametrize(("module", "source", "reason"), WRONG)
def test_wrong_imports_are_caught(module: str, source: str, reason: str) -> None:
    """The rule could be broken in a way that its test does not see."""
    found = violations(source, module)
    assert found and reason in found[0] and found[0].startswith(f"{module}:{source.count(chr(10), 0, source.rfind('import')) + 1} ")


RIGHT = [
    ("intonly.core.spec", "import math\nimport numpy as np\nfrom intonly.core.arith import Rescale"),
    ("intonly.core.primitives.base", "from ..arith import Rescale"),
    ("intonly.ops.add", "def run():\n    import torch.nn.functional as F\nfrom intonly.ops.conv2d import SPEC"),
    ("intonly.ops.add", "if TYPE_CHECKING:\n    import torch"),
    ("intonly.steps.capture.onnx_import", "from .builder import GraphBuilder\nfrom intonly.ops import OPS"),
    ("intonly.steps.lower.fuse", "from intonly.steps.lower.units import Units"),
    ("intonly.torch_exec", "import torch"),
    ("intonly.backends.native", "from intonly.backends.base import Backend\nimport safetensors"),
    ("intonly.backends.torch.linear", "import torch\nfrom intonly.backends.torch.base import Tensor"),
    ("intonly.model", "def run():\n    from intonly.backends.torch import TorchIntegers"),
    ("intonly.artifact.save", "from intonly.artifact.schema import SCHEMA\nfrom intonly._version import VERSION"),
    ("intonly.pipeline", "from intonly.steps.quantize import quantize\nfrom intonly.backends import BACKENDS"),
    ("intonly.cli", "from intonly import quantize\nimport typer"),
]


@pytest.mark.parametrize(("module", "source"), RIGHT)
def test_right_imports_pass(module: str, source: str) -> None:
    """The rule would forbid what the design asks for."""
    assert violations(source, module) == []


PROBE = """
import sys
import {modules}
heavy = {heavy} & {{name.partition(".")[0] for name in sys.modules}}
assert not heavy, sorted(heavy)
assert "numpy" in sys.modules or {light}
print("clean")
"""


def probe(modules: str, light: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter that imports `modules` and looks for heavy libraries."""
    code = PROBE.format(modules=modules, heavy=HEAVY | {"safetensors"}, light=light)
    env = {**os.environ, "PYTHONPATH": str(SOURCES)}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


def test_importing_intonly_costs_numpy_only() -> None:
    """Every script would pay seconds for libraries that it does not use, or fail where they are not installed."""
    if not (PACKAGE / "__init__.py").exists():
        pytest.skip("the package has no __init__.py yet, so there is nothing to import")
    result = probe("intonly", light=True)
    assert (result.returncode, result.stdout.strip()) == (0, "clean"), result.stderr


@pytest.mark.parametrize(
    "module", ["intonly.core.bounds", "intonly.core.opspec", "intonly.ops", "intonly.formats", "intonly.backends.interpreter"]
)
def test_lower_layers_cost_numpy_only(module: str) -> None:
    """The vocabulary and the reference could not be used without the libraries of the layers above."""
    result = probe(module)
    assert (result.returncode, result.stdout.strip()) == (0, "clean"), result.stderr


def test_the_probe_sees_heavy_libraries() -> None:
    """The probe would call anything clean."""
    name = next((name for name in ("rich", "safetensors", "jinja2", "onnx") if importlib.util.find_spec(name)), None)
    if name is None:
        pytest.skip("none of the heavy libraries is installed here")
    result = probe(name)
    assert result.returncode == 1 and f"['{name}'" in result.stderr
