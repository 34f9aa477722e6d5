// The dashboard's tables, each from its part of the dashboard's dict (label/dashboard.py says what is in it).

import { range } from "./charts.js";
import { button, el } from "./dom.js";
import { decimal, percent, shareInWords, whole } from "./numbers.js";

const MANY = 12; // rows: more of them can be searched
const SHOWN = 25; // and so many are shown before somebody asks for all

/**
 * A table that scrolls inside its own box when it is wider than the page. Its heads sort it ("#" marks numbers); a cell
 * that does not begin with its number says in data-sort what it is sorted by.
 */
export function table(caption, heads, rows) {
  const built = plain(caption, heads, rows);
  if (rows.length < 2) return built;
  const body = built.querySelector("tbody");
  const all = [...body.rows];
  let wanted = "";
  let whole = all.length <= SHOWN;
  const more = button(`Show all ${all.length} rows`, () => {
    whole = true;
    show();
  }, { class: "small" });
  const show = () => {
    const found = [...body.rows].filter((row) => row.textContent.toLowerCase().includes(wanted));
    for (const row of body.rows) row.hidden = true;
    for (const row of whole ? found : found.slice(0, SHOWN)) row.hidden = false;
    more.hidden = whole || found.length <= SHOWN;
  };
  built.querySelectorAll("thead th").forEach((head, column) => {
    if (!head.textContent) return;
    const name = head.textContent;
    head.replaceChildren(button(name, () => {
      const down = head.getAttribute("aria-sort") === (head.className === "num" ? "descending" : "ascending") ? head.className !== "num" : head.className === "num";
      for (const other of built.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...all.toSorted((a, b) => (down ? -1 : 1) * inOrder(a.cells[column], b.cells[column], head.className === "num")));
      show();
    }, { class: "sort" }));
  });
  show();
  if (all.length <= MANY) return built;
  const find = el("input", { type: "search", "aria-label": `Find in: ${caption}`, placeholder: "Find …", oninput: () => {
    wanted = find.value.trim().toLowerCase();
    show();
  } });
  return el("div", { class: "searched" }, find, built, more);
}

function inOrder(a, b, numbers) {
  const [one, two] = [a, b].map((cell) => cell.dataset.sort ?? cell.textContent);
  if (!numbers) return one.localeCompare(two, undefined, { numeric: true });
  const [x, y] = [one, two].map((text) => Number.parseFloat(text.replace("−", "-").replaceAll(",", "")));
  return (Number.isNaN(x) ? -Infinity : x) - (Number.isNaN(y) ? -Infinity : y) || 0;
}

function plain(caption, heads, rows) {
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
  if (!share) return el("td", { class: "plotted", "data-sort": "" }, el("span", { class: "aside" }, "too few labels"));
  const words = shareInWords(share);
  return el("td", { class: "plotted", "data-sort": (1000 * share.share).toFixed(0).padStart(5, "0") }, range({ value: share.share, ...share }, { reference, warn, label: `${name}: ${words}` }),
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
