# SPDX-License-Identifier: Apache-2.0
"""What a faithful I-ViT shows of a network: parity with its simulation, nothing lost in a file, accuracy beside the exact operators."""

from __future__ import annotations

import functools
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the network is a PyTorch module")

import torch

import intonly
from intonly import _native
from intonly.backends.interpreter import Interpreter
from intonly.backends.native import NativeEngine
from intonly.core.errors import RecipeError
from intonly.core.graph import Graph
from intonly.core.number_format import INT16
from intonly.core.records import PRESETS, recipe_of
from intonly.ops import OPS
from intonly.pipeline import simulated
from intonly.steps.lower import lower
from intonly.torch_exec import TorchRunner
from tests.published.encoder import cosine, sequences, trained
from tests.steps.graphs import rounded_biases

MODES = ("exact", "i-vit", "i-vit-fixed")
RECIPE = replace(PRESETS["w8a8"], residual_bits=16)


def options(mode: str) -> dict:
    """Return the arguments of a quantization of the encoder."""
    x = sequences(64, 1000)[0]
    return {"recipe": replace(RECIPE, transformers=mode), "data": x.numpy()}


@functools.cache
def quantized(mode: str) -> intonly.QuantizedModel:
    """Return the encoder in integers."""
    return intonly.quantize(trained(), example_inputs=sequences(2, 0)[0], **options(mode))


def entering(q: intonly.QuantizedModel) -> dict[str, np.ndarray]:
    """Return integers that any input of the network can be, for three sequences."""
    (name,) = q.artifact.graph.inputs
    fmt = q.artifact.graph.values[name].format
    assert fmt is not None
    return {name: np.random.default_rng(0).integers(fmt.qmin, fmt.qmax + 1, (3, 16, 8)).astype(fmt.dtype)}


def reference() -> tuple[np.ndarray, np.ndarray]:
    """Return sequences that calibration has not seen, and the float encoder's hidden states."""
    x = sequences(48, 2000)[0]
    with torch.no_grad():
        return x.numpy(), trained()(x).numpy()


def rounded_constants(graph: Graph) -> Graph:
    """Return a QUANTIZED graph whose added constants are the 16-bit ones of the lowering."""
    params = dict(graph.params)
    for node in graph.nodes:
        for name in node.inputs if node.op == "add" else ():
            if name in params:
                step = float(np.abs(params[name]).max()) / INT16.qmax
                params[name] = np.floor(params[name].astype(np.float64) / step + 0.5) * step
    return graph.replace(params=params)


def stored_as(integers: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return stored integers in the source layout; extents tell the axes apart."""
    fitting = [p for p in permutations(range(len(shape))) if tuple(integers.shape[a] for a in p) == shape]
    assert fitting, f"{integers.shape} is no permutation of {shape}"
    return integers.transpose(fitting[0])


@pytest.mark.usefixtures("single_rounding")
@pytest.mark.parametrize("mode", MODES[1:])
def test_every_code_is_the_simulated_one(mode: str) -> None:
    """Check 7: simulation in float64 and integers would part somewhere inside the network."""
    source = intonly.load(trained(), example_inputs=sequences(2, 0)[0])
    asked = options(mode)
    half = simulated(source, asked["recipe"], asked["data"])
    integer, _, _ = lower(half.quantized, half.specs)
    graph = rounded_constants(rounded_biases(half.quantized))
    x = sequences(9, 3000)[0].double()
    name = graph.inputs[0]
    seen: dict[str, np.ndarray] = {}
    units = graph.values[name].qparams
    assert units is not None
    Interpreter(integer).run({name: units.quantize(x.numpy())}, seen.setdefault)
    compared: dict[str, int] = {}

    def compare(value: str, reals: torch.Tensor) -> None:
        qparams = graph.values[value].qparams
        if qparams is None or value not in seen:
            return
        codes = np.round(reals.numpy() / float(qparams.scale)) + int(qparams.zero_point)
        np.testing.assert_array_equal(stored_as(seen[value], codes.shape), codes, err_msg=value)
        compared[value] = codes.size

    TorchRunner(graph, dtype=torch.float64).run({name: x}, compare)
    rounding = {node.output for node in graph.nodes if graph.values[node.output].qparams is not None and not OPS[node.op].shares_input}
    assert rounding <= set(compared)
    assert {"shiftmax", "shift_gelu", "i_layer_norm"} <= {node.op for node in graph.nodes}
    assert sum(compared.values()) > 150_000


@pytest.mark.parametrize("mode", ["i-vit", "i-vit-fixed"])
def test_nothing_is_lost_in_a_file(mode: str, tmp_path: Path) -> None:
    """Check 6: a scale that is not stored, the fault of the published code, would change what a loaded network computes."""
    q = quantized(mode)
    q.save(tmp_path / "net.intonly")
    again = intonly.QuantizedModel.load(tmp_path / "net.intonly")
    x = reference()[0]
    np.testing.assert_array_equal(again(x), q(x))
    np.testing.assert_array_equal(again.dequantize(again(x)), q.dequantize(q(x)))
    assert again.artifact.outputs == q.artifact.outputs
    assert again.plan == q.plan
    codes = entering(q)
    values: dict[str, np.ndarray] = {}
    Interpreter(q.artifact.graph).run(codes, values.setdefault)
    Interpreter(again.artifact.graph).run(codes, lambda name, x: np.testing.assert_array_equal(x, values.pop(name), err_msg=name))
    assert not values
    assert again.plan.transformers == mode
    intonly.verify(again).raise_if_failed()


def test_accuracy_beside_the_exact_operators() -> None:
    """Check 8: hidden states of the W8A8 encoder leave the float ones, or the published operators cost more than known.

    Mean cosine of 768 hidden states: exact 0.99994, i-vit 0.99986, i-vit-fixed 0.99993.
    """
    x, hidden = reference()
    cosines = {mode: cosine(quantized(mode).dequantize(quantized(mode)(x)), hidden) for mode in MODES}
    assert min(cosines.values()) >= 0.99
    assert max(cosines.values()) - min(cosines.values()) <= 0.005
    assert cosines["exact"] > cosines["i-vit"]
    others = hidden.reshape(-1, hidden.shape[-1])
    assert abs(cosine(others, np.roll(others, 7, axis=0))) < 0.3, "hidden states that are all alike prove nothing"


@pytest.mark.parametrize("mode", ["i-vit", "i-vit-fixed"])
def test_bytes_are_the_interpreters(mode: str) -> None:
    """A published operator inside a network would give other bytes on some instruction set or number of threads."""
    graph, codes = quantized(mode).artifact.graph, entering(quantized(mode))
    expected = Interpreter(graph).run(codes)[graph.outputs[0]]
    assert np.unique(expected).size > 100
    for isa in _native.isas():
        for threads in (1, 2):
            np.testing.assert_array_equal(NativeEngine(graph, isa=isa, threads=threads).run(codes)[graph.outputs[0]], expected)


def test_the_recipe_names_the_mode() -> None:
    """A misspelt mode would be taken for the default."""
    assert recipe_of({"transformers": "i-vit"}).transformers == "i-vit"
    with pytest.raises(RecipeError, match="exact, i-vit, i-vit-fixed"):
        recipe_of({"transformers": "ivit"})
