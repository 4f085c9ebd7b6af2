# SPDX-License-Identifier: Apache-2.0
"""Exported programs and .pt2 files: they come back as they were saved, and cannot run code."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402

from intonly.core.errors import DataError, UnsupportedOpError  # noqa: E402
from intonly.core.graph import Dim  # noqa: E402
from intonly.steps.capture.torch_export import capture_torch, load_pt2  # noqa: E402
from tests.steps.modules import assert_same, net, run  # noqa: E402


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_an_exported_program_keeps_its_own_extents() -> None:
    """The limits that the user gave to torch.export would be replaced by ours, and certificates hold too little or too much."""
    module = nn.Sequential(nn.Linear(4, 5), nn.ReLU())
    batch, length = torch.export.Dim("b", min=2, max=5000), torch.export.Dim("s", max=64)
    program = torch.export.export(module, (torch.zeros(3, 7, 4),), dynamic_shapes=({0: batch, 1: length},), strict=True)
    graph, _ = capture_torch(program)
    assert graph.values["input"].shape == (Dim("N", 2, 1024), Dim("input.1", 1, 64), 4)
    assert [n.origin for n in graph.nodes] == ["0", "1"]
    assert_same(graph, module, torch.randn(4, 9, 4))


def test_a_program_exported_in_training_mode_is_refused() -> None:
    """Batch statistics at inference would be replaced silently by the running ones."""
    program = torch.export.export(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout()).train(), (torch.zeros(2, 3, 4, 4),))
    with pytest.raises(UnsupportedOpError, match="training mode") as caught:
        capture_torch(program)
    assert {"batch_norm", "dropout"} <= {operator for _, operator, _ in caught.value.operators}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A .pt2 file with a symbolic batch, a lifted constant and a buffer that is not saved."""

    def forward(self: Any, x: Any) -> Any:
        return self.fc(x.view(x.size(0), -1)) * torch.tensor([1.0, 2.0]) + self.shift

    module = net(forward, fc=nn.Linear(12, 2), shift=torch.ones(2))
    program = torch.export.export(module, (torch.zeros(2, 3, 4),), dynamic_shapes=({0: torch.export.Dim("N", min=1, max=99)},))
    torch.export.save(program, tmp_path / "net.pt2")
    return tmp_path / "net.pt2"


def rewritten(path: Path, member: str, change: Any) -> Path:
    """Return a copy of an archive in which change(bytes) replaces the members that end with `member`."""
    target = path.with_name("changed.pt2")
    hits = 0
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as copy:
        for name in source.namelist():
            hit = name.endswith(member)
            hits += hit
            copy.writestr(name, change(source.read(name)) if hit else source.read(name))
    assert hits == 1
    return target


def test_a_pt2_file_comes_back_as_it_was_saved(archive: Path) -> None:
    """A saved program would lose its constants, names or free batch on the way through the file."""
    program = load_pt2(archive)
    graph, _ = capture_torch(program)
    assert graph.values["x"].shape == (Dim("N", 1, 99), 3, 4)
    assert {"fc.weight", "fc.bias", "shift"} <= set(graph.params)
    x = torch.randn(5, 3, 4)
    assert torch.allclose(run(graph, x)[0], program.module()(x), atol=1e-6)


class Evil:
    """Pickles to a call that leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.mark,)


def test_a_pt2_file_cannot_run_code(archive: Path, tmp_path: Path) -> None:
    """Opening a stranger's model file would run the stranger's code: pickles, size expressions, imports."""
    mark = tmp_path / "mark"
    body = io.BytesIO()
    torch.save((Evil(mark),), body)

    def expression(data: bytes) -> bytes:
        document = json.loads(data)
        for value in document["graph_module"]["graph"]["tensor_values"].values():
            for size in value["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = f"__import__('os').mkdir('{mark}')"
        return json.dumps(document).encode()

    attacks = {
        "sample_inputs/model.pt": lambda data: body.getvalue(),
        "models/model.json": expression,
        "model_weights_config.json": lambda data: data.replace(b'"use_pickle": false', b'"use_pickle": true'),
        "model_constants_config.json": lambda data: data.replace(b'"tensor_0"', b'"opaque_obj_0"'),
    }
    for member, attack in attacks.items():
        with pytest.raises(DataError, match="expected a file written by"):
            load_pt2(rewritten(archive, member, attack))
    container = json.dumps({"default_factory_module": "antigravity"})
    hidden = json.dumps({"in_spec": json.dumps([1, {"context": container}])}).encode()
    imports = rewritten(archive, "models/model.json", lambda data: data.replace(b"{", b'{"extra": ' + hidden + b", ", 1))
    with pytest.raises(DataError, match="name Python code"):
        load_pt2(imports)
    assert not mark.exists()


def test_missing_and_damaged_pt2_files_are_explained(archive: Path, tmp_path: Path) -> None:
    """A wrong path or a cut file would end in a traceback from zipfile."""
    with pytest.raises(DataError, match=r"absent\.pt2"):
        load_pt2(tmp_path / "absent.pt2")
    cut = tmp_path / "cut.pt2"
    cut.write_bytes(archive.read_bytes()[:500])
    with pytest.raises(DataError, match=r"cut\.pt2"):
        load_pt2(cut)
