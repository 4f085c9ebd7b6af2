# SPDX-License-Identifier: Apache-2.0
"""Where samples come from: `.npz` files, folders of images, loaders, arrays; and how callers' arrays meet an InputSpec."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly import _native
from intonly.core.errors import DataError
from intonly.core.graph import Dim
from intonly.core.records import LARGEST_INTEGER, InputSpec

Array = npt.NDArray[Any]
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp")
BATCH = 64
RAW = {name: np.dtype(name) for name in ("uint8", "int8")}
"""Array types of the specs that take codes as they are."""
REAL = (np.dtype(np.float32), np.dtype(np.float64))
"""Array types that the native boundary reads."""
SYNTHETIC = "synthetic"
"""Data that are made instead of read: "synthetic", or "synthetic:N" for N samples; see `intonly.synthesize`."""
SYNTHETIC_COUNT = 64
"""Samples that "synthetic" alone stands for."""


def synthetic_count(data: Any) -> int | None:
    """Return how many samples "synthetic" or "synthetic:N" asks for, None for other data.

    Raises:
        DataError: when N is no positive number.
    """
    if not isinstance(data, str) or data.partition(":")[0] != SYNTHETIC:
        return None
    _, colon, number = data.partition(":")
    if not colon:
        return SYNTHETIC_COUNT
    if not number.isdecimal() or int(number) < 1:
        raise DataError(f"data {data!r}: expected synthetic, or synthetic:N with a number of samples of 1 or more")
    return int(number)


def as_array(x: Any, what: str = "input") -> Array:
    """Return `x` as a NumPy array: NumPy, torch (any device), anything with DLPack, or nested numbers.

    Raises:
        DataError: when it is none of these.
    """
    if isinstance(x, np.ndarray):
        return x
    if hasattr(x, "detach"):
        return np.asarray(x.detach().cpu().numpy())
    if hasattr(x, "__dlpack__"):
        return np.from_dlpack(x)
    try:
        array = np.asarray(x)
    except (ValueError, TypeError):
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{what}: expected an array or tensor of numbers, got {type(x).__name__}")
    return array


@dataclass(frozen=True)
class Dataset:
    """Samples in memory: one array for each model input, and labels where there are any."""

    arrays: Mapping[str, Array]
    labels: Array | None = None

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def take(self, count: int) -> Dataset:
        """Return `count` samples spread evenly over the set (all of them when there are fewer)."""
        if count >= len(self):
            return self
        picks = np.arange(count) * len(self) // count
        return Dataset({k: v[picks] for k, v in self.arrays.items()}, None if self.labels is None else self.labels[picks])

    def batches(self, size: int = BATCH) -> Iterator[dict[str, Array]]:
        """Yield the arrays in pieces of `size` samples."""
        for at in range(0, len(self), size):
            yield {k: v[at : at + size] for k, v in self.arrays.items()}


def load_data(data: Any, specs: Sequence[InputSpec], *, samples: int | None = None) -> Dataset:
    """Return the samples that `data` stands for.

    Args:
        data: a Dataset; a path to an `.npz` (one array per model input by name, or `x`; optional labels `y`) or to a
            folder of images (class sub-folders give labels); an array; a mapping of arrays; or an iterable of batches
            (array, (array, labels) or mapping, whose "y" are labels), such as a PyTorch DataLoader.
        samples: at most this many, spread evenly where the whole set is known, the first ones of an iterable.

    Raises:
        DataError: when nothing usable is there.
    """
    names = [spec.name for spec in specs]
    if isinstance(data, Dataset):
        found = Dataset(_named(data.arrays, names), data.labels)
    elif synthetic_count(data) is not None:
        raise DataError(f"data {data!r}: no samples can be made here; write some with `intonly synthesize` and give that file")
    elif isinstance(data, (str, Path)):
        found = _from_path(Path(data), specs)
    elif isinstance(data, Mapping):
        labels = data.get("y") if "y" not in names else None
        arrays = {k: as_array(v, k) for k, v in data.items() if k in names or k != "y"}
        found = Dataset(_named(arrays, names), None if labels is None else as_array(labels, "labels"))
    elif isinstance(data, np.ndarray) or hasattr(data, "detach"):
        found = Dataset(_named({"x": as_array(data)}, names))
    elif isinstance(data, Iterable):
        found = _from_batches(data, names, samples)
    else:
        raise DataError(f"data: expected a path, an array, a mapping or an iterable of batches, got {type(data).__name__}")
    for name, array in (*found.arrays.items(), *([("y", found.labels)] if found.labels is not None else [])):
        if not array.ndim:
            raise DataError(f"data: {name!r} is a single number; its first axis must run over the samples")
    sizes = {k: len(v) for k, v in found.arrays.items()}
    if len(set(sizes.values())) > 1:
        raise DataError(f"data: inputs have different numbers of samples: {sizes}")
    if not len(found):
        raise DataError("data: no samples")
    if found.labels is not None and len(found.labels) != len(found):
        raise DataError(f"data: {len(found)} samples but {len(found.labels)} labels")
    return found if samples is None else found.take(samples)


def _named(arrays: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
    if set(names) <= set(arrays):
        return {name: arrays[name] for name in names}
    if len(names) == 1 and "x" in arrays:
        return {names[0]: arrays["x"]}
    held = ", ".join(arrays) or "nothing"
    raise DataError(f"data: the model's inputs are {', '.join(names)}, the data hold {held}; name the arrays after the inputs")


def _from_path(path: Path, specs: Sequence[InputSpec]) -> Dataset:
    if path.is_dir():
        if len(specs) != 1:
            raise DataError(f"data {str(path)!r}: a folder of images fits a model with one input, this one has {len(specs)}")
        return _from_folder(path, specs[0])
    if path.suffix != ".npz":
        raise DataError(f"data {str(path)!r}: expected an .npz file or a folder of images")
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as file:
            arrays = {k: file[k] for k in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as problem:
        raise DataError(f"data {str(path)!r} cannot be read: {problem}") from None
    names = [spec.name for spec in specs]
    labels = arrays.pop("y", None) if "y" not in names else None
    return Dataset(_named(arrays, names), labels)


def _from_folder(path: Path, spec: InputSpec) -> Dataset:
    """Return the images below `path`, in the spec's layout (NHWC when it names none), sorted by name."""
    try:
        from PIL import Image
    except ImportError:
        raise DataError("reading images needs Pillow: pip install pillow") from None
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise DataError(f"data {str(path)!r}: no images ({', '.join(IMAGE_SUFFIXES)}) in this folder")
    classes = sorted({p.parent.name for p in files if p.parent != path})
    images = []
    for file in files:
        try:
            with Image.open(file) as opened:
                images.append(_framed(opened.convert("RGB"), spec))
        except OSError as problem:
            raise DataError(f"image {file.name!r} cannot be read: {problem}") from None
    shapes = {i.shape for i in images}
    if len(shapes) > 1:
        raise DataError(f"data {str(path)!r}: images have different sizes; give resize and crop")
    x = np.stack(images)
    layout = spec.layout or "NCHW"
    x = x.transpose(["NHWC".index(c) for c in layout])
    labels = np.array([classes.index(p.parent.name) for p in files]) if classes and all(p.parent != path for p in files) else None
    return Dataset({spec.name: np.ascontiguousarray(x)}, labels)


def _framed(image: Any, spec: InputSpec) -> Array:
    """Return an image as uint8 HWC after the spec's resize (short side, bilinear) and centre crop."""
    from PIL import Image

    if spec.resize is not None:
        short = min(image.size)
        size = tuple(max(spec.resize, round(s * spec.resize / short)) for s in image.size)
        image = image.resize(size, Image.Resampling.BILINEAR)
    if spec.crop is not None:
        h, w = spec.crop
        left, top = (image.width - w) // 2, (image.height - h) // 2
        if left < 0 or top < 0:
            raise DataError(f"an image of {image.width}x{image.height} is smaller than the crop {w}x{h}")
        image = image.crop((left, top, left + w, top + h))
    return np.asarray(image)


def _from_batches(data: Iterable[Any], names: Sequence[str], samples: int | None) -> Dataset:
    parts: dict[str, list[Array]] = {name: [] for name in names}
    labels: list[Array] = []
    count = 0
    for batch in data:
        given = batch
        if isinstance(batch, (tuple, list)) and len(batch) == len(names) + 1:
            labels.append(as_array(batch[-1], "labels"))
            given = batch[:-1]
            _check_labels(labels[-1], as_array(batch[0]), names)
        if isinstance(given, Mapping):
            if "y" in given and "y" not in names:
                labels.append(as_array(given["y"], "labels"))
            arrays = _named({k: as_array(v, k) for k, v in given.items()}, names)
        elif isinstance(given, (tuple, list)):
            if len(given) != len(names):
                raise DataError(f"data: a batch has {len(given)} arrays, the model has {len(names)} inputs")
            arrays = {name: as_array(v, name) for name, v in zip(names, given, strict=True)}
        else:
            arrays = _named({"x": as_array(given)}, names)
        for name, array in arrays.items():
            parts[name].append(array)
        count += len(next(iter(arrays.values())))
        if samples is not None and count >= samples:
            break
    if not count:
        raise DataError("data: the iterable gave no batch")
    for name, pieces in parts.items():
        shapes = list(dict.fromkeys(piece.shape[1:] for piece in pieces))
        if len(shapes) > 1:
            raise DataError(
                f"data: batches of {name!r} hold samples of shapes {shapes[0]} and {shapes[1]}; give all batches the same one: "
                "texts of different lengths are padded to one, and masked"
            )
    whole = {name: np.concatenate(pieces) for name, pieces in parts.items()}
    joined = np.concatenate(labels) if labels and sum(map(len, labels)) == count else None
    if samples is not None:
        whole = {k: v[:samples] for k, v in whole.items()}
        joined = None if joined is None else joined[:samples]
    return Dataset(whole, joined)


def _check_labels(labels: Array, x: Array, names: Sequence[str]) -> None:
    """Refuse what stands at the place of labels but looks like the mask of a text: 0 and 1 in the shape of its ids.

    Raises:
        DataError: naming the way to say what is meant.
    """
    whole = labels.dtype.kind in "biu" and x.dtype.kind in "biu"
    if whole and labels.ndim == 2 and labels.shape == x.shape and labels.size and labels.min() >= 0 and labels.max() <= 1 < x.max():
        held = ", ".join(f"{name!r}: ..." for name in names)
        raise DataError(
            f"data: the model takes {', '.join(names)}, so the last array of a batch is taken for labels, but it holds 0 and 1 in the "
            f"shape of {names[0]!r}, as a mask does; give batches as dicts, {{{held}, 'y': labels}}, "
            "and capture the model with the mask where it takes one"
        )


def model_units(x: Array, spec: InputSpec, shape: Sequence[Any], perm: Sequence[int]) -> Array:
    """Return what the float model sees for callers' array `x`: its own axis order, (x - mean) / std, float32.

    The result is stored in C order whatever the layout of `x`, because PyTorch rounds differently in another order.

    Args:
        shape: the model's input shape; perm: position of each handed-in axis in it.
    """
    check_input(x, spec, [shape[p] for p in perm])
    if spec.dtype == "integer":
        return x.astype(np.int64, order="C")
    x = x.transpose(np.argsort(perm))
    along = [1] * x.ndim
    if x.ndim > 1:
        along[1] = -1
    mean, std = (np.asarray(v, np.float64).reshape(along if len(v) > 1 else ()) for v in (spec.mean, spec.std))
    return ((x.astype(np.float64) - mean) / std).astype(np.float32, order="C")


def integer_input(x: Array, spec: InputSpec, shape: Sequence[Any], dtype: np.dtype[Any]) -> Array:
    """Return the integers that enter the graph for callers' array `x`.

    The float boundary: clamp(floor(double(x) / scale + 1/2) + zero_point), after (x - mean) / std where the spec has them.

    Raises:
        DataError: on another shape or type than declared, or NaN.
    """
    _check_form(x, spec, shape)
    if spec.dtype != "float32":
        return np.ascontiguousarray(x, dtype=dtype)
    if spec.scale is None or spec.zero_point is None:
        raise DataError(f"input {spec.name!r}: the spec has no scale")
    axis, entries = (spec.layout or "NC").find("C"), max(len(spec.mean), len(spec.std))
    if entries > 1 and (not 0 <= axis < x.ndim or x.shape[axis] != entries):
        raise DataError(f"input {spec.name!r}: mean and std have {entries} entries, which no axis of channels of {x.shape} has")
    reals = x if x.dtype in REAL else x.astype(np.float64)
    codes = _native.codes_of_reals(reals, spec.scale, spec.zero_point, *_limits(dtype), spec.mean, spec.std, axis)
    if codes is None:
        raise DataError(f"input {spec.name!r}: holds NaN")
    return codes


@cache
def _limits(dtype: np.dtype[Any]) -> tuple[int, int]:
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def check_input(x: Array, spec: InputSpec, shape: Sequence[Any]) -> None:
    """Raise DataError unless `x` has the declared type and shape (handed-in axis order) and no NaN."""
    _check_form(x, spec, shape)
    if x.dtype.kind == "f" and np.isnan(x).any():
        raise DataError(f"input {spec.name!r}: holds NaN")


def _check_integers(x: Array, spec: InputSpec) -> None:
    """Raise DataError unless `x` holds integers 0..high."""
    if x.dtype.kind not in "biu":
        raise DataError(f"input {spec.name!r}: expected integers, got {x.dtype}; ids and masks go in as integers or bools")
    high = LARGEST_INTEGER if spec.high is None else spec.high
    if x.size and (int(x.min()) < 0 or int(x.max()) > high):
        raise DataError(f"input {spec.name!r}: expected integers 0..{high}, got {int(x.min())}..{int(x.max())}")


def _check_form(x: Array, spec: InputSpec, shape: Sequence[Any]) -> None:
    """Raise DataError unless `x` has the declared type and shape; any number of samples will do, runs are made of pieces."""
    if spec.dtype == "float32":
        if x.dtype.kind not in "fiu":
            raise DataError(f"input {spec.name!r}: expected real numbers, got {x.dtype}")
    elif spec.dtype == "integer":
        _check_integers(x, spec)
    elif x.dtype != RAW[spec.dtype]:
        raise DataError(f"input {spec.name!r}: expected {spec.dtype} numbers, got {x.dtype}; this artifact takes raw {spec.dtype} data")
    fits = x.ndim == len(shape) and all(not isinstance(want, int) or want == got for want, got in zip(shape, x.shape, strict=True))
    if not fits:
        wanted = ", ".join(str(getattr(d, "name", d)) for d in shape)
        reordered = x.ndim == len(shape) and sorted(x.shape[1:]) == sorted(d for d in shape[1:] if isinstance(d, int))
        hint = "; the same axes in another order: say which with `layout`" if reordered else ""
        raise DataError(f"input {spec.name!r}: expected shape ({wanted}), got {x.shape}{hint}")
    for axis, (want, got) in enumerate(zip(shape, x.shape, strict=True)):
        if axis != max(spec.layout.find("N"), 0) and isinstance(want, Dim) and not want.min <= got <= want.max:
            raise DataError(f"input {spec.name!r}: axis {axis} ({want.text}) is {got} long; expected {want.min} to {want.max}")
