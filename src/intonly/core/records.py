# SPDX-License-Identifier: Apache-2.0
"""Records that travel between steps and into files. Frozen, JSON in and out, one strict reader."""

from __future__ import annotations

import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from intonly.core.errors import DataError, IntonlyError, RecipeError

T = TypeVar("T")

LARGEST_INTEGER = (1 << 31) - 1
"""Largest integer that an input of exact integers may hold."""
MODEL_LAYOUTS = {2: "NC", 3: "NCL", 4: "NCHW"}
"""Axis letters of a model input of each rank."""


def to_json(record: Any) -> Any:
    """Return a record as plain JSON data; fields that hold their default are left out."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        result = {}
        for f in dataclasses.fields(record):
            value = getattr(record, f.name)
            default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
            if default is dataclasses.MISSING or value != default:
                result[f.name] = to_json(value)
        return result
    if isinstance(record, Mapping):
        return {str(k): to_json(v) for k, v in record.items()}
    if isinstance(record, Sequence) and not isinstance(record, str):
        return [to_json(v) for v in record]
    return record


def from_json(kind: type[T], data: Any, *, error: type[IntonlyError] = RecipeError, where: str = "") -> T:
    """Return the record of type `kind` that `data` describes.

    Raises:
        error: naming the place, when a key is unknown or missing or a value has another type.
    """
    hints = typing.get_type_hints(kind)
    place = where or kind.__name__
    if not isinstance(data, Mapping):
        raise error(f"{place}: expected an object, got {data!r:.80}")
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(fields), key=str)
    if unknown:
        raise error(f"{place}: unknown key {unknown[0]!r}; known are {', '.join(fields)}")
    for name, f in fields.items():
        if name not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise error(f"{place}: key {name!r} is missing")
    values = {name: _convert(hints[name], value, error, f"{place}.{name}") for name, value in data.items()}
    return kind(**values)


def _convert(hint: Any, value: Any, error: type[IntonlyError], where: str) -> Any:
    """Return `value` as the type that `hint` says, or raise `error` naming the place."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(args, value, error, where)
    if origin is typing.Literal:
        if value not in args or type(value) not in {type(a) for a in args}:
            raise error(f"{where}: must be one of {', '.join(map(str, args))}, got {value!r:.80}")
        return value
    if origin is tuple:
        return _convert_tuple(args, value, error, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise error(f"{where}: expected an object, got {value!r:.80}")
        return {str(k): _convert(args[1], v, error, f"{where}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint) and not isinstance(value, typing.cast(type[Any], hint)):
        return from_json(typing.cast(type[Any], hint), value, error=error, where=where)
    if hint in (int, float) and isinstance(value, numbers.Integral if hint is int else numbers.Real) and not isinstance(value, bool):
        return hint(value)
    if hint is not Any and type(value) is not hint:
        raise error(f"{where}: expected {hint.__name__}, got {value!r:.80}")
    return value


def _convert_union(options: Sequence[Any], value: Any, error: type[IntonlyError], where: str) -> Any:
    if value is None and type(None) in options:
        return None
    problem = error(f"{where}: {value!r:.80} does not fit")
    for option in options:
        if option is not type(None):
            try:
                return _convert(option, value, error, where)
            except IntonlyError as last:
                problem = last
    raise problem


def _convert_tuple(kinds: Sequence[Any], value: Any, error: type[IntonlyError], where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise error(f"{where}: expected a list, got {value!r:.80}")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = [kinds[0]] * len(value)
    if len(kinds) != len(value):
        raise error(f"{where}: expected {len(kinds)} entries, got {len(value)}")
    return tuple(_convert(kind, v, error, f"{where}[{i}]") for i, (kind, v) in enumerate(zip(kinds, value, strict=True)))


def _settle(record: Any, error: type[IntonlyError], where: str) -> None:
    """Bring every field of a new record to its declared type (lists become tuples, NumPy numbers plain ones).

    Raises:
        error: naming the field, when it has another type or is none of the words it may be.
    """
    hints = typing.get_type_hints(type(record))
    for f in dataclasses.fields(record):
        object.__setattr__(record, f.name, _convert(hints[f.name], getattr(record, f.name), error, f"{where}: {f.name}"))


@dataclass(frozen=True)
class InputSpec:
    """What callers hand in for one model input, and how it becomes the integers of the graph.

    The float model sees (x - mean) / std, where x is the number that the caller hands in.

    Args:
        name: the model's input; may be left out when the model has one.
        layout: axis letters of what callers hand in, "NCHW", "NHWC", ...; "" = the model's own order.
        dtype: "uint8" and "int8" go in as they are; "float32" is quantized at the boundary with scale and zero_point:
            clamp(floor(double(x) / scale + 1/2) + zero_point). "integer": exact integers 0..high in any integer type, such
            as token ids; a mask holds 0 and 1, or bools.
        mean, std: one number, or one for each channel, in units of x; (0,) and (1,) = none.
        resize, crop: how image files become arrays: short side, then the centre (height, width); None = as they are.
        scale, zero_point: of the integer input, for "float32" only.
        high: largest integer that may come in, for "integer" only; None = what capture finds.
    """

    name: str = ""
    layout: str = ""
    dtype: typing.Literal["uint8", "int8", "float32", "integer"] = "float32"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    resize: int | None = None
    crop: tuple[int, int] | None = None
    scale: float | None = None
    zero_point: int | None = None
    high: int | None = None

    def __post_init__(self) -> None:
        where = f"input {self.name!r}"
        _settle(self, DataError, where)
        if not self.mean or not self.std or (len(self.mean) != len(self.std) and 1 not in (len(self.mean), len(self.std))):
            raise DataError(
                f"{where}: mean has {len(self.mean)} entries, std has {len(self.std)}; give one for each channel, or one for all"
            )
        if not all(s > 0 for s in self.std) or not all(map(math.isfinite, (*self.mean, *self.std))):
            raise DataError(f"{where}: mean must be finite and std positive and finite, got {self.mean} and {self.std}")
        if self.layout and (sorted(self.layout) != sorted(set(self.layout)) or "N" not in self.layout):
            raise DataError(f"{where}: layout {self.layout!r} must name each axis once and include N")
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise DataError(f"{where}: scale must be positive and finite, got {self.scale}")
        if self.high is not None and not (self.dtype == "integer" and 1 <= self.high <= LARGEST_INTEGER):
            raise DataError(f"{where}: high is for integers, 1 to {LARGEST_INTEGER:,}; got {self.high} for {self.dtype}")
        if self.dtype == "integer" and (self.mean, self.std, self.layout) != ((0.0,), (1.0,), ""):
            raise DataError(f"{where}: exact integers have no mean, std or layout")
        if min(self.crop or (1,)) < 1 or (self.resize is not None and self.resize < 1):
            raise DataError(f"{where}: resize and crop are in pixels, 1 or more, got {self.resize} and {self.crop}")

    def perm(self, rank: int) -> tuple[int, ...]:
        """Return the permutation from the model's `rank` axes to the layout that callers hand in.

        Raises:
            DataError: when the letters do not fit the model's axes.
        """
        if not self.layout:
            return tuple(range(rank))
        letters = MODEL_LAYOUTS.get(rank, "")
        if sorted(letters) != sorted(self.layout):
            raise DataError(f"input {self.name!r}: layout {self.layout!r} does not fit its {rank} axes, a permutation of {letters!r} does")
        return tuple(letters.index(c) for c in self.layout)


@dataclass(frozen=True)
class OutputSpec:
    """What one output's integers stand for: real = scale * (integer - zero_point), in the model's own axis order."""

    name: str
    scale: float
    zero_point: int = 0


@dataclass(frozen=True)
class Note:
    """Free metadata of an artifact: which tensors a graph was cut at, where the network came from."""

    source: str = ""
    cut: tuple[str, ...] = ()
    extra: Mapping[str, str] = field(default_factory=dict)


def _check_bits(where: str, **widths: int | None) -> None:
    for name, bits in widths.items():
        if bits is not None and not 1 <= bits <= 8:
            raise RecipeError(f"{where}: {name} must be 1 to 8, got {bits}")


@dataclass(frozen=True)
class LayerRule:
    """What is asked of the layers whose name matches the glob `match`; None leaves the recipe's own setting.

    `activation_bits` is the width of the layer's input activation.
    """

    match: str
    weight_bits: int | None = None
    weight_format: str | None = None
    weight_granularity: typing.Literal["channel", "tensor"] | None = None
    weight_observer: typing.Literal["minmax", "mse"] | None = None
    activation_bits: int | None = None
    activation_observer: typing.Literal["minmax", "moving_average", "percentile", "mse", "entropy"] | None = None

    def __post_init__(self) -> None:
        _settle(self, RecipeError, f"rule {self.match!r}")
        _check_bits(f"rule {self.match!r}", weight_bits=self.weight_bits, activation_bits=self.activation_bits)


@dataclass(frozen=True)
class NormRule:
    """What is asked of the norms (layer norm, RMS norm) whose name matches the glob `match`: the width of what they read."""

    match: str
    input_bits: typing.Literal[8, 16]

    def __post_init__(self) -> None:
        _settle(self, RecipeError, f"norm rule {self.match!r}")


LEAST_OPERAND_BITS = 2


@dataclass(frozen=True)
class ProductRule:
    """What is asked of the products of two activations whose name matches the glob `match`: the width of what they read, 2 to 8.

    Weights of an attention, which a softmax makes, have 8 bits whatever is asked, and pinned operands the units of their source file.
    """

    match: str
    operand_bits: int

    def __post_init__(self) -> None:
        where = f"product rule {self.match!r}"
        _settle(self, RecipeError, where)
        if not LEAST_OPERAND_BITS <= self.operand_bits <= 8:
            raise RecipeError(
                f"{where}: operand_bits must be 2 to 8, which is what products of two activations take; got {self.operand_bits}"
            )


@dataclass(frozen=True)
class MigrationRule:
    """What is asked of the outlier channels behind the norms, or behind the functions between two layers, that `match` names.

    Args:
        match: glob over the names of norms and functions.
        strength: how much of the channels' size goes into the weights behind them, 0 = none to 1 = all.
        outliers: how many channels of a function get units of their own; 0 for norms, and for functions that stay whole.
    """

    match: str
    strength: float
    outliers: int = 0

    def __post_init__(self) -> None:
        _settle(self, RecipeError, f"migration rule {self.match!r}")
        if not 0 <= self.strength <= 1 or self.outliers < 0:
            raise RecipeError(
                f"migration rule {self.match!r}: strength must be 0 to 1 and outliers 0 or more, got {self.strength} and {self.outliers}"
            )


MOST_RECONSTRUCTION_STEPS = 100_000


@dataclass(frozen=True)
class Recipe:
    """What is asked of a quantization. A `Plan` is a recipe with one exact rule for each layer.

    Args:
        weight_bits, activation_bits: 1 to 8. Weights are signed and symmetric; activations take their sign from data.
        weight_format: a named format of `intonly.formats` instead of the uniform one of `weight_bits`.
        weight_granularity: one scale for each output channel, or one for the tensor.
        first_last_bits: width of weights and input of the first and last weighted layer when it is more than theirs;
            None = no exception.
        residual_bits: width of values that an addition reads, 8 or 16; consumers that ask for less get their own copy. None = 16
            where 8 would lose too much of some value on the calibration data (`steps.quantize.streams`), else 8.
        norm_bits: width of what layer norms and RMS norms read, 8 or 16: in a transformer, the sums of the residual stream. A value
            is as wide as its widest reader asks, so 8 bits for a sum take 8 for `residual_bits`, too.
        percentile: share of values, in percent, that the "percentile" observer keeps on each side.
        bias_correction: shift each bias by the mean error of its layer on the calibration data.
        equalization: balance the channel ranges of successive layers; None = only where weights are per tensor.
        migration: how much of the size of outlier channels, behind norms and between layers, goes from activations into
            weights, 0 = none to 1 = all; None = place by place, what predicts the least noise. A plan has 0 here, and a rule for
            each place. See docs/transformers.md.
        rounding: "nearest", or "compensated": weights aim at the float network's outputs on the calibration data, and the error of
            each weight column is passed on to the columns still to be rounded.
        transformers: "exact": our softmax, GELU and layer norm; "i-vit": the integers that I-ViT publishes for them, for comparison;
            "i-vit-fixed": the same by shifts where its known faults are corrected. See docs/transformers.md.
        output: "int32" or "int8" codes for outputs that a weighted layer or an addition makes.
        samples: most calibration samples to use. seed: for everything random.
        rules: for layers with weights; later rules win. Each must match at least one layer.
        norm_rules: the same for norms. migration_rules: the same for places where outlier channels can be migrated.
        product_rules: the same for products of two activations; what none names reads 8 bits.
    """

    name: str = "custom"
    weight_bits: int = 8
    activation_bits: int = 8
    weight_format: str | None = None
    weight_granularity: typing.Literal["channel", "tensor"] = "channel"
    weight_observer: typing.Literal["minmax", "mse"] = "mse"
    activation_observer: typing.Literal["minmax", "moving_average", "percentile", "mse", "entropy"] = "mse"
    activation_symmetric: bool = False
    percentile: float = 99.99
    first_last_bits: int | None = 8
    residual_bits: typing.Literal[8, 16] | None = None
    norm_bits: typing.Literal[8, 16] = 16
    bias_correction: bool = True
    equalization: bool | None = None
    migration: float | None = None
    rounding: typing.Literal["nearest", "compensated"] = "nearest"
    reconstruction: typing.Literal["none", "layer", "block"] = "none"
    reconstruction_steps: int = 200
    transformers: typing.Literal["exact", "i-vit", "i-vit-fixed"] = "exact"
    output: typing.Literal["int32", "int8"] = "int32"
    samples: int = 512
    seed: int = 0
    rules: tuple[LayerRule, ...] = ()
    norm_rules: tuple[NormRule, ...] = ()
    migration_rules: tuple[MigrationRule, ...] = ()
    product_rules: tuple[ProductRule, ...] = ()

    def __post_init__(self) -> None:
        _settle(self, RecipeError, f"recipe {self.name!r}")
        _check_bits(
            f"recipe {self.name!r}",
            weight_bits=self.weight_bits,
            activation_bits=self.activation_bits,
            first_last_bits=self.first_last_bits,
        )
        if not 50 < self.percentile <= 100:
            raise RecipeError(f"recipe {self.name!r}: percentile must be above 50 and at most 100, got {self.percentile}")
        if self.migration is not None and not 0 <= self.migration <= 1:
            raise RecipeError(f"recipe {self.name!r}: migration must be 0 (none) to 1, or null to choose, got {self.migration}")
        if self.samples < 1:
            raise RecipeError(f"recipe {self.name!r}: samples must be 1 or more, got {self.samples}")
        if not 1 <= self.reconstruction_steps <= MOST_RECONSTRUCTION_STEPS:
            raise RecipeError(
                f"recipe {self.name!r}: reconstruction_steps must be 1 to {MOST_RECONSTRUCTION_STEPS:,}, got {self.reconstruction_steps}"
            )


Plan = Recipe


def exactly(name: str) -> str:
    """Return the glob that matches `name` alone."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


PRESETS: Mapping[str, Recipe] = {
    "w8a8": Recipe("w8a8", rounding="compensated"),
    "w4a8": Recipe("w4a8", weight_bits=4, rounding="compensated"),
    "w4a4": Recipe("w4a4", weight_bits=4, activation_bits=4, rounding="compensated"),
}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, or raise RecipeError when it says something twice."""
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise RecipeError(f"the recipe file gives {key!r} twice")
    return dict(pairs)


def recipe_of(asked: Any) -> Recipe:
    """Return a Recipe from a preset name, a JSON file's path, a mapping, or a Recipe itself.

    Raises:
        RecipeError: when it is none of these or holds something unknown.
    """
    import json
    from pathlib import Path

    if isinstance(asked, Recipe):
        return asked
    if isinstance(asked, Mapping):
        return from_json(Recipe, asked)
    if isinstance(asked, str) and asked in PRESETS:
        return PRESETS[asked]
    if isinstance(asked, (str, Path)) and str(asked).endswith(".json"):
        try:
            data = json.loads(Path(asked).read_text(encoding="utf-8"), object_pairs_hook=_once)
        except OSError as problem:
            raise RecipeError(f"recipe file {str(asked)!r} cannot be read: {problem.strerror}") from None
        except (ValueError, RecursionError) as problem:
            raise RecipeError(f"recipe file {str(asked)!r} is no JSON: {problem}") from None
        return from_json(Recipe, data, where=str(asked))
    raise RecipeError(f"unknown recipe {asked!r}; use {', '.join(PRESETS)}, a .json file, or a Recipe")
