// The dashboard's plots, drawn as SVG elements. Coordinates across are per cent, so a plot is as wide as its place and
// its text is never scaled; the numbers stand beside every plot as text too.

const SVG = "http://www.w3.org/2000/svg";

function shape(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/**
 * An estimate with its interval on a line from `from` to `to`; `reference` is where "nothing is going on" lies. With
 * `warn`, an interval that leaves it is drawn in the colour of a warning.
 */
export function range({ value, low, high }, { from = 0, to = 1, reference = null, warn = false, label }) {
  const x = (number) => `${(100 * Math.min(1, Math.max(0, (number - from) / (to - from || 1)))).toFixed(2)}%`;
  const parts = [shape("line", { x1: "0%", x2: "100%", y1: 11, y2: 11, class: "axis" })];
  if (reference !== null) parts.push(shape("line", { x1: x(reference), x2: x(reference), y1: 2, y2: 20, class: "reference" }));
  parts.push(shape("line", { x1: x(low), x2: x(high), y1: 11, y2: 11, class: "interval" }), shape("circle", { cx: x(value), cy: 11, r: 4.5, class: "estimate" }));
  const off = warn && (low > reference || high < reference);
  return shape("svg", { class: `range${off ? " off" : ""}`, width: "100%", height: 22, role: "img", "aria-label": label }, ...parts);
}

/** One bar a day; `days` are { day, labels, people }. */
export function bars(days) {
  const most = Math.max(1, ...days.map((day) => day.labels));
  const height = 120;
  const wide = 100 / days.length;
  const columns = days.map((day, index) => {
    const tall = Math.round((height * day.labels) / most);
    const words = `${day.day}: ${day.labels} labels by ${day.people} ${day.people === 1 ? "person" : "people"}`;
    return shape("rect", {
      x: `${(index * wide + 0.12 * wide).toFixed(2)}%`, width: `${(0.76 * wide).toFixed(2)}%`, y: height - tall + 14, height: Math.max(tall, day.labels ? 1 : 0), rx: 2, class: "bar",
    }, shape("title", {}, words));
  });
  const text = (attributes, words) => shape("text", attributes, words);
  const sum = days.reduce((total, day) => total + day.labels, 0);
  return shape("svg", { class: "bars", width: "100%", height: height + 36, role: "img", "aria-label": `${sum} labels in ${days.length} days, at most ${most} a day` },
    shape("line", { x1: 0, x2: "100%", y1: 14, y2: 14, class: "grid" }), ...columns,
    shape("line", { x1: 0, x2: "100%", y1: height + 14, y2: height + 14, class: "axis" }),
    text({ x: 0, y: 10 }, String(most)), text({ x: 0, y: height + 31 }, days[0].day), text({ x: "100%", y: height + 31, "text-anchor": "end" }, days.at(-1).day));
}
