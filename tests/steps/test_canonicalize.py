# SPDX-License-Identifier: Apache-2.0
"""Rewrites of the float graph: what they fold, what they leave, and that nothing changes its meaning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intonly.core.errors import InvalidGraphError
from intonly.core.graph import Dim
from intonly.steps.canonicalize import canonicalize
from tests.steps.folding import folded, ops
from tests.steps.graphs import N, Net, assert_same_meaning, samples
from tests.strategies import LAW


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


def test_sums_with_zero_and_products_with_one_disappear():
    """A mask of zeros, which exporters add to scores without one, would cost a rounding; one that repeats its value would be lost."""
    n = Net(18)
    x = n.conv(n.image(), 4)
    y = n.mul(n.const(np.ones((1, 4, 1, 1))), n.add(n.add(x, n.const(0.0)), n.const(np.zeros((4, 6, 6)))))
    folded(n.graph([n.relu(y)]), "conv2d", "clip")
    n = Net(18)
    x = n.mean(n.conv(n.image(), 4))
    repeated = n.relu(n.add(x, n.const(np.zeros((3, 1, 4)))))
    folded(n.graph([repeated, n.relu(n.add(n.const(0.0), x, sign=-1))]), "conv2d", "mean", "add", "clip", "add", "clip")


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


def test_fixed_batch_is_kept():
    """A rewrite would lose a batch that the file fixes."""
    n = Net(34)
    graph = n.graph([n.bn(n.conv(n.image(batch=4), 4))])
    after = folded(graph, "conv2d")
    assert after.values["x"].shape[0] == 4
    assert not any(isinstance(d, Dim) for v in after.values.values() for d in v.shape)
