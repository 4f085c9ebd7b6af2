// SPDX-License-Identifier: Apache-2.0
// Draws the charts of a report from the data in the page, and lets a reader move along the frontier.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const search = data.search;
  const byId = (id) => document.getElementById(id);
  const narrow = matchMedia("(max-width: 640px)");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const config = { displayModeBar: false, responsive: true };
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const noise = (layer) => (layer.isolated && layer.isolated.both.output_db !== null ? -layer.isolated.both.output_db : -Infinity);
  const worst = data.layers.reduce((best, layer, i) => (noise(layer) > noise(data.layers[best]) ? i : best), 0);
  const state = { point: search ? search.chosen : 0, layer: worst, place: "output_db", width: search ? search.weight_bits[0] : 0 };

  const number = (x) => {
    if (x === null || x === undefined) return "–";
    const size = Math.abs(x);
    if (size >= 1e5 && Number.isInteger(x)) return x.toLocaleString("en-US");
    if (size >= 1000) return Math.round(x).toLocaleString("en-US");
    return size !== 0 && (size < 0.001) ? x.toExponential(2) : String(Number(x.toPrecision(4)));
  };
  const signed = (x) => (x > 0 ? "+" : x < 0 ? "−" : "±") + number(Math.abs(x));

  function layout(changes) {
    const axis = { gridcolor: color("grid"), zerolinecolor: color("line"), linecolor: color("line"), automargin: true, fixedrange: true };
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: color("ink"), size: 12, family: "inherit" },
      margin: { l: 48, r: 12, t: 8, b: 40 }, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, hovermode: "closest",
      hoverlabel: { bgcolor: color("card"), bordercolor: color("line"), font: { color: color("ink") } }, dragmode: false,
      ...changes,
      xaxis: { ...axis, ...(changes.xaxis || {}) }, yaxis: { ...axis, ...(changes.yaxis || {}) },
    };
  }
  const draw = (id, traces, changes) => Plotly.react(id, traces, layout(changes), config);

  // Layers run across a wide page and down a narrow one.
  function byLayer(id, series, names, title, extra) {
    const down = narrow.matches;
    byId(id).style.height = down ? `${Math.max(240, names.length * 30 + 90)}px` : "";
    const labels = names.map((name) => (name.length > 18 ? `…${name.slice(-17)}` : name));
    const places = names.map((_, i) => i);
    const traces = series.map((s) => ({
      ...s.trace, name: s.name, orientation: down && s.trace.type === "bar" ? "h" : undefined,
      x: down ? s.values : places, y: down ? places : s.values, customdata: names,
      hovertemplate: `%{customdata}<br>${s.name}: %{${down ? "x" : "y"}:.4~g}<extra></extra>`,
    }));
    const steps = { tickmode: "array", tickvals: places, ticktext: labels, showgrid: false, zeroline: false, range: [-0.6, names.length - 0.4] };
    const values = { title: { text: title }, ...(extra || {}) };
    if (down) draw(id, traces, { xaxis: { ...values, side: "bottom" }, yaxis: { ...steps, range: [names.length - 0.4, -0.6] }, margin: { l: 40, r: 8, t: 8, b: 40 } });
    else draw(id, traces, { xaxis: { ...steps, tickangle: names.length > 8 ? -45 : 0 }, yaxis: values });
  }

  function widths() {
    const names = data.layers.map((layer) => layer.name);
    let w = data.layers.map((layer) => layer.w);
    let a = data.layers.map((layer) => layer.a);
    if (search) {
      const point = search.points[state.point];
      return { names: search.layers, w: point.w, a: point.a };
    }
    return { names, w, a };
  }

  function drawBits() {
    const { names, w, a } = widths();
    byLayer("bits-chart", [
      { name: "weights", values: w, trace: { type: "bar", marker: { color: color("weights") } } },
      { name: "input activations", values: a, trace: { type: "bar", marker: { color: color("activations") } } },
    ], names, "bits", { range: [0, 8.4], dtick: 2 });
  }

  function costText(k, x) {
    const table = search.costs[k];
    const share = table.baseline > 0 ? ` (${number(100 * x / table.baseline)} % of W8A8)` : "";
    return `${number(x)} ${table.unit}${share}`;
  }
  const axisCost = () => search.costs.findIndex((table) => table.quantity === search.quantity);

  function drawPredicted() {
    const point = search.points[state.point];
    const slider = byId("budget");
    slider.value = state.point;
    const costs = search.costs.map((table, k) => `${table.quantity} ${costText(k, point.costs[k])}`);
    const text = `${costs.join(" · ")} · predicted loss ${number(point.loss)} ${search.unit}${state.point === search.chosen ? " · this is the chosen plan" : ""}`;
    byId("predicted").textContent = text;
    slider.setAttribute("aria-valuetext", text);
    byId("to-chosen").disabled = state.point === search.chosen;
  }

  function drawFrontier() {
    const k = axisCost();
    const table = search.costs[k];
    const x = search.points.map((p) => p.costs[k]);
    const y = search.points.map((p) => p.loss);
    const label = search.points.map((p) => `${costText(k, p.costs[k])}<br>loss ${number(p.loss)} ${search.unit}`);
    const mark = (i, name, symbol, tint, size) => ({
      type: "scatter", mode: "markers", name, x: [x[i]], y: [y[i]], text: [label[i]], hovertemplate: "%{text}<extra></extra>",
      marker: { size, symbol, color: tint, line: { width: 2, color: color("card") } },
    });
    draw("frontier-chart", [
      { type: "scatter", mode: "lines+markers", name: "best for its budget", x, y, text: label, hovertemplate: "%{text}<extra></extra>", line: { color: color("weights"), shape: "hv", width: 1.5 }, marker: { size: 6, color: color("weights") } },
      mark(search.chosen, "chosen", "star", color("activations"), 16),
      mark(state.point, "shown", "circle-open", color("ink"), 15),
    ], { xaxis: { title: { text: `${search.quantity}, ${table.unit}` } }, yaxis: { title: { text: `loss, ${search.unit}` }, type: Math.min(...y) > 0 && Math.max(...y) > 20 * Math.min(...y) ? "log" : "linear", exponentformat: "power" } });
  }

  function drawSensitivity() {
    const at = search.weight_bits.indexOf(state.width);
    const params = Object.fromEntries(data.layers.map((layer) => [layer.name, layer.params]));
    const point = search.points[state.point];
    const shown = search.layers.map((name, i) => ({ name, x: params[name], y: search.weight_loss[i][at], bits: point.w[i] })).filter((p) => p.x > 0 && p.y > 0);
    const kinds = [...new Set(shown.map((p) => p.bits))].sort((p, q) => p - q);
    draw("sensitivity-chart", kinds.map((bits, i) => {
      const mine = shown.filter((p) => p.bits === bits);
      return {
        type: "scatter", mode: "markers", name: `now ${bits} bits`, x: mine.map((p) => p.x), y: mine.map((p) => p.y), text: mine.map((p) => p.name),
        hovertemplate: "%{text}<br>%{x:,} parameters<br>loss %{y:.3~g}<extra></extra>",
        marker: { size: 8 + 1.2 * bits, color: [color("activations"), color("both"), color("weights"), color("soft")][i % 4], symbol: ["circle", "diamond", "square", "triangle-up", "cross"][i % 5], line: { width: 1, color: color("card") } },
      };
    }), { xaxis: { title: { text: "parameters" }, type: "log" }, yaxis: { title: { text: `loss at ${state.width} bits` }, type: "log", exponentformat: "power" } });
  }

  function costOf(table, w, a) {
    return Math.max(...table.rows.map((row) => row.constant + row.cost.reduce((sum, matrix, i) => sum + matrix[search.weight_bits.indexOf(w[i])][search.activation_bits.indexOf(a[i])], 0)));
  }

  // For each width that is up for choice, the next wider and the next narrower one on offer: change of loss, change of costs.
  // What is tied moves together: all layers of a group, in one row.
  function moves() {
    const { w, a } = search.points[state.point];
    const base = search.costs.map((table) => costOf(table, w, a));
    const lossAt = (losses, widths_, i, bits) => losses[i][widths_.indexOf(bits)];
    const found = [];
    for (const group of search.groups) {
      const from = group.w.length ? w[group.w[0]] : a[group.a[0]];
      const next = [group.bits.filter((bits) => bits < from).pop(), group.bits.find((bits) => bits > from)];
      for (const to of next.filter((bits) => bits !== undefined)) {
        const moved = { w: w.slice(), a: a.slice() };
        let loss = 0;
        for (const [k, losses, widths_] of [["w", search.weight_loss, search.weight_bits], ["a", search.activation_loss, search.activation_bits]]) {
          for (const i of group[k]) {
            moved[k][i] = to;
            loss += lossAt(losses, widths_, i, to) - lossAt(losses, widths_, i, from);
          }
        }
        const costs = search.costs.map((table, k) => costOf(table, moved.w, moved.a) - base[k]);
        const layers = [...new Set([...group.w, ...group.a])].map((i) => search.layers[i]);
        const what = group.w.length ? (group.a.length ? "weights, input" : "weights") : "input";
        found.push({ layers, what, from, to, loss, costs });
      }
    }
    return found;
  }

  function drawMoves() {
    const table = byId("moves-table");
    const cell = (kind, text, mark) => {
      const made = document.createElement(kind);
      made.textContent = text;
      if (mark) made.className = mark;
      if (kind === "th") made.scope = "row";
      return made;
    };
    const head = document.createElement("tr");
    for (const title of ["layer", "of", "bits", `loss, ${search.unit}`, ...search.costs.map((t) => `${t.quantity}, ${t.unit}`)]) {
      const th = cell("th", title);
      th.scope = "col";
      head.append(th);
    }
    const rows = moves().filter((m) => m.loss !== 0 || m.costs.some((c) => c !== 0)).map((m) => {
      const row = document.createElement("tr");
      const better = (x) => (x < 0 ? "gain" : x > 0 ? "loss" : "");
      const name = cell("th", m.layers.length > 3 ? `${m.layers[0]} and ${m.layers.length - 1} more` : m.layers.join(" + "));
      name.title = m.layers.join("\n");
      row.append(name, cell("td", m.what), cell("td", `${m.from} → ${m.to}`), cell("td", signed(m.loss), better(m.loss)), ...m.costs.map((c) => cell("td", signed(c), better(c))));
      return row;
    });
    const thead = document.createElement("thead");
    const tbody = document.createElement("tbody");
    thead.append(head);
    tbody.append(...rows);
    table.replaceChildren(thead, tbody);
  }

  function drawErrors() {
    const layers = data.layers.filter((layer) => layer.isolated);
    const series = [];
    for (const [part, name] of [["weights", "weights"], ["activations", "activations"], ["both", "both"]]) {
      const values = (scope) => layers.map((layer) => layer[scope][part][state.place]);
      series.push({ name: `${name}, alone`, values: values("isolated"), trace: { type: "scatter", mode: "markers", legendgroup: name, marker: { color: color(name), size: 9, symbol: { weights: "circle", activations: "diamond", both: "square" }[part] } } });
      series.push({ name: `${name}, from the start`, values: values("accumulated"), trace: { type: "scatter", mode: "lines", legendgroup: name, line: { color: color(name), width: 2, dash: { weights: "solid", activations: "dash", both: "solid" }[part] } } });
    }
    byLayer("errors-chart", series, layers.map((layer) => layer.name), "SQNR, dB", {});
  }

  function drawHistogram(id, what, h) {
    const box = byId(id);
    if (!h) {
      box.hidden = true;
      return;
    }
    box.hidden = false;
    const x = h.counts.map((_, i) => h.low + (i + 0.5) * h.width);
    const lines = (h.limits || []).map((at) => ({ type: "line", x0: at, x1: at, yref: "paper", y0: 0, y1: 1, line: { color: color("ink"), width: 1.5, dash: "dot" } }));
    const ends = [h.low, h.low + h.counts.length * h.width, ...(h.limits || [])];
    const room = 0.03 * (Math.max(...ends) - Math.min(...ends));
    draw(id, [{ type: "bar", x, y: h.counts, width: x.map(() => h.width), marker: { color: color(what === "weights" ? "weights" : "activations") }, hovertemplate: "%{x:.3~g}: %{y}<extra></extra>" }],
      { bargap: 0, showlegend: false, shapes: lines, xaxis: { title: { text: h.limits.length ? `${what} (dotted: limits of the format)` : what }, range: [Math.min(...ends) - room, Math.max(...ends) + room] }, yaxis: { type: "log", dtick: 1, exponentformat: "power", title: { text: "count" } }, margin: { l: 44, r: 8, t: 8, b: 44 } });
  }

  function drawLayer() {
    const hist = data.layers[state.layer].hist;
    drawHistogram("weights-chart", "weights", hist.weights);
    drawHistogram("inputs-chart", "inputs", hist.inputs);
    byId("layer-select").value = state.layer;
    for (const row of document.querySelectorAll("#layer-table tbody tr")) row.classList.toggle("selected", Number(row.dataset.layer) === state.layer);
    const row = document.querySelector("#layer-table tr.selected");
    const list = row.closest(".wide");
    const head = list.querySelector("thead").offsetHeight;
    if (row.offsetTop - head < list.scrollTop) list.scrollTop = row.offsetTop - head;
    if (row.offsetTop + row.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = row.offsetTop + row.offsetHeight - list.clientHeight;
    for (const box of document.querySelectorAll(".findings")) box.hidden = Number(box.dataset.layer) !== state.layer;
  }

  function show(point) {
    state.point = point;
    drawPredicted();
    drawBits();
    drawFrontier();
    drawSensitivity();
    drawMoves();
  }

  function select(layer, scroll) {
    if (!byId("detail") || layer < 0) return;
    state.layer = layer;
    drawLayer();
    if (scroll) byId("detail").scrollIntoView({ block: "nearest" });
  }

  function everything() {
    if (search) show(state.point);
    else drawBits();
    if (byId("errors-chart")) drawErrors();
    if (byId("detail")) drawLayer();
  }

  function onPoint(id, act) {
    byId(id).on("plotly_click", (event) => act(event.points[0]));
  }

  async function copyPlan() {
    const text = byId("plan-text");
    const range = document.createRange();
    range.selectNodeContents(text);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    let done = document.execCommand("copy");
    if (!done && navigator.clipboard) done = await navigator.clipboard.writeText(data.plan).then(() => true, () => false);
    byId("copied").textContent = done ? "Copied." : "The text is selected; copy it with your keyboard.";
  }

  if (search) {
    const slider = byId("budget");
    slider.max = search.points.length - 1;
    slider.disabled = search.points.length < 2;
    slider.addEventListener("input", () => show(Number(slider.value)));
    byId("to-chosen").addEventListener("click", () => show(search.chosen));
    const controls = byId("sensitivity-controls");
    for (const bits of search.weight_bits) {
      const label = document.createElement("label");
      const input = document.createElement("input");
      Object.assign(input, { type: "radio", name: "width", value: bits, checked: bits === state.width });
      input.addEventListener("change", () => { state.width = bits; drawSensitivity(); });
      label.append(input, `${bits} bit${bits > 1 ? "s" : ""}`);
      controls.append(label);
    }
  }
  for (const input of document.querySelectorAll("input[name=place]")) input.addEventListener("change", () => { state.place = input.value; drawErrors(); });
  for (const button of document.querySelectorAll("button[data-layer]")) button.addEventListener("click", () => select(Number(button.dataset.layer), true));
  if (byId("layer-select")) byId("layer-select").addEventListener("change", (event) => select(Number(event.target.value), false));
  byId("copy").addEventListener("click", copyPlan);
  everything();
  const named = (point) => data.layers.findIndex((layer) => layer.name === point.customdata);
  onPoint("bits-chart", (point) => select(named(point), true));
  if (byId("errors-chart")) onPoint("errors-chart", (point) => select(named(point), true));
  if (search) onPoint("frontier-chart", (point) => { if (point.curveNumber === 0) show(point.pointIndex); });
  dark.addEventListener("change", everything);
  narrow.addEventListener("change", everything);
  document.documentElement.dataset.ready = "yes";
})();
