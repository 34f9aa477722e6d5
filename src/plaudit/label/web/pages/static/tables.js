// The dashboard's tables, each from its part of the dashboard's dict (label/dashboard.py says what is in it).

import { range } from "./charts.js";
import { el } from "./dom.js";
import { decimal, percent, shareInWords, whole } from "./numbers.js";

/** A table that scrolls inside its own box when it is wider than the page. */
export function table(caption, heads, rows) {
  const head = el("tr", {}, ...heads.map((head) => el("th", { scope: "col", class: head.startsWith("#") ? "num" : "" }, head.replace("#", ""))));
  const cell = (value, index) => {
    if (value instanceof Node && value.tagName === "TD") return value;
    return el(index === 0 ? "th" : "td", { ...(index === 0 ? { scope: "row" } : {}), class: heads[index].startsWith("#") ? "num" : "" }, value);
  };
  return el("div", { class: "wide card", tabindex: "0", role: "region", "aria-label": caption },
    el("table", {}, el("caption", { class: "unseen" }, caption), el("thead", {}, head), el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map(cell))))));
}

/** A share as plot and words, in one cell. */
function plotted(name, share, { reference = null, warn = false } = {}) {
  if (!share) return el("td", { class: "plotted" }, el("span", { class: "aside" }, "too few labels"));
  const words = shareInWords(share);
  return el("td", { class: "plotted" }, range({ value: share.share, ...share }, { reference, warn, label: `${name}: ${words}` }),
    el("small", {}, percent(share.share)), el("small", {}, `${Math.round(100 * share.low)} to ${Math.round(100 * share.high)}, n = ${whole(share.n)}`));
}

export function qualityTable(people) {
  const rows = people.filter((person) => person.labels).map((person) => [
    person.name,
    plotted("Gold right", person.gold),
    plotted("Agrees with others", person.others),
    plotted("Agrees with themselves", person.self),
    plotted("Earlier reply wins", person.earlier_wins, { reference: 0.5, warn: true }),
    plotted("Longer reply wins", person.longer_wins, { reference: 0.5 }),
    plotted("Too fast", person.too_fast),
    decimal(person.reliability),
  ]);
  return table("Quality of each person", ["Person", "Gold right", "Agrees with others", "Agrees with themselves", "Earlier reply wins", "Longer reply wins", "Too fast", "#Reliability"], rows);
}

export function agreementTable(between) {
  return table("Agreement of every two people", ["Two people", "#Pairs", "#Agreement", "#Cohen's kappa"],
    between.map((row) => [`${row.first} and ${row.second}`, whole(row.pairs), percent(row.agreement), decimal(row.kappa)]));
}

export function sourceTable(sources) {
  const low = Math.min(...sources.map((row) => row.low));
  const high = Math.max(...sources.map((row) => row.high));
  const ends = { from: low - 0.05 * (high - low), to: high + 0.05 * (high - low) };
  return table("Sources by strength", ["Source", "Strength, with its 95 % interval", "Win rate", "#Verdicts"], sources.map((row) => {
    const strength = `${decimal(row.strength)} (${decimal(row.low)} to ${decimal(row.high)})`;
    const wins = `${percent(row.win_rate)} (${Math.round(100 * row.win_low)} to ${Math.round(100 * row.win_high)})`;
    return [
      row.source,
      el("td", { class: "plotted" }, range({ value: row.strength, low: row.low, high: row.high }, { ...ends, reference: 0, label: `Strength: ${strength}` }), el("small", {}, strength)),
      el("td", { class: "plotted" }, range({ value: row.win_rate, low: row.win_low, high: row.win_high }, { reference: 0.5, label: `Win rate: ${wins}` }), el("small", {}, wins)),
      whole(row.verdicts),
    ];
  }));
}
