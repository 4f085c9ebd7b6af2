# SPDX-License-Identifier: Apache-2.0
"""What reconstruction may change, that it never makes a block worse, and that it forgets nothing when it is stopped."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from intonly.core.bounds import bounds
from intonly.core.graph import Graph
from intonly.core.number_format import INT8, QParams, uniform
from intonly.core.records import InputSpec, Recipe
from intonly.core.store import Folder
from intonly.ops import weight_of, weighted_nodes
from intonly.processes import ALONE, Processes
from intonly.steps.lower import lower
from intonly.steps.reconstruct import Reconstruction, reconstruct
from intonly.steps.reconstruct.shared_grids import grids_of
from tests.steps.graphs import Net, run_float, sqnr
from tests.steps.test_correct import Prepared, correlated, image_network

LOW = Recipe("low", weight_bits=3, activation_bits=4, first_last_bits=None)


def prepared(graph: Graph | None = None, recipe: Recipe = LOW, **options) -> Prepared:
    """Return a network with every kind of weighted layer, ready to be reconstructed, and 64 resembling images."""
    return Prepared(image_network() if graph is None else graph, recipe, {"x": correlated(4, 64)}, **options)


def rebuilt(p: Prepared, unit: str = "block", steps: int = 40, share: Processes = ALONE, **options) -> tuple[Graph, Reconstruction]:
    """Return the corrected graph and its reconstruction."""
    start = p.corrected(bias=True, rounding="nearest")
    return start, reconstruct(start, p.graph, p.batches, unit=unit, steps=steps, pinned=p.pinned, share=share, **options)


def same(a: Graph, b: Graph) -> bool:
    """Return whether two graphs hold the same numbers."""
    return (
        [n.inputs for n in a.nodes] == [n.inputs for n in b.nodes]
        and all(np.array_equal(a.params[k], b.params[k]) for k in a.params)
        and all(v.qparams is None or v.qparams.same_as(b.values[k].qparams) for k, v in a.values.items())
    )


@pytest.mark.parametrize("unit", ["layer", "block"])
def test_no_block_gets_worse_and_the_network_better(unit):
    """Learning would lose what rounding to nearest had, or change nothing."""
    p = prepared()
    start, result = rebuilt(p, unit)
    assert all(o.after <= o.before for o in result.outcomes)
    assert sum(o.after < o.before for o in result.outcomes) >= 3
    name = p.graph.outputs[0]
    wanted = run_float(p.graph, p.x)[name]
    old, new = (sqnr(wanted, run_float(g, p.x)[name]) for g in (start, result.graph))
    assert new > old + 1


def test_codes_move_by_one_at_most_and_stay_in_range():
    """A weight would leave its grid, or go where calibration data alone would send it."""
    p = prepared()
    start, result = rebuilt(p)
    moved = 0
    for old, new in zip(weighted_nodes(start), weighted_nodes(result.graph), strict=True):
        name = weight_of(start, old)
        assert weight_of(result.graph, new) == name
        assert start.values[name].qparams.same_as(result.graph.values[name].qparams)
        fmt = start.values[name].format
        a, b = start.params[name].astype(int), result.graph.params[name].astype(int)
        assert result.graph.params[name].dtype == fmt.dtype
        assert fmt.qmin <= b.min() <= b.max() <= fmt.qmax
        assert np.abs(a - b).max() <= 1
        moved += int((a != b).sum())
    assert moved > 0


def test_pruned_weights_stay_pruned():
    """A sparse network would lose its zeros."""
    n = Net(12)
    w = n.rng.normal(0, 0.2, (8, 4, 3, 3)) * (n.rng.random((8, 4, 3, 3)) < 0.5)
    p = prepared(n.graph([n.conv(n.relu(n.conv(n.image(4), 8, w=w, name="a")), 4)]))
    start, result = rebuilt(p)
    assert (result.graph.params["a.weight"] != start.params["a.weight"]).any()
    assert (result.graph.params["a.weight"][w == 0] == 0).all()


def test_values_of_one_grid_keep_one_grid():
    """A clamp, a reshape or a concat would need a rescale that nobody lowers."""
    p = prepared()
    start, result = rebuilt(p)
    grids = grids_of(start)
    assert grids == grids_of(result.graph)
    changed = 0
    for name, grid in grids.items():
        now = result.graph.values[name].qparams
        assert now.same_as(result.graph.values[grid].qparams)
        assert now.format == start.values[name].qparams.format
        assert np.array_equal(now.zero_point, start.values[name].qparams.zero_point)
        changed += not now.same_as(start.values[name].qparams)
    assert changed > 0


def test_integers_stay_lawful():
    """What was learned would not lower, or overflow."""
    p = prepared()
    _, result = rebuilt(p)
    integer, _, _ = lower(result.graph, [InputSpec("x")])
    assert bounds(integer).proven


def test_the_same_again():
    """Two runs would give two artifacts; or the seed would not matter, so that nothing was drawn."""
    p = prepared()
    first, again, other = (rebuilt(p, seed=seed)[1] for seed in (0, 0, 1))
    assert same(first.graph, again.graph)
    assert not same(first.graph, other.graph)


def test_pinned_and_non_uniform_layers_are_left_and_said():
    """Codes of a quantized source file would be learned anew, or a format without a grid rounded to one."""
    n = Net(8)
    x = n.relu(n.conv(n.image(4), 8, name="a"))
    graph = n.graph([n.conv(n.relu(n.conv(x, 8, name="b")), 4, name="c")])
    pin = QParams(uniform(4, signed=True), np.asarray(0.1))
    recipe = replace(LOW, weight_bits=4, rules=({"match": "c", "weight_bits": 1},))
    p = prepared(graph, recipe, pinned={"a.weight": pin, "a.bias": QParams(INT8, np.asarray(0.01))})
    start, result = rebuilt(p)
    assert set(result.left) == {"a", "c"}
    for name in ("a.weight", "a.bias", "c.weight"):
        np.testing.assert_array_equal(start.params[name], result.graph.params[name])
    assert not np.array_equal(start.params["b.weight"], result.graph.params["b.weight"])


class Stops(Exception):
    """What a test is stopped with."""


def test_a_stopped_run_goes_on(tmp_path):
    """Finished blocks would be learned again, or the end would be another than that of a run without a stop."""
    p = prepared()
    whole = rebuilt(p)[1]
    for most in (1, 3):
        seen: list[str] = []

        def stop(block, seen=seen, most=most):
            seen.append(block)
            if len(seen) == most:
                raise Stops

        with pytest.raises(Stops):
            rebuilt(p, store=Folder(tmp_path), progress=stop)
        assert len(list(tmp_path.iterdir())) == most
    names: list[str] = []
    resumed = rebuilt(p, store=Folder(tmp_path), progress=names.append)[1]
    assert same(whole.graph, resumed.graph)
    assert names == [o.block for o in whole.outcomes]
    assert len(list(tmp_path.iterdir())) == len(names)


def test_kept_work_of_another_run_is_not_taken_up(tmp_path):
    """Codes learned from other samples, steps or weights would end in this network."""
    p = prepared()
    rebuilt(p, steps=2, store=Folder(tmp_path))
    count = len(list(tmp_path.iterdir()))
    rebuilt(p, steps=3, store=Folder(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2 * count
    p.batches = [{k: v + 0.01 for k, v in b.items()} for b in p.batches]
    rebuilt(p, steps=3, store=Folder(tmp_path))
    assert len(list(tmp_path.iterdir())) == 3 * count


def test_a_fixed_batch_is_kept_whole():
    """Samples of a network that reshapes its batch axis would be mixed up, or its reshape fail."""
    n = Net(10)
    c = n.relu(n.conv(n.image(4, batch=8), 8))
    p = prepared(n.graph([n.linear(n.reshape(n.reshape(c, (2, 4, 8, 36)), (8, 288)), 3)]))
    _, result = rebuilt(p, steps=20)
    assert all(o.after <= o.before for o in result.outcomes)
