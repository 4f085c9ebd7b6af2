# SPDX-License-Identifier: Apache-2.0
"""Loads a .pt2 file without letting it run code.

`torch.export.load` unpickles what the file calls a pickle, evaluates size expressions as Python, imports modules that
a container spec names, and loads shared objects. This module reads the archive first and refuses files that use any
of these; what `torch.export.save` writes for a network of plain tensors uses none.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from intonly.core.errors import DataError

MODEL, WEIGHTS, CONSTANTS, SAMPLES = "models/", "data/weights/", "data/constants/", "data/sample_inputs/"
HARMLESS = {"archive_format", "archive_version", "byteorder", "version", ".format_version", ".storage_alignment"}
HARMLESS |= {".data/version", ".data/serialization_id"}
TARGET = re.compile(r"torch\.ops\.\w+\.\w+(\.\w+)?|torch\.sym_\w+|_operator\.\w+|math\.\w+|#[\w:.]+")
TORCH_FUNCTIONS = (
    "FloorDiv ModularIndexing Where PythonMod Mod CleanDiv CeilToInt FloorToInt CeilDiv LShift RShift PowByNatural FloatPow "
    "FloatTrueDiv IntTrueDiv IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt RoundToInt RoundDecimal ToFloat Identity"
)
SYMPY_FUNCTIONS = "Symbol Integer Float Rational Add Mul Pow Max Min Eq Ne Ge Gt Le Lt And Or Not floor ceiling"
FUNCTIONS = {*TORCH_FUNCTIONS.split(), *SYMPY_FUNCTIONS.split()}
SYMBOL = re.compile(r"[a-z]{1,4}[0-9]+|oo|int_oo|true|false")
SYNTAX = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.operator, ast.unaryop, ast.cmpop, ast.Load, ast.keyword)


def load_pt2(path: str | Path) -> ExportedProgram:
    """Return the exported program in a .pt2 file.

    Raises:
        DataError: when the file is missing or damaged, or could run code while it is loaded.
    """
    try:
        body = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        _check_archive(body)
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, RecursionError, SyntaxError) as error:
        raise DataError(f"{path}: {error}; expected a file written by torch.export.save for a network of plain tensors") from error
    try:
        program = torch.export.load(io.BytesIO(body))
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise DataError(f"{path}: torch.export cannot load it ({reason}); export it again with this version of torch") from error
    program._guards_code = []
    return program


def _check_archive(body: bytes) -> None:
    """Raise ValueError unless nothing in the archive can run code."""
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        names = archive.namelist()
        roots = {name.partition("/")[0] for name in names}
        if len(roots) != 1 or len(set(names)) != len(names):
            raise ValueError("not a PyTorch archive: it needs one top folder and no name twice")
        members = {name.partition("/")[2]: name for name in names}
        if sum(m.startswith(MODEL) for m in members) != 1:
            raise ValueError("the archive must hold exactly one exported program")
        for member, name in members.items():
            if member.endswith(".json") and member.startswith((MODEL, WEIGHTS, CONSTANTS)):
                _check_json(json.loads(archive.read(name)))
            elif member.startswith(SAMPLES):
                _check_samples(archive.read(name))
            elif not _is_data(member):
                raise ValueError(f"the archive holds {member!r}, which is no tensor and no graph")


def _is_data(member: str) -> bool:
    return member in HARMLESS or member.startswith("extra/") or bool(re.fullmatch(r"data/(weights/weight|constants/tensor)_\d+", member))


def _check_samples(body: bytes) -> None:
    try:
        if body:
            torch.load(io.BytesIO(body), weights_only=True)
    except Exception as error:
        raise ValueError("its example inputs hold more than plain tensors") from error


def _check_json(document: Any) -> None:
    for key, value in _entries(document):
        if key in ("default_factory_module", "__enum__"):
            raise ValueError("its inputs or outputs are containers that name Python code")
        if key == "use_pickle" and value is not False:
            raise ValueError("it holds a pickled object; only plain tensors are accepted")
        if key == "path_name" and not re.fullmatch(r"(weight|tensor)_\d+", str(value)):
            raise ValueError(f"it holds the object {value!r}; only plain tensors are accepted")
        if key == "expr_str":
            _check_expression(str(value))
        callable_name = key in ("target", "as_operator") and str(value).startswith(("torch", "_operator", "math", "#"))
        if callable_name and not TARGET.fullmatch(str(value)):
            raise ValueError(f"the graph calls {value!r}, which is no operator")


def _entries(document: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key and value of a JSON document, documents inside strings included."""
    if isinstance(document, dict):
        for key, value in document.items():
            yield key, value
            yield from _entries(value)
    elif isinstance(document, list):
        for value in document:
            yield from _entries(value)
    elif isinstance(document, str) and document.lstrip()[:1] in ("[", "{"):
        try:
            inner = json.loads(document)
        except ValueError:
            return
        yield from _entries(inner)


def _check_expression(text: str) -> None:
    """Raise ValueError unless `text` is arithmetic on numbers, symbols and known functions."""
    texts: set[ast.AST] = set()
    for node in ast.walk(ast.parse(text, mode="eval")):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS:
            known = True
            if node.func.id in ("Symbol", "Float"):
                texts.update(a for a in node.args if isinstance(a, ast.Constant) and re.fullmatch(r"[\w.+-]+", str(a.value)))
        elif isinstance(node, ast.Name):
            known = node.id in FUNCTIONS or bool(SYMBOL.fullmatch(node.id))
        elif isinstance(node, ast.Constant):
            known = isinstance(node.value, int | float) or node in texts
        else:
            known = isinstance(node, SYNTAX)
        if not known:
            raise ValueError(f"the size expression {text[:80]!r} is no arithmetic")
