# SPDX-License-Identifier: Apache-2.0
"""What composites mean: weights of an attention, means under them, and when a body is what its attributes say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from intonly.backends.interpreter import Interpreter
from intonly.core import composites
from intonly.core.arith import Rescale
from intonly.core.bounds import bounds
from intonly.core.composites import FARTHEST, OCTAVE, composite, halving, halving_tables, is_faithful
from intonly.core.graph import Graph, Node, Value
from intonly.core.number_format import INT8, INT16, INT32, UINT8

RNG = np.random.default_rng(5)


def run(body: Graph, *arrays: np.ndarray) -> np.ndarray:
    """Return the only output of a body."""
    return next(iter(Interpreter(body).run(dict(zip(body.inputs, arrays, strict=True))).values()))


@pytest.mark.parametrize("scale", [1e-9, 1e-5, 1e-4, 3e-3, 0.04, 0.3, 4.9])
@pytest.mark.parametrize("fmt", [INT8, INT16, INT32], ids=lambda f: f.name)
def test_weights_are_as_near_as_stated(fmt, scale):
    """A weight that is farther than 0.71 from 255 * exp(x - maximum), for scores of any width and step."""
    reach = min(fmt.qmax, int(20 / scale) + 1, 1 << 28)
    x = RNG.integers(-reach, reach + 1, (40, 33)).astype(fmt.dtype)
    found = halving(scale)
    assert found is not None
    weights = run(composites.softmax_weights([Value(x.shape, fmt)], shift=found[0], multiplier=found[1]), x)
    exact = 255 * np.exp((x.astype(float) - x.max(axis=1, keepdims=True)) * scale)
    assert np.abs(weights - exact).max() <= 0.71
    assert (weights.max(axis=1) == 255).all()


def test_every_distance_has_its_weight():
    """A table or a shift that is wrong for some distances only."""
    coarse, fine = halving_tables()
    distance = np.arange(FARTHEST + 1)
    weight = (((coarse[distance >> 5] * fine[distance & 31] + (1 << 14)) >> 15) + 64) >> 7
    assert np.abs(weight - 255 * 2.0 ** (-distance / OCTAVE)).max() <= 0.53
    assert weight[-1] == 0
    assert (np.diff(weight) <= 0).all()


def test_masked_keys_weigh_nothing():
    """A masked key that raises the maximum or keeps a weight, or a row without keys that is not all 0."""
    x = RNG.integers(-99, 99, (5, 4, 6)).astype(np.int16)
    keys = RNG.integers(0, 2, (5, 1, 6)).astype(np.uint8)
    keys[0], keys[1] = 0, 1
    body = composites.softmax_weights([Value(x.shape, INT16), Value(keys.shape, UINT8)], shift=4, multiplier=20000)
    alone = composites.softmax_weights([Value((1, 1), INT16)], shift=4, multiplier=20000)
    weights = run(body, x, keys)
    assert (weights[0] == 0).all()
    assert (weights[np.broadcast_to(keys, x.shape) == 0] == 0).all()
    for row in range(4):
        kept = x[2, row, keys[2, 0] != 0]
        lone = composites.softmax_weights([Value((1, kept.size), INT16)], shift=4, multiplier=20000)
        np.testing.assert_array_equal(weights[2, row, keys[2, 0] != 0], run(lone, kept[None])[0])
    assert run(alone, np.array([[7]], np.int16)) == 255


@pytest.mark.parametrize("zero", [-128, -3, 0, 127])
def test_means_are_as_near_as_stated(zero):
    """A mean under weights that misses the true one by more than its stated error, or has a bias."""
    e = RNG.integers(0, 256, (3, 7, 500)).astype(np.uint8)
    e[0, 0] = 0
    e[:, 1:, 0] = 255
    v = RNG.integers(-128, 128, (3, 5, 500)).astype(np.int8)
    unit = Rescale.from_real(1.0, zero_point=0, lo=INT32.qmin, hi=INT32.qmax, narrow=False)
    body = composites.weighted_mean([Value(e.shape, UINT8), Value(v.shape, INT8)], v_zero_point=zero, rescale=unit)
    total = e.astype(float).sum(axis=-1, keepdims=True)
    exact = e.astype(float) @ (v.astype(float) - zero).swapaxes(-1, -2) / np.maximum(total, 1)
    made = run(body, e, v) * 2.0**-composites.MEAN_BITS
    assert (np.abs(made - exact) <= (1 + total * 255 / 2.0**16) * 2.0**-composites.MEAN_BITS).all()
    assert (made[0, 0] == 0).all()
    assert bounds(body).proven


def test_scores_of_steps_beyond_an_exponential_are_refused():
    """A step of 5.5 nats and more, in which no exponential can be told from another."""
    assert halving(5.5) is not None
    assert halving(6.0) is None


def attrs_of(op: str) -> dict:
    """Return attributes of a composite, and its operands' values."""
    rescale = Rescale.from_real(0.5, zero_point=0, lo=-128, hi=127, narrow=False)
    if op == "softmax_weights":
        return {"shift": 3, "multiplier": 20000}
    if op == "weighted_mean":
        return {"v_zero_point": 1, "rescale": rescale}
    joined = Rescale.from_real(np.full(6, 0.5), zero_point=0, lo=-128, hi=127, residual_factor=np.full(6, 0.25), narrow=False)
    bits = {"root_bits": 4, "reciprocal_bits": 40, "least_root": 16, "result_bits": 16}
    return {"middle": 0, **bits, "eps_code": 5, "rescale": joined}


OPERANDS = {
    "softmax_weights": [Value((2, 4, 6), INT32)],
    "weighted_mean": [Value((2, 4, 6), UINT8), Value((2, 3, 6), INT8)],
    "layer_norm": [Value((2, 6), INT16)],
    "rms_norm": [Value((2, 6), INT16)],
}


@pytest.mark.parametrize("op", sorted(composites.BODIES))
def test_only_a_body_that_follows_from_the_attributes_is_faithful(op):
    """A kernel that runs what the attributes of a file say where the body means something else."""
    node = composite(op, [f"in{k}" for k in range(len(OPERANDS[op]))], OPERANDS[op], "out", attrs_of(op))
    assert is_faithful(node)
    body = node.body
    assert body is not None
    for key, value in node.attrs.items():
        other = value.with_limits(-127, 127) if isinstance(value, Rescale) else value + 1
        assert not is_faithful(node.with_attrs(**{key: other})), key
    assert not is_faithful(replace(node, body=None))
    assert not is_faithful(replace(node, op="gelu"))
    assert not is_faithful(node.with_attrs(surplus=1))
    assert not is_faithful(replace(node, attrs=dict(list(node.attrs.items())[1:])))
    for name, array in body.params.items():
        assert not is_faithful(replace(node, body=body.replace(params={**body.params, name: array + 1}))), name
    swapped: tuple[Node, ...] = (*body.nodes[:-1], replace(body.nodes[-1], inputs=body.nodes[-1].inputs[::-1] + body.nodes[-1].inputs[:1]))
    assert not is_faithful(replace(node, body=body.replace(nodes=swapped)))


def test_a_huge_exponent_in_a_file_is_refused_at_once():
    """Attributes of a file that make a power of two fill all memory."""
    node = composite("layer_norm", ["x"], OPERANDS["layer_norm"], "y", attrs_of("layer_norm"))
    assert not is_faithful(node.with_attrs(root_bits=1 << 40))
