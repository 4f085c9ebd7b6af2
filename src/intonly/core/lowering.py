# SPDX-License-Identifier: Apache-2.0
"""The builder that operators lower through: it emits primitives and keeps track of units and layout.

An operator says what it computes; this class knows where the channels are stored, what one step of a value is worth,
and how a value gets from one scale to another in one step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly.core.arith import INT32_LIMIT, RESIDUAL_BITS, Limits, Rescale
from intonly.core.composites import composite
from intonly.core.errors import LoweringError
from intonly.core.graph import Graph, Node, Shape, Stage, Value
from intonly.core.number_format import INT32, NumberFormat, QParams
from intonly.core.primitives import PRIMITIVES

NHWC = (0, 2, 3, 1)
INT32_MAX = (1 << 31) - 1
SATURATING = 2.0**29
"""A factor that takes every integer but 0 beyond 16 bits, like any larger one."""


@dataclass(frozen=True, eq=False)
class Lowered:
    """An integer value and what it stands for: real = scale * (integer - zero_point).

    Args:
        name: its name in the integer graph.
        shape: its shape in the source layout.
        perm: stored axis k holds source axis perm[k]; identity unless the value is an image (NHWC storage).
        scale, zero_point: () or (C,) along source axis `axis`.
        weights: the codes are weights: each stands for code / (sum of the codes along the last axis).
    """

    name: str
    shape: Shape
    perm: tuple[int, ...]
    scale: npt.NDArray[np.float64]
    zero_point: npt.NDArray[np.int64]
    axis: int | None = None
    weights: bool = False

    @property
    def zero(self) -> int:
        """The zero point of a per-tensor value.

        Raises:
            LoweringError: when it differs between channels.
        """
        if self.zero_point.ndim:
            raise LoweringError("a value with one zero point per channel meets an operator that needs a single one")
        return int(self.zero_point)

    def stored_axis(self, axis: int) -> int:
        """Return where source axis `axis` is stored."""
        return self.perm.index(axis % len(self.shape))


class Lowering:
    """Collects the integer graph of one quantized graph. `lowered` maps quantized values to what carries them."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.lowered: dict[str, Lowered] = {}
        self.nodes: list[Node] = []
        self.values: dict[str, Value] = {}
        self.params: dict[str, npt.NDArray[Any]] = {}
        self.origin = ""
        self._moved: dict[tuple[str, tuple[int, ...]], str] = {}

    # -- emitting ---------------------------------------------------------------------------------------------------

    def _unique(self, hint: str) -> str:
        name, count = hint, 1
        while name in self.values:
            count += 1
            name = f"{hint}.{count}"
        return name

    def param(self, array: npt.ArrayLike, fmt: NumberFormat, hint: str) -> str:
        """Add a constant of format `fmt`, in its stored layout; return its name."""
        name = self._unique(hint)
        data = np.asarray(array)
        if data.size and (data.min() < fmt.qmin or data.max() > fmt.qmax):
            raise LoweringError(
                f"{self.origin}: constant {hint!r} reaches {data.min()}..{data.max()}, outside {fmt.name}; a scale is far too small for it",
                origin=self.origin,
            )
        self.params[name] = np.ascontiguousarray(data, fmt.dtype).reshape(data.shape)
        self.values[name] = Value(data.shape, fmt)
        return name

    def emit(self, op: str, inputs: Sequence[str], attrs: Mapping[str, Any] | None = None, hint: str = "") -> str:
        """Add one primitive node over stored values; return the name of its output."""
        name = self._unique(hint or f"{self.origin or 'node'}.{op}")
        node = Node(op, tuple(inputs), (name,), attrs or {}, self.origin)
        self.values[name] = PRIMITIVES[op].infer(node, [self.values[i] for i in inputs])
        self.nodes.append(node)
        return name

    def composite(self, op: str, inputs: Sequence[str], attrs: Mapping[str, Any], hint: str = "") -> str:
        """Add one composite node over stored values (core/composites.py); return the name of its output."""
        name = self._unique(hint or f"{self.origin or 'node'}.{op}")
        node = composite(op, inputs, [self.values[i] for i in inputs], name, attrs, self.origin)
        assert node.body is not None
        self.values[name] = node.body.values[node.body.outputs[0]]
        self.nodes.append(node)
        return name

    def format_of(self, x: Lowered) -> NumberFormat:
        """Return the integer format that carries `x`."""
        fmt = self.values[x.name].format
        assert fmt is not None
        return fmt

    def limits_of(self, x: Lowered) -> Limits:
        """Return the smallest and the largest integer that `x` can be by its format, or is, if constant."""
        fmt = self.format_of(x)
        if x.name not in self.params:
            return fmt.decoded_min, fmt.decoded_max
        integers = fmt.decode(self.params[x.name])
        return int(integers.min()), int(integers.max())

    # -- layout -----------------------------------------------------------------------------------------------------

    def arranged(self, x: Lowered, perm: Sequence[int]) -> Lowered:
        """Return `x` stored so that stored axis k holds source axis perm[k], moving data only when needed, and once."""
        perm = tuple(perm)
        if perm == x.perm:
            return x
        axes = tuple(x.perm.index(p) for p in perm)
        if (x.name, axes) not in self._moved:
            self._moved[x.name, axes] = self._rearranged(x.name, axes)
        return replace(x, name=self._moved[x.name, axes], perm=perm)

    def _rearranged(self, name: str, axes: tuple[int, ...]) -> str:
        """Emit a transpose of a stored value, or a reshape where only axes of extent 1 move."""
        stored = self.values[name].shape
        moving = [a for a in axes if stored[a] != 1]
        if moving == sorted(moving) and all(a == k or isinstance(stored[a], int) for k, a in enumerate(axes)):
            return self.emit("reshape", [name], {"shape": tuple(d if isinstance(d, int) else 0 for d in (stored[a] for a in axes))})
        return self.emit("transpose", [name], {"perm": axes})

    def plain(self, x: Lowered) -> Lowered:
        """Return `x` stored in its source layout."""
        return self.arranged(x, range(len(x.shape)))

    def image(self, x: Lowered) -> Lowered:
        """Return a four-axis value stored NHWC."""
        return self.arranged(x, NHWC)

    def channels_last(self, x: Lowered, axis: int) -> Lowered:
        """Return `x` stored with source axis `axis` last, the others in their present order."""
        axis %= len(x.shape)
        if x.perm[-1] == axis:
            return x
        return self.arranged(x, (*(p for p in x.perm if p != axis), axis))

    def aligned(self, x: Lowered, like: Lowered) -> Lowered:
        """Return `x` stored in the order of `like`, when both have the same number of axes."""
        return self.arranged(x, like.perm) if len(x.perm) == len(like.perm) else x

    # -- units ------------------------------------------------------------------------------------------------------

    def target(self, value: str) -> QParams | None:
        """Return the QParams that the quantized graph gives to `value`; None when it stays an accumulator."""
        return self.graph.values[value].qparams

    def spread(self, constants: npt.NDArray[Any], axis: int | None, x: Lowered) -> npt.NDArray[Any]:
        """Return per-channel constants as the stored layout of `x` broadcasts them: channels must be stored last."""
        if constants.ndim == 0:
            return constants
        if axis is None or x.perm[-1] != axis % len(x.shape):
            raise LoweringError(f"{self.origin}: per-channel constants along axis {axis} need that axis stored last", origin=self.origin)
        return constants

    def requantized(
        self,
        x: Lowered,
        target: QParams,
        *,
        factor: npt.ArrayLike = 1.0,
        residual: Lowered | None = None,
        residual_factor: npt.ArrayLike = 1.0,
        hint: str = "",
    ) -> Lowered:
        """Return real(x) * factor [+ real(residual) * residual_factor] in the units of `target`, by one rescale.

        Args:
            factor: extra real multiplier, () or (C,) along the stored last axis, or (H, W, 1) for an image.
            residual: joins before the rounding; at most 16 bits, stored in the order of `x`, or broadcast to it.

        Exactness: half a step of `target`; with at most 8 bits (3/2) * 2^-k steps more for each operand, where the form is
        narrow with k fraction bits.
        """
        if target.scale.ndim or target.zero_point.ndim:
            raise LoweringError(f"{self.origin}: activations are quantized per tensor", origin=self.origin)
        if x.axis is not None and (x.scale.ndim or x.zero_point.ndim):
            x = self.channels_last(x, x.axis)
        to = 1.0 / float(target.scale)
        step = self.spread(x.scale, x.axis, x) * np.asarray(factor, np.float64) * to
        if residual is None and target.format.bits <= RESIDUAL_BITS:
            step = np.clip(step, -SATURATING, SATURATING)
        names: list[str] = [x.name]
        extra: dict[str, Any] = {}
        if residual is not None:
            residual = self.aligned(residual, x)
            names.append(residual.name)
            extra = {
                "residual_factor": np.asarray(residual_factor, np.float64) * float(residual.scale) * to,
                "residual_zero": residual.zero,
                "residual_limits": self.limits_of(residual),
            }
        smallest, largest = self.limits_of(x)
        ends = (smallest, largest, smallest - int(x.zero_point.max()), largest - int(x.zero_point.min()))
        try:
            rescale = Rescale.from_real(
                step,
                zero_point=int(target.zero_point),
                lo=target.format.qmin,
                hi=target.format.qmax,
                x_zero=self.spread(x.zero_point, x.axis, x),
                narrow=min(ends) >= -INT32_LIMIT and max(ends) < INT32_LIMIT,
                **extra,
            )
        except LoweringError as error:
            raise LoweringError(f"{self.origin}: {error}", origin=self.origin) from None
        name = self.emit("requantize", names, {"rescale": rescale}, hint)
        return Lowered(name, x.shape, x.perm, target.scale, target.zero_point)

    def finished(self, x: Lowered, output: str, **options: Any) -> Lowered:
        """Return `x` in the units that the quantized graph asks for at `output`; an accumulator stays one.

        Options are those of `requantized`; a `residual` or `factor` forces the requantization.
        """
        target = self.target(output)
        if target is None:
            if options:
                raise LoweringError(
                    f"{self.origin}: this operator cannot leave an accumulator; value {output!r} needs QParams", origin=self.origin
                )
            return x
        same = (
            not options
            and x.zero_point.ndim == 0
            and self.format_of(x).bits <= 16
            and (x.scale.ndim == 0 and x.scale == target.scale and x.zero_point == target.zero_point)
        )
        if same and self._fits(x, target.format):
            return x
        return self.requantized(x, target, hint=output, **options)

    def _fits(self, x: Lowered, fmt: NumberFormat) -> bool:
        have = self.format_of(x)
        return fmt.qmin <= have.decoded_min and have.decoded_max <= fmt.qmax

    def clamped(self, x: Lowered, lo: float, hi: float) -> Lowered:
        """Return codes limited to real lo..hi (rounded to the grid, ties up), by minimum and maximum where they bite."""
        fmt = self.format_of(x)
        for op, limit in (("maximum", lo), ("minimum", hi)):
            if not np.isfinite(limit):
                continue
            code = int(np.floor(limit / float(x.scale) + 0.5)) + x.zero
            bites = code > fmt.decoded_min if op == "maximum" else code < fmt.decoded_max
            if bites:
                code = min(max(code, fmt.qmin), fmt.qmax)
                bound = self.param(np.asarray(code), fmt, f"{self.origin}.{'lo' if op == 'maximum' else 'hi'}")
                x = replace(x, name=self.emit(op, [x.name, bound]))
        return x

    def bias(self, bias: npt.NDArray[np.float64], acc_scale: npt.NDArray[np.float64], hint: str) -> str:
        """Add an int32 bias in accumulator units, floor(bias / acc_scale + 1/2); return its name."""
        codes = np.floor(np.asarray(bias, np.float64) / acc_scale + 0.5)
        if not (np.abs(codes) <= INT32_MAX).all():
            channel = int(np.argmax(np.abs(codes)))
            raise LoweringError(
                f"{self.origin}: the bias of channel {channel} is {np.abs(codes).max():.3g} accumulator steps, beyond int32; "
                "its weights are far smaller than its bias",
                origin=self.origin,
            )
        return self.param(codes.astype(np.int64), INT32, hint)

    def table(self, x: Lowered, function: Any, output: str) -> Lowered:
        """Return function(x) through a table with one entry for every code of `x`, at most 16 bits wide.

        Args:
            function: float64 array -> float64 array, elementwise.
        """
        target = self.target(output)
        fmt = self.format_of(x)
        if target is None or fmt.bits > 16:
            raise LoweringError(f"{self.origin}: a table needs an input and an output of at most 16 bits", origin=self.origin)
        codes = np.arange(fmt.qmin, fmt.qmax + 1)
        real = (codes - x.zero) * float(x.scale)
        table = self.param(target.quantize(function(real)), target.format, f"{output}.table")
        name = self.emit("lookup", [x.name, table], {"offset": fmt.qmin}, output)
        return Lowered(name, x.shape, x.perm, target.scale, target.zero_point)

    def integer_graph(self, outputs: Sequence[str], inputs: Sequence[str]) -> Graph:
        """Return what was emitted as a graph of stage INTEGER."""
        return Graph(self.graph.name, Stage.INTEGER, tuple(inputs), tuple(outputs), tuple(self.nodes), self.values, self.params).pruned()
