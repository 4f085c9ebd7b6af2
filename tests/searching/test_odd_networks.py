# SPDX-License-Identifier: Apache-2.0
"""Searches of networks, data and arguments that nobody expects: a plan that holds, or a refusal that says what to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import intonly
from intonly.core.errors import CalibrationError, DataError, InfeasibleBudgetError, RecipeError
from intonly.core.records import Recipe
from intonly.searching import SearchResult, compare_searches
from intonly.steps.sensitivity import METRICS

RECIPE = Recipe(rounding="nearest", bias_correction=False)
X = np.random.default_rng(0).normal(size=(16, 3, 8, 8)).astype(np.float32)


def found(net: Any, budget: str, data: Any = X, **options: Any) -> SearchResult:
    """Return the result of a search without a clock."""
    options = {"recipe": RECIPE, "metrics": ("hessian-trace",), "timed": False, **options}
    return compare_searches(net, budget, data, **options)[0]


def chain(widths: Sequence[int] = (16, 16, 16), kernel: int = 3, groups: Callable[[int], int] = lambda c: 1) -> nn.Sequential:
    """Return convolutions with ReLUs between them, of these output channels."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in zip((3, *widths), (*widths, 4 if groups(9) == 1 else widths[-1]), strict=False):
        layers += [nn.Conv2d(before, after, kernel, padding=kernel // 2, groups=groups(before)), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


class Twice(nn.Module):
    """One layer that is called twice, between two others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.again, self.last = nn.Conv2d(3, 24, 1), nn.Conv2d(24, 24, 1), nn.Conv2d(24, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs."""
        return self.last(self.again(self.again(self.first(x)).relu()).relu())


class TwoInputs(nn.Module):
    """A sum of two branches, each with an input of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right, self.both, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 32, 1), nn.Conv2d(32, 2, 1)

    def forward(self, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Return the outputs."""
        return self.last(self.both((self.left(u) + self.right(v)).relu()).relu())


class Residual(nn.Module):
    """Two blocks of different depth, added to what they read."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem, self.a, self.b = (nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8))
        self.c, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs."""
        x = self.stem(x).relu()
        x = (self.b(self.a(x).relu()) + x).relu()
        return self.head((self.c(x) + x).relu())


def test_a_layer_that_is_called_twice_has_one_width():
    """One tensor would be stored at two widths, or its sensitivity be that of one call."""
    result = found(Twice().eval(), "size=85%", metrics=("output-mse",))
    bits = result.allocation.weight_bits
    assert list(bits) == ["first", "again", "again.2", "last"]
    assert bits["again"] == bits["again.2"] < 8
    assert result.chosen.size_bytes <= 0.85 * result.reference.size_bytes


def test_several_inputs_are_traced_by_the_names_of_their_data():
    """A module with two inputs would need example inputs although the data hold them by name."""
    data = {"u": X, "v": X[::-1].copy()}
    result = found(TwoInputs().eval(), "bops=70%", data, activation_candidates=(4, 8))
    assert result.allocation.costs["bops"] <= result.allocation.limits["bops"]
    swapped = intonly.quantize(TwoInputs().eval(), RECIPE, {"v": data["v"], "u": data["u"]})
    straight = intonly.quantize(TwoInputs().eval(), RECIPE, data)
    assert [spec.name for spec in straight.artifact.inputs] == ["u", "v"]
    assert straight.artifact.certificate.graph_digest == swapped.artifact.certificate.graph_digest


def test_a_fixed_batch_is_searched(tmp_path):
    """A network whose batch is fixed would be searched in other batches, or labels go to the wrong samples."""
    program = torch.export.export(chain(), (torch.zeros(3, 3, 8, 8),))
    torch.export.save(program, tmp_path / "fixed.pt2")
    result = found(str(tmp_path / "fixed.pt2"), "size=70%", X[:11], metrics=("kl",))
    assert result.chosen.size_bytes <= 0.7 * result.reference.size_bytes
    assert result.sensitivity.samples == 9
    with pytest.raises(DataError, match="fixed batch of 3"):
        found(str(tmp_path / "fixed.pt2"), "size=70%", X[:2])


def test_depthwise_layers_alone_are_searched():
    """Layers of one input channel each would have no sensitivity, or a cost of another shape."""
    result = found(chain((48, 48, 48), groups=lambda c: max(3, c)), "size=97%", candidates=(2, 4, 8))
    assert result.chosen.size_bytes <= 0.97 * result.reference.size_bytes
    assert min(result.allocation.weight_bits.values()) < 8


@pytest.mark.parametrize("metric", [metric.name for metric in METRICS])
def test_a_layer_of_zeros_is_no_obstacle(metric):
    """A layer without any weight but 0 would have an infinite or undefined sensitivity, and spoil the plan of the others."""
    net = chain()
    with torch.no_grad():
        net[2].weight.zero_()
    result = found(net, "size=72%", metrics=(metric,))
    assert result.chosen.size_bytes <= 0.72 * result.reference.size_bytes
    if metric != "size" and "orm" not in metric:
        assert result.allocation.weight_bits["2"] == 2, "bits are spent on zeros"


def test_one_bit_is_a_candidate():
    """A binary layer would be predicted at another size than it has, or be refused as a width."""
    result = found(chain(), "size=70%", candidates=(1, 8))
    assert set(result.allocation.weight_bits.values()) == {1, 8}
    assert result.allocation.costs["size"] == result.chosen.size_bytes
    everything = found(chain(), "bops=30%", candidates=(1, 8), activation_candidates=(1, 8), metrics=("output-mse",))
    assert everything.allocation.costs["bops"] <= everything.allocation.limits["bops"]


@pytest.mark.parametrize("metric", ["hessian-trace", "kl"])
def test_activations_of_two_widths_around_sums(metric):
    """Readers of one sum would get two widths, or the plan's network another width than the plan says."""
    result = found(Residual().eval(), "bops=45%", metrics=(metric,), activation_candidates=(4, 8), candidates=(4, 8))
    bits = result.allocation.activation_bits
    assert set(bits.values()) == {4, 8}
    assert result.allocation.costs["bops"] <= result.allocation.limits["bops"]
    q = intonly.quantize(Residual().eval(), result.plan, X)
    assert [rule.activation_bits for rule in q.plan.rules] == list(bits.values())
    intonly.verify(q).raise_if_failed()


def test_a_network_without_weights_is_told_from_one_that_is_settled():
    """The user would look for the rules that settle the widths of no layer."""
    with pytest.raises(RecipeError, match="no layer with weights"):
        found(nn.Sequential(nn.ReLU()).eval(), "size=80%")
    with pytest.raises(RecipeError, match="first_last_bits"):
        found(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), "size=80%")
    alone = found(nn.Sequential(nn.Conv2d(3, 32, 3)).eval(), "size=85%", recipe=replace(RECIPE, first_last_bits=None))
    assert alone.chosen.size_bytes <= 0.85 * alone.reference.size_bytes


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_damaged_network_is_named_as_such(bad):
    """The user would look for the fault in the scaling of the data."""
    net = chain()
    with torch.no_grad():
        net[2].weight[0, 0, 0, 0] = bad
    with pytest.raises(CalibrationError, match=r"2 \(conv2d\): parameter '2.weight' holds NaN or infinity") as caught:
        found(net, "size=80%")
    assert caught.value.origin == "2"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metrics": ()}, "a metric and a solver"),
        ({"solvers": ()}, "a metric and a solver"),
        ({"batch": 0}, "batch must be 1 or more"),
        ({"time_limit": 0.0}, "above 0 seconds"),
        ({"time_limit": float("nan")}, "above 0 seconds"),
    ],
    ids=["metrics", "solvers", "batch", "time", "nan"],
)
def test_arguments_that_mean_nothing_are_refused(options, said):
    """A search would end with nothing, or with an unnamed error after all the work."""
    with pytest.raises(RecipeError, match=said):
        found(chain(), "size=80%", **options)


def test_a_refusal_adds_up_what_a_layer_costs():
    """A layer would be blamed twice, once for each of its widths, or one that costs nothing be named."""
    with pytest.raises(InfeasibleBudgetError, match="What holds ram up") as caught:
        found(Residual().eval(), "ram=50%", activation_candidates=(4, 8))
    blame = str(caught.value).split("What holds ram up: ")[1].split("\n")[0]
    layers = [part.split(" (")[0] for part in blame.split("; ") if " takes " in part]
    assert len(layers) == len(set(layers)) > 0
    assert "takes 0 bytes" not in blame
    assert "weight/input bits: stem 8/8" in str(caught.value)
