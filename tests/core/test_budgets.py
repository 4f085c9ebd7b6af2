# SPDX-License-Identifier: Apache-2.0
"""Budgets as people write them."""

from __future__ import annotations

import json

import pytest

from intonly.core.budgets import Budget, Limit
from intonly.core.errors import RecipeError
from intonly.core.records import from_json, to_json
from intonly.core.tables import CostRow, CostTable


def table(quantity: str, unit: str, baseline: float) -> CostTable:
    """Return a cost table with a baseline."""
    return CostTable(quantity, unit, ("conv",), (8,), (8,), (CostRow(quantity, 0.0, (((baseline,),),)),), baseline=baseline)


TABLES = (
    table("size", "bytes", 1000.0),
    table("latency", "ms", 2.0),
    table("bops", "bit operations", 5e9),
    table("ram", "bytes", 4096.0),
)


@pytest.mark.parametrize(
    ("text", "quantity", "limit"),
    [
        ("size=50%", "size", 500.0),
        ("size=0.5", "size", 500.0),
        ("size=120%", "size", 1200.0),
        ("size=3MB", "size", 3e6),
        ("size = 1.5 MiB", "size", 1.5 * 1048576),
        ("size=700B", "size", 700.0),
        ("latency=0.8", "latency", 1.6),
        ("latency=3.5ms", "latency", 3.5),
        ("latency=250us", "latency", 0.25),
        ("latency=0.002s", "latency", 2.0),
        ("bops=2G", "bops", 2e9),
        ("bops=2gbops", "bops", 2e9),
        ("bops=2e9", "bops", 2e9),
        ("bops=1", "bops", 5e9),
        ("ram=64KB", "ram", 64e3),
        ("ram=64KiB", "ram", 65536.0),
    ],
)
def test_a_limit_means_what_it_says(text, quantity, limit):
    """A unit or a share would be read as another amount."""
    assert Budget.parse(text).absolute(TABLES) == {quantity: pytest.approx(limit, rel=1e-15)}


def test_several_limits_stand_side_by_side():
    """A part of a budget would be lost."""
    budget = Budget.parse("size=50%, latency=3.5ms,max-drop=0.5")
    assert budget.max_drop == 0.5
    assert budget.absolute(TABLES) == {"size": 500.0, "latency": 3.5}
    assert Budget.parse(str(budget)) == budget
    assert from_json(Budget, json.loads(json.dumps(to_json(budget)))) == budget


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no limit"),
        ("size", "is no limit"),
        ("size=50%,", "is no limit"),
        ("size=", "is no limit"),
        ("speed=3", "known are size, ram, latency, bops, max-drop"),
        ("size=many", "no positive number"),
        ("size=-3MB", "no positive number"),
        ("size=nan", "no positive number"),
        ("size=0", "must be positive"),
        ("size=3", "give a unit"),
        ("size=3ms", "size takes b, kb, mb"),
        ("latency=3MB", "latency takes ns, us, ms, s"),
        ("size=1%,size=2%", "given twice"),
        ("max-drop=1,max-drop=2", "given twice"),
        ("max-drop=1%", "takes no unit"),
        ("bops=1e999", "no positive number|finite"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_could(text, message):
    """A slip would become another budget."""
    with pytest.raises(RecipeError, match=message):
        Budget.parse(text)


def test_a_limit_without_costs_or_reference_is_refused():
    """A limit would be dropped because nobody has measured that quantity."""
    with pytest.raises(RecipeError, match="no cost table of 'latency'"):
        Budget.parse("latency=0.5").absolute(TABLES[:1])
    with pytest.raises(RecipeError, match="share of the reference plan"):
        Budget.parse("size=0.5").absolute([table("size", "bytes", 0.0)])
    with pytest.raises(RecipeError, match="is in 'bytes'"):
        Budget.parse("latency=3ms").absolute([table("latency", "bytes", 1.0)])


def test_an_empty_or_impossible_record_is_refused():
    """A budget that limits nothing, or something unknown, would reach the solver."""
    with pytest.raises(RecipeError, match="nothing is limited"):
        Budget()
    with pytest.raises(RecipeError, match="no cost"):
        Limit("speed", 1.0, "fraction")
    with pytest.raises(RecipeError, match="expected 'fraction' or 'ms'"):
        Limit("latency", 1.0, "bytes")
