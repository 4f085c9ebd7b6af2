# SPDX-License-Identifier: Apache-2.0
"""What a page is made from, and what it carries, without a browser."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="networks to quantize are made with PyTorch")
for library in ("plotly", "jinja2"):
    pytest.importorskip(library, reason=f"{library} is of the extra [report]")

from intonly.core.errors import IntonlyError  # noqa: E402
from intonly.core.ranges import Statistics  # noqa: E402
from intonly.core.records import from_json, recipe_of  # noqa: E402
from intonly.report import html_of, write_report  # noqa: E402
from intonly.report.histograms import BINS, of_array, of_statistics  # noqa: E402
from intonly.report.payload import embedded, payload  # noqa: E402
from intonly.report.search import report_of_search  # noqa: E402
from tests.report.reports import analyzed, of_analysis, of_search, search_part, tied_result  # noqa: E402


def data_of(page: str):
    """Return what the page carries for its script."""
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL).group(1))


def test_the_page_carries_the_records():
    """A chart would show other numbers than the records say."""
    report = of_search()
    data = data_of(html_of(report))
    assert [layer["name"] for layer in data["layers"]] == ["conv1", "conv2", "conv3", "fc"]
    for shown, layer in zip(data["layers"], report.layers, strict=True):
        assert (shown["w"], shown["a"], shown["params"], shown["macs"]) == (
            layer.weight_bits,
            layer.activation_bits,
            layer.params,
            layer.macs,
        )
        assert shown["isolated"]["both"]["output_db"] == pytest.approx(layer.analysis.isolated.both.output_db, rel=1e-5)
        assert sum(shown["hist"]["weights"]["counts"]) == layer.params
    points = data["search"]["points"]
    assert len(points) == 6
    assert [p["costs"][0] for p in points] == sorted(p["costs"][0] for p in points)
    assert points[data["search"]["chosen"]]["w"] == [8, 4, 4, 4]
    assert data["search"]["costs"][0]["baseline"] == 4000


def test_what_is_tied_moves_together():
    """The page would offer a width to one of two layers that read the same value, or one that the recipe fixes."""
    result = tied_result()
    data = data_of(html_of(report_of_search(result, "tied")))["search"]
    named = [({data["layers"][i] for i in g["w"]}, {data["layers"][i] for i in g["a"]}, g["bits"]) for g in data["groups"]]
    assert named == [
        ({"c1"}, set(), [2, 4, 8]),
        (set(), {"c1", "short"}, [4, 8]),
        ({"c2"}, set(), [2, 4, 8]),
        (set(), {"c2"}, [4, 8]),
        ({"short"}, set(), [2, 4, 8]),
    ]


def test_the_plan_on_the_page_is_a_recipe():
    """The text that people copy would not be accepted as a plan, or describe another network."""
    q, _ = analyzed()
    assert recipe_of(json.loads(payload(of_analysis())["plan"])) == q.plan


def test_parts_without_data_are_absent():
    """An analysis without a search would show an empty frontier and a slider without points."""
    page = html_of(of_analysis())
    for part in ("frontier", "sensitivity", "moves"):
        assert f'<section id="{part}"' not in page
        assert f'<section id="{part}"' in html_of(of_search())
    assert 'id="budget"' not in page
    bare = replace(of_analysis(), applied=None, layers=tuple(replace(layer, analysis=None) for layer in of_analysis().layers))
    for part in ("errors", "fixes"):
        assert f'<section id="{part}"' in page
        assert f'<section id="{part}"' not in html_of(bare)


def test_names_cannot_become_markup():
    """A model or layer name would end the script or bring markup of its own into the page."""
    layer = replace(of_analysis().layers[0], name="<img src=x onerror=alert(1)></script>")
    page = html_of(replace(of_analysis(), layers=(layer,)))
    assert "<img src=x" not in page
    assert data_of(page)["layers"][0]["name"] == layer.name
    assert "<odd>" not in page


def test_embedded_data_are_strict_json():
    """A browser would refuse the page's data because of an infinite or endless number."""
    assert json.loads(embedded({"a": float("inf"), "b": [float("nan"), 1 / 3], "c": "</script>"})) == {
        "a": None,
        "b": [None, 0.333333],
        "c": "</script>",
    }
    assert "<" not in embedded("</script>")


def test_counts_in_the_page_are_exact():
    """The table of single bits subtracts costs: six digits of them would show a bit operation's gain wrongly, or none."""
    assert embedded([2_550_136_832.0, 2_550_136_832.0 + 1, -3.0, 1e300, 0.1234567]) == "[2550136832,2550136833,-3,1e+300,0.123457]"


def test_a_report_is_there_completely_or_not_at_all(tmp_path, monkeypatch):
    """A failed write would leave half a page, or destroy the one before."""
    path = tmp_path / "report.html"
    assert write_report(path, of_analysis()) == path.stat().st_size
    old = path.read_bytes()
    assert old.startswith(b"<!doctype html>")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="space"):
        write_report(path, of_search())
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_search_must_fit_its_tables():
    """A frontier over other layers, or a budget without costs, would give a page that fails when it is opened."""
    part = search_part((("a", 10), ("b", 20)))
    with pytest.raises(IntonlyError, match="latency"):
        replace(part, quantity="latency")
    with pytest.raises(IntonlyError, match="'b'"):
        replace(part, chosen=replace(part.chosen, weight_bits={"a": 4}))
    assert part.points().count(part.chosen) == 1
    other = replace(part.chosen, weight_bits={"a": 2, "b": 8})
    assert other in replace(part, chosen=other).points()


def test_histograms_count_everything(rng):
    """A histogram would lose values at its ends, or stand beside the values it counts."""
    w = rng.normal(size=1000)
    h = of_array(w, None)
    assert sum(h.counts) == 1000
    assert h.low == w.min()
    assert h.low + BINS * h.width == pytest.approx(w.max())
    stats = Statistics()
    stats.extend(-1.0, 3.0)
    bins = np.floor(w.clip(-1, 3) / stats.width).astype(int) - stats.start
    np.add.at(stats.counts, bins, 1)
    h = of_statistics(stats, None)
    assert sum(h.counts) == 1000
    middle = h.low + (np.arange(BINS) + 0.5) * h.width
    assert np.average(middle, weights=h.counts) == pytest.approx(w.clip(-1, 3).mean(), abs=h.width)
    constant = of_array(np.full(5, 2.0), None)
    assert sum(constant.counts) == 5


def test_plan_record_round_trip():
    """The page's plan would be another type of record than recipes are."""
    assert from_json(type(analyzed()[0].plan), dict(of_analysis().plan)) == analyzed()[0].plan
