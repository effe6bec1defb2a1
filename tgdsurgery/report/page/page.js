"use strict";
// Names come from files of strangers: they are put in by textContent, and into plots only where markup is off.
const data = JSON.parse(document.getElementById("data").textContent);
const layers = data.layers, STEPS = 1e6, BINS = 50, COLUMNS = 240, ROW = 24, MARGIN = 90;
const byName = new Map(layers.map((layer, index) => [layer.name, index]));
const readers = layers.map(() => []);
layers.forEach((layer, index) => layer.producers.forEach(name => readers[byName.get(name)].push(index)));
const $ = id => document.getElementById(id);
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const plain = text => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const percent = share => (100 * share).toFixed(1) + " %";
const counted = (count, what) => count.toLocaleString("en") + " " + what + (count === 1 ? "" : "s");
const what = data.scored === "filters" ? "filter" : "input channel";
let phi = data.phi, chosen = -1, mode = "sorted", rowsOfMap = [], hits = layers.map((_, index) => index);

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// ---- what is below the threshold: sorted once, counted by bisection
const sortedScores = layers.map(layer => Float64Array.from(layer.scores.filter(score => score >= 0)).sort());

function below(scores, value) {
  let low = 0, high = scores.length;
  const limit = value * STEPS;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (scores[middle] < limit) low = middle + 1; else high = middle;
  }
  return low;
}

function trainable(index) {
  const layer = layers[index];
  if (layer.rule === "train") return layer.scores.length;
  if (layer.rule === "freeze") return 0;
  return below(sortedScores[index], layer.rule === null ? phi : layer.rule);
}

function layout(more) {
  const ink = css("--ink"), line = css("--line");
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, size: 12 },
    margin: { l: 50, r: 16, t: 10, b: 40 }, showlegend: false, bargap: 0.05, dragmode: false, ...more,
    xaxis: { gridcolor: line, zerolinecolor: line, fixedrange: true, ...(more.xaxis || {}) },
    yaxis: { gridcolor: line, zerolinecolor: line, fixedrange: true, ...(more.yaxis || {}) },
  };
}
const CONFIG = { displayModeBar: false, responsive: true };
const mark = value => [{ type: "line", x0: value, x1: value, y0: 0, y1: 1, yref: "paper", line: { color: css("--below"), width: 2 } }];

function binned(scores, value) {
  const counts = new Array(BINS).fill(0);
  for (const score of scores) if (score >= 0) counts[Math.min(BINS - 1, Math.floor(score / STEPS * BINS))]++;
  const middles = counts.map((_, bin) => (bin + 0.5) / BINS);
  const colours = middles.map(middle => css(middle < value ? "--below" : "--above"));
  return { type: "bar", x: middles, y: counts, width: 1 / BINS, marker: { color: colours },
    hovertemplate: "score %{x:.2f}: %{y}<extra></extra>" };
}

const everyScore = layers.filter(layer => layer.role === "filter").flatMap(layer => layer.scores);

function drawHistogram() {
  Plotly.react("histogram", [binned(everyScore, phi)], layout({
    height: 220, shapes: mark(phi), xaxis: { title: { text: "KSE of " + what + "s" }, range: [0, 1] },
    yaxis: { title: { text: what + "s" } },
  }), CONFIG);
}

function showShare() {
  let entries = 0, count = 0, scored = 0;
  layers.forEach((layer, index) => {
    const moving = trainable(index);
    entries += moving * layer.entries;
    if (layer.role === "filter") { count += moving; scored += layer.scores.length; }
  });
  $("phi-value").textContent = phi.toFixed(3);
  const share = data.scored === "filters"
    ? percent(entries / data.total) + " of all parameters trainable: " + count.toLocaleString("en") + " of " + counted(scored, what)
    : percent(count / Math.max(scored, 1)) + " of " + counted(scored, what) + " score below phi";
  $("share").textContent = share + ".";
}

// ---- the map
function resampled(values, sort) {
  const all = sort ? [...values].sort((a, b) => a - b) : values;
  if (!all.length) return new Array(COLUMNS).fill(null);
  return Array.from({ length: COLUMNS }, (_, column) => {
    const value = all[Math.min(all.length - 1, Math.floor(column * all.length / COLUMNS))];
    return value < 0 ? null : value;
  });
}

function drawMap() {
  const moved = mode === "moved";
  const shown = layers.map((_, index) => index).filter(index => !moved || layers[index].moved.length);
  const rows = shown.map(index => layers[index]).map(layer => moved
    ? resampled(layer.moved, true)
    : resampled(mode === "sorted" ? layer.scores.filter(score => score >= 0) : layer.scores, mode === "sorted")
      .map(value => value === null ? null : value / STEPS));
  const places = shown.map((_, place) => place);
  const step = Math.max(1, Math.ceil(shown.length / 40));
  const ticks = places.filter(place => place % step === 0);
  const most = moved ? Math.max(1e-12, ...layers.flatMap(layer => layer.moved)) : 1;
  Plotly.react("map", [{
    type: "heatmap", z: rows, y: places, x: Array.from({ length: COLUMNS }, (_, column) => 100 * (column + 0.5) / COLUMNS),
    zmin: 0, zmax: moved ? most : 1, colorscale: "Viridis", reversescale: false, hoverongaps: false,
    customdata: rows.map((row, place) => row.map(() => plain(layers[shown[place]].name))),
    hovertemplate: "%{customdata}<br>" + (moved ? "changed by %{z:.3g} of its norm" : "score %{z:.3f}") + "<extra></extra>",
    colorbar: { title: { text: moved ? "change" : "KSE" }, thickness: 12 },
  }], layout({
    height: Math.max(220, Math.min(1800, 60 + shown.length * 12)),
    margin: { l: 220, r: 16, t: 10, b: 40 },
    xaxis: { title: { text: "% of the layer's channels" + (mode === "ordered" ? "" : ", sorted") }, range: [0, 100] },
    yaxis: { autorange: "reversed", tickvals: ticks, ticktext: ticks.map(place => plain(shortened(layers[shown[place]].name, 30))) },
  }), CONFIG);
  rowsOfMap = shown;
  for (const [id, name] of [["sorted", "sorted"], ["ordered", "ordered"], ["show-moved", "moved"]]) {
    $(id).setAttribute("aria-pressed", String(mode === name));
  }
}

function shortened(text, most) {
  return text.length <= most ? text : "…" + text.slice(text.length - most + 1);
}

// ---- the list with its arcs
function fillList() {
  const list = $("list");
  list.replaceChildren(...hits.map(index => {
    const layer = layers[index], row = element("li", undefined, { role: "option", id: "layer-" + index, title: layer.name });
    row.append(element("span", shortened(layer.name, 30), { class: "name" }), element("span", layer.type, { class: "type" }));
    const bar = element("span", undefined, { class: "bar", "aria-hidden": "true" });
    bar.append(element("i"));
    row.append(bar, element("span", "", { class: "count" }));
    row.addEventListener("click", () => choose(index));
    return row;
  }));
  $("found").textContent = hits.length === layers.length ? counted(layers.length, "layer") : hits.length + " of " + counted(layers.length, "layer");
  drawArcs();
  showCounts();
  markRows();
}

function showCounts() {
  for (const index of hits) {
    const row = $("layer-" + index), size = layers[index].scores.length, moving = trainable(index);
    row.querySelector("i").style.width = (size ? 100 * moving / size : 0) + "%";
    row.querySelector(".count").textContent = moving + " / " + size;
  }
}

function drawArcs() {
  const arcs = $("arcs"), place = new Map(hits.map((index, row) => [index, row * ROW + ROW / 2]));
  arcs.style.height = hits.length * ROW + "px";
  const paths = [];
  for (const index of hits) for (const name of layers[index].producers) {
    const from = byName.get(name);
    if (!place.has(from)) continue;
    const start = place.get(from), end = place.get(index), depth = Math.min(MARGIN - 8, 8 + Math.abs(end - start) / 6);
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", `M${MARGIN} ${start} C${MARGIN - depth} ${start} ${MARGIN - depth} ${end} ${MARGIN} ${end}`);
    path.dataset.from = from;
    path.dataset.to = index;
    paths.push(path);
  }
  arcs.replaceChildren(...paths);
}

function markRows() {
  const feeding = new Set(chosen < 0 ? [] : layers[chosen].producers.map(name => byName.get(name)));
  const reading = new Set(chosen < 0 ? [] : readers[chosen]);
  for (const index of hits) {
    const row = $("layer-" + index);
    row.classList.toggle("reads", feeding.has(index));
    row.classList.toggle("feeds", reading.has(index));
    row.setAttribute("aria-selected", String(index === chosen));
  }
  for (const path of $("arcs").children) {
    path.classList.toggle("reads", Number(path.dataset.to) === chosen);
    path.classList.toggle("feeds", Number(path.dataset.from) === chosen);
  }
}

function choose(index, scroll = true) {
  chosen = index;
  if (!hits.includes(index)) { $("search").value = ""; hits = layers.map((_, i) => i); fillList(); }
  markRows();
  $("list").setAttribute("aria-activedescendant", "layer-" + index);
  const row = $("layer-" + index), frame = $("frame");
  if (scroll && (row.offsetTop < frame.scrollTop || row.offsetTop + ROW > frame.scrollTop + frame.clientHeight)) {
    frame.scrollTop = row.offsetTop - frame.clientHeight / 2;
  }
  showDetail();
}

// ---- one layer
function links(indices) {
  const line = element("div", undefined, { class: "links" });
  for (const index of indices) {
    const button = element("button", layers[index].name, { type: "button" });
    button.addEventListener("click", () => choose(index));
    line.append(button);
  }
  return line;
}

function showDetail() {
  const layer = layers[chosen], detail = $("detail"), list = element("dl");
  const rule = layer.rule === null ? "phi" : layer.rule === "train" || layer.rule === "freeze" ? layer.rule : "phi " + layer.rule;
  const facts = [["type", layer.type], ["weight", layer.shape.join(" x ")],
    [data.scored === "filters" ? "trainable" : "below phi", trainable(chosen) + " of " + layer.scores.length],
    ["decided by", data.scored === "filters" ? rule : ""]];
  for (const [name, value] of facts) if (value) list.append(element("dt", name), element("dd", value));
  detail.replaceChildren(element("h3", layer.name), list);
  if (layer.scores.some(score => score >= 0)) {
    detail.append(element("div", undefined, { id: "layer-histogram", class: "plot" }));
    const value = typeof layer.rule === "number" ? layer.rule : phi;
    Plotly.newPlot("layer-histogram", [binned(layer.scores, value)],
      layout({ height: 180, shapes: mark(value), xaxis: { title: { text: "KSE" }, range: [0, 1] } }), CONFIG);
  } else {
    detail.append(element("p", "No layer reads these channels, so they have no score and stay frozen."));
  }
  if (layer.moved.length) {
    detail.append(element("h4", "What moved, filter by filter"), element("div", undefined, { id: "layer-moved", class: "plot" }));
    Plotly.newPlot("layer-moved", [{ type: "bar", y: layer.moved, marker: { color: css("--feeds") },
      hovertemplate: "filter %{x}: %{y:.3g}<extra></extra>" }],
      layout({ height: 180, xaxis: { title: { text: "filter" } }, yaxis: { title: { text: "change / norm" } } }), CONFIG);
  }
  if (layer.producers.length) detail.append(element("h4", "Fed by"), links(layer.producers.map(name => byName.get(name))));
  if (readers[chosen].length) detail.append(element("h4", "Read by"), links(readers[chosen]));
  if (layer.feeds.length) {
    const table = element("table"), head = element("tr");
    head.append(...["channels", "filters", "channel layers"].map(title => element("th", title)));
    table.append(head, ...layer.feeds.map(feed => {
      const row = element("tr");
      row.append(element("td", feed.channels), element("td", feed.filters.join(", ") || "network input"), element("td", feed.channel_layers.join(", ")));
      return row;
    }));
    const box = element("div", undefined, { class: "wiring", tabindex: "0" });
    box.append(table);
    detail.append(element("h4", "Input channels"), box);
  }
}

// ---- events
function setPhi(value) {
  phi = value;
  showShare();
  drawHistogram();
  showCounts();
  if (chosen >= 0) showDetail();
}
$("phi").addEventListener("input", event => setPhi(Number(event.target.value)));
$("reset").addEventListener("click", () => { $("phi").value = data.phi; setPhi(data.phi); });
for (const [id, name] of [["sorted", "sorted"], ["ordered", "ordered"], ["show-moved", "moved"]]) {
  $(id).addEventListener("click", () => { mode = name; drawMap(); });
}
$("search").addEventListener("input", event => {
  const wanted = event.target.value.toLowerCase();
  hits = layers.map((_, index) => index).filter(index => layers[index].name.toLowerCase().includes(wanted));
  fillList();
});
$("search").addEventListener("keydown", event => {
  if (event.key === "Enter" && hits.length) choose(hits[0]);
  if (event.key === "Escape") { event.target.value = ""; event.target.dispatchEvent(new Event("input")); }
});
$("list").addEventListener("keydown", event => {
  const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: 20, PageUp: -20, Home: -Infinity, End: Infinity };
  if (!(event.key in moves) || !hits.length) return;
  event.preventDefault();
  const here = hits.indexOf(chosen), next = here < 0 ? 0 : here + moves[event.key];
  choose(hits[Math.max(0, Math.min(hits.length - 1, next))]);
});
document.addEventListener("keydown", event => {
  if (event.key === "/" && document.activeElement.tagName !== "INPUT") { event.preventDefault(); $("search").focus(); }
});
function drawAll() {
  drawHistogram();
  drawMap();
  if (chosen >= 0) showDetail();
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);

$("about").textContent = [counted(layers.length, "layer"), counted(data.total, "parameter"),
  ...(data.against ? ["Compared with " + data.against] : []), ...data.notes].join(". ");
$("phi").value = phi;
$("show-moved").hidden = !layers.some(layer => layer.moved.length);
showShare();
fillList();
drawAll();
$("map").on("plotly_click", event => choose(rowsOfMap[event.points[0].y]));
if (layers.length) choose(0, false);
