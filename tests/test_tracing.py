# SPDX-License-Identifier: Apache-2.0
"""What a module is traced with: samples of the data, by the names of its arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="modules are PyTorch's")

import intonly  # noqa: E402
from intonly.core.errors import DataError  # noqa: E402
from intonly.core.records import InputSpec  # noqa: E402
from intonly.data import Dataset  # noqa: E402
from intonly.tracing import example_from, peeked  # noqa: E402
from tests.steps.test_tokens import LONGEST, WORDS, Decoder, Encoder  # noqa: E402

IDS = np.random.default_rng(0).integers(0, WORDS, (6, 8))
MASK = np.ones_like(IDS)


@pytest.mark.parametrize("kind", ["mapping", "dataset", "npz", "batches", "iterator"])
def test_ids_and_masks_go_by_name_from_any_kind_of_data(kind: str, tmp_path: Any) -> None:
    """A text network could be quantized from one kind of data only, or its mask be taken for ids."""
    arrays = {"mask": MASK, "ids": IDS, "other": IDS}
    np.savez(tmp_path / "d.npz", **arrays)
    batches = [{k: torch.from_numpy(v[at : at + 3]) for k, v in arrays.items()} for at in (0, 3)]
    data = {"mapping": arrays, "dataset": Dataset(arrays), "npz": tmp_path / "d.npz", "batches": batches, "iterator": iter(batches)}[kind]
    beginning, data = peeked(data)
    made = example_from(beginning, None, Encoder())
    assert list(made) == ["ids", "mask"]
    assert {x.dtype for x in made.values()} == {torch.int64}
    assert made["ids"].shape == (2, 8)
    q = intonly.quantize(Encoder().eval(), "w8a8", data, length_max=LONGEST)
    assert q(IDS, MASK)[0].shape == (6, 8, 16)
    assert q(IDS[:, :3], MASK[:, :3])[1].shape == (6, 16)


def test_one_array_of_ids_needs_no_name() -> None:
    """A language model, which takes ids alone, would be traced with reals."""
    for data in (IDS, {"x": IDS}, {"ids": IDS}):
        made = example_from(data, None, Decoder())
        (x,) = made.values() if isinstance(made, dict) else made
        assert x.dtype == torch.int64
        assert intonly.quantize(Decoder().eval(), "w8a8", data, length_max=LONGEST)(IDS).shape == (6, 8, 64)


def test_a_module_without_embedding_gets_reals() -> None:
    """Features that happen to be whole numbers would trace a network for integers."""
    (x,) = example_from({"x": IDS}, None, torch.nn.Linear(8, 2))
    assert x.dtype == torch.float32
    made = example_from({"input": IDS}, None, torch.nn.Linear(8, 2))
    assert made["input"].dtype == torch.float32


def test_specs_say_more_than_the_data() -> None:
    """An InputSpec would be ignored for one input of several."""
    made = example_from({"ids": IDS, "mask": MASK}, InputSpec("mask", dtype="integer", high=1), Encoder())
    assert {k: v.dtype for k, v in made.items()} == {"ids": torch.int64, "mask": torch.int64}


def test_batches_of_different_lengths_are_said() -> None:
    """A loader that pads each batch for itself would end in an error of NumPy."""
    with pytest.raises(DataError, match=r"'ids' hold samples of shapes \(8,\) and \(5,\).*padded"):
        intonly.quantize(Encoder().eval(), "w8a8", [{"ids": IDS[:, :n], "mask": MASK[:, :n]} for n in (8, 5)], length_max=LONGEST)


def test_names_that_are_no_arguments_are_said() -> None:
    """A user would get an error of torch about a missing argument."""
    with pytest.raises(DataError, match=r"the data hold tokens, its arguments are ids, mask"):
        example_from({"tokens": IDS}, None, Encoder())


@pytest.mark.parametrize("held", [("input_ids", "mask"), ("ids",)])
def test_an_argument_that_the_data_do_not_name_is_named(held: tuple[str, ...]) -> None:
    """A name that is spelled in another way would end in a TypeError of the user's own forward."""
    missing = "mask" if "ids" in held else "ids"
    with pytest.raises(DataError, match=rf"nothing is named '{missing}'.*the data hold {', '.join(held)}: name the arrays"):
        intonly.quantize(Encoder().eval(), "w8a8", dict.fromkeys(held, IDS), length_max=LONGEST)


class Optional(Encoder):
    """An encoder that can do without a mask."""

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> Any:
        """Return states and their mean."""
        return super().forward(ids, torch.ones_like(ids) if mask is None else mask)


@pytest.mark.parametrize("net", [Encoder, Optional])
def test_a_mask_without_a_name_is_not_taken_for_labels(net: type[Encoder]) -> None:
    """A loader of (ids, mask) would quantize a network without its mask, or end in the TypeError of the user's forward."""
    batches = [(torch.from_numpy(IDS), torch.from_numpy(MASK))] * 2
    for data in (batches, iter(batches)):
        with pytest.raises(
            DataError, match=r"taken for \(x, labels\), but \w+ takes ids, mask; give batches as dicts.*'ids': \.\.\., 'mask'"
        ):
            intonly.quantize(net().eval(), "w8a8", data, length_max=LONGEST)
    source = intonly.load(net().eval(), example_inputs={"ids": IDS}) if net is Optional else intonly.load(Decoder(), example_inputs=(IDS,))
    with pytest.raises(
        DataError, match=r"taken for labels, but it holds 0 and 1 in the shape of 'ids'.*dicts, \{'ids': \.\.\., 'y': labels"
    ):
        intonly.quantize(source, "w8a8", batches)


def test_ids_without_a_name_are_not_enough_for_a_network_that_needs_a_mask() -> None:
    """The error would be a TypeError of the user's own forward."""
    with pytest.raises(DataError, match="one array without a name, but Encoder takes ids, mask; give batches as dicts"):
        intonly.quantize(Encoder().eval(), "w8a8", IDS, length_max=LONGEST)


def test_labels_go_by_name_in_batches_and_by_place_beside_ids() -> None:
    """The labels of dict batches would be dropped, or class numbers of a language model be taken for a mask."""
    from intonly.data import load_data

    named = load_data([{"ids": IDS, "mask": MASK, "y": IDS[:, 0]}] * 2, [InputSpec("ids"), InputSpec("mask")])
    np.testing.assert_array_equal(named.labels, np.tile(IDS[:, 0], 2))
    placed = load_data([(IDS, np.roll(IDS, -1, 1))], [InputSpec("ids")])
    np.testing.assert_array_equal(placed.labels, np.roll(IDS, -1, 1))


def test_options_of_files_are_refused_for_modules() -> None:
    """A cut or a shape that is asked for would be left out silently."""
    data = {"ids": IDS, "mask": MASK}
    for more in ({"outputs": "auto"}, {"outputs": ["states"]}, {"input_shapes": {"ids": (2, 8)}}):
        with pytest.raises(DataError, match=rf"{next(iter(more))}: this is for ONNX files"):
            intonly.quantize(Encoder().eval(), "w8a8", data, **more)


def test_options_beside_a_captured_network_are_refused(tmp_path: Any) -> None:
    """A length, shape or spec that was asked for would be left out silently."""
    data = {"ids": IDS, "mask": MASK}
    source = intonly.load(Encoder().eval(), example_inputs=data)
    for more in ({"length_max": 12}, {"example_inputs": data}, {"inputs": InputSpec("ids", dtype="integer", high=3)}, {"outputs": "auto"}):
        with pytest.raises(DataError, match=rf"{next(iter(more))}: this network is captured already; give that to intonly.load"):
            intonly.quantize(source, "w8a8", data, **more)
    q = intonly.quantize(source, "w8a8", data)
    q.save(tmp_path / "net.intonly")
    for made in (q, tmp_path / "net.intonly"):
        with pytest.raises(DataError, match="length_max: an artifact fixes its inputs"):
            intonly.load(made, length_max=12)


def test_a_spec_without_a_name_needs_a_network_of_one_input() -> None:
    """The error would speak of an input called ''."""
    with pytest.raises(DataError, match=r"say by its name which input is meant.*ids, mask"):
        intonly.load(Encoder().eval(), inputs=InputSpec(dtype="uint8"), example_inputs={"ids": IDS, "mask": MASK})
