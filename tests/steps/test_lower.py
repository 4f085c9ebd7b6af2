# SPDX-License-Identifier: Apache-2.0
"""The integer graph against the simulation of the quantized one, over random networks, layouts and batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from intonly.core import arith
from intonly.core.errors import DataError, InvalidGraphError, LoweringError
from intonly.core.graph import Graph, Stage
from intonly.core.number_format import INT8, UINT8, QParams
from intonly.core.records import InputSpec, Recipe
from intonly.core.spec import check
from intonly.steps.lower import lower
from tests.steps.graphs import CODES, PLAIN, N, Net, journey, run_float, samples, sqnr, units
from tests.steps.random_nets import random_network, random_sequence_network

W4A4 = replace(CODES, weight_bits=4, activation_bits=4)
WIDE = replace(CODES, residual_bits=16, weight_granularity="tensor", activation_symmetric=True)
SEEDS = (*range(9), 17)


def raw(graph: Graph, seed: int, count: int = 4) -> dict[str, np.ndarray]:
    """Return raw images, uint8."""
    rng = np.random.default_rng(seed)
    return {k: rng.integers(0, 256, v.shape).astype(np.uint8) for k, v in samples(graph, count).items()}


def assert_simulated(apart: Mapping[str, np.ndarray]) -> None:
    """Assert that integers are at most one code from the simulation, and nearly everywhere none."""
    for name, steps in apart.items():
        assert steps.max() <= 1 + 1e-6, f"{name} is off by {steps.max()} codes"
        assert (steps > 0.5).mean() <= 0.02, f"{(steps > 0.5).mean():.1%} of {name} differ"


@pytest.mark.usefixtures("single_rounding")
@pytest.mark.parametrize("recipe", [CODES, W4A4, WIDE], ids=["w8a8", "w4a4", "wide"])
@pytest.mark.parametrize("network", [random_network, random_sequence_network])
@pytest.mark.parametrize("seed", SEEDS)
def test_integers_match_the_simulation(seed, network, recipe):
    """An operator, a join, a layout or a zero point would be lowered to something that the simulation does not mean."""
    graph = network(seed)
    j = journey(graph, recipe, x=samples(graph, 4, seed))
    assert j.integer.stage is Stage.INTEGER
    assert_simulated(j.steps_apart(j.x))
    fresh = samples(graph, 3, seed + 1000, -2.5, 2.5)
    assert_simulated(j.steps_apart(fresh))
    assert any(np.unique(v).size > 3 for v in j.codes(j.x).values()), "constant outputs prove nothing"
    if recipe is CODES:
        wanted, made = j.floats(j.x), j.reals(j.x)
        assert max(sqnr(wanted[k], made[k]) for k in wanted) > 25


@pytest.mark.parametrize("network", [random_network, random_sequence_network])
@pytest.mark.parametrize("seed", SEEDS)
def test_both_forms_are_as_near_to_the_float_network(seed, network, monkeypatch):
    """Outputs of 8 bits would lose accuracy to the 16-bit products that make them."""
    graph = network(seed)
    x = samples(graph, 4, seed)
    narrow = journey(graph, CODES, x=x)
    assert any(n.attrs["rescale"].is_narrow for n in narrow.integer.nodes if n.attrs.get("rescale") is not None)
    monkeypatch.setattr(arith, "fraction_bits", lambda reach: 0)
    wide = journey(graph, CODES, x=x)
    assert narrow.sqnr(x) > min(wide.sqnr(x) - 3, 40)


@pytest.mark.usefixtures("single_rounding")
@pytest.mark.parametrize("seed", SEEDS)
def test_layouts_and_types_of_raw_images(seed):
    """Images handed in as NHWC would give other integers than as NCHW, or a mean would be taken from another channel."""
    graph = random_network(seed)
    channels = graph.values["x"].shape[1]
    rng = np.random.default_rng(seed)
    mean, std = tuple(rng.uniform(60, 180, channels)), tuple(rng.uniform(40, 70, channels))
    spec = InputSpec("x", dtype="uint8", mean=mean, std=std)
    x = raw(graph, seed)
    j = journey(graph, CODES, specs=[spec], x=x)
    assert_simulated(j.steps_apart(x))
    wanted = run_float(graph, {"x": units(x["x"], spec, graph)})
    made = j.reals(x)
    assert max(sqnr(wanted[k], made[k]) for k in wanted) > 25
    moved = {"x": np.ascontiguousarray(x["x"].transpose(0, 2, 3, 1))}
    last = journey(graph, CODES, specs=[replace(spec, layout="NHWC")], x=moved)
    assert last.integer.values["x"].shape[-1] == channels
    for name, codes in j.codes(x).items():
        np.testing.assert_array_equal(last.codes(moved)[name], codes)
    signed = replace(spec, dtype="int8", mean=tuple(m - 128 for m in mean))
    shifted = {"x": (x["x"].astype(np.int16) - 128).astype(np.int8)}
    s = journey(graph, CODES, specs=[signed], x=shifted)
    for name, codes in j.codes(x).items():
        assert np.abs(s.codes(shifted)[name].astype(int) - codes).max() <= 1


@pytest.mark.parametrize("seed", SEEDS)
def test_samples_do_not_see_each_other(seed):
    """The answer for one sample would depend on the batch that it comes in."""
    graph = random_network(seed)
    j = journey(graph, CODES, x=samples(graph, 6, seed))
    together = j.codes(j.x)
    for k in range(6):
        alone = j.codes({name: array[k : k + 1] for name, array in j.x.items()})
        for name, codes in together.items():
            np.testing.assert_array_equal(alone[name], codes[k : k + 1])


@pytest.mark.parametrize("seed", range(8))
def test_any_recipe_on_any_network(seed):
    """Some combination of widths, observers, granularity and corrections would crash, overflow, or not repeat."""
    rng = np.random.default_rng(seed)
    graph = (random_network if seed % 3 else random_sequence_network)(seed)
    recipe = Recipe(
        "random",
        int(rng.integers(1, 9)),
        int(rng.integers(1, 9)),
        weight_granularity=str(rng.choice(["channel", "tensor"])),
        activation_observer=str(rng.choice(["minmax", "moving_average", "percentile", "mse", "entropy"])),
        activation_symmetric=bool(rng.integers(2)),
        first_last_bits=[None, 4, 8][rng.integers(3)],
        residual_bits=int(rng.choice([8, 16])),
        bias_correction=bool(rng.integers(2)),
        rounding=str(rng.choice(["nearest", "compensated"])),
        output=str(rng.choice(["int8", "int32"])),
    )
    x = samples(graph, 6, seed)
    j = journey(graph, recipe, x=x)  # which proves that nothing overflows
    again = journey(graph, j.plan, x=x)
    assert again.plan == j.plan
    for name, codes in j.codes(x).items():
        np.testing.assert_array_equal(again.codes(x)[name], codes)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "CNHW", "NWCH"])
def test_every_layout_is_a_permutation(layout):
    """An unusual order of the axes would be taken for a usual one."""
    n = Net(1)
    graph = n.graph([n.conv(n.image(side=5), 4, stride=2)])
    spec = InputSpec("x", layout=layout, dtype="uint8", mean=(100.0, 110.0, 120.0), std=(50.0,))
    plain = raw(graph, 1)["x"]
    x = {"x": np.ascontiguousarray(plain.transpose(["NCHW".index(c) for c in layout]))}
    j = journey(graph, CODES, specs=[spec], x=x)
    reference = journey(graph, CODES, specs=[replace(spec, layout="")], x={"x": plain})
    np.testing.assert_array_equal(j.codes(x)["conv1"], reference.codes({"x": plain})["conv1"])


def test_layouts_that_do_not_fit_are_refused():
    """Letters for another number of axes would be cut or filled up."""
    assert InputSpec("x").perm(5) == (0, 1, 2, 3, 4)
    assert InputSpec("x", layout="NHWC").perm(4) == (0, 2, 3, 1)
    assert InputSpec("x", layout="NLC").perm(3) == (0, 2, 1)
    for layout, rank in (("NHWC", 3), ("NC", 4), ("NXYZ", 4), ("NCHW", 5)):
        with pytest.raises(DataError, match=f"'image'.*'{layout}'"):
            InputSpec("image", layout=layout).perm(rank)


def test_images_stay_channels_last():
    """Every layer would bring its image back to NCHW."""
    n = Net(2)
    x = n.relu(n.conv(n.image(), 4))
    x = n.relu(n.add(n.conv(x, 4), x))
    x = n.concat(n.max_pool(x), n.avg_pool(x))
    graph = n.graph([n.linear(n.reshape(n.relu(n.conv(x, 4))), 3)])
    spec = InputSpec("x", layout="NHWC", dtype="uint8", mean=(100.0,), std=(50.0,))
    x = {"x": np.ascontiguousarray(raw(graph, 2)["x"].transpose(0, 2, 3, 1))}
    j = journey(graph, PLAIN, specs=[spec], x=x)
    assert "transpose" not in [node.op for node in j.integer.nodes]


def test_one_transpose_serves_all_readers():
    """The input would be brought to channels last once for each branch."""
    n = Net(3)
    x = n.image()
    graph = n.graph([n.concat(n.conv(x, 2), n.conv(x, 2, 1), n.conv(x, 2, 3, dilation=2))])
    ops = [node.op for node in journey(graph, CODES).integer.nodes]
    assert ops.count("transpose") == 2, "one in, one out"


def test_float_boundary():
    """The scale that callers need for a float input would be missing, or not the graph's."""
    n = Net(4)
    graph = n.graph([n.conv(n.image(), 4)])
    j = journey(graph, CODES)
    q = j.quantized.values["x"].qparams
    assert j.inputs[0].scale == float(q.scale)
    assert j.inputs[0].zero_point == int(q.zero_point)
    assert j.integer.values["x"].format == q.format
    out = j.quantized.values["conv1"].qparams
    assert (j.outputs[0].scale, j.outputs[0].zero_point) == (float(out.scale), int(out.zero_point))


# -- outputs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_an_output_that_is_an_input(dtype):
    """The input would lose its name to the output, so that nobody could hand it in."""
    n = Net(5)
    x = n.image()
    graph = n.graph([n.conv(x, 3), x, x])
    spec = InputSpec("x", dtype=dtype, mean=(10.0,), std=(50.0,)) if dtype == "uint8" else InputSpec("x")
    given = raw(graph, 5) if dtype == "uint8" else samples(graph)
    j = journey(graph, CODES, specs=[spec], x=given)
    assert j.integer.inputs == ("x",)
    assert j.integer.outputs == ("conv1", "x.2", "x.3")
    assert [s.name for s in j.outputs] == ["conv1", "x.2", "x.3"]
    wanted = units(given["x"], spec, graph)
    for name in ("x.2", "x.3"):
        assert np.abs(j.reals(given)[name] - wanted).max() <= 0.51 * j.outputs[1].scale


@pytest.mark.parametrize("case", ["same", "identity", "reshape", "relu", "flatten"])
def test_outputs_with_the_same_content(case):
    """Two outputs that need no work of their own would become one, and the second be missing."""
    n = Net(6)
    y = n.relu(n.linear(n.rows(), 4))
    other = {
        "same": lambda: y,
        "identity": lambda: n.identity(y),
        "reshape": lambda: n.reshape(y, (0, 4)),
        "relu": lambda: n.relu(y),
        "flatten": lambda: n.reshape(y, (0, 2, 2)),
    }[case]()
    j = journey(n.graph([y, other, other]), CODES)
    made = list(j.codes(j.x).values())
    assert len(made) == len(set(j.integer.outputs)) == 3
    for array in made[1:]:
        assert np.abs(array.reshape(made[0].shape).astype(int) - made[0]).max() <= 1


def test_outputs_keep_their_names_and_order():
    """Callers would find other names than those of their model, or the values behind them exchanged."""
    n = Net(7)
    x = n.image()
    a = n.relu(n.conv(x, 4), "features")
    b = n.linear(n.mean(a), 2, name="logits")
    graph = n.graph([b, a])
    j = journey(graph, PLAIN)
    assert j.integer.outputs == ("logits", "features")
    assert j.integer.values["features"].shape == graph.values["features"].shape
    assert j.sqnr(j.x) > 30


def test_an_output_name_that_an_inner_value_has():
    """Renaming an output would take the name of another value, which then exists twice."""
    n = Net(8)
    y = n.conv(n.relu(n.conv(n.image(), 4, name="a")), 3, name="a.transpose")
    z = n.conv(y, 2, name="y")
    j = journey(n.graph([z, y]), CODES)
    check(j.integer)
    assert j.integer.outputs == ("y", "a.transpose")
    assert j.sqnr(j.x) > 25


def test_an_output_that_others_read():
    """A value that is an output and an operand would be fused away, or be rounded to 8 bits for the caller, too."""
    n = Net(9)
    c = n.conv(n.image(), 4)
    graph = n.graph([n.linear(n.mean(n.relu(n.add(n.conv(c, 4), c))), 3), c])
    j = journey(graph, PLAIN)
    assert j.quantized.values[c].qparams.format.bits == 32
    wanted, made = j.floats(j.x), j.reals(j.x)
    assert all(sqnr(wanted[k], made[k]) > 30 for k in wanted)


# -- odd graphs -----------------------------------------------------------------------------------------------------


LARGER = {"no_weights", "add_image_constant", "tokens", "pool_then_relu"}
"""Odd graphs that need more than one pixel."""


def odd_graphs() -> dict[str, Graph]:
    """Return graphs of unusual shape and wiring, by name."""
    made = {}

    def keep(name: str, n: Net, *outputs: str) -> None:
        made[name] = n.graph(list(outputs))

    for name, build in {
        "conv_conv": lambda n, x: n.conv(n.conv(n.conv(x, 4), 5), 2),
        "mul_self": lambda n, x: n.mul(n.conv(x, 4, name="c"), "c"),
        "add_self": lambda n, x: n.add(n.conv(x, 4, name="c"), "c"),
        "concat_self": lambda n, x: n.conv(n.concat(n.conv(x, 3, name="c"), "c"), 2),
        "concat_input": lambda n, x: n.concat(x, n.relu(x)),
        "relu_on_input": lambda n, x: n.conv(n.relu(x), 3),
        "norm_on_input": lambda n, x: n.conv(n.bn(x), 3),
        "norm_only": lambda n, x: n.bn(x),
        "no_weights": lambda n, x: n.mean(n.max_pool(n.relu(x))),
        "input_only": lambda n, x: x,
        "scalars": lambda n, x: n.conv(n.mul(n.add(n.relu(n.conv(x, 3)), n.const(0.5)), n.const(-2.0)), 2),
        "scalar_minus": lambda n, x: n.conv(n.add(n.const(1.0), n.relu(n.conv(x, 3)), -1), 2),
        "add_image_constant": lambda n, x: n.add(n.conv(x, 4), n.const(n.rng.normal(size=(4, 6, 6)))),
        "add_gate": lambda n, x: n.add(n.conv(n.mean(n.conv(x, 4, name="c"), keepdims=True), 4, 1), "c"),
        "linear_over_pixels": lambda n, x: n.linear(n.conv(x, 3), 7),
        "tokens": lambda n, x: n.linear(n.transpose(n.reshape(n.conv(x, 4), (0, 4, 36)), (0, 2, 1)), 3),
        "clips": lambda n, x: n.conv(n.clip(n.clip(n.conv(x, 4), -1.0, 0.5), 0.1, 2.0), 2),
        "negative_clip": lambda n, x: n.conv(n.clip(n.conv(x, 4), -2, -0.5), 2),
        "pool_then_relu": lambda n, x: n.conv(n.relu(n.max_pool(n.conv(x, 4))), 2),
        "difference_of_convs": lambda n, x: n.relu(n.add(n.conv(x, 4), n.conv(x, 4), -1)),
        "border": lambda n, x: n.conv(n.pad(n.relu(n.conv(x, 4)), (0, 0, 1, 1), (0, 0, 1, 1), 0.7), 2, pad=0),
    }.items():
        for suffix, shape in {"": (3, 6), "/1x1": (3, 1), "/gray": (1, 6)}.items():
            if suffix == "/1x1" and name in LARGER:
                continue
            n = Net(10)
            keep(name + suffix, n, build(n, n.image(*shape)))
    for batch in (1, 4):
        n = Net(11)
        keep(f"batch{batch}", n, n.linear(n.reshape(n.max_pool(n.relu(n.conv(n.image(batch=batch), 4)))), 5))
    n = Net(12)
    keep("one_number", n, n.linear(n.relu(n.linear(n.rows(1), 1)), 1))
    n = Net(13)
    x, y = n.image(), n.image(name="y")
    keep("two_inputs", n, n.add(n.conv(x, 3), y), n.add(x, y))
    n = Net(14)
    x = n.rows()
    n.rows(4, name="unused")
    keep("unused_input", n, n.linear(x, 3))
    n = Net(15)
    x = n.input("x", (N, 4, 4))
    keep("matmul", n, n.add(n.emit("matmul", [x, x], {}, origin="mm"), n.linear(x, 4)))
    n = Net(16)
    keep("linear_tokens_add", n, n.add(n.linear(n.input("x", (N, 4, 5)), 6), n.linear("x", 6)))
    return made


ODD = odd_graphs()


@pytest.mark.usefixtures("single_rounding")
@pytest.mark.parametrize("name", ODD)
def test_odd_graphs(name):
    """A graph of unusual wiring or size would end in a traceback, or in integers that mean something else."""
    graph = ODD[name]
    j = journey(graph, CODES)
    assert_simulated(j.steps_apart(j.x))
    wanted, made = run_float(graph, j.x), j.reals(j.x)
    for a, b in zip(wanted.values(), made.values(), strict=True):
        assert sqnr(a, b) > 30


@pytest.mark.parametrize("name", ODD)
def test_odd_graphs_with_few_bits_and_corrections(name):
    """Narrow copies, corrections or int32 outputs would meet a wiring that they do not expect."""
    graph = ODD[name]
    recipe = Recipe("w4a4", weight_bits=4, activation_bits=4, rounding="compensated", first_last_bits=None)
    j = journey(graph, recipe)
    for made in j.reals(j.x).values():
        assert np.isfinite(made).all()
    assert j.sqnr(j.x) > 0


def refused() -> dict[str, tuple[Graph, str]]:
    """Return graphs that have no integer form, and the layer that says so."""
    made = {}
    n = Net(20)
    c = n.conv(n.image(), 4)
    both = n.add(n.mean(c, (2,), keepdims=True), n.mean(c, (3,), keepdims=True), name="outer")
    made["outer_sum"] = (n.graph([both]), "outer")
    n = Net(21)
    far = n.pad(n.relu(n.conv(n.image(), 4)), (0, 0, 1, 1), (0, 0, 1, 1), -3.0, name="frame")
    made["far_border"] = (n.graph([n.conv(far, 2, pad=0)]), "frame")
    return made


@pytest.mark.parametrize("name", refused())
def test_what_has_no_integer_form_is_refused_by_name(name):
    """What cannot be lowered would be lowered to something else, or end in a traceback without the layer's name."""
    graph, origin = refused()[name]
    with pytest.raises(LoweringError, match=origin) as caught:
        journey(graph, CODES)
    assert caught.value.origin == origin


def test_a_bias_beyond_int32_is_refused_by_name():
    """A pinned weight scale that is far too small would wrap a bias around."""
    n = Net(22)
    graph = n.graph([n.linear(n.rows(), 2, b=np.array([1.0, 1e6]), name="head")])
    pin = QParams(INT8, np.asarray(1e-9))
    with pytest.raises(LoweringError, match=r"head.*channel 1") as caught:
        journey(graph, CODES, pinned={"head.weight": pin})
    assert caught.value.origin == "head"


def test_an_input_without_units_is_refused():
    """A graph that was never quantized would be lowered with units of its own invention."""
    n = Net(23)
    graph = n.graph([n.conv(n.image(), 2)])
    with pytest.raises(InvalidGraphError, match="'x' is not quantized"):
        lower(graph.replace(stage=Stage.QUANTIZED), [InputSpec("x")])


def test_nothing_happens_to_equal_units():
    """A node that changes neither values nor units would still cost a requantize."""
    n = Net(24)
    r = n.relu(n.conv(n.image(), 4))
    graph = n.graph([n.conv(n.max_pool(n.relu(r)), 2)])
    q = QParams(UINT8, np.asarray(0.02))
    j = journey(graph, CODES, pinned={r: q, "max_pool4": q})
    assert "requantize" not in [node.op for node in j.integer.nodes]
