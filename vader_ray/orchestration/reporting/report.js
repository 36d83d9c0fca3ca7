/* Curves whose values can be read by pointing at them, the slider over the steps of the videos, and print. */
const page = getComputedStyle(document.documentElement);
const colour = (name, alpha = "") => page.getPropertyValue(name).trim() + alpha;
const FONT = "12px system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
const DASHES = [[], [8, 4], [8, 3, 2, 3], [2, 3]];
const number = value => value == null ? "–" : `${+value.toPrecision(5)}`.replace("-", "−");

/* The line, the band around it, its values before smoothing and its crosses are series of uPlot. */
function seriesOf(line, index, numBefore) {
  const stroke = () => colour(`--series-${index % 6}`), pale = () => colour(`--series-${index % 6}`, "80");
  const dash = DASHES[Math.floor(index / 6) % 4];
  const silent = {label: "", class: "silent", points: {show: false}, spanGaps: true};
  const marked = line.marked.map(at => [line.x[at], line.y[at]]);
  const parts = [
    [line.x, line.y, {label: line.label, stroke, dash, width: 2, spanGaps: true, value: (_, value) => number(value),
                      points: {show: line.x.length <= 40, size: 6, fill: stroke}}],
    ...(line.raw.length ? [[line.x, line.raw, {...silent, stroke: pale, width: 1}]] : []),
    ...(line.high.length ? [[line.x, line.high, {...silent, width: 0}], [line.x, line.low, {...silent, width: 0}]] : []),
    ...(marked.length ? [[marked.map(([x]) => x), marked.map(([, y]) => y),
      {...silent, paths: () => null, points: {show: true, size: 13, width: 2.5, stroke: () => colour("--bad"), fill: "transparent"}}]] : []),
  ];
  const high = numBefore + (line.raw.length ? 2 : 1);
  const bands = line.high.length ? [{series: [high, high + 1], fill: () => colour(`--series-${index % 6}`, "28")}] : [];
  return {parts, bands};
}

/* Index of the value of a series that is nearest to the pointer: lines need not have values at the same steps. */
function nearest(plot, series, index) {
  const values = plot.data[series];
  for (let distance = 0; distance < values.length; distance++)
    for (const at of [index - distance, index + distance]) if (values[at] != null) return at;
  return index;
}

function draw(figure) {
  const chart = JSON.parse(figure.querySelector("script").textContent), holder = figure.querySelector(".chart");
  const tables = [], series = [{label: chart.x, value: (_, value) => number(value)}], bands = [];
  chart.lines.forEach((line, index) => {
    const found = seriesOf(line, index, series.length);
    for (const [x, y, options] of found.parts) { tables.push([x, y]); series.push(options); }
    bands.push(...found.bands);
  });
  const axis = {stroke: () => colour("--soft"), font: FONT, labelFont: FONT, grid: {stroke: () => colour("--line"), width: 1},
                ticks: {stroke: () => colour("--line"), width: 1}, values: (_, ticks) => ticks.map(number)};
  const widest = (_, ticks) => 20 + 7.5 * Math.max(2, ...(ticks || []).map(tick => tick.length));
  const [lowest, highest] = chart.yRange;
  const range = (_, low, high) => {
    const [from, to] = uPlot.rangeNum(low, high, .1, true);
    return [lowest ?? from, highest ?? to];
  };
  const plot = new uPlot({
    title: chart.title, width: holder.clientWidth, height: 270, series, bands,
    scales: {x: {time: false}, y: {range}},
    axes: [{...axis, size: 34, label: chart.x, labelSize: 18}, {...axis, size: widest}],
    cursor: {sync: {key: chart.x}, dataIdx: nearest, y: false, points: {size: 7}},
    legend: {markers: {width: 2}},
  }, tables.length > 1 ? uPlot.join(tables) : tables[0], holder);
  new ResizeObserver(() => plot.setSize({width: holder.clientWidth, height: 270})).observe(holder);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plot.redraw());
}

for (const figure of document.querySelectorAll("figure.curves")) { figure.classList.add("is-drawn"); draw(figure); }

/* Show in each card the video of the last step that is not after the slider's. */
const slider = document.querySelector("#step");
if (slider) {
  const steps = slider.dataset.steps.split(" ").map(Number);
  slider.closest("label").hidden = steps.length < 2;
  slider.addEventListener("input", () => {
    const wanted = steps[slider.value];
    slider.nextElementSibling.value = wanted;
    for (const card of document.querySelectorAll(".card")) {
      const clips = [...card.querySelectorAll("figure")];
      const last = clips.filter(clip => +clip.dataset.step <= wanted).pop() || clips[0];
      for (const clip of clips) clip.hidden = clip !== last;
    }
    for (const row of document.querySelectorAll("[data-in-step]")) row.dispatchEvent(new Event("restart"));
  });
}

/* State below a table that it is wider than the page. */
for (const box of document.querySelectorAll(".box")) new ResizeObserver(() => {
  box.classList.toggle("is-wide", box.scrollWidth > box.clientWidth + 1);
}).observe(box);

/* Settings that are folded on the screen are printed too. */
const folded = () => document.querySelectorAll("details:not([open])");
let opened = [];
addEventListener("beforeprint", () => { opened = [...folded()]; for (const each of opened) each.open = true; });
addEventListener("afterprint", () => { for (const each of opened) each.open = false; });
