// One reply, a column a token: what PPO saw of each token and what it made of it. The studio shows it with its filters;
// `plaudit inspect --html` writes it as a page of its own (alone.py), so nothing above `magnify` may ask a server.

import { el } from "./shared/dom.js";
import { decimal } from "./shared/numbers.js";

// What a token's row of numbers is called, by the glossary; a row that no token has is left out.
const ROWS = {
  old_logprob: "log π_old", new_logprob: "log π", ref_logprob: "log π_ref", ratio: "ratio r", side: "side of the clip", kl: "KL", reward: "reward R",
  value: "value V", return: "return", critic_error: "return − value", advantage: "advantage Â", unclipped: "r·Â", clipped: "clip(r)·Â", l_clip: "L_CLIP",
};
const SUMMED = { kl: "sum", reward: "sum", l_clip: "mean" };
const MEANINGS = [
  ["log π_old, log π, log π_ref", "log-probability of the token when it was sampled, in the last pass in which it was trained, and under the reference"],
  ["ratio r", "exp(log π − log π_old): 1 when the update begins; above 1 the token has become more likely"],
  ["KL", "the estimate of the KL from the reference at this token; β times it is the penalty in R"],
  ["reward R, value V", "the reward of the token, the score on the last one; and what the critic expected from here on"],
  ["return − value", "the critic's error: the advantage before it was brought to mean 0 and std 1 over the update, where it was"],
  ["advantage Â", "how much better it went than expected, as it was trained on: above 0 the token is made more likely"],
  ["side of the clip", "where r fell. Above with Â > 0, or below with Â < 0, the clip cuts the gradient: the token has moved far enough"],
];

/** Draw a reply into `view`. `above` are nodes under the heading, `onby` hears by which row the tokens are coloured. */
export function magnify(view, found, { by, token, above = [], onby = () => {} }) {
  for (const row of found.rows) {
    row.critic_error = row.raw_advantage;
    row.return = row.raw_advantage === null ? null : row.raw_advantage + row.value;
  }
  const names = Object.keys(ROWS).filter((name) => found.rows.some((row) => row[name] !== null));
  const chosen = names.includes(by) && by !== "side" ? by : "advantage";
  const again = (to) => (onby(to), magnify(view, found, { by: to, token: marked(view), above, onby }));
  const choose = el("select", { onchange: () => again(choose.value) },
    ...names.filter((name) => name !== "side").map((name) => el("option", { value: name, selected: name === chosen }, ROWS[name])));
  view.replaceChildren(
    el("h1", {}, `Update ${found.update}, reply ${found.sample}`, el("small", {}, `${found.run} · ${facts(found)}`)),
    el("form", { class: "filters", onsubmit: (event) => event.preventDefault() }, ...above, el("label", {}, "Colour by", choose)),
    numbers(found),
    found.has_new ? "" : el("p", { class: "notice" }, "The log-probabilities after the update's steps are not stored: this is how it looked before its first step, every ratio 1."),
    el("p", { class: "prompt", dir: "auto" }, found.prompt.trim()),
    text(view, found, chosen),
    grid(found, names),
    el("section", { class: "hand" }),
    sums(found),
    el("details", { class: "card" }, el("summary", {}, "How to read it"), el("dl", {}, ...MEANINGS.flatMap(([name, says]) => [el("dt", {}, name), el("dd", {}, says)]))));
  mark(view, found, found.rows.some((row) => row.number === token) ? token : found.telling);
}

const signed = (value, digits = 4) => (value < 0 ? `(${decimal(value, digits)})` : decimal(value, digits));

function facts(found) {
  const [low, high] = found.clip;
  const dual = found.dual_clip === null ? "" : `, dual clip ${found.dual_clip}`;
  return `γ ${found.gamma}, λ ${found.lam}, clip range ${+low.toPrecision(4)} to ${+high.toPrecision(4)}${dual}; sampled ${found.sampler.replaceAll("-", "−")}`;
}

function numbers(found) {
  const count = (test) => found.rows.filter(test).length;
  const one = (label, value, more) => el("span", {}, `${label} `, el("b", {}, value), ` ${more}`);
  return el("p", { class: "numbers" },
    one("score that PPO used", decimal(found.score), `(raw ${found.raw_scores.map((score, n) => (found.raw_scores.length > 1 ? `${found.sources[n]} ` : "") + decimal(score)).join(", ")})`),
    one("KL", decimal(found.kl), `nats over ${found.rows.length} tokens`),
    one("mean L_CLIP", decimal(found.mean_l_clip, 3), `(adds ${decimal(found.share, 5)} to the update's)`),
    one("cut by the clip", String(count((row) => row.cut)), `of ${count((row) => row.side !== "inside")} that left the range`));
}

function text(view, found, by) {
  const values = found.rows.map((row) => row[by] ?? 0);
  const centre = by === "ratio" ? 1 : 0;
  const most = Math.max(...values.map((value) => Math.abs(value - centre))) || 1;
  const box = el("div", { class: "card tokens", dir: "auto" });
  found.rows.forEach((row, index) => {
    const value = values[index] - centre;
    const node = el("button", { type: "button", class: `tok ${value > 0 ? "pos" : value < 0 ? "neg" : ""}${row.cut ? " cut" : ""}`, "data-token": row.number,
      title: `${ROWS[by]} ${decimal(row[by], 3)}`, onclick: () => mark(view, found, row.number) }, row.text.replaceAll("·", " ").replaceAll("⏎", "⏎\n"));
    node.style.setProperty("--strength", `${Math.round(8 + (32 * Math.abs(value)) / most)}%`);
    box.append(node);
  });
  if (!found.finished) box.append(el("span", { class: "aside" }, " ✂ cut by the length limit"));
  return box;
}

function grid(found, names) {
  const cell = (row, name) => (name === "side" ? `${row.side}${row.cut ? ", cut" : ""}` : decimal(row[name], 3));
  const head = el("tr", {}, el("th", { scope: "row" }, "token"), ...found.rows.map((row) => el("th", { scope: "col", "data-token": row.number, title: `token ${row.number}` }, row.text)), el("th", { scope: "col" }, "reply"));
  const rows = names.map((name) => {
    const sum = found.rows.reduce((total, row) => total + (row[name] ?? 0), 0);
    const whole = { sum, mean: sum / found.rows.length }[SUMMED[name]];
    return el("tr", {}, el("th", { scope: "row" }, ROWS[name]), ...found.rows.map((row) => el("td", { class: "num", "data-token": row.number }, cell(row, name))),
      el("td", { class: "num" }, whole === undefined ? "" : `${SUMMED[name]} ${decimal(whole, 3)}`));
  });
  return wide("Token by token", el("table", { class: "micro" }, el("thead", {}, head), el("tbody", {}, ...rows)));
}

/** A table that may be wider than the page: it scrolls by itself, by keys too. */
const wide = (label, table) => el("div", { class: "card wide", tabindex: "0", role: "region", "aria-label": label }, table);

/** The marked token, worked by hand with its own numbers. */
function hand(found, row) {
  const [low, high] = found.clip;
  const lines = [
    ["ratio r", `exp(log π − log π_old) = exp(${decimal(row.new_logprob, 4)} − ${signed(row.old_logprob)})`, row.ratio],
    ["r·Â", `${decimal(row.ratio, 4)} · ${signed(row.advantage)}`, row.unclipped],
    ["clip(r)·Â", `clip(r, ${+low.toPrecision(4)}, ${+high.toPrecision(4)}) · ${signed(row.advantage)}`, row.clipped],
    ["L_CLIP", `the smaller of both${found.dual_clip === null ? "" : `, for Â < 0 at least ${found.dual_clip}·Â`}`, row.l_clip],
  ];
  if (row.raw_advantage !== null) lines.unshift(["return − value", `${decimal(row.return, 4)} − ${signed(row.value)}`, row.raw_advantage]);
  return [el("h2", {}, `Token ${row.number} by hand: ${row.text}`), wide("By hand", el("table", { class: "micro" }, el("tbody", {},
    ...lines.map(([name, how, value]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, how), el("td", { class: "num" }, decimal(value, 4)))))))];
}

/** What the log says of this update, computed once more from all its tokens. */
function sums(found) {
  const rows = Object.values(found.sums).map(({ called, here, logged }) => {
    const there = logged !== null && logged !== undefined;
    const same = there && Math.abs(here - logged) <= 1e-5 * Math.max(1, Math.abs(logged));
    return el("tr", {}, el("th", { scope: "row" }, called), el("td", { class: "num" }, decimal(here, 6)), el("td", { class: "num" }, decimal(logged, 6)),
      el("td", { class: same ? "same" : "differs" }, there ? (same ? "the same" : "differs") : "not logged"));
  });
  return el("section", {}, el("h2", {}, `All ${found.samples} replies of update ${found.update}`), wide("The sums of the update", el("table", { class: "micro sums" },
    el("thead", {}, el("tr", {}, ...["", "from the tokens", "in the log", ""].map((name) => el(name ? "th" : "td", name ? { scope: "col" } : {}, name)))), el("tbody", {}, ...rows))));
}

const marked = (view) => Number(view.querySelector("th[data-token][aria-current]")?.dataset.token);

function mark(view, found, token) {
  for (const old of view.querySelectorAll("[data-token][aria-current]")) old.removeAttribute("aria-current");
  for (const node of view.querySelectorAll(`[data-token="${token}"]`)) node.setAttribute("aria-current", "true");
  view.querySelector(".hand").replaceChildren(...hand(found, found.rows.find((row) => row.number === token)));
  const column = view.querySelector(`th[data-token="${token}"]`);
  const box = column.closest(".wide");
  box.scrollLeft = column.offsetLeft - box.clientWidth / 2;
}
