# SPDX-License-Identifier: Apache-2.0
"""Rewrites of the float graph: what they fold, what they leave, and that nothing changes its meaning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intonly.core.errors import InvalidGraphError
from intonly.core.graph import Dim, Graph
from intonly.core.number_format import INT8, UINT8, QParams
from intonly.core.records import InputSpec
from intonly.steps.canonicalize import absorb_normalization, canonicalize, fold_input, pin_input
from tests.steps.graphs import CODES, N, Net, assert_same_meaning, journey, run_float, samples, sqnr, units
from tests.strategies import LAW


def ops(graph: Graph) -> list[str]:
    """Return the operators of a graph in order."""
    return [node.op for node in graph.nodes]


def folded(graph: Graph, *left: str) -> Graph:
    """Return the canonical graph after asserting that it means the same, keeps its names, and holds exactly the ops `left`."""
    after = canonicalize(graph)
    assert_same_meaning(graph, after, samples(graph))
    assert after.outputs == graph.outputs
    assert ops(after) == list(left)
    assert ops(canonicalize(after)) == ops(after)
    return after


# -- batch norm -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_batch_norm_after_conv(bias, groups):
    """A folded batch norm would scale the wrong axis, or forget the bias in front of it."""
    n = Net(groups)
    y = n.bn(n.conv(n.image(4), 8, groups=groups, bias=bias))
    folded(n.graph([y]), "conv2d")


@pytest.mark.parametrize("groups", [1, 2])
def test_batch_norm_after_transposed_conv(groups):
    """The output channels of a transposed convolution would be mistaken for its input channels."""
    n = Net(groups)
    y = n.bn(n.conv(n.image(4), 6, 2, stride=2, pad=0, groups=groups, transposed=True))
    folded(n.graph([y]), "conv_transpose2d")


def test_batch_norm_after_linear():
    """A batch norm over features would not go into the rows of the weight."""
    n = Net(1)
    folded(n.graph([n.bn(n.linear(n.rows(), 7))]), "linear")


@pytest.mark.parametrize("tokens", [4, 6])
def test_batch_norm_over_tokens_stays(tokens):
    """A batch norm over axis 1 of (N, T, C) would be folded into the rows of a layer over C, in silence where T = C."""
    n = Net(2)
    folded(n.graph([n.bn(n.linear(n.input("x", (N, tokens, 5)), 6))]), "linear", "batch_norm")


def test_chain_of_norms_and_constants():
    """Only the first of several affine layers in a row would be folded."""
    n = Net(3)
    x = n.bn(n.conv(n.image(), 4))
    x = n.mul(n.const(np.array([1.0, -2, 0.5, 3]).reshape(4, 1, 1)), x)
    x = n.bn(n.add(x, n.const(0.25)))
    x = n.add(n.const(np.arange(4).reshape(1, 4, 1, 1)), x, -1)
    folded(n.graph([n.identity(n.relu(x), "y")]), "conv2d", "clip")


def test_dead_channels():
    """Channels with gamma 0, variance 0 or weights of zeros would become NaN or vanish with their constant."""
    n = Net(4)
    w = n.rng.normal(size=(4, 3, 3, 3))
    w[1] = 0
    conv = n.conv(n.image(), 4, w=w, bias=False)
    graph = n.graph([n.bn(conv, gamma=[1, 0.5, 0, 1], var=[1, 0, 2, 0], mean=[0.1, 0.3, 0.2, 0], beta=[0, 1, -2, 3])])
    after = folded(graph, "conv2d")
    bias = after.params[after.nodes[0].inputs[2]]
    assert np.isfinite(bias).all()
    assert bias[2] == -2


@pytest.mark.parametrize("var", [[1, -1e-3, 1], [1, np.inf, 1], [np.nan, 1, 1]])
@pytest.mark.parametrize("between", [False, True])
def test_bad_variance_is_refused_by_name(var, between):
    """A damaged checkpoint would become a network of NaN, wherever its batch norm stands."""
    n = Net(5)
    x = n.conv(n.image(), 3)
    graph = n.graph([n.bn(n.relu(x) if between else x, var=var, name="block.bn")])
    with pytest.raises(InvalidGraphError, match=r"block\.bn .*variance of channel \d") as caught:
        canonicalize(graph)
    assert caught.value.origin == "block.bn"


def test_zero_spread_is_refused_by_name():
    """Division by a variance and an eps of 0 would give infinite weights."""
    n = Net(6)
    graph = n.graph([n.bn(n.conv(n.image(), 3), var=[1, 0, 1], eps=0.0, name="bn")])
    with pytest.raises(InvalidGraphError, match="channel 1"):
        canonicalize(graph)


def test_values_that_others_read_stay():
    """Folding into a layer whose own output is read elsewhere, or is an output, would change what the others see."""
    n = Net(7)
    a, b = n.conv(n.image(), 4), n.conv("x", 4)
    graph = n.graph([n.bn(a), n.relu(a), n.bn(b), b])
    folded(graph, "conv2d", "conv2d", "batch_norm", "clip", "batch_norm")


def test_shared_weight_is_not_changed_for_the_others():
    """Folding a batch norm into a shared weight would scale every layer that uses it."""
    n = Net(8)
    w = n.const(n.rng.normal(size=(5, 5)))
    first = n.emit("linear", [n.rows(), w], {}, origin="a")
    second = n.emit("linear", [n.relu(first), w], {}, origin="b")
    folded(n.graph([n.bn(second)]), "linear", "clip", "linear")


# -- constants ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,), (4, 1, 1), (1, 4, 1, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("op", ["add", "sub", "rsub", "mul"])
def test_channel_constants_after_conv(shape, op):
    """A constant of some shape, or on some side of a difference, would be folded with the wrong sign or along the wrong axis."""
    n = Net(9)
    c = n.const(n.rng.normal(size=shape) + 0.3)
    y = n.conv(n.image(), 4)
    y = {"add": lambda: n.add(y, c), "sub": lambda: n.add(y, c, -1), "rsub": lambda: n.add(c, y, -1), "mul": lambda: n.mul(c, y)}[op]()
    folded(n.graph([y]), "conv2d")


@pytest.mark.parametrize("shape", [(6,), (1, 6), (1, 1, 6)])
def test_channel_constants_after_linear_over_tokens(shape):
    """The last axis of a linear layer would be mistaken for axis 1."""
    n = Net(10)
    y = n.mul(n.linear(n.input("x", (N, 6, 5)), 6), n.const(n.rng.normal(size=shape)))
    folded(n.graph([y]), "linear")


@pytest.mark.parametrize("shape", [(6, 1), (1, 6, 1), (6, 6)])
def test_other_constants_stay(shape):
    """A constant that varies along another axis than the channels would be squeezed into the channels."""
    n = Net(11)
    y = n.add(n.linear(n.input("x", (N, 6, 5)), 6), n.const(n.rng.normal(size=shape)))
    folded(n.graph([y]), "linear", "add")


def test_constant_that_enlarges_the_value_stays():
    """A sum whose constant has more elements than the value would lose its shape."""
    n = Net(12)
    y = n.add(n.conv(n.image(side=1), 1, 1), n.const(n.rng.normal(size=(1, 4, 1, 1))))
    folded(n.graph([y]), "conv2d", "add")


def test_nodes_of_constants_are_computed():
    """Arithmetic on constants would reach the steps that only know computed values."""
    n = Net(13)
    c = n.relu(n.add(n.const([1.0, -2, 3, 0]), n.const(0.5)))
    image = n.conv(n.const(np.ones((1, 3, 6, 6))), 4)
    y = n.add(n.add(n.conv(n.image(), 4), n.reshape(c, (4, 1, 1))), image)
    folded(n.graph([y]), "conv2d", "add")


def test_constant_outputs_are_refused():
    """An output that depends on no input would end in a traceback at the last step."""
    n = Net(14)
    graph = n.graph([n.conv(n.image(), 2), n.relu(n.const([1.0, -1]), name="prior")])
    with pytest.raises(InvalidGraphError, match="'prior' is constant"):
        canonicalize(graph)


# -- pads and identities --------------------------------------------------------------------------------------------


def test_zero_pads_go_into_the_convolution():
    """A border in front of a convolution would be copied at run time, or land on the wrong side."""
    n = Net(15)
    y = n.conv(n.pad(n.pad(n.image(), (0, 0, 1, 0), (0, 0, 0, 2)), (0, 0, 0, 1), (0, 0, 1, 0)), 4)
    after = folded(n.graph([y]), "conv2d")
    assert after.nodes[0].attrs["pads"] == (2, 2, 2, 3)


@pytest.mark.parametrize(
    ("before", "after", "value"),
    [
        ((0, 0, 1, 1), (0, 0, 1, 1), 0.5),
        ((0, 0, -1, 0), (0, 0, 0, 0), 0.0),
        ((0, 1, 0, 0), (0, 0, 0, 0), 0.0),
        ((0, 0, 1, 0), (0, 0, 0, -1), 0.0),
    ],
)
def test_other_borders_stay(before, after, value):
    """A border of another value, a cut or a border over channels would be taken for zero padding."""
    n = Net(16)
    folded(n.graph([n.conv(n.pad(n.image(), before, after, value), 4)]), "pad", "conv2d")


def test_pad_with_other_readers_stays():
    """A border that something else reads too would disappear for it."""
    n = Net(17)
    p = n.pad(n.image(), (0, 0, 1, 1), (0, 0, 1, 1))
    folded(n.graph([n.conv(p, 4), n.max_pool(p)]), "pad", "conv2d", "max_pool2d")


def test_identities_disappear_and_outputs_keep_their_names():
    """Dropping a node at the end would rename an output, which callers and files ask for by name."""
    n = Net(18)
    h = n.relu(n.conv(n.identity(n.image()), 4))
    y = n.reshape(n.identity(h, "a"), (0, 4, 6, 6), "y")
    folded(n.graph([y, n.mean(h)]), "conv2d", "clip", "mean")


def test_outputs_that_name_one_value_stay_apart():
    """Two outputs with the same content, or one that is the input, would lose a name."""
    n = Net(19)
    c = n.conv(n.image(), 4)
    folded(n.graph([c, n.identity(c, "again"), n.identity("x", "copy")]), "conv2d", "identity", "identity")


def test_pinned_values_stay():
    """A rewrite would move a value whose quantization the source file fixes."""
    n = Net(20)
    x = n.image()
    a = n.conv(x, 4, name="a")
    b = n.add(n.bn(a), n.const(1.0))
    p = n.pad(b, (0, 0, 1, 1), (0, 0, 1, 1), name="p")
    y = n.identity(n.conv(p, 2), "y")
    graph = n.graph([y])
    assert ops(canonicalize(graph)) == ["conv2d", "conv2d"]
    pinned = {"a", "p", graph.nodes[-1].inputs[0]}
    after = canonicalize(graph, pinned)
    assert ops(after) == ["conv2d", "batch_norm", "add", "pad", "conv2d", "identity"]
    assert pinned <= set(after.values)


@LAW
@given(seed=st.integers(0, 10_000))
def test_random_chains_keep_their_meaning(seed):
    """Some order of layers would be folded into something else."""
    n = Net(seed)
    rng = np.random.default_rng(seed)
    x = n.conv(n.image(), 4) if rng.integers(2) else n.image(4)
    for kind in rng.integers(0, 8, 6):
        c = n.const(rng.normal(size=[(), (4, 1, 1), (4, 6, 6)][rng.integers(3)]))
        x = [
            n.bn,
            lambda x, c=c: n.mul(x, c),
            lambda x, c=c: n.add(c, x, int(rng.choice([-1, 1]))),
            lambda x: n.conv(n.pad(x, (0, 0, 1, 1), (0, 0, 1, 1)), 4, pad=0, groups=int(rng.choice([1, 2]))),
            n.relu,
            n.identity,
            lambda x: n.add(x, x),
            lambda x: n.conv(x, 4, 3, pad=1, transposed=True),
        ][kind](x)
    graph = n.graph([x])
    after = canonicalize(graph)
    assert_same_meaning(graph, after, samples(graph, 3))
    assert after.outputs == graph.outputs
    assert len(after.nodes) <= len(graph.nodes)


# -- the input ------------------------------------------------------------------------------------------------------

MEAN, STD = (123.7, 100.0, 12.25), (58.4, 57.1, 61.0)


def pixels(graph: Graph, dtype: str = "uint8", count: int = 6) -> dict[str, np.ndarray]:
    """Return raw inputs, codes from end to end."""
    rng, low = np.random.default_rng(0), {"uint8": 0, "int8": -128}[dtype]
    return {k: rng.integers(low, low + 256, v.shape).astype(dtype) for k, v in samples(graph, count).items()}


def assert_same_network(graph: Graph, spec: InputSpec, after: Graph, folded_spec: InputSpec, tolerance: float = 1e-4) -> None:
    """Assert that raw inputs mean the same to both graphs, each with its spec."""
    x = pixels(graph, spec.dtype)
    before = run_float(graph, {spec.name: units(x[spec.name], spec, graph)})
    made = run_float(after, {spec.name: units(x[spec.name], folded_spec, after)})
    for name, real in zip(before, made.values(), strict=True):
        reach = float(np.abs(before[name]).max())
        np.testing.assert_allclose(real, before[name], atol=tolerance * reach, rtol=0)


@pytest.mark.parametrize("form", ["sub_mul", "mul_add", "div_like", "add_only", "scalar", "rows"])
def test_normalization_in_the_network_is_absorbed(form):
    """Normalization written in the network would be computed at run time, or be absorbed with another mean or std."""
    n = Net(21)
    x = n.rows(3) if form == "rows" else n.image()
    column = (3,) if form == "rows" else (3, 1, 1)
    m, s = n.const(np.array(MEAN).reshape(column)), n.const(1 / np.array(STD).reshape(column))
    if form == "mul_add":
        y = n.add(n.mul(s, x), m)
    elif form == "add_only":
        y = n.add(m, x)
    elif form == "scalar":
        y = n.add(n.mul(n.mul(x, n.const(1 / 255)), n.const(2.0)), n.const(1.0), -1)
    else:
        y = n.mul(n.add(x, m, -1), s)
    graph = n.graph([n.linear(y, 4) if form == "rows" else n.conv(y, 4)])
    spec = InputSpec("x", dtype="uint8")
    after, absorbed = absorb_normalization(graph, spec)
    assert ops(after) == ops(graph)[-1:]
    assert_same_network(graph, spec, after, absorbed)
    if form in ("sub_mul", "rows"):
        np.testing.assert_allclose(absorbed.mean, MEAN, rtol=1e-6)
        np.testing.assert_allclose(absorbed.std, STD, rtol=1e-6)
    if form == "scalar":
        np.testing.assert_allclose((*absorbed.mean, *absorbed.std), (127.5, 127.5), rtol=1e-6)


def test_absorbing_joins_the_spec_that_was_given():
    """Normalization in the network would replace what the caller's spec says, instead of following it."""
    n = Net(22)
    graph = n.graph([n.conv(n.mul(n.add(n.image(), n.const(0.5), -1), n.const(4.0)), 4)])
    spec = InputSpec("x", dtype="uint8", mean=MEAN, std=STD)
    after, absorbed = absorb_normalization(graph, spec)
    assert ops(after) == ["conv2d"]
    assert_same_network(graph, spec, after, absorbed)


@pytest.mark.parametrize("form", ["negative", "zero", "reversed", "spatial", "two_readers", "output", "self", "normalized_output"])
def test_what_is_no_normalization_stays(form):
    """A factor that is not positive, or a constant by pixel, would end up in a mean and std that cannot say it."""
    n = Net(23)
    x = n.image()
    y = {
        "negative": lambda: n.mul(x, n.const(np.array([1.0, -1, 1]).reshape(3, 1, 1))),
        "zero": lambda: n.mul(x, n.const(0.0)),
        "reversed": lambda: n.add(n.const(1.0), x, -1),
        "spatial": lambda: n.add(x, n.const(n.rng.normal(size=(3, 6, 6)))),
        "two_readers": lambda: n.add(x, n.const(1.0)),
        "output": lambda: n.add(x, n.const(1.0)),
        "self": lambda: n.add(x, x),
        "normalized_output": lambda: n.add(x, n.const(1.0)),
    }[form]()
    outputs = [
        y if form == "normalized_output" else n.conv(y, 4),
        *([n.conv(x, 2)] if form == "two_readers" else []),
        *([x] if form == "output" else []),
    ]
    graph = n.graph(outputs)
    spec = InputSpec("x", dtype="uint8")
    assert absorb_normalization(graph, spec) == (graph, spec)


def test_float_inputs_stay_as_they_are():
    """A float boundary would be folded as if callers handed in codes."""
    n = Net(24)
    graph = n.graph([n.conv(n.image(), 4)])
    spec = InputSpec("x", mean=MEAN, std=STD)
    assert fold_input(graph, spec) == (graph, spec)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("kind", ["channels", "mean_only", "one", "whole"])
def test_mean_and_std_go_into_the_first_convolution(dtype, groups, kind):
    """Raw images would be normalized with the wrong channel, or lose the fraction of the mean."""
    n = Net(25)
    graph = n.graph([n.relu(n.conv(n.image(), 6, pad=0, groups=groups))])
    mean, std = {"channels": (MEAN, STD), "mean_only": (MEAN, (57.0,)), "one": ((100.4,), (57.0,)), "whole": ((100.0,), (57.0,))}[kind]
    spec = InputSpec("x", dtype=dtype, mean=mean if dtype == "uint8" else tuple(m - 100 for m in mean), std=std)
    after, made = fold_input(graph, spec)
    assert ops(after) == ops(graph)
    assert all(m == round(m) for m in made.mean)
    assert_same_network(graph, spec, after, made)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_a_border_stands_for_normalized_zero(dtype):
    """Raw images would be padded with black, which costs some 13 dB; half a code is all that may be lost."""
    n = Net(26)
    w = np.abs(n.rng.normal(size=(4, 3, 3, 3)))
    graph = n.graph([n.conv(n.image(side=5), 4, w=w, bias=False)])
    spec = InputSpec("x", dtype=dtype, mean=MEAN if dtype == "uint8" else tuple(m - 128 for m in MEAN), std=STD)
    after, made = fold_input(graph, spec)
    x = pixels(graph, dtype)["x"]
    before, now = (run_float(g, {"x": units(x, s, g)})[g.outputs[0]] for g, s in ((graph, spec), (after, made)))
    error = np.abs(now - before)
    most = (w / np.array(STD).reshape(1, 3, 1, 1)).sum(axis=(1, 2, 3)).max() * 0.5
    assert error[:, :, 1:-1, 1:-1].max() < 1e-4
    assert 1e-4 < error.max() < most
    black = np.abs(w.sum() * np.array(MEAN).mean() / np.array(STD).mean())
    assert most < black / 50


def test_linear_layers_take_the_whole_mean():
    """Tabular bytes with a mean for each column would need a zero point by column, which a matrix product does not have."""
    n = Net(27)
    x = n.rows(3)
    graph = n.graph([n.add(n.linear(x, 4), n.linear(x, 4, bias=False))])
    spec = InputSpec("x", dtype="uint8", mean=MEAN, std=STD)
    after, made = fold_input(graph, spec)
    assert (made.mean, made.std) == ((0.0,), (1.0,))
    assert_same_network(graph, spec, after, made)
    j = journey(graph, CODES, specs=[spec], x=pixels(graph))
    assert j.sqnr(pixels(graph)) > 35
    assert "requantize" not in [node.op for node in j.integer.nodes[:2]]


def test_linear_over_the_last_axis_of_an_image_is_not_by_channel():
    """Constants of three channels would be folded into the columns of a layer over three pixels."""
    n = Net(28)
    graph = n.graph([n.linear(n.input("x", (N, 3, 3)), 4)])
    spec = InputSpec("x", dtype="uint8", mean=MEAN, std=STD)
    after, made = fold_input(graph, spec)
    assert ops(after) == ["identity", "linear"]
    half_codes = 0.5 / min(STD) * np.abs(graph.params["linear1.weight"]).sum(axis=1).max()
    x = pixels(graph)["x"]
    before, now = (run_float(g, {"x": units(x, s, g)})[g.outputs[0]] for g, s in ((graph, spec), (after, made)))
    assert np.abs(now - before).max() <= half_codes


@pytest.mark.parametrize("mean", [(-40.3, 120.0, 400.0), (300.0,)])
@pytest.mark.parametrize("reader", ["conv", "padded", "pool", "output"])
def test_a_mean_outside_the_codes(mean, reader):
    """A mean that no code stands for would be clipped in silence, and the network would see other images."""
    n = Net(29)
    x = n.image()
    made = {
        "conv": lambda: n.conv(x, 4, pad=0),
        "padded": lambda: n.conv(x, 4),
        "pool": lambda: n.max_pool(x),
        "output": lambda: n.conv(x, 4, pad=0),
    }[reader]()
    graph = n.graph([made, *([x] if reader == "output" else [])])
    spec = InputSpec("x", dtype="uint8", mean=mean, std=(60.0,))
    after, folded_spec = fold_input(graph, spec)
    assert_same_network(graph, spec, after, folded_spec)
    j = journey(graph, CODES, specs=[spec], x=pixels(graph))
    assert j.sqnr(pixels(graph)) > 35


@pytest.mark.parametrize("layout", ["", "NHWC"])
@pytest.mark.parametrize("outside", [False, True])
def test_readers_without_weights_get_one_scale(layout, outside):
    """A pool or a sum could not read channels that each have their own scale and zero point."""
    n = Net(30)
    x = n.image()
    graph = n.graph([n.conv(n.max_pool(x), 4), n.add(n.mean(x, (1,), keepdims=True), n.conv(x, 1))])
    mean = (-30.5, 100.2, 300.0) if outside else MEAN
    spec = InputSpec("x", layout=layout, dtype="uint8", mean=mean, std=STD)
    raw = pixels(graph)["x"]
    raw = np.ascontiguousarray(raw.transpose(0, 2, 3, 1)) if layout else raw
    j = journey(graph, CODES, specs=[spec], x={"x": raw})
    assert ops(j.graph)[0] == ("add" if outside else "identity")
    wanted = list(run_float(graph, {"x": units(raw, spec, graph)}).values())
    assert min(sqnr(w, m) for w, m in zip(wanted, j.reals({"x": raw}).values(), strict=True)) > 33


def test_input_that_is_an_output_by_channel():
    """A graph that only hands its input on, with a scale for each channel, would end in a traceback."""
    n = Net(31)
    n.image()
    graph = n.graph(["x"])
    spec = InputSpec("x", dtype="uint8", mean=MEAN, std=STD)
    j = journey(graph, CODES, specs=[spec], x=pixels(graph))
    assert j.sqnr(pixels(graph)) > 40


def test_several_readers_of_one_input_are_all_folded():
    """Only one of two layers that read raw images would be adapted to them."""
    n = Net(32)
    x = n.image()
    graph = n.graph([n.conv(x, 4, pad=0), n.conv(x, 2, 1)])
    spec = InputSpec("x", dtype="uint8", mean=MEAN, std=STD)
    assert_same_network(graph, spec, *fold_input(graph, spec))


def test_pin_of_an_integer_input_moves_behind_an_identity():
    """Raw bytes would be read in the units that the file fixed for its float input."""
    n = Net(33)
    graph = n.graph([n.conv(n.image(), 4)])
    q = QParams(INT8, np.asarray(0.03), np.asarray(5))
    other = QParams(UINT8, np.asarray(0.1))
    spec = InputSpec("x", dtype="uint8", mean=(100.0,), std=(50.0,))
    after, pinned = pin_input(graph, spec, {"x": q, "conv1": other})
    assert ops(after) == ["identity", "conv2d"]
    assert pinned == {after.nodes[0].output: q, "conv1": other}
    assert pin_input(graph, replace(spec, dtype="float32"), {"x": q}) == (graph, {"x": q})
    assert_same_meaning(graph, after, samples(graph))


def test_fixed_batch_is_kept():
    """A rewrite would lose a batch that the file fixes."""
    n = Net(34)
    graph = n.graph([n.bn(n.conv(n.image(batch=4), 4))])
    after = folded(graph, "conv2d")
    assert after.values["x"].shape[0] == 4
    assert not any(isinstance(d, Dim) for v in after.values.values() for d in v.shape)
