# SPDX-License-Identifier: Apache-2.0
"""Reconstruction as users ask for it: in a recipe, on the command line, and again after a kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import intonly
from intonly import LayerRule, Recipe
from intonly.cli import app
from intonly.pipeline import journey
from tests.small_nets import IMAGES, TORCH_FACTORY, SmallNet, images, save_onnx

X = images(64)
ASKED = Recipe("learned", weight_bits=3, activation_bits=4, reconstruction="block", reconstruction_steps=20)
CHILD = """
import sys
import intonly
from tests.steps.reconstruct.test_journey import ASKED, X, captured
intonly.quantize(captured(), ASKED, X, run_dir=sys.argv[1]).save(sys.argv[2])
"""


def captured() -> intonly.FloatModel:
    """Return a network with a residual, captured."""
    return intonly.load(SmallNet().eval(), inputs=IMAGES, example_inputs=(np.zeros((2, 3, 8, 8), np.float32),))


def test_a_recipe_is_honoured():
    """A recipe that asks for reconstruction would give the codes of one that does not, or codes that nobody proved."""
    source, seen = captured(), []
    made = journey(source, ASKED, X, progress=lambda *step: seen.append(step))
    intonly.verify(made.model).raise_if_failed()
    assert made.reconstruction is not None
    assert [step for step in seen if step[0] == "learn"][-1] == ("learn", len(made.reconstruction.outcomes), 4)
    plain = intonly.quantize(source, Recipe("plain", weight_bits=3, activation_bits=4), X)
    new = images(64, seed=1)
    learned, before = (intonly.evaluate(q, {"x": new}, against=source).sqnr_db for q in (made.model, plain))
    assert learned > before + 1
    assert made.plan.reconstruction == made.model.plan.reconstruction == "block"


def test_layers_that_are_left_are_in_the_artifact():
    """Nobody could see later that a layer was not learned."""
    recipe = Recipe("b", rules=(LayerRule("conv2", weight_bits=1),), reconstruction="layer", reconstruction_steps=1)
    q = intonly.quantize(captured(), recipe, X)
    assert q.artifact.note.extra["not_reconstructed"] == "conv2: the format binary has no uniform grid"


def test_a_killed_run_ends_with_the_same_bytes(tmp_path):
    """A run that was killed would have to start anew, or end in another network."""
    root = Path(__file__).parents[3]
    paths = os.pathsep.join([str(root), str(root / "src"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, str(tmp_path / "run"), str(tmp_path / "killed.intonly")]
    for files in (1, 2):
        child = subprocess.Popen(command, env=env, cwd=root)
        while child.poll() is None and len(list((tmp_path / "run").glob("*.json"))) < files:
            time.sleep(0.002)
        child.kill()
        child.wait()
    assert len(list((tmp_path / "run").glob("*.json"))) >= 2
    subprocess.run(command, env=env, cwd=root, check=True)
    subprocess.run([*command[:3], str(tmp_path / "whole"), str(tmp_path / "whole.intonly")], env=env, cwd=root, check=True)
    assert (tmp_path / "killed.intonly").read_bytes() == (tmp_path / "whole.intonly").read_bytes()


def test_the_command_line_learns_and_keeps(tmp_path, monkeypatch):
    """The options would be taken and forgotten."""
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", x=X)
    save_onnx(Path("net.onnx"))
    line = ["quantize", "net.onnx", "-o", "out.intonly", "--data", "data.npz", "--input-type", "uint8", "--recipe", "w4a4", "--json"]
    result = CliRunner().invoke(app, [*line, "--reconstruct", "layer", "--reconstruct-steps", "3", "--run-dir", "run"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["layers"] == 2
    assert len(list(Path("run").glob("*.json"))) == 2
    plan = intonly.QuantizedModel.load("out.intonly").plan
    assert (plan.reconstruction, plan.reconstruction_steps) == ("layer", 3)
    wrong = CliRunner().invoke(app, [*line, "--reconstruct", "network"])
    assert wrong.exit_code == 2


@pytest.mark.parametrize("unit", ["block", "layer"])
def test_the_factory_of_the_command_line_tests_is_learned(unit, tmp_path, monkeypatch):
    """A network whose residual adds the block's own input would find no block."""
    (tmp_path / "factory_net.py").write_text(TORCH_FACTORY, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = Recipe("r", weight_bits=4, reconstruction=unit, reconstruction_steps=2)
    made = journey(intonly.load("factory_net:make", inputs=IMAGES, example_inputs=np.zeros((1, 3, 8, 8), np.float32)), recipe, X)
    assert [o.block for o in made.reconstruction.outcomes] == ["conv1", "conv2", "fc"]
