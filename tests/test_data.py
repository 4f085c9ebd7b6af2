# SPDX-License-Identifier: Apache-2.0
"""Where samples come from, and how callers' arrays meet what a network takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from intonly.core.errors import DataError, IntonlyError
from intonly.core.graph import Dim
from intonly.core.records import InputSpec
from intonly.data import Dataset, as_array, check_input, integer_input, load_data, model_units

ONE = (InputSpec("image"),)
TWO = (InputSpec("a"), InputSpec("b"))
X = np.arange(24, dtype=np.float32).reshape(6, 4)
Y = np.arange(6)


class Exporter:
    """Something that is neither NumPy nor torch, and speaks DLPack."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __dlpack__(self, **options: object) -> object:
        """Return the array's capsule."""
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return the CPU."""
        return self._array.__dlpack_device__()


# -- arrays of every kind -----------------------------------------------------------------------------------------


def test_arrays_of_every_kind_are_the_same_array():
    """A tensor, a DLPack exporter or a list would be refused or changed on the way in."""
    torch = pytest.importorskip("torch", reason="one of the kinds is a torch tensor")
    for kind in (X, torch.from_numpy(X), torch.from_numpy(X).requires_grad_(), Exporter(X), X.tolist(), tuple(X)):
        assert np.array_equal(as_array(kind), X)


@pytest.mark.parametrize("what", ["text", None, object(), [[1, 2], [3]], np.array, {"x": 1}])
def test_what_is_no_array_is_refused(what):
    """Text, ragged lists or objects would become arrays of objects."""
    with pytest.raises(DataError, match="array"):
        as_array(what)


@pytest.mark.parametrize("data", [X, {"x": X}, {"image": X}, Dataset({"x": X}), Dataset({"image": X}), [X[:4], X[4:]]])
def test_every_kind_of_data_gives_the_samples(data):
    """An array, mapping, data set or list of batches would be named or ordered otherwise."""
    found = load_data(data, ONE)
    assert list(found.arrays) == ["image"]
    assert np.array_equal(found.arrays["image"], X)
    assert found.labels is None


@pytest.mark.parametrize("data", [{"image": X, "y": Y}, [(X[:2], Y[:2]), (X[2:], Y[2:])], [[X, Y]], Dataset({"image": X}, Y)])
def test_labels_come_along(data):
    """Labels would be lost or taken for an input."""
    found = load_data(data, ONE)
    assert np.array_equal(found.labels, Y)
    assert list(found.arrays) == ["image"]


def test_several_inputs_are_told_apart():
    """The arrays of a network with two inputs would be mixed up."""
    b = X[:, :2]
    for data in ({"b": b, "a": X, "y": Y}, [(X, b, Y)], [{"a": X[:3], "b": b[:3]}, {"a": X[3:], "b": b[3:]}]):
        found = load_data(data, TWO)
        assert list(found.arrays) == ["a", "b"]
        assert found.arrays["a"].shape == (6, 4)
        assert found.arrays["b"].shape == (6, 2)


def test_an_input_called_y_is_no_label():
    """The input of a network that calls it y would be taken for labels."""
    found = load_data({"y": X}, (InputSpec("y"),))
    assert found.labels is None
    assert np.array_equal(found.arrays["y"], X)


def test_torch_loader():
    """A PyTorch DataLoader would not be understood, or run further than the samples asked for."""
    torch = pytest.importorskip("torch", reason="DataLoader is PyTorch's")
    taken = []

    class Counted(torch.utils.data.Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, i):
            taken.append(i)
            return torch.from_numpy(X[i]), int(Y[i])

    found = load_data(torch.utils.data.DataLoader(Counted(), batch_size=2), ONE, samples=3)
    assert np.array_equal(found.arrays["image"], X[:3])
    assert np.array_equal(found.labels, Y[:3])
    assert len(taken) == 4


@given(st.integers(1, 50), st.integers(1, 60))
def test_samples_are_spread_evenly(size, count):
    """Samples would be taken twice, in another order, or from one end of a sorted set."""
    x = np.arange(size)
    taken = Dataset({"x": x[:, None]}, x).take(count)
    assert len(taken) == min(size, count)
    gaps = np.diff(taken.labels)
    assert (gaps >= 1).all()
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1
    assert np.array_equal(taken.arrays["x"][:, 0], taken.labels)


def test_batches_cover_everything_once():
    """Batches would drop the last samples."""
    pieces = list(Dataset({"x": X}).batches(4))
    assert [len(p["x"]) for p in pieces] == [4, 2]
    assert np.array_equal(np.concatenate([p["x"] for p in pieces]), X)


@pytest.mark.parametrize(
    ("data", "specs", "said"),
    [
        ({"b": X}, ONE, "image"),
        ({"a": X}, TWO, "a, b"),
        (Dataset({"other": X}), ONE, "image"),
        ({"a": X, "b": X[:3]}, TWO, "different numbers"),
        ({"image": X, "y": Y[:4]}, ONE, "6 samples but 4 labels"),
        (X[:0], ONE, "no samples"),
        ([], ONE, "no batch"),
        ([(X, X, X)], ONE, "3 arrays"),
        ([["text"]], ONE, "array"),
        (7, ONE, "expected a path"),
        (np.array(3.0), ONE, "single number"),
        ({"image": X, "y": 3}, ONE, "single number"),
        ("nowhere.npz", ONE, "nowhere"),
        ("numbers.csv", ONE, "npz"),
    ],
)
def test_unusable_data_is_named(data, specs, said):
    """Data that do not fit would fail later, without a name."""
    with pytest.raises(DataError, match=said):
        load_data(data, specs)


# -- files --------------------------------------------------------------------------------------------------------


def test_npz_files(tmp_path):
    """An .npz by input name or by x, with labels, would be read otherwise."""
    for name in ("image", "x"):
        np.savez(tmp_path / "d.npz", **{name: X}, y=Y)
        for path in (tmp_path / "d.npz", str(tmp_path / "d.npz")):
            found = load_data(path, ONE)
            assert np.array_equal(found.arrays["image"], X)
            assert np.array_equal(found.labels, Y)


def test_damaged_npz_files(tmp_path):
    """A damaged or pickled file would end in a traceback, or run code."""
    np.savez(tmp_path / "whole.npz", x=X)
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "text.npz").write_text("no archive", encoding="utf-8")
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    np.savez_compressed(tmp_path / "flipped.npz", x=np.random.default_rng(0).normal(size=500))
    bits = bytearray((tmp_path / "flipped.npz").read_bytes())
    bits[200:210] = bytes(10)
    (tmp_path / "flipped.npz").write_bytes(bits)
    np.savez(tmp_path / "pickled.npz", x=np.array([{"a": 1}], dtype=object))
    with (tmp_path / "single.npz").open("wb") as file:
        np.save(file, X)
    for name in ("single.npz", "flipped.npz", "text.npz", "empty.npz", "cut.npz", "pickled.npz"):
        with pytest.raises(DataError, match=name):
            load_data(tmp_path / name, ONE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of six images in two class folders: cats 12x8 of one colour each, dogs 8x12."""
    image = pytest.importorskip("PIL.Image", reason="image files are read with Pillow")
    for k, kind in enumerate(("cat", "dog")):
        (tmp_path / kind).mkdir()
        for i in range(3):
            pixels = np.full((8, 12, 3) if k == 0 else (12, 8, 3), 10 * i + 100 * k, np.uint8)
            pixels[..., 1] += 5
            image.fromarray(pixels).save(tmp_path / kind / f"{i}.png")
    (tmp_path / "notes.txt").write_text("not an image", encoding="utf-8")
    return tmp_path


def test_image_folders(folder):
    """Images would be read in another order, layout or channel order, or without the labels of their folders."""
    spec = InputSpec("image", dtype="uint8", crop=(8, 8))
    found = load_data(folder, (spec,))
    x = found.arrays["image"]
    assert x.shape == (6, 3, 8, 8)
    assert x.dtype == np.uint8
    assert x[:, :, 4, 4].tolist() == [[v, v + 5, v] for v in (0, 10, 20, 100, 110, 120)]
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    last = load_data(folder, (InputSpec("image", layout="NHWC", dtype="uint8", crop=(8, 8)),))
    assert np.array_equal(last.arrays["image"], x.transpose(0, 2, 3, 1))


def test_images_are_resized_by_their_short_side(folder):
    """Resize would distort images, or crop away from the centre."""
    found = load_data(folder / "cat", (InputSpec("image", layout="NHWC", dtype="uint8", resize=16),))
    assert found.arrays["image"].shape == (3, 16, 24, 3)
    assert found.labels is None
    image = pytest.importorskip("PIL.Image", reason="image files are read with Pillow")
    ramp = np.repeat(np.arange(12, dtype=np.uint8)[None, :, None], 8, axis=0).repeat(3, axis=2)
    (folder / "one").mkdir()
    image.fromarray(ramp).save(folder / "one" / "ramp.png")
    centre = load_data(folder / "one", (InputSpec("image", layout="NHWC", dtype="uint8", crop=(4, 6)),))
    assert centre.arrays["image"][0, 0, :, 0].tolist() == [3, 4, 5, 6, 7, 8]


def test_image_folders_that_do_not_fit(folder):
    """Images of different sizes, too small for the crop, damaged, or for a network of two inputs would pass."""
    (folder / "broken").mkdir()
    (folder / "broken" / "bad.png").write_bytes(b"\x89PNG nothing")
    (folder / "none").mkdir()
    for where, specs, said in (
        (folder / "dog", (InputSpec("image", crop=(20, 20)),), "smaller than the crop"),
        (folder / "broken", ONE, "bad.png"),
        (folder / "none", ONE, "no images"),
        (folder, TWO, "one input"),
    ):
        with pytest.raises(DataError, match=said):
            load_data(where, specs)
    (folder / "broken" / "bad.png").unlink()
    with pytest.raises(DataError, match="different sizes"):
        load_data(folder, ONE)


# -- at the boundary ----------------------------------------------------------------------------------------------

REALS = hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.just(3)), elements=st.floats(-1e3, 1e3, width=32))


@settings(max_examples=80, deadline=None)
@given(REALS, st.floats(1e-3, 10), st.integers(-128, 127))
def test_float_boundary_rounds_ties_up_and_saturates(x, scale, zero_point):
    """The float boundary would round, clamp or shift otherwise than the law: clamp(floor(x / scale + 1/2) + zero_point)."""
    spec = InputSpec("x", scale=scale, zero_point=zero_point)
    codes = integer_input(x, spec, (Dim("N"), 3), np.dtype("int8"))
    for code, value in zip(codes.flat, x.flat, strict=True):
        exact = int(np.floor(float(value) / scale + 0.5)) + zero_point
        assert int(code) == min(max(exact, -128), 127)
    ties = integer_input(np.array([[-1.5, -0.5, 0.5]]), InputSpec("x", scale=1.0, zero_point=0), (Dim("N"), 3), np.dtype("int8"))
    assert ties.tolist() == [[-1, 0, 1]]


def test_infinities_saturate():
    """An infinite input would wrap around instead of saturating."""
    x = np.array([[np.inf, -np.inf, 0]])
    assert integer_input(x, InputSpec("x", scale=0.5, zero_point=3), (Dim("N"), 3), np.dtype("uint8")).tolist() == [[255, 0, 3]]


def test_raw_codes_are_not_changed():
    """Raw bytes would be normalized or copied through floats on their way in."""
    x = np.arange(256, dtype=np.uint8).reshape(1, 256)
    spec = InputSpec("x", dtype="uint8", mean=(127.0,), std=(60.0,))
    assert np.array_equal(integer_input(x, spec, (Dim("N"), 256), np.dtype("uint8")), x)


@pytest.mark.parametrize(("layout", "perm"), [("", (0, 1, 2, 3)), ("NCHW", (0, 1, 2, 3)), ("NHWC", (0, 2, 3, 1))])
def test_normalization_follows_the_channels(layout, perm):
    """mean and std would be applied along another axis when images come as NHWC."""
    rng = np.random.default_rng(0)
    plain = rng.integers(0, 256, (2, 3, 4, 5)).astype(np.uint8)
    spec = InputSpec("x", layout=layout, dtype="uint8", mean=(100.0, 110.0, 120.0), std=(50.0, 60.0, 70.0))
    seen = model_units(plain.transpose(perm), spec, (Dim("N"), 3, 4, 5), perm)
    expected = (plain - np.array(spec.mean).reshape(3, 1, 1)) / np.array(spec.std).reshape(3, 1, 1)
    assert seen.dtype == np.float32
    assert np.allclose(seen, expected, atol=1e-6)
    real = InputSpec("x", layout=layout, mean=spec.mean, std=spec.std, scale=0.02, zero_point=0)
    shape = tuple((Dim("N"), 3, 4, 5)[p] for p in perm)
    codes = integer_input(plain.transpose(perm).astype(np.float32), real, shape, np.dtype("int8"))
    wanted = np.clip(np.floor(expected / 0.02 + 0.5), -128, 127)
    assert np.array_equal(codes, wanted.transpose(perm))


@pytest.mark.parametrize(
    ("x", "dtype", "said"),
    [
        (np.zeros((2, 3), np.uint8), "int8", "int8"),
        (np.zeros((2, 3), np.int64), "uint8", "uint8"),
        (np.zeros((2, 3), np.float32), "uint8", "uint8"),
        (np.zeros((2, 4), np.uint8), "uint8", r"\(N, 3\)"),
        (np.zeros((2, 3, 1), np.uint8), "uint8", r"\(N, 3\)"),
        (np.zeros(3, np.uint8), "uint8", r"\(N, 3\)"),
        (np.zeros((2, 3), complex), "float32", "real numbers"),
        (np.array([["a", "b", "c"]]), "float32", "real numbers"),
        (np.array([[0, np.nan, 1]], np.float32), "float32", "NaN"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(x, dtype, said):
    """A wrong shape or type, or NaN, would be converted in silence."""
    with pytest.raises(DataError, match=said):
        check_input(x, InputSpec("image", dtype=dtype), (Dim("N"), 3))


def test_specs_that_contradict_themselves():
    """A std of zero, a mean of another length, or a layout with a letter twice would be used."""
    for options in ({"std": (0.0,)}, {"mean": (1.0, 2.0), "std": (1.0, 1.0, 1.0)}, {"layout": "NCC"}, {"layout": "HWC"}):
        with pytest.raises(IntonlyError):
            InputSpec("x", **options)


def test_axes_in_another_order_are_recognised():
    """Channels-last data for a channels-first model is the usual slip; the error says how to mend it."""
    with pytest.raises(DataError, match="layout"):
        check_input(np.zeros((2, 8, 8, 3), np.uint8), InputSpec("x", dtype="uint8"), (2, 3, 8, 8))
