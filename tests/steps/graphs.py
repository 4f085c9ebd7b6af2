# SPDX-License-Identifier: Apache-2.0
"""Small FLOAT graphs with seeded random weights, and the steps from one of them to integers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from intonly.backends.interpreter import Interpreter
from intonly.core.bounds import bounds
from intonly.core.graph import Dim, Graph, Value, max_shape
from intonly.core.number_format import QParams
from intonly.core.ranges import Ranges
from intonly.core.records import InputSpec, OutputSpec, Plan, Recipe
from intonly.data import integer_input, model_units
from intonly.steps.calibrate import calibrate
from intonly.steps.canonicalize import absorb_normalization, canonicalize, fold_input
from intonly.steps.capture.builder import GraphBuilder
from intonly.steps.correct import correct
from intonly.steps.lower import lower
from intonly.steps.quantize import quantize_graph
from intonly.torch_exec import TorchRunner

Array = npt.NDArray[Any]
N = Dim("N", 1, 64)
PLAIN = Recipe("plain", bias_correction=False, activation_observer="minmax", weight_observer="minmax")
"""8 bits everywhere, int32 outputs, nothing chosen by search."""
CODES = replace(PLAIN, output="int8")
"""The same with 8-bit outputs."""


class Net(GraphBuilder):
    """Grows a float graph layer by layer. Weights depend on `seed`; the origin of a layer is its name."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(f"net{seed}")
        self.rng = np.random.default_rng(seed)
        self.count = 0

    def image(self, channels: int = 3, side: int = 6, batch: int | Dim = N, name: str = "x") -> str:
        """Add an input (N, C, side, side)."""
        return self.input(name, (batch, channels, side, side))

    def rows(self, width: int = 5, batch: int | Dim = N, name: str = "x") -> str:
        """Add an input (N, width)."""
        return self.input(name, (batch, width))

    def const(self, array: Any, hint: str = "constant") -> str:
        """Add a constant."""
        return self.param(np.asarray(array, np.float32), hint)

    def _origin(self, name: str, kind: str) -> str:
        self.count += 1
        return name or f"{kind}{self.count}"

    def _channels(self, x: str, axis: int = 1) -> int:
        extent = self.values[x].shape[axis]
        assert isinstance(extent, int)
        return extent

    def conv(
        self,
        x: str,
        out: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        groups: int = 1,
        pad: int | None = None,
        dilation: int = 1,
        bias: bool = True,
        transposed: bool = False,
        name: str = "",
        w: Array | None = None,
        b: Array | None = None,
    ) -> str:
        """Append a convolution, or a transposed one; padding keeps the extent unless `pad` says otherwise."""
        origin = self._origin(name, "conv")
        per_group = self._channels(x) // groups
        if w is None:
            w = self.rng.normal(0, 1 / math.sqrt(per_group * kernel * kernel), (out, per_group, kernel, kernel))
        if b is None and bias:
            b = self.rng.normal(0, 0.3, out)
        p = dilation * (w.shape[2] - 1) // 2 if pad is None else pad
        names = [x, self.const(w, f"{origin}.weight"), *([self.const(b, f"{origin}.bias")] if b is not None else [])]
        attrs: dict[str, Any] = {"strides": (stride, stride), "pads": (p, p, p, p), "dilations": (dilation, dilation), "groups": groups}
        if transposed:
            return self.emit("conv_transpose2d", names, {**attrs, "output_padding": (0, 0)}, origin=origin)
        return self.emit("conv2d", names, attrs, origin=origin)

    def linear(self, x: str, out: int, *, bias: bool = True, name: str = "", w: Array | None = None, b: Array | None = None) -> str:
        """Append a fully connected layer over the last axis."""
        origin = self._origin(name, "linear")
        width = self._channels(x, -1)
        if w is None:
            w = self.rng.normal(0, 1 / math.sqrt(width), (out, width))
        if b is None and bias:
            b = self.rng.normal(0, 0.3, out)
        names = [x, self.const(w, f"{origin}.weight"), *([self.const(b, f"{origin}.bias")] if b is not None else [])]
        return self.emit("linear", names, {}, origin=origin)

    def bn(
        self, x: str, *, gamma: Any = None, beta: Any = None, mean: Any = None, var: Any = None, eps: float = 1e-5, name: str = ""
    ) -> str:
        """Append a batch norm over axis 1."""
        c, rng = self._channels(x), self.rng
        drawn = [rng.uniform(0.5, 1.5, c), rng.normal(0, 0.3, c), rng.normal(0, 0.2, c), rng.uniform(0.3, 2, c)]
        arrays = [d if given is None else np.asarray(given) for given, d in zip((gamma, beta, mean, var), drawn, strict=True)]
        return self.emit("batch_norm", [x, *map(self.const, arrays)], {"eps": eps}, origin=self._origin(name, "bn"))

    def clip(self, x: str, lo: float = 0.0, hi: float = math.inf, name: str = "") -> str:
        """Append a clamp."""
        return self.emit("clip", [x], {"lo": lo, "hi": hi}, origin=self._origin(name, "clip"))

    def relu(self, x: str, name: str = "") -> str:
        """Append a relu."""
        return self.clip(x, name=name or self._origin("", "relu"))

    def add(self, a: str, b: str, sign: int = 1, name: str = "") -> str:
        """Append a sum or difference."""
        return self.emit("add", [a, b], {"sign": sign}, origin=self._origin(name, "add"))

    def mul(self, a: str, b: str, name: str = "") -> str:
        """Append a product."""
        return self.emit("mul", [a, b], {}, origin=self._origin(name, "mul"))

    def concat(self, *xs: str, axis: int = 1, name: str = "") -> str:
        """Append a concat."""
        return self.emit("concat", xs, {"axis": axis}, origin=self._origin(name, "concat"))

    def max_pool(self, x: str, kernel: int = 2, stride: int | None = None, pad: int = 0, name: str = "") -> str:
        """Append a max pool."""
        s = kernel if stride is None else stride
        attrs = {"kernel": (kernel, kernel), "strides": (s, s), "pads": (pad,) * 4, "dilations": (1, 1)}
        return self.emit("max_pool2d", [x], attrs, origin=self._origin(name, "max_pool"))

    def avg_pool(self, x: str, kernel: int = 2, name: str = "") -> str:
        """Append an average pool."""
        attrs: dict[str, Any] = {"kernel": (kernel, kernel), "strides": (kernel, kernel), "pads": (0,) * 4, "overhang": (0, 0)}
        attrs |= {"dilations": (1, 1), "count_include_pad": False, "divisor": 0}
        return self.emit("avg_pool2d", [x], attrs, origin=self._origin(name, "avg_pool"))

    def mean(self, x: str, axes: tuple[int, ...] = (2, 3), *, keepdims: bool = False, name: str = "") -> str:
        """Append a mean over axes."""
        return self.emit("mean", [x], {"axes": axes, "keepdims": keepdims}, origin=self._origin(name, "mean"))

    def reshape(self, x: str, shape: tuple[int, ...] = (0, -1), name: str = "") -> str:
        """Append a reshape; as it stands it flattens."""
        if shape == (0, -1):
            shape = (0, math.prod(int(d) for d in self.values[x].shape[1:]))  # type: ignore[arg-type]
        return self.emit("reshape", [x], {"shape": shape}, origin=self._origin(name, "reshape"))

    def transpose(self, x: str, perm: tuple[int, ...], name: str = "") -> str:
        """Append a transpose."""
        return self.emit("transpose", [x], {"perm": perm}, origin=self._origin(name, "transpose"))

    def slice(self, x: str, axis: int, start: int, stop: int, name: str = "") -> str:
        """Append a slice along one axis."""
        rank = len(self.values[x].shape)
        attrs = {
            "starts": tuple(start if i == axis else 0 for i in range(rank)),
            "stops": tuple(stop if i == axis else -1 for i in range(rank)),
            "steps": (1,) * rank,
        }
        return self.emit("slice", [x], attrs, origin=self._origin(name, "slice"))

    def pad(self, x: str, before: tuple[int, ...], after: tuple[int, ...], value: float = 0.0, name: str = "") -> str:
        """Append a constant border."""
        return self.emit("pad", [x], {"before": before, "after": after, "value": value}, origin=self._origin(name, "pad"))

    def identity(self, x: str, name: str = "") -> str:
        """Append an identity."""
        return self.emit("identity", [x], {}, origin=self._origin(name, "identity"))


def samples(graph: Graph, count: int = 8, seed: int = 0, low: float = -1.5, high: float = 2.0) -> dict[str, Array]:
    """Return random inputs by name, float32; a fixed batch overrides `count`."""
    rng = np.random.default_rng(seed)
    made = {}
    for name in graph.inputs:
        batch, *rest = graph.values[name].shape
        n = batch if isinstance(batch, int) else count
        made[name] = rng.uniform(low, high, (n, *max_shape(tuple(rest)))).astype(np.float32)
    return made


def run_float(graph: Graph, x: Mapping[str, Array], dtype: torch.dtype = torch.float64) -> dict[str, Array]:
    """Return the outputs of a FLOAT graph, or of a QUANTIZED one in simulation, by name."""
    with torch.no_grad():
        return {
            k: v.numpy() for k, v in TorchRunner(graph, dtype=dtype).run({k: torch.from_numpy(v).to(dtype) for k, v in x.items()}).items()
        }


def assert_same_meaning(before: Graph, after: Graph, x: Mapping[str, Array], tolerance: float = 1e-4) -> None:
    """Assert that two float graphs compute the same, in the order of their outputs, and something that depends on x."""
    for a, b in zip(run_float(before, x).items(), run_float(after, x).items(), strict=True):
        np.testing.assert_allclose(b[1], a[1], atol=tolerance * max(1.0, float(np.abs(a[1]).max())), rtol=0)
        assert np.unique(a[1]).size > 1, f"a constant output {a[0]} proves nothing"


@dataclass
class Journey:
    """A float graph on its way to integers. `x` are the calibration samples, as callers hand them in."""

    graph: Graph
    specs: tuple[InputSpec, ...]
    x: Mapping[str, Array]
    ranges: Ranges
    quantized: Graph
    plan: Plan
    integer: Graph
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    user_specs: tuple[InputSpec, ...] = field(default=())

    def real_inputs(self, x: Mapping[str, Array]) -> dict[str, Array]:
        """Return what the float graph sees for callers' arrays."""
        return {s.name: units(x[s.name], s, self.graph) for s in self.specs}

    def codes(self, x: Mapping[str, Array], graph: Graph | None = None) -> dict[str, Array]:
        """Return the output integers of the integer graph (or of another one with its inputs) by name."""
        graph = graph or self.integer
        fed = {}
        for s in self.inputs:
            value = graph.values[s.name]
            assert value.format is not None
            fed[s.name] = integer_input(x[s.name], s, value.shape, value.format.dtype)
        return Interpreter(graph).run(fed)

    def reals(self, x: Mapping[str, Array]) -> dict[str, Array]:
        """Return the reals that the output integers stand for."""
        made = self.codes(x)
        return {s.name: (made[s.name].astype(np.float64) - s.zero_point) * s.scale for s in self.outputs}

    def simulated(self, x: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs of the QUANTIZED graph in float64, its biases rounded to accumulator steps as the law does."""
        graph = rounded_biases(self.quantized)
        outputs = run_float(graph, self.real_inputs(x))
        return {s.name: outputs[name] for s, name in zip(self.outputs, graph.outputs, strict=True)}

    def steps_apart(self, x: Mapping[str, Array]) -> dict[str, Array]:
        """Return |integers - simulation| in output codes, by output."""
        made, wanted = self.reals(x), self.simulated(x)
        return {s.name: np.abs(made[s.name] - wanted[s.name]) / s.scale for s in self.outputs}

    def floats(self, x: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs of the float graph by the names of the integer graph's."""
        outputs = run_float(self.graph, self.real_inputs(x))
        return {s.name: outputs[name] for s, name in zip(self.outputs, self.graph.outputs, strict=True)}

    def sqnr(self, x: Mapping[str, Array]) -> float:
        """Return the lowest SQNR of an output against the float graph, dB."""
        made, wanted = self.reals(x), self.floats(x)
        return min(sqnr(wanted[name], made[name]) for name in wanted)


def sqnr(wanted: Array, made: Array) -> float:
    """Return the ratio of signal and error, dB."""
    signal, noise = float((wanted**2).sum()), float(((made - wanted) ** 2).sum())
    return 10 * math.log10(max(signal, 1e-300) / max(noise, 1e-300))


def units(x: Array, spec: InputSpec, graph: Graph) -> Array:
    """Return callers' array in the units and order of the float graph's input."""
    shape = graph.values[spec.name].shape
    return model_units(x, spec, shape, spec.perm(len(shape)))


def rounded_biases(graph: Graph) -> Graph:
    """Return a QUANTIZED graph whose biases are whole accumulator steps."""
    params = dict(graph.params)
    nodes = []
    for node in graph.nodes:
        if node.op in ("conv2d", "linear", "conv_transpose2d") and len(node.inputs) > 2 and node.inputs[2]:
            x, w = (graph.values[i].qparams for i in node.inputs[:2])
            assert x is not None and w is not None
            step = x.scale * w.scale
            name = f"{node.inputs[2]}@{node.output}.rounded"
            params[name] = np.floor(params[node.inputs[2]].astype(np.float64) / step + 0.5) * step
            node = replace(node, inputs=(*node.inputs[:2], name))
        nodes.append(node)
    values = {**graph.values, **{k: Value(v.shape) for k, v in params.items() if k not in graph.values}}
    return graph.replace(nodes=tuple(nodes), params=params, values=values)


def journey(
    graph: Graph,
    recipe: Recipe = PLAIN,
    *,
    specs: Sequence[InputSpec] = (),
    x: Mapping[str, Array] | None = None,
    pinned: Mapping[str, QParams] | None = None,
    batch: int = 8,
) -> Journey:
    """Return every stage of `graph` on its way to integers, and prove the integer graph free of overflow."""
    pinned = pinned or {}
    user = tuple(specs) or tuple(InputSpec(name) for name in graph.inputs)
    x = samples(graph) if x is None else x
    folded = []
    for spec in user:
        graph, spec = absorb_normalization(graph, spec, pinned)
        folded.append(spec)
    graph = canonicalize(graph, pinned)
    for i, spec in enumerate(folded):
        graph, folded[i] = fold_input(graph, spec)
    count = len(next(iter(x.values())))
    extent = graph.values[graph.inputs[0]].shape[0]
    size = extent if isinstance(extent, int) else batch
    batches = [{s.name: units(x[s.name][k : k + size], s, graph) for s in folded} for k in range(0, count, size)]
    ranges = calibrate(graph, batches, pinned=pinned)
    quantized, plan = quantize_graph(graph, ranges, recipe, {s.name: s for s in folded}, pinned)
    quantized = correct(
        quantized,
        graph,
        batches,
        bias_correction=recipe.bias_correction,
        rounding=recipe.rounding,
        pinned=pinned,
    )
    integer, inputs, outputs = lower(quantized, folded)
    proof = bounds(integer)
    assert proof.proven, proof.failures
    return Journey(graph, tuple(folded), x, ranges, quantized, plan, integer, inputs, outputs, user)
