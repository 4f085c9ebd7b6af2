# SPDX-License-Identifier: Apache-2.0
"""The page in a browser: everything is there, the slider moves the bars, nothing is asked of the network."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch", reason="networks to quantize are made with PyTorch")
for library in ("plotly", "jinja2"):
    pytest.importorskip(library, reason=f"{library} is of the extra [report]")

from intonly.report import write_report  # noqa: E402
from intonly.report.search import report_of_search  # noqa: E402
from tests.report.browser import Browser, chromium  # noqa: E402
from tests.report.reports import TITLE, of_analysis, of_comparison, of_result, of_search, tied_result  # noqa: E402

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium: apt-get install chromium, or set INTONLY_CHROMIUM")

SIZES = ((1280, 900), (390, 844))
BARS = "[...document.querySelectorAll('#bits-chart .bars .point path')].map(p => p.getAttribute('d')).join()"


@pytest.fixture(scope="module")
def browser():
    """Return a browser that all tests share."""
    with Browser(chromium()) as made:
        yield made


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Return the files of both reports."""
    folder = tmp_path_factory.mktemp("pages")
    paths = {"analysis": folder / "analysis.html", "search": folder / "search.html", "result": folder / "result.html"}
    paths["comparison"] = folder / "comparison.html"
    write_report(paths["analysis"], of_analysis())
    write_report(paths["search"], of_search())
    write_report(paths["result"], of_result())
    write_report(paths["comparison"], of_comparison())
    paths["tied"] = folder / "tied.html"
    write_report(paths["tied"], report_of_search(tied_result(), "tied"))
    return paths


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", SIZES, ids=["desk", "phone"])
@pytest.mark.parametrize("kind", ["analysis", "search", "result", "comparison"])
def test_the_page_opens_without_complaint_or_network(browser, pages, kind, size, dark):
    """The page would print errors, ask for something outside, leave a chart empty, or be wider than the screen."""
    browser.open(pages[kind], width=size[0], height=size[1], dark=dark)
    assert browser.evaluate("document.documentElement.dataset.ready") == "yes"
    assert browser.messages == []
    assert browser.requests == [pages[kind].resolve().as_uri()]
    assert browser.evaluate("document.documentElement.scrollWidth") <= size[0]
    charts = browser.evaluate(
        "[...document.querySelectorAll('.chart')].filter(c => !c.hidden).map(c => [c.id, !!c.querySelector('svg .trace, svg .bars')])"
    )
    assert len(charts) == {"analysis": 4, "search": 6, "result": 5, "comparison": 5}[kind]
    assert all(drawn for _, drawn in charts), charts
    ink, paper = (browser.evaluate(f"getComputedStyle(document.body).{p}") for p in ("color", "backgroundColor"))
    brightness = [sum(map(int, c[4:-1].split(","))) for c in (ink, paper)]
    assert (brightness[0] > brightness[1]) == dark


def test_everything_that_was_promised_is_on_the_page(browser, pages):
    """A section, a tile, a layer, a cause or a fix would be missing."""
    browser.open(pages["search"])
    text = browser.evaluate("document.body.innerText")
    for word in ("SQNR", "Size", "Latency of one image", "ratio 0.25", "holds", "conv1", "width too small", "kept", "Graph digest"):
        assert word in text
    sections = browser.evaluate("[...document.querySelectorAll('main > section')].map(s => s.id)")
    assert sections == ["summary", "bits", "frontier", "sensitivity", "moves", "errors", "fixes", "layers", "certificate", "plan"]
    broken = browser.evaluate("[...document.querySelectorAll('nav a')].filter(a => !document.querySelector(a.getAttribute('href'))).length")
    assert broken == 0
    assert browser.evaluate("document.title").startswith("searched")


def test_a_search_alone_stands_beside_w8a8(browser, pages):
    """The report of a search would take W8A8 for float, hide what the plan was asked to keep, or show errors nobody measured."""
    browser.open(pages["result"])
    sections = browser.evaluate("[...document.querySelectorAll('main > section')].map(s => s.id)")
    assert sections == ["summary", "bits", "frontier", "sensitivity", "moves", "layers", "certificate", "plan"]
    text = browser.evaluate("document.querySelector('main').textContent")
    for word in ("W8A8: 2,000 bytes, ratio 0.50", "float: 90.10 %", "proven best", "size at most 1,000 bytes", "a note", "bb"):
        assert word in text
    assert browser.evaluate("document.getElementById('budget').max") == "5"
    browser.evaluate("document.querySelector('button[data-layer=\"1\"]').click()")
    assert browser.evaluate("document.getElementById('weights-chart').data[0].y.reduce((a, b) => a + b)") == of_result().layers[1].params


def test_compared_plans_show_where_they_differ(browser, pages):
    """A reader would see that metrics disagree, but not about which layers, nor what their plans are worth."""
    browser.open(pages["comparison"])
    rows = "[...document.querySelectorAll('#{0} tbody tr')].map(r => [...r.children].map(c => c.textContent))"
    found = of_comparison().disagreement
    contenders = browser.evaluate(rows.format("contenders"))
    assert [row[0] for row in contenders] == ["W8A8", "test metric", "another metric", "size", "kl"]
    assert contenders[2][1:] == ["1,010", "–", "89", "98", "29.0", "1.10"]  # noqa: RUF001
    assert browser.evaluate("document.querySelector('#contenders tr.selected th').textContent") == "test metric"
    disputed = browser.evaluate(rows.format("disputed"))
    assert [row[0] for row in disputed] == [layer.name for layer in found.layers]
    assert 0 < len(disputed) < len(of_comparison().layers)
    assert [list(map(int, row[1:])) for row in disputed] == [[w for w, _ in layer.widths] for layer in found.layers]
    ranks = browser.evaluate(rows.format("ranks"))
    assert [row[1 + k] for k, row in enumerate(ranks)] == ["1", "1", "–", "1"]  # noqa: RUF001
    assert ranks[0][2] == "-1"


def test_odd_titles_are_text(browser, pages):
    """A title with markup would be run instead of shown."""
    browser.open(pages["analysis"])
    assert browser.evaluate("document.querySelector('h1').textContent") == TITLE
    assert browser.evaluate("document.querySelectorAll('odd').length") == 0


def test_the_slider_moves_bars_and_predictions(browser, pages):
    """Moving the budget would leave the bars, the predicted cost and loss, or the table of single bits as they were."""
    browser.open(pages["search"])
    part = of_search().search
    points = part.points()

    def seen():
        words = ("document.getElementById('predicted').textContent", BARS, "document.getElementById('moves-table').innerText")
        return [browser.evaluate(word) for word in words]

    first = seen()
    assert "chosen plan" in first[0]
    last = len(points) - 1
    browser.evaluate(f"(() => {{ const s = document.getElementById('budget'); s.value = {last}; s.dispatchEvent(new Event('input')); }})()")
    moved = seen()
    assert all(a != b for a, b in zip(first, moved, strict=True))
    table = part.table()
    cost = table.cost(points[last].weight_bits, points[last].activation_bits)
    assert f"{cost:,.0f}" in moved[0]
    assert "% of W8A8" in moved[0]
    drawn = browser.evaluate("document.getElementById('bits-chart').data.map(t => [...t.y])")
    names = part.sensitivity.layers
    assert drawn == [[points[last].weight_bits[n] for n in names], [points[last].activation_bits[n] for n in names]]
    browser.evaluate("document.getElementById('to-chosen').click()")
    assert seen() == first


def test_keys_move_the_slider(browser, pages):
    """Someone without a mouse could not move the budget or choose a layer."""
    browser.open(pages["search"])
    before = browser.evaluate("document.getElementById('budget').value")
    browser.evaluate("document.getElementById('budget').focus()")
    browser.press("ArrowRight", 39)
    assert int(browser.evaluate("document.getElementById('budget').value")) == int(before) + 1
    assert "loss" in browser.evaluate("document.getElementById('budget').getAttribute('aria-valuetext')")
    reachable = browser.evaluate("[...document.querySelectorAll('button,input,select,a,.wide,pre')].filter(e => e.tabIndex < 0).length")
    assert reachable == 0


def test_one_bit_more_is_what_the_tables_say(browser, pages):
    """The table would promise other gains and costs than the solver worked with."""
    browser.open(pages["search"])
    part = of_search().search
    chosen = part.chosen
    rows = browser.evaluate("[...document.querySelectorAll('#moves-table tbody tr')].map(r => [...r.cells].map(c => c.textContent))")
    row = next(r for r in rows if r[0] == "conv2" and r[1] == "weights" and r[2] == "4 → 8")
    other = {**chosen.weight_bits, "conv2": 8}
    loss = part.sensitivity.loss(other, chosen.activation_bits) - part.sensitivity.loss(chosen.weight_bits, chosen.activation_bits)
    costs = [t.cost(other, chosen.activation_bits) - t.cost(chosen.weight_bits, chosen.activation_bits) for t in part.costs]
    shown = [float(cell.replace("\N{MINUS SIGN}", "-").replace(",", "")) for cell in row[3:]]
    assert shown == pytest.approx([loss, *costs], rel=1e-3)
    assert shown[0] < 0 < shown[1]


def test_a_tied_move_is_what_the_tables_say_of_all_its_layers(browser, pages):
    """The table would promise half of what a move costs, for a width that one layer cannot have alone."""
    browser.open(pages["tied"])
    result = tied_result()
    chosen, table = result.allocation, result.sensitivity
    rows = browser.evaluate("[...document.querySelectorAll('#moves-table tbody tr')].map(r => [...r.cells].map(c => c.textContent))")
    assert {row[0] for row in rows} == {"c1", "c1 + short", "c2", "short"}
    row = next(r for r in rows if r[0] == "c1 + short")
    before, after = (int(bits) for bits in row[2].split(" → "))
    assert row[1] == "input" and before == chosen.activation_bits["c1"] == chosen.activation_bits["short"]
    other = {**chosen.activation_bits, "c1": after, "short": after}
    loss = table.loss(chosen.weight_bits, other) - table.loss(chosen.weight_bits, chosen.activation_bits)
    costs = [t.cost(chosen.weight_bits, other) - t.cost(chosen.weight_bits, chosen.activation_bits) for t in result.problem.costs]
    shown = [float(cell.lstrip("±").replace("\N{MINUS SIGN}", "-").replace(",", "")) for cell in row[3:]]
    assert shown[0] == pytest.approx(loss, rel=1e-3)
    assert shown[1:] == [round(cost) for cost in costs], "counts are exact"
    head = browser.evaluate("[...document.querySelectorAll('#moves-table thead th')].map(c => c.textContent)")
    assert head[4:] == [f"{t.quantity}, {t.unit}" for t in result.problem.costs]


def test_layers_show_their_histograms_and_causes(browser, pages):
    """Choosing a layer would not change the histograms, or show the causes of another one."""
    browser.open(pages["analysis"])
    counts = "document.getElementById('weights-chart').data[0].y.reduce((a, b) => a + b)"
    params = {layer.name: layer.params for layer in of_analysis().layers}
    assert browser.evaluate("document.querySelector('#layer-table tr.selected th').innerText") == "conv3"  # the noisiest
    assert browser.evaluate(counts) == params["conv3"]
    assert "width too small" in browser.evaluate("document.getElementById('detail').innerText")
    browser.evaluate("document.querySelector('button[data-layer=\"1\"]').click()")
    assert browser.evaluate(counts) == params["conv2"]
    assert "width too small" not in browser.evaluate("document.getElementById('detail').innerText")
    browser.evaluate(
        "(() => { const s = document.getElementById('layer-select'); s.value = '3'; s.dispatchEvent(new Event('change')); })()"
    )
    assert browser.evaluate(counts) == params["fc"]
    assert browser.evaluate("document.querySelector('#layer-table tr.selected th').innerText") == "fc"


def test_errors_can_be_seen_at_the_layer(browser, pages):
    """The switch between the network's output and the layer would do nothing."""
    browser.open(pages["analysis"])
    read = "document.getElementById('errors-chart').data.map(t => [...t.y])"
    isolated = [layer.analysis.isolated.both for layer in of_analysis().layers]
    assert browser.evaluate(read)[4] == pytest.approx([e.output_db for e in isolated], rel=1e-5)
    browser.evaluate("document.querySelector('input[value=layer_db]').click()")
    assert browser.evaluate(read)[4] == pytest.approx([e.layer_db for e in isolated], rel=1e-5)


def test_the_plan_can_be_copied(browser, pages):
    """The button would not select the plan, or not say what happened."""
    browser.open(pages["analysis"])
    browser.evaluate("document.getElementById('copy').click()")
    chosen = browser.evaluate("getSelection().toString()")
    assert json.loads(chosen)["rules"][2]["weight_bits"] == 2
    assert browser.evaluate("document.getElementById('copied').textContent") != ""


def test_colours_and_shape_follow_the_system(browser, pages):
    """A page that is open would keep light charts in dark mode, or a wide chart on a narrow window."""
    browser.open(pages["search"])
    colour = "document.getElementById('bits-chart').data[0].marker.color"
    light = browser.evaluate(colour)
    browser.darken(True)
    assert browser.evaluate(f"new Promise(done => requestAnimationFrame(() => setTimeout(() => done({colour}), 50)))") != light
    assert browser.evaluate("document.getElementById('bits-chart').data[0].orientation || 'v'") == "v"
    browser.resize(390, 844)
    ask = "new Promise(done => setTimeout(() => done(document.getElementById('bits-chart').data[0].orientation), 200))"
    assert browser.evaluate(ask) == "h"
    assert browser.messages == []
