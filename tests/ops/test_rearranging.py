# SPDX-License-Identifier: Apache-2.0
"""Operators that only move data, as both sources write them; and how little moves once they are lowered."""

from __future__ import annotations

import math
from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from intonly.core.errors import InvalidGraphError, LoweringError, UnsupportedOpError
from intonly.core.graph import Dim, Graph, Node, Stage, Value
from intonly.core.lowering import NHWC, Lowered, Lowering
from intonly.core.number_format import INT8, UINT8, QParams, uniform
from intonly.ops import OPS, reshape
from intonly.steps.capture.onnx_import import capture_onnx
from intonly.steps.capture.torch_export import capture_torch
from tests.ops.captured import Layer, assert_like_onnx, assert_like_torch, batch_is_free, onnx_model
from tests.ops.one_node import run_bounded, run_one, spanning

IMAGE = (2, 8, 12, 10)
TOKEN = torch.linspace(-1, 1, 10).reshape(1, 1, 10)
TORCH = {
    "view": lambda x: x.view(x.shape[0], -1),
    "reshape": lambda x: x.reshape(-1, 8, 120),
    "flatten": lambda x: x.flatten(1),
    "tokens": lambda x: x.flatten(2).transpose(1, 2),
    "heads": lambda x: x.flatten(2).transpose(1, 2).reshape(x.shape[0], 120, 2, 4).permute(0, 2, 1, 3),
    "windows": lambda x: x.permute(0, 2, 3, 1).reshape(x.shape[0], 3, 4, 2, 5, 8).permute(0, 1, 3, 2, 4, 5),
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "squeeze all": lambda x: x[:, :1].squeeze(),
    "unsqueeze": lambda x: x.unsqueeze(0).unsqueeze(-1),
    "unflatten": lambda x: x.unflatten(1, (2, -1)),
    "view_as": lambda x: x.flatten(1).view_as(x),
    "permute": lambda x: x.permute(0, 2, -1, 1),
    "swapaxes": lambda x: x.swapaxes(1, -1),
    "mT": lambda x: x.mT,
    "T": lambda x: x.mean((2, 3)).T,
    "t": lambda x: x.mean((2, 3)).t(),
    "movedim": lambda x: x.movedim((1, 2), (-1, 1)),
    "slice": lambda x: x[:, 1:7:2, -5:],
    "select": lambda x: x[:, -1],
    "narrow": lambda x: x.narrow(1, 2, 3),
    "split": lambda x: torch.cat(x.split(3, 1)[::-1], 1),
    "split_with_sizes": lambda x: torch.cat(x.split([2, 6], 1)[::-1], 1),
    "chunk": lambda x: torch.stack(x.chunk(4, 1), 2),
    "tensor_split": lambda x: torch.cat(torch.tensor_split(x, 3, 1)[::-1], 1),
    "tensor_split at": lambda x: torch.cat(torch.tensor_split(x, (2, 5), 1)[::-1], 1),
    "unbind": lambda x: torch.stack(x.unbind(1)[::-1], 1),
    "hstack": lambda x: torch.hstack([x, x[:, :2]]),
    "token and constant": lambda x: torch.cat([TOKEN.expand(x.shape[0], -1, -1), x[:, 0]], 1),
    "flip": lambda x: x.flip(1, 3),
    "roll": lambda x: x.roll((2, -1), (1, 2)),
    "index": lambda x: x[:, [0, 2, -1]],
    "mask": lambda x: x[..., torch.arange(10) % 3 == 0],
    "index_select": lambda x: torch.index_select(x, 1, torch.tensor([3, 0])),
    "repeat": lambda x: x.repeat(1, 2, 1, 3),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "tile": lambda x: torch.tile(x, (2, 1)),
    "expand": lambda x: x[:, :1].expand(-1, 5, -1, -1),
    "expand_as": lambda x: x[:, :1].expand_as(x),
    "pad": lambda x: F.pad(x, (1, 2, 0, -1)),
    "pad value": lambda x: F.pad(x, (1, 1), value=2.0),
    "pad reflect": lambda x: F.pad(x, (1, 2, 3, 1), "reflect"),
    "pad replicate": lambda x: F.pad(x, (1, 2, 3, -1), "replicate"),
    "pad circular": lambda x: F.pad(x, (1, 2, 3, 1), "circular"),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
}


def longs(*values: int) -> np.ndarray:
    """Return a constant of ONNX's index type."""
    return np.array(values, np.int64)


SMALL = (2, 4, 8, 6)
ONNX = [
    ("Reshape", SMALL, {}, {1: longs(0, -1)}, 17),
    ("Reshape", SMALL, {}, {1: longs(-1, 32, 6)}, 17),
    ("Reshape", SMALL, {}, {1: longs(0, 2, 2, 8, 6)}, 17),
    ("Flatten", SMALL, {}, {}, 17),
    ("Flatten", SMALL, {"axis": -3}, {}, 17),
    ("Squeeze", (2, 1, 5, 1), {"axes": [1]}, {}, 11),
    ("Squeeze", (2, 1, 5, 1), {}, {1: longs(-1)}, 13),
    ("Squeeze", (2, 1, 5, 1), {}, {}, 13),
    ("Unsqueeze", SMALL, {"axes": [1, -1]}, {}, 11),
    ("Unsqueeze", SMALL, {}, {1: longs(1)}, 13),
    ("Transpose", SMALL, {"perm": [0, 2, 3, 1]}, {}, 17),
    ("Transpose", SMALL, {}, {}, 17),
    ("Slice", SMALL, {"starts": [1, -3], "ends": [3, 100], "axes": [1, 2]}, {}, 9),
    ("Slice", SMALL, {}, {1: longs(1, -3), 2: longs(-1, 2**62), 3: longs(1, 3), 4: longs(2, 1)}, 17),
    ("Slice", SMALL, {}, {1: longs(-1), 2: longs(-(2**63) + 1), 3: longs(2), 4: longs(-2)}, 17),
    ("Slice", SMALL, {}, {1: longs(0, 0), 2: longs(2**31 - 1, 3)}, 10),
    ("Gather", SMALL, {"axis": 1}, {1: longs(0, -1)}, 17),
    ("Gather", SMALL, {"axis": 2}, {1: np.array(2)}, 17),
    ("Gather", SMALL, {"axis": -1}, {1: np.array([[0, 1], [2, -3]])}, 17),
    ("Pad", SMALL, {"pads": [0, 0, 1, 2, 0, 0, 0, 1], "value": 0.5}, {}, 9),
    ("Pad", SMALL, {"pads": [0, 0, 1, 2, 0, 0, 0, 1], "mode": "reflect"}, {}, 9),
    ("Pad", SMALL, {"mode": "edge"}, {1: longs(0, 0, 1, 2, 0, 0, 0, 1)}, 13),
    ("Pad", SMALL, {}, {1: longs(0, 0, 1, 2, 0, 0, -1, 1), 2: np.float32(1.5)}, 13),
    ("Pad", SMALL, {}, {1: longs(1, 2, 0, 1), 3: longs(2, 3)}, 18),
    ("Pad", SMALL, {"mode": "wrap"}, {1: longs(1, 2, 0, 1), 3: longs(2, -1)}, 19),
    ("DepthToSpace", SMALL, {"blocksize": 2}, {}, 17),
    ("DepthToSpace", SMALL, {"blocksize": 2, "mode": "CRD"}, {}, 17),
    ("SpaceToDepth", SMALL, {"blocksize": 2}, {}, 17),
    ("Tile", SMALL, {}, {1: longs(1, 2, 1, 3)}, 17),
    ("Expand", (2, 1, 8, 1), {}, {1: longs(3, 8, 2)}, 17),
    ("Concat", SMALL, {"axis": 0}, {}, 17),
]


@pytest.mark.parametrize("case", TORCH)
def test_torch_movement_keeps_its_meaning(case, rng):
    """An axis counted from the wrong end, or a limit off by one, moves the wrong data silently."""
    assert batch_is_free(assert_like_torch(TORCH[case], IMAGE, rng))


@pytest.mark.parametrize(("op", "shape", "attrs", "constants", "opset"), ONNX)
def test_onnx_movement_keeps_its_meaning(op, shape, attrs, constants, opset, rng):
    """The same operator takes its arguments as attributes in one opset and as inputs in another."""
    assert_like_onnx(op, shape, rng, attrs=attrs, constants=constants, opset=opset)


@pytest.mark.parametrize(
    ("attrs", "constants", "opset", "outputs"),
    [
        ({"axis": 1}, {}, 11, 2),
        ({"axis": 1, "split": [1, 3]}, {}, 11, 2),
        ({"axis": 1}, {1: longs(1, 3)}, 13, 2),
        ({"axis": 2, "num_outputs": 3}, {}, 18, 3),
    ],
)
def test_onnx_split_keeps_its_meaning(attrs, constants, opset, outputs, rng):
    """Sizes come as attribute, as input, or not at all; each opset has its own way."""
    assert_like_onnx("Split", SMALL, rng, attrs=attrs, constants=constants, opset=opset, outputs=outputs)


@pytest.mark.parametrize(
    ("op", "attrs", "constants", "said"),
    [
        ("Reshape", {}, {1: longs(-1, 7)}, "while an axis is symbolic"),
        ("Reshape", {}, {1: longs(2, -1)}, "cannot become"),
        ("Slice", {}, {1: longs(0), 2: longs(-1), 3: longs(0)}, "symbolic axis N"),
        ("Slice", {}, {1: longs(3), 2: longs(3), 3: longs(1)}, "leaves nothing"),
        ("Split", {"axis": 0}, {}, "cuts into pieces the symbolic axis N"),
        ("Split", {"axis": 1}, {1: longs(1, 2)}, "pieces of"),
        ("Gather", {"axis": 1}, {1: longs(4)}, "outside an axis of 4"),
        ("Pad", {"mode": "reflect"}, {1: longs(0, 0, 8, 0, 0, 0, 0, 0)}, "reflected border of 8"),
        ("Pad", {}, {1: longs(1, 0, 0, 0, 0, 0, 0, 0)}, "pads the symbolic axis N"),
        ("Tile", {}, {1: longs(2, 1, 1, 1)}, "repeats the symbolic axis N"),
        ("DepthToSpace", {"blocksize": 3}, {}, "no multiple of 9"),
    ],
)
def test_movement_that_is_refused_says_why(op, attrs, constants, said):
    """What cannot be lowered exactly must be refused at capture, in words that say what to change."""
    with pytest.raises(UnsupportedOpError, match=said):
        capture_onnx(onnx_model(op, ["N", *SMALL[1:]], constants, attrs, 17, 1))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: x[1:], "symbolic axis N"),
        (lambda x: x[-1], "picks entry -1 of the symbolic axis N"),
        (lambda x: x.roll(1), "name the axes"),
        (lambda x: x[x[:, :, 0, 0].argmax(1)], "argmax"),
        (lambda x: x.flip(0), "flips the symbolic axis N"),
        (lambda x: x.repeat(2, 1, 1, 1), "repeats the symbolic axis N"),
    ],
)
def test_movement_over_the_batch_is_refused(function, said):
    """A graph that mixes samples cannot run with another batch."""
    batch = torch.export.Dim("n", min=3, max=9)
    program = torch.export.export(Layer(function), (torch.zeros(4, 3, 4, 4),), dynamic_shapes=({0: batch},), strict=False)
    with pytest.raises(UnsupportedOpError, match=said):
        capture_torch(program)


# -- lowering -----------------------------------------------------------------------------------------------------


@st.composite
def reshapes(draw):
    """Draw (old shape, new shape, storage order) where runs of axes are split and merged, extents of 1 included."""
    parts = draw(st.lists(st.lists(st.sampled_from([1, 1, 2, 3, 5]), min_size=1, max_size=3), min_size=1, max_size=4))
    sides = []
    for _ in range(2):
        shape = []
        for part in parts:
            cuts = draw(st.sets(st.integers(1, len(part) - 1))) if len(part) > 1 else set()
            places = [0, *sorted(cuts), len(part)]
            shape += [math.prod(part[a:b]) for a, b in pairwise(places)]
            shape += [1] * draw(st.integers(0, 1))
        sides.append(tuple(shape))
    return sides[0], sides[1], draw(st.permutations(range(len(sides[0]))))


@settings(deadline=None, derandomize=True, max_examples=300)
@given(reshapes())
def test_reshape_moves_the_right_elements_from_any_storage(case):
    """A reshape of stored data is right only when merged axes lie together and in order; a wrong guess scrambles."""
    old, new, perm = case
    x = np.arange(math.prod(old)).reshape(old) % 251
    codes = (
        run_one("reshape", [x], {"shape": new}, qparams={0: unit()}, target=unit(), perms={0: perm}).codes if x.size > 1 else x.reshape(new)
    )
    np.testing.assert_array_equal(x.reshape(new), codes)


def unit() -> QParams:
    """Return QParams whose codes are the reals."""
    return QParams(UINT8, np.asarray(1.0))


def lowered(steps, shape, perm=None):
    """Return (integer graph, what carries the result) of movement nodes (op, attrs) one after the other.

    The first axis is symbolic; `perm` is the storage order of the input.
    """
    values = {"v0": Value((Dim("N", 1, 8), *shape[1:]), None, unit())}
    nodes = []
    for i, (op, attrs) in enumerate(steps):
        node = Node(op, (f"v{i}",), (f"v{i + 1}",), attrs, f"layer{i}")
        values[f"v{i + 1}"] = Value(OPS[op].infer(node, [values[f"v{i}"]]), None, unit())
        nodes.append(node)
    low = Lowering(Graph("g", Stage.QUANTIZED, ("v0",), (f"v{len(steps)}",), tuple(nodes), values, {}))
    perm = tuple(perm or range(len(shape)))
    low.values["v0"] = Value(tuple(values["v0"].shape[p] for p in perm), UINT8)
    x = Lowered("v0", values["v0"].shape, perm, np.asarray(1.0), np.zeros((), np.int64))
    for node in nodes:
        low.origin = node.origin
        x = OPS[node.op].lower(node, [x], low)
    return low.integer_graph([x.name], ["v0"]), x


def moves(graph: Graph) -> list[str]:
    """Return the primitives that touch data, in order; a reshape of stored data does not."""
    return [node.op for node in graph.nodes if node.op != "reshape"]


def test_nothing_moves_between_an_image_and_its_vector():
    """Global pooling followed by a flatten is in every classifier; a copy there is waste."""
    assert moves(lowered([("reshape", {"shape": (0, -1)})], (4, 6, 1, 1), NHWC)[0]) == []
    assert moves(lowered([("reshape", {"shape": (0, 6, 1, 1)})], (4, 6))[0]) == []


def test_nothing_moves_between_an_image_and_its_tokens():
    """Patches of a vision transformer are an NHWC image already."""
    steps = [("reshape", {"shape": (0, 0, -1)}), ("transpose", {"perm": (0, 2, 1)})]
    graph, x = lowered(steps, (4, 6, 3, 5), NHWC)
    assert (moves(graph), x.perm) == ([], (0, 1, 2))


def test_shuffles_of_stored_images_take_one_transpose():
    """Channel and pixel shuffles of NHWC images need one pass over the data, and leave NHWC."""
    channel = [("reshape", {"shape": (0, 2, 3, 4, 5)}), ("transpose", {"perm": (0, 2, 1, 3, 4)}), ("reshape", {"shape": (0, 6, 4, 5)})]
    pixel = [("reshape", {"shape": (0, 2, 2, 2, 4, 5)}), ("transpose", {"perm": (0, 1, 4, 2, 5, 3)}), ("reshape", {"shape": (0, 2, 8, 10)})]
    for steps, shape in ((channel, (3, 6, 4, 5)), (pixel, (3, 8, 4, 5))):
        graph, x = lowered(steps, shape, NHWC)
        assert (moves(graph), x.perm) == (["transpose"], NHWC)


@pytest.mark.parametrize("perm", list(permutations(range(3))))
def test_transpose_never_moves_data(perm):
    """An order of axes is a label; whoever needs another order pays for it."""
    graph, x = lowered([("transpose", {"perm": perm})], (2, 3, 4))
    assert graph.nodes == ()
    assert [x.shape[p] for p in x.perm] == list(graph.values["v0"].shape)


def test_reshape_names_symbolic_extents_by_their_place():
    """0 and -1 can say one symbolic extent that moves and any that stay; anything else must be refused, not guessed."""
    n, length = Dim("N"), Dim("L")
    assert reshape.encoded((n, length, 12), (n, length, 3, 4)) == (0, 0, 3, 4)
    assert reshape.encoded((n, 3, length, 4), (n, length, 12)) == (0, -1, 12)
    assert reshape.encoded((n, 4, 5), (n, -1)) == (0, 20)
    assert reshape.encoded((n, 4, 1), (-1, 4)) == (0, 4)
    assert reshape.encoded((n, 4, 5), (-1, 5)) == (-1, 5), "4 * N"
    assert reshape.encoded((n, 4, 5), (2, -1, 5)) is None, "two rows would hold numbers of several samples"
    assert reshape.encoded((n, length, 4), (4, n, length)) is None, "two symbolic extents would move"


def test_one_zero_point_per_channel_follows_its_axis(rng):
    """A raw image with a zero point per channel may be turned and cut before the first layer reads it."""
    q = QParams(UINT8, np.asarray(1.0), np.array([10, 20, 30]), axis=1)
    codes = rng.integers(0, 256, (2, 3, 4, 4)).astype(np.uint8)
    node = Node("slice", ("x",), ("y",), {"starts": (0, 0, 1, 0), "stops": (-1, -1, 3, 4), "steps": (1, 1, 1, 2)}, "focus")
    values = {"x": Value((2, 3, 4, 4), None, q), "y": Value((2, 3, 2, 2), None, q)}
    low = Lowering(Graph("g", Stage.QUANTIZED, ("x",), ("y",), (node,), values, {}))
    low.values["x"] = Value((2, 4, 4, 3), UINT8)
    y = OPS["slice"].lower(node, [Lowered("x", (2, 3, 4, 4), NHWC, q.scale, q.zero_point, 1)], low)
    made = run_bounded(low.integer_graph([y.name], ["x"]), {"x": np.ascontiguousarray(codes.transpose(NHWC))})
    np.testing.assert_array_equal(codes[:, :, 1:3, ::2].transpose(NHWC), made)
    assert y.axis == 1
    assert y.zero_point.tolist() == [10, 20, 30]


def test_borders_off_the_range_are_errors(rng):
    """A border that saturates would be another border; only infinities are meant to."""
    x = rng.uniform(0.5, 1.0, (1, 2, 3, 3))
    attrs = {"before": (0, 0, 1, 1), "after": (0, 0, 0, 0)}
    q = spanning(0, 1)
    with pytest.raises(LoweringError, match="border 7 lies outside"):
        run_one("pad", [x], {**attrs, "value": 7.0}, qparams={0: q}, target=q)
    with pytest.raises(InvalidGraphError, match="do not fit"):
        run_one("pad", [x], {**attrs, "before": (0, 0, -3, 0), "value": 0.0}, qparams={0: q}, target=q)
    values = {"x": Value((1, 2, 3, 3), None, q), "y": Value((1, 2, 4, 4), None, q)}
    node = Node("pad", ("x",), ("y",), {**attrs, "value": -math.inf}, "layer")
    low = Lowering(Graph("g", Stage.QUANTIZED, ("x",), ("y",), (node,), values, {}))
    low.values["x"] = Value((1, 2, 3, 3), UINT8)
    OPS["pad"].lower(node, [Lowered("x", (1, 2, 3, 3), (0, 1, 2, 3), q.scale, q.zero_point)], low)
    assert low.nodes[-1].attrs["value"] == 0


# -- concat -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("places", [(0,), (1,), (2,), (0, 3), (0, 1, 2), (0, 2, 4)])
@pytest.mark.parametrize("symbolic", [0, 1])
def test_constants_join_computed_values_anywhere(places, symbolic, rng):
    """Class tokens are constants beside computed tokens; with a free batch nobody knows how often to repeat them."""
    count = max(places) + 2
    params = {k: rng.uniform(-1, 1, (1, k % 2 + 1, 4)).astype(np.float32) for k in places}
    xs = [None if k in places else rng.uniform(-1, 1, (3, 2, 4)) for k in range(count)]
    for perm in ((0, 1, 2), (0, 2, 1)):
        perms = {k: perm for k, x in enumerate(xs) if x is not None}
        result = run_one("concat", xs, {"axis": 1}, params=params, symbolic=symbolic, perms=perms)
        result.assert_within(0.5001)
        assert ("select" in {n.op for n in result.graph.nodes}) == bool(symbolic)


def test_joined_values_take_the_units_of_the_result(rng):
    """Branches with scales of their own must meet on one grid; narrow formats and signs too."""
    xs = [rng.uniform(-1, 1, (2, 3, 4, 4)), rng.uniform(0, 5, (2, 2, 4, 4)), rng.uniform(-9, 0, (2, 1, 4, 4))]
    for target in (UINT8, INT8, uniform(8, signed=True, narrow_range=True), uniform(4, signed=True)):
        result = run_one("concat", xs, {"axis": 1}, formats=[INT8, UINT8, uniform(4, signed=False)], target=target)
        result.assert_within(0.5001)
        assert target.qmin <= result.codes.min() <= result.codes.max() <= target.qmax


def test_joined_values_are_stored_as_the_largest(rng):
    """Turning the large operand to suit the small one would move more data."""
    xs = [rng.uniform(-1, 1, (2, 1, 4, 4)), rng.uniform(-1, 1, (2, 8, 4, 4))]
    q = spanning(-1, 1)
    result = run_one("concat", xs, {"axis": 1}, qparams={0: q, 1: q}, target=q, perms={1: NHWC})
    turned = next(node for node in result.graph.nodes if node.op in ("transpose", "reshape"))
    assert turned.inputs == ("in0",)
    assert not any("in1" in node.inputs for node in result.graph.nodes if node.op in ("transpose", "reshape"))


def test_operands_that_do_not_join_are_an_error():
    """A join of unequal shapes must name the layer, not fail inside NumPy."""
    node = Node("concat", ("a", "b"), ("y",), {"axis": 1}, "cat")
    with pytest.raises(InvalidGraphError, match="cat"):
        OPS["concat"].infer(node, [Value((2, 3, 4)), Value((2, 3, 5))])
    with pytest.raises(InvalidGraphError, match="cannot join"):
        OPS["concat"].infer(node, [Value((2, Dim("L"), 4)), Value((2, 3, 4))])
