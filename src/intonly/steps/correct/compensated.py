# SPDX-License-Identifier: Apache-2.0
"""Rounding of weights that passes each column's error on to the columns still to come, weighed by the layer's inputs.

What is aimed at is the float layer's output on the float network's inputs, so a layer also makes up for what the layers before
it have lost. Source: Frantar et al. 2022 (GPTQ), equation 2, in its Cholesky form, most active columns first; Li et al. 2025
(GPTAQ) for the aim, here as a ridge regression.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.graph import Graph, Node
from intonly.core.memory import affordable, last_uses
from intonly.core.number_format import QParams
from intonly.ops import OPS, weight_of

DAMPING = 0.01
"""Least share of the mean diagonal that is added to the diagonal of the second moments."""
NOISE = 1e-6
"""What float32 products may leave of second moments that cancel, in shares of their mean diagonal."""
BLOCK = 32
"""Columns whose errors reach the columns behind them in one product of matrices. Source: Frantar et al. 2022, section 3.3."""
MAX_COLUMNS = 4096
"""Layers with more weight columns than this are rounded to nearest."""
PATCHES_A_COLUMN = 256
"""Where a map gives more patches than this for each column, every second, third, ... of its rows and columns is looked at."""
TURNS = (0.7548776662466927, 0.5698402909980532)
"""Where the first row and column lie, batch after batch: multiples of these spread evenly over a square. Source: Roberts 2018."""

Floats = npt.NDArray[np.float64]


def compensates(node: Node, w: npt.NDArray[Any], qparams: QParams) -> bool:
    """Return whether compensation applies to a layer: convolutions and linear layers with uniform weights, not too wide."""
    fits = node.op in ("conv2d", "linear") and int(np.prod(w.shape[1:])) <= MAX_COLUMNS
    return fits and qparams.format.levels is None and qparams.axis in (0, None)


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a layer's inputs say about its weight columns, for each group of channels.

    Args:
        order: (groups, K), columns from most to least active.
        upper: (groups, K, K), upper factor of the inverse of the damped second moments in that order: inverse = upper.T @ upper.
        cross: (groups, K, K), damped moments of real with quantized inputs in that order: w @ cross @ inverse makes of the
            quantized inputs what comes nearest to what w makes of the real ones.
    """

    order: npt.NDArray[np.intp]
    upper: Floats
    cross: Floats

    @classmethod
    def of(
        cls,
        node: Node,
        inputs: Iterable[tuple[Any, Any]],
        shape: tuple[int, ...],
        *,
        samples: int,
        centered: bool,
        weights: Sequence[Any] | None = None,
    ) -> Inputs:
        """Return what tensors of inputs say, for a weight of `shape`, output channels first.

        Args:
            inputs: (as the quantized network has them, as the float network has them), batch by batch. samples: in all of them.
            centered: whether only deviations from the mean matter, because the bias takes care of the mean.
            weights: of the rows of each batch, for linear layers; None = all alike.
        """
        moments, cross, count = _second_moments(node, inputs, shape, samples=samples, centered=centered, weights=weights)
        order, upper, aims = zip(*(_factor(m, c, count) for m, c in zip(moments, cross, strict=True)), strict=True)
        return cls(np.stack(order), np.stack(upper), np.stack(aims))

    def codes(self, w: npt.NDArray[Any], qparams: QParams) -> npt.NDArray[Any]:
        """Return the codes of a real weight, same shape. Weights that are exactly 0 stay 0: a pruned network keeps its zeros."""
        groups, columns = self.order.shape
        real = w.reshape(groups, -1, columns).astype(np.float64)
        scale = np.broadcast_to(qparams.scale, (w.shape[0],)).reshape(groups, -1)
        rounded = np.empty(real.shape, np.int64)
        for g in range(groups):
            order, upper = self.order[g], self.upper[g]
            rows = real[g][:, order]
            aimed = np.where(rows == 0, 0.0, rows @ self.cross[g] @ upper.T @ upper)
            rounded[g][:, order] = _rounded(aimed, scale[g], upper, qparams)
        return rounded.reshape(w.shape).astype(qparams.format.dtype)


def inputs_of_layers(
    graph: Graph,
    batches: Sequence[Mapping[str, Any]],
    quantized: Callable[[str], QParams],
    limit_bytes: int,
    wanted: Callable[[Node], bool],
    *,
    centered: bool,
) -> Iterator[tuple[Node, Inputs]]:
    """Yield the weighted layers of a FLOAT graph with what the float network's own inputs say, one at a time.

    Args:
        batches: inputs by name, in model units; as many samples as keep live activations within `limit_bytes` are used.
        quantized: origin -> QParams of the layer's input. wanted: whether a node with a weight is asked for. centered: see
            `Inputs.of`.
    """
    import torch

    from intonly.torch_exec import TorchRunner, fake_quantize

    runner, last_use = TorchRunner(graph), last_uses(graph)
    few = affordable(graph, batches, limit_bytes, 8)
    live: list[dict[str, Any]] = [{name: torch.as_tensor(batch[name]).float() for name in graph.inputs} for batch in few]
    samples = sum(len(values[graph.inputs[0]]) for values in live)
    for i, node in enumerate(graph.nodes):
        name = weight_of(graph, node)
        if name and wanted(node):
            units, reals = quantized(node.origin), [values[node.inputs[0]] for values in live]
            pairs = ((fake_quantize(x, units), x) for x in reals)
            yield node, Inputs.of(node, pairs, graph.params[name].shape, samples=samples, centered=centered)
        for values in live:
            with torch.no_grad():
                operands = [values.get(n, runner.params.get(n)) if n else None for n in node.inputs]
                values[node.output] = OPS[node.op].run_torch(node, operands)
            for n in node.inputs:
                if last_use.get(n) == i:
                    values.pop(n, None)


def _second_moments(
    node: Node,
    inputs: Iterable[tuple[Any, Any]],
    shape: tuple[int, ...],
    *,
    samples: int,
    centered: bool,
    weights: Sequence[Any] | None = None,
) -> tuple[Floats, Floats, float]:
    """Return the second moments of the quantized patches, those of real with quantized ones, (groups, K, K), and how many there are."""
    import torch

    groups, columns = int(node.attrs.get("groups", 1)), int(np.prod(shape[1:]))
    moments, cross = (torch.zeros(groups, columns, columns, dtype=torch.float64) for _ in range(2))
    mean, real_mean = (torch.zeros(groups, columns, 1, dtype=torch.float64) for _ in range(2))
    count, origins = 0.0, None
    for i, pair in enumerate(inputs):
        patches, reals = (_patches(node, x, groups, shape, samples, i) for x in pair)
        if origins is None:  # near the means, so that little cancels in float32
            origins = tuple(p.mean(1, keepdim=True) if centered else torch.zeros(()) for p in (patches, reals))
        patches, reals = patches - origins[0], reals - origins[1]
        weighed = patches if weights is None else patches * weights[i].reshape(1, -1, 1)
        moments += (patches.transpose(1, 2) @ weighed).double()
        cross += (reals.transpose(1, 2) @ weighed).double()
        ones = patches.new_ones(patches.shape[1], 1) if weights is None else weights[i].reshape(-1, 1)
        mean += patches.transpose(1, 2) @ ones
        real_mean += reals.transpose(1, 2) @ ones
        count += float(ones.sum())
    noise = NOISE * moments.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(columns, dtype=torch.float64)
    if centered:
        moments -= mean @ mean.transpose(1, 2) / count
        cross -= real_mean @ mean.transpose(1, 2) / count
    return ((moments + noise) / count).numpy(), ((cross + noise) / count).numpy(), count


def _patches(node: Node, x: Any, groups: int, shape: tuple[int, ...], samples: int, turn: int) -> Any:
    """Return what outputs see of `x`, (groups, patches, K): all of them, or an even choice that differs from turn to turn."""
    import torch.nn.functional as F

    columns = int(np.prod(shape[1:]))
    if node.op == "linear":
        return x.reshape(1, -1, columns)
    top, left, bottom, right = node.attrs["pads"]
    x = F.pad(x, (left, right, top, bottom))
    steps, dilations = node.attrs["strides"], node.attrs["dilations"]
    extents = [
        (size - dilation * (kernel - 1) - 1) // step + 1
        for size, dilation, kernel, step in zip(x.shape[2:], dilations, shape[2:], steps, strict=True)
    ]
    thin = min(*extents, math.isqrt(samples * math.prod(extents) // (PATCHES_A_COLUMN * columns)))
    if thin > 1:
        top, left = (int(turn * share % 1 * thin) * step for share, step in zip(TURNS, steps, strict=True))
        x, steps = x[:, :, top:, left:], [thin * step for step in steps]
    unfolded = F.unfold(x, shape[2:], dilation=dilations, stride=steps)  # N, C*kh*kw, L
    return unfolded.reshape(x.shape[0], groups, columns, -1).permute(1, 0, 3, 2).reshape(groups, -1, columns)


def _damping(moments: Floats, count: float) -> float:
    """Return what is added to the diagonal: DAMPING, and more where there are few patches for so many columns."""
    return float(np.diag(moments).mean()) * max(DAMPING, len(moments) / count) + 1e-12


def _factor(moments: Floats, cross: Floats, count: float) -> tuple[npt.NDArray[np.intp], Floats, Floats]:
    """Return the order of columns, the upper factor of the inverse of the damped moments, and the damped cross moments.

    With h = r @ r.T, r an upper triangle (a Cholesky factor from the last column to the first), the inverse is that of r.
    """
    import torch

    diagonal, damping = np.diag(moments).copy(), _damping(moments, count)
    order = np.argsort(-diagonal, kind="stable")
    h, aim = (m[np.ix_(order, order)] + damping * np.eye(len(m)) for m in (moments, cross))
    r = torch.from_numpy(np.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1].copy())
    upper = torch.linalg.solve_triangular(r, torch.eye(len(r), dtype=torch.float64), upper=True)
    return order, upper.numpy(), aim


def _rounded(w: Floats, scale: Floats, upper: Floats, qparams: QParams) -> npt.NDArray[np.int64]:
    """Return codes (O, K) of `w`, column by column, each error spread over the columns left; on far ones BLOCK columns at a time."""
    rest, pruned, fmt = w.copy(), w == 0, qparams.format
    codes = np.zeros(rest.shape, np.int64)
    for start in range(0, rest.shape[1], BLOCK):
        stop = min(start + BLOCK, rest.shape[1])
        errors = np.empty((len(rest), stop - start))
        for k in range(start, stop):
            codes[:, k] = np.where(pruned[:, k], 0, fmt.encode(rest[:, k] / scale))
            errors[:, k - start] = (rest[:, k] - codes[:, k] * scale) / upper[k, k]
            rest[:, k + 1 : stop] -= np.outer(errors[:, k - start], upper[k, k + 1 : stop])
        rest[:, stop:] -= errors @ upper[start:stop, stop:]
    return codes
