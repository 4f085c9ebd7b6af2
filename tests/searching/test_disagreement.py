# SPDX-License-Identifier: Apache-2.0
"""Where compared searches differ: layers, and the order in which metrics put them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from intonly.cli import app
from intonly.searching import disagreement
from intonly.searching.disagreement import rank_correlation
from tests.report.reports import result
from tests.searching.test_search import trained


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 25, 90], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 0.8),  # 1 - 6 * 4 / (5 * 24)
        ([1, 2, 2, 4], [1, 2, 3, 4], 4.5 / np.sqrt(4.5 * 5)),
        ([1, 1, 1], [1, 2, 3], None),
    ],
    ids=["equal", "reversed", "by_hand", "ties", "constant"],
)
def test_rank_correlation(one, other, expected):
    """Metrics would be called alike, or unlike, that are not."""
    found = rank_correlation(np.array(one, float), np.array(other, float))
    assert found == (None if expected is None else pytest.approx(expected))


def test_only_free_layers_are_ranked_and_only_disputed_ones_listed():
    """Layers whose width the recipe fixes would make metrics look alike, and long tables would hide the few rows that differ."""
    first = result()
    names = first.sensitivity.layers
    other = replace(first.sensitivity, metric="other", weight_loss=first.sensitivity.weight_loss[::-1])
    widths = {**first.allocation.weight_bits, names[1]: 2 if first.allocation.weight_bits[names[1]] != 2 else 8}
    second = replace(first, allocation=replace(first.allocation, weight_bits=widths), problem=replace(first.problem, sensitivity=other))
    found = disagreement([first, second])
    assert [layer.name for layer in found.layers] == [names[1]]
    assert not found.activations
    assert found.correlation[0] == (1.0, -1.0)
    fixed = dict.fromkeys(names[2:], (8, 8))
    few = [replace(r, problem=replace(r.problem, fixed=fixed)) for r in (first, second)]
    assert disagreement(few).correlation == ((None, None), (None, None))


def test_the_command_says_where_metrics_disagree(tmp_path):
    """`--compare` would show plans side by side and leave the reader to find what differs in them."""
    _, x, y = trained()
    data, recipe = tmp_path / "d.npz", tmp_path / "r.json"
    np.savez(data, x=x, y=y)
    recipe.write_text('{"rounding": "nearest", "bias_correction": false, "first_last_bits": null}')
    words = ["search", "tests.searching.test_search:module", "--budget", "size=45%", "--data", str(data), "--recipe", str(recipe)]
    words += ["--metric", "size,hessian-trace,fisher", "--compare", "-o", str(tmp_path / "p.json")]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    found = said["disagreement"]
    assert found["metrics"] == ["size", "hessian-trace", "fisher"]
    assert [found["rank_correlation"][k][k] for k in range(3)] == [None, pytest.approx(1), pytest.approx(1)]
    plans = [{rule["match"]: rule["weight_bits"] for rule in r["plan"]["rules"]} for r in said["results"]]
    assert found["layers"]
    for row in found["layers"]:
        assert row["weight_bits"] == [plan[row["layer"]] for plan in plans]
        assert len(set(row["weight_bits"])) > 1
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    assert "rank correlation" in shown.stdout and "layer, bits of weights" in shown.stdout
