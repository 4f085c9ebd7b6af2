# SPDX-License-Identifier: Apache-2.0
"""The test beds: real networks, what callers hand in, calibration draws and test data.

They live in a folder beside the project (`--data`, or INTONLY_DATA); nothing here is needed to use the package.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intonly import InputSpec
from intonly.data import Dataset

Array = npt.NDArray[Any]
ROOT = Path(os.environ.get("INTONLY_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@dataclass(frozen=True)
class Bed:
    """One network with its data.

    Args:
        model: () -> what `intonly.load` takes. calibration: seed -> samples. test: () -> samples with labels.
        official: the official int8 file of the same network, for its size; peer_top1: its accuracy on the same data.
    """

    name: str
    model: Callable[[], Any]
    spec: InputSpec
    calibration: Callable[[int], Dataset]
    test: Callable[[], Dataset]
    official: str | None = None
    peer_top1: float | None = None

    def example(self) -> Any:
        """Return what a PyTorch module is traced with; None for files."""
        import torch

        return (torch.zeros(2, 3, 32, 32),) if self.name.startswith(("resnet", "vit")) else None


def _images(path: Path) -> tuple[Array, Array]:
    from PIL import Image

    z = np.load(path)
    head, body, at = z["header"].tobytes(), z["payload"].tobytes(), z["offset"]
    x = np.stack([np.asarray(Image.open(io.BytesIO(head + body[at[i] : at[i + 1]]))) for i in range(len(at) - 1)])
    return x, z["label"].astype(np.int64)


@cache
def cifar(part: str) -> Dataset:
    """Return CIFAR-10 "train" or "test", uint8 NHWC with labels."""
    x, y = _images(ROOT / "cifar10" / f"{part}.npz")
    return Dataset({"x": x}, y)


@cache
def imagenet(size: int) -> Dataset:
    """Return the 1000 pictures, uint8 NHWC, centre `size`."""
    x, y = _images(ROOT / "imagenet_samples" / "images.npz")
    at = (256 - size) // 2
    return Dataset({"x": np.ascontiguousarray(x[:, at : at + size, at : at + size])}, y)


def subset(data: Dataset, picks: Any, name: str) -> Dataset:
    """Return some samples, the array called `name`."""
    array = next(iter(data.arrays.values()))
    return Dataset({name: array[picks]}, None if data.labels is None else data.labels[picks])


def _cifar_draw(name: str, count: int = 512) -> Callable[[int], Dataset]:
    def draw(seed: int) -> Dataset:
        rng = np.random.default_rng(seed)
        return subset(cifar("train"), np.sort(rng.choice(50000, count, replace=False)), name)

    return draw


def _resnet(depth: int, suffix: str = "_jpeg") -> Bed:
    from resnet_cifar10 import load_resnet

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    spec = InputSpec("x", "NHWC", "uint8", tuple(255 * m for m in mean), tuple(255 * s for s in std))
    return Bed(
        f"resnet{depth}{suffix}",
        lambda: load_resnet(ROOT / "resnet_cifar10" / f"resnet{depth}{suffix}.safetensors", depth),
        spec,
        _cifar_draw("x"),
        lambda: subset(cifar("test"), slice(None), "x"),
    )


def _vit() -> Bed:
    from vit_cifar10 import load_vit

    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    return Bed(
        "vit_cifar10",
        lambda: load_vit(ROOT / "vit_cifar10" / "vit.safetensors"),
        InputSpec("x", "NHWC", "uint8", tuple(255 * m for m in mean), tuple(255 * s for s in std)),
        _cifar_draw("x"),
        lambda: subset(cifar("test"), slice(None), "x"),
    )


def _tiny_images(name: str, peer: float) -> Bed:
    folder = f"mlperf_tiny/{name}"
    return Bed(
        name,
        lambda: ROOT / folder / "float.onnx",
        InputSpec("input", "NHWC", "uint8"),
        _cifar_draw("input"),
        lambda: subset(cifar("test"), slice(None), "input"),
        f"{folder}/int8.tflite",
        peer,
    )


@cache
def _keywords() -> Dataset:
    z = np.load(ROOT / "mlperf_tiny/kws_dscnn/kws01.npz")
    return Dataset({"input": z["feature"][:, None]}, z["label"].astype(np.int64))


def _kws(file: str, name: str) -> Bed:
    def draw(seed: int) -> Dataset:
        rng = np.random.default_rng(seed)
        return subset(_keywords(), np.sort(rng.choice(200, 150, replace=False)), "input")

    return Bed(
        name,
        lambda: ROOT / "mlperf_tiny/kws_dscnn" / file,
        InputSpec("input", "NCHW", "int8", (83.0,), (1 / 0.584702909,)),
        draw,
        lambda: subset(_keywords(), slice(200, 1000), "input"),
        "mlperf_tiny/kws_dscnn/int8.tflite",
        89.88,
    )


@cache
def _wake() -> Dataset:
    z = np.load(ROOT / "mlperf_tiny/sww_conv/calibration_samples.npz")
    return Dataset({"input": np.ascontiguousarray(z["spec"].transpose(0, 3, 1, 2))}, z["label"].astype(np.int64))


def _sww() -> Bed:
    return Bed(
        "sww_conv",
        lambda: ROOT / "mlperf_tiny/sww_conv/float.onnx",
        InputSpec("input"),
        lambda seed: subset(_wake(), np.sort(np.random.default_rng(seed).choice(45, 30, replace=False)), "input"),
        _wake,
        "mlperf_tiny/sww_conv/int8.tflite",
        91.11,
    )


@cache
def _machine() -> Dataset:
    clip = np.load(ROOT / "mlperf_tiny/ad_autoencoder/clip_normal_id_01_00000000.npz")["logmel"]
    return Dataset({"input": np.stack([clip[i : i + 5].reshape(-1) for i in range(196)]).astype(np.float32)})


def _ad() -> Bed:
    return Bed(
        "ad_autoencoder",
        lambda: ROOT / "mlperf_tiny/ad_autoencoder/float.onnx",
        InputSpec("input"),
        lambda seed: subset(_machine(), np.sort(np.random.default_rng(seed).choice(196, 98, replace=False)), "input"),
        _machine,
        "mlperf_tiny/ad_autoencoder/int8.tflite",
    )


def _imagenet_net(name: str, file: str, size: int, mean: tuple[float, ...], std: tuple[float, ...], first_class: int = 0) -> Bed:
    """Calibrate on every fifth picture, test on the other 800; `first_class` is the index of ImageNet's class 0."""
    every_fifth = np.arange(1000) % 5 == 0
    spec = InputSpec("input", "NHWC", "uint8", mean, std)
    return Bed(
        name,
        lambda: ROOT / "imagenet_nets" / file,
        spec,
        lambda seed: subset(imagenet(size), every_fifth, "input"),
        lambda: _shifted(subset(imagenet(size), ~every_fifth, "input"), first_class),
    )


def _shifted(data: Dataset, by: int) -> Dataset:
    return Dataset(data.arrays, None if data.labels is None else data.labels + by)


def classifiers() -> dict[str, Bed]:
    """Return the beds with a class or a vector as output, by name."""
    beds = (
        _resnet(20),
        _resnet(44),
        _vit(),
        _tiny_images("ic_resnet8", 74.84),
        _tiny_images("ic_resnet8_large", 80.48),
        _kws("float.onnx", "kws_dscnn"),
        _kws("parent_of_int8_dequantized.onnx", "kws_dscnn_parent"),
        _sww(),
        _ad(),
        _imagenet_net("mobilenet_v1_025", "mobilenet_v1_025_224/float.onnx", 224, (127.5,), (127.5,)),
        _imagenet_net("mobilenet_v1_025_slim", "mobilenet_v1_025_224/slim_float.onnx", 224, (127.5,), (127.5,), 1),
        _imagenet_net("squeezenet_dc", "squeezenet_dc/float.onnx", 227, (123.0, 117.0, 104.0), (1.0,)),
    )
    return {bed.name: bed for bed in beds}
