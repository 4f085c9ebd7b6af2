# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, and how their texts become records."""

from __future__ import annotations

import enum
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from intonly.cli.console import hint
from intonly.core.records import InputSpec
from intonly.data import synthetic_count

MODEL_FILES = (".onnx", ".pt2", ".intonly")


class InputType(enum.StrEnum):
    """What callers hand in."""

    uint8 = "uint8"
    int8 = "int8"
    float = "float"


class BackendName(enum.StrEnum):
    """What runs an artifact."""

    native = "native"
    interpreter = "interpreter"
    torch = "torch"


Model = Annotated[str, typer.Argument(metavar="MODEL", help="A .onnx or .pt2 file, or package.module:factory.")]
ModelOrArtifact = Annotated[
    str, typer.Argument(metavar="MODEL_OR_ARTIFACT", help="A .intonly, .onnx or .pt2 file, or package.module:factory.")
]
ArtifactFile = Annotated[Path, typer.Argument(metavar="ARTIFACT", exists=True, dir_okay=False, help="A .intonly file.")]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        help="An .npz file (an array for each input, or x; labels y), a folder of images, or synthetic[:N] where no labels are needed.",
    ),
]
Samples = Annotated[int | None, typer.Option("--samples", min=1, help="Use at most this many samples.")]
InputTypeOption = Annotated[InputType | None, typer.Option("--input-type", help="What callers hand in; float when not given.")]
Layout = Annotated[
    str | None, typer.Option("--layout", help="Axes of what callers hand in: NCHW, NHWC, ...; the model's own when not given.")
]
Mean = Annotated[str | None, typer.Option("--mean", help="The network was trained on (x - mean) / std: one number, or one per channel.")]
Std = Annotated[str | None, typer.Option("--std", help="One number, or one per channel, in units of x.")]
Resize = Annotated[int | None, typer.Option("--resize", min=1, help="Short side that image files are resized to.")]
Crop = Annotated[str | None, typer.Option("--crop", help="Centre of image files to keep: H,W or one side.")]
InputShape = Annotated[
    list[str] | None,
    typer.Option("--input-shape", help="Shape of an input, batch first: 1,3,224,224 or name:1,3,224,224; may be repeated."),
]
LengthMax = Annotated[
    int | None,
    typer.Option("--length-max", min=2, help="Largest length of ids and masks, which are then of any length up to it."),
]
Outputs = Annotated[str | None, typer.Option("--outputs", help="ONNX tensors to cut at: NAME,... or auto.")]
Threads = Annotated[int, typer.Option("--threads", min=1, max=64, help="Threads of the native engine; the bytes do not depend on it.")]
Backend = Annotated[BackendName, typer.Option("--backend", help="native, the reference interpreter, or torch; all give the same bytes.")]
Device = Annotated[str, typer.Option("--device", help="Where the torch backend computes: cpu, cuda or cuda:1.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def input_spec(
    input_type: InputType | None, layout: str | None, mean: str | None, std: str | None, resize: int | None, crop: str | None
) -> InputSpec | None:
    """Return what callers hand in, or None when no option says anything.

    Raises:
        BadParameter: when a text is no list of numbers.
        DataError: when the numbers contradict each other.
    """
    given: dict[str, Any] = {
        "dtype": {"uint8": "uint8", "int8": "int8", "float": "float32", None: None}[input_type],
        "layout": layout.upper() if layout else None,
        "mean": _reals(mean, "--mean"),
        "std": _reals(std, "--std"),
        "resize": resize,
        "crop": _sides(crop),
    }
    given = {key: value for key, value in given.items() if value is not None}
    return InputSpec(**given) if given else None


def advise_on_normalization(spec: InputSpec | None) -> None:
    """Print a hint when image bytes are asked for with a normalization that looks forgotten or in other units."""
    if spec is None or spec.dtype != "uint8":
        return
    if spec.mean == (0.0,) and spec.std == (1.0,):
        hint("the network will see raw numbers 0..255; if it was trained on normalized images, give --mean and --std in units of 0..255")
    elif max(map(abs, spec.mean)) <= 1 and max(spec.std) <= 1:
        hint("--mean and --std are in units of 0..255 for uint8 input; numbers for images of 0..1 need a factor of 255")


def checked_model(text: str) -> str:
    """Return `text`; a factory becomes importable from the current folder.

    Raises:
        BadParameter: when it names a file that is not there, or nothing that can be a model.
    """
    if text.endswith(MODEL_FILES):
        if not Path(text).is_file():
            raise typer.BadParameter(f"file {text!r} does not exist")
    elif ":" in text:
        allow_imports()
    else:
        raise typer.BadParameter(f"{text!r} is no .onnx, .pt2 or .intonly file and no package.module:factory")
    return text


def checked_device(backend: BackendName, device: str) -> None:
    """Raise BadParameter when a device is asked for that the backend does not compute on, or that is not there."""
    if device == "cpu":
        return
    if backend is not BackendName.torch:
        raise typer.BadParameter(f"{backend.value} runs on the CPU; --backend torch computes on {device}", param_hint="--device")
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as problem:  # what torch raises for a name, a build or a machine without it
        raise typer.BadParameter(f"{device!r}: {str(problem).splitlines()[0]}", param_hint="--device") from None


def checked_data(text: str) -> str:
    """Return `text`, the path of data, or "synthetic[:N]".

    Raises:
        BadParameter: when nothing is there. DataError: when N is no number.
    """
    if synthetic_count(text) is None and not Path(text).exists():
        raise typer.BadParameter(f"{text!r} does not exist; expected an .npz file, a folder of images or synthetic", param_hint="--data")
    return text


def checked_target(path: Path, suffix: str, option: str) -> None:
    """Raise BadParameter unless a file of this kind can be written at `path`."""
    if path.suffix != suffix:
        raise typer.BadParameter(f"the file to write must end in {suffix}, got {str(path)!r}", param_hint=option)
    if not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"folder {str(path.absolute().parent)!r} does not exist", param_hint=option)


def allow_imports() -> None:
    """Make modules of the current folder importable, as `python -m` does."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def shape_options(model: str, texts: Sequence[str] | None) -> dict[str, Any]:
    """Return the keyword arguments of `load` that --input-shape stands for.

    Raises:
        BadParameter: when a text is no shape, or does not say which of several inputs it means.
    """
    if not texts:
        return {}
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, numbers = text.rpartition(":")
        shapes[name] = _extents(numbers, text)
    if model.endswith((".pt2", ".intonly")):
        raise typer.BadParameter(f"--input-shape does not apply to {Path(model).name}, which fixes its shapes")
    if len(shapes) < len(texts) or ("" in shapes and len(shapes) > 1):
        raise typer.BadParameter("--input-shape: several inputs need their names, as in name:1,3,224,224")
    if model.endswith(".onnx"):
        return {"input_shapes": {_sole_input(model): shapes[""]} if "" in shapes else shapes}
    if min(min(shape) for shape in shapes.values()) < 1:
        raise typer.BadParameter("--input-shape: a PyTorch module is traced with this shape, so each extent must be 1 or more")
    if "" in shapes:
        return {"example_inputs": np.zeros(shapes[""], np.float32)}
    return {"example_inputs": {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}}


def names(text: str | None) -> tuple[str, ...] | str | None:
    """Return the tensors that --outputs names."""
    return text if text is None or text == "auto" else parts(text)


def parts(text: str) -> tuple[str, ...]:
    """Return what stands between the commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _sole_input(model: str) -> str:
    from intonly.steps.capture.onnx_model import load_onnx

    inputs = [name for name, _, _ in load_onnx(model).inputs]
    if len(inputs) != 1:
        raise typer.BadParameter(f"--input-shape: the model has inputs {', '.join(inputs)}; write name:1,3,224,224")
    return inputs[0]


def _reals(text: str | None, option: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{option}: expected numbers with commas between them, got {text!r}") from None


def _extents(numbers: str, text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in numbers.split(","))
    except ValueError:
        raise typer.BadParameter(f"--input-shape: expected extents such as 1,3,224,224, got {text!r}") from None
    if not all(extent >= 1 or extent == -1 for extent in shape):
        raise typer.BadParameter(f"--input-shape: extents are 1 or more (-1 = as in the file), got {text!r}")
    return shape


def _sides(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts) or len(parts) > 2:
        raise typer.BadParameter(f"--crop: expected H,W or one side, got {text!r}")
    return int(parts[0]), int(parts[-1])
