// Curves by uPlot: a healthy range behind them, findings pinned to the point they speak of, and a point that can be
// chosen by mouse or keys.

import { el } from "./shared/dom.js";
import { decimal } from "./shared/numbers.js";

const uPlot = window.uPlot;
const HEIGHT = 150;
export const COLOURS = ["--one", "--two", "--three", "--four"];

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const digits = (value) => (value === 0 || Math.abs(value) >= 0.01 ? decimal(value, 3) : value.toExponential(1).replace("-", "−"));

/**
 * A chart. `series` are { label, x, y } of the same or other x; `range` the healthy one; `choose(x)` is called for a
 * point that was clicked, or chosen with Enter, `peek(x)` for the one under the cursor and with null when it has left.
 */
export function chart({ title, counted, series, range = null, choose = null, peek = null, points = false, keys = false }) {
  const said = el("output", {}, "");
  const box = el("div", { class: "plot" });
  const marks = el("p", { class: "pins" });
  const node = el("figure", { class: "chart card", tabindex: "0", "aria-label": `${title}. Arrow keys move over the ${counted}s${choose ? ", Enter shows the replies" : ""}.` },
    el("figcaption", {}, title, said), keys ? el("p", { class: "legend" }, ...series.map((one, index) => el("span", { class: `c${index + 1}` }, el("i"), one.label))) : null, box, marks);
  let plot = null;
  let pins = [];
  let data = joined(series);
  const last = () => {
    const values = series.map((one) => one.y.findLast((y) => y !== null)).filter((y) => y !== undefined);
    said.textContent = values.map(digits).join(" / ");
  };
  const pointAt = (index) => {
    const there = index !== null && index !== undefined && index in data[0];
    peek?.(there ? data[0][index] : null);
    if (!there) return last();
    const values = data.slice(1).map((row) => row[index]).filter((y) => y !== null && y !== undefined);
    said.textContent = `${counted} ${Number.isInteger(data[0][index]) ? data[0][index] : digits(data[0][index])}: ${values.map(digits).join(" / ")}`;
  };
  const draw = () => {
    plot = new uPlot(options(), data, box);
    box.addEventListener("click", () => choose && plot.cursor.idx !== null && choose(data[0][plot.cursor.idx]));
  };
  const options = () => {
    const ink = colour("--muted");
    const axis = { stroke: ink, grid: { stroke: colour("--grid"), width: 1 }, ticks: { show: false }, font: "11px system-ui", size: 40 };
    return {
      width: Math.max(200, box.clientWidth), height: HEIGHT, legend: { show: false }, cursor: { y: false, drag: { x: false, y: false } },
      scales: { x: { time: false } },
      axes: [{ ...axis, size: 26 }, { ...axis, size: 46, values: (_, ticks) => ticks.map(short) }],
      series: [{}, ...series.map((one, index) => ({ label: one.label, stroke: colour(COLOURS[index % COLOURS.length]), width: 2, spanGaps: true, points: { show: points || one.x.length < 3 } }))],
      hooks: { drawClear: [(u) => shade(u, range)], draw: [(u) => stand(u, pins)], setCursor: [(u) => pointAt(u.cursor.idx)] },
    };
  };
  node.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!plot || (!step && event.key !== "Enter")) return;
    event.preventDefault();
    const now = plot.cursor.idx ?? data[0].length - 1;
    if (!step) return choose?.(data[0][now]);
    const to = Math.min(data[0].length - 1, Math.max(0, now + step));
    plot.setCursor({ left: plot.valToPos(data[0][to], "x"), top: 10 });
  });
  last();
  // Drawn when it comes into view: a run has many metrics, and a page shows a few.
  const seen = new IntersectionObserver(([entry]) => entry.isIntersecting && !plot && draw());
  seen.observe(node);
  const resized = new ResizeObserver(() => plot?.setSize({ width: Math.max(200, box.clientWidth), height: HEIGHT }));
  resized.observe(box);
  return {
    node,
    /** New numbers of the same series. */
    set(next) {
      series = next;
      data = joined(series);
      plot?.setData(data);
      last();
    },
    /** Findings to be pinned to the update at which they began: [{ update, name }]. */
    pin(next) {
      pins = next;
      marks.textContent = pins.map((one) => `▲ ${counted} ${one.update}: ${one.name}`).join(" · ");
      plot?.redraw();
    },
    end() {
      seen.disconnect();
      resized.disconnect();
      plot?.destroy();
    },
  };
}

function joined(series) {
  if (series.length === 1) return [series[0].x, series[0].y];
  return uPlot.join(series.map((one) => [one.x, one.y]));
}

const short = (value) => (Math.abs(value) >= 10000 ? value.toExponential(0) : String(+value.toPrecision(4))).replace("-", "−");

function shade(u, range) {
  if (!range) return;
  const { left, top, width, height } = u.bbox;
  const y = (value) => Math.min(top + height, Math.max(top, u.valToPos(value, "y", true)));
  const high = range[1] === null ? top : y(range[1]);
  const low = range[0] === null ? top + height : y(range[0]);
  u.ctx.save();
  u.ctx.fillStyle = colour("--accent-wash");
  u.ctx.fillRect(left, high, width, Math.max(0, low - high));
  u.ctx.restore();
}

function stand(u, pins) {
  const { top, height } = u.bbox;
  u.ctx.save();
  u.ctx.strokeStyle = u.ctx.fillStyle = colour("--warn");
  for (const one of pins) {
    if (one.update === null) continue;
    const x = u.valToPos(one.update, "x", true);
    u.ctx.setLineDash([4, 4]);
    u.ctx.beginPath();
    u.ctx.moveTo(x, top);
    u.ctx.lineTo(x, top + height);
    u.ctx.stroke();
    u.ctx.setLineDash([]);
    u.ctx.beginPath();
    u.ctx.moveTo(x, top + height - 9);
    u.ctx.lineTo(x - 6, top + height);
    u.ctx.lineTo(x + 6, top + height);
    u.ctx.fill();
  }
  u.ctx.restore();
}

/** How many replies had which score, update by update: darker is more. */
export function heat({ updates, low, high, counts }) {
  const canvas = el("canvas", { class: "heat", role: "img", "aria-label": `Scores of the replies of ${updates.length} updates, from ${decimal(low)} to ${decimal(high)}` });
  canvas.width = updates.length;
  canvas.height = counts[0]?.length ?? 1;
  const ctx = canvas.getContext("2d");
  const most = Math.max(1, ...counts.flat());
  ctx.fillStyle = colour("--accent");
  counts.forEach((bins, x) => bins.forEach((count, bin) => {
    ctx.globalAlpha = count / most;
    ctx.fillRect(x, bins.length - 1 - bin, 1, 1);
  }));
  return el("figure", { class: "chart card" }, el("figcaption", {}, "Scores of the replies", el("output", {}, `${decimal(low)} to ${decimal(high)}, update ${updates[0] ?? "–"} to ${updates.at(-1) ?? "–"}`)), canvas);
}
