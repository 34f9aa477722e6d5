// One reply, a column a token: what PPO saw of each token and what it made of it. It is `plaudit inspect` on a page.

import { el } from "./shared/dom.js";
import { decimal } from "./shared/numbers.js";

// What a token's row of numbers is called, by the glossary; null where the reply has none.
const ROWS = {
  old_logprob: "log π_old", new_logprob: "log π", ref_logprob: "log π_ref", ratio: "ratio r", side: "side of the clip", kl: "KL", value: "value V",
  reward: "reward R", advantage: "advantage Â", critic_error: "return − value", l_clip: "L_CLIP",
};
const SUMMED = { kl: "sum", reward: "sum", l_clip: "mean" };

export async function microscope({ view, run, rest, query, get }) {
  const base = `/api/runs/${encodeURIComponent(run)}`;
  const there = (await get(`${base}/updates`)).rollout;
  if (!there.length) return view.append(el("h1", {}, "Tokens"), el("p", { class: "aside" }, "No rollout is stored yet."));
  const update = Number(rest[1] ?? there.at(-1));
  const sample = Number(rest[2] ?? 1);
  const found = await get(`${base}/tokens/${update}/${sample}`);
  // Before whitening, which is return − value.
  for (const row of found.rows) row.critic_error = row.raw_advantage;
  const by = query.get("by") in ROWS ? query.get("by") : "advantage";
  const token = Number(query.get("token") ?? 0);
  const to = (u, s, more = {}) => `#/run/${encodeURIComponent(run)}/token/${u}/${s}?${new URLSearchParams({ by, ...more })}`;
  const names = Object.keys(ROWS).filter((name) => found.rows.some((row) => row[name] !== null && row[name] !== undefined));
  const choose = el("select", { onchange: () => (location.hash = to(update, sample, { by: choose.value, token })) },
    ...names.filter((name) => name !== "side").map((name) => el("option", { value: name, selected: name === by }, ROWS[name])));
  const number = (label, value, low, high, changed) => {
    const input = el("input", { type: "number", min: low, max: high, value, onchange: () => changed(Math.min(high, Math.max(low, Number(input.value)))) });
    return el("label", {}, label, input);
  };
  view.append(
    el("h1", {}, `Update ${update}, reply ${sample}`, el("small", {}, `${run} · sampled ${found.sampler}`)),
    el("form", { class: "filters", onsubmit: (event) => event.preventDefault() },
      number(`Update, ${there[0]} to ${there.at(-1)}`, update, there[0], there.at(-1), (u) => (location.hash = to(u, sample))),
      number(`Reply, 1 to ${found.samples}`, sample, 1, found.samples, (s) => (location.hash = to(update, s))),
      el("label", {}, "Colour by", choose)),
    el("p", { class: "prompt", dir: "auto" }, found.prompt.trim()),
    text(found, by, token), grid(found, names, token), sums(found));
  if (!found.has_new) view.append(el("p", { class: "aside" }, "The log-probabilities after the update's steps are not stored: this is how it looked before its first step."));
  mark(view, token, false);
}

function text(found, by, token) {
  const values = found.rows.map((row) => row[by] ?? 0);
  const centre = by === "ratio" ? 1 : 0;
  const most = Math.max(...values.map((value) => Math.abs(value - centre))) || 1;
  const box = el("div", { class: "card tokens", dir: "auto" });
  found.rows.forEach((row, index) => {
    const value = values[index] - centre;
    const node = el("button", { type: "button", class: `tok ${value > 0 ? "pos" : value < 0 ? "neg" : ""}${row.cut ? " cut" : ""}`, "data-token": row.number,
      title: `${by} ${decimal(row[by], 3)}`, onclick: () => mark(box.closest("#view"), row.number, true) }, row.text.replaceAll("·", " ").replaceAll("⏎", "⏎\n"));
    node.style.setProperty("--strength", `${Math.round(8 + (52 * Math.abs(value)) / most)}%`);
    box.append(node);
  });
  if (!found.finished) box.append(el("span", { class: "aside" }, " ✂ cut by the length limit"));
  return box;
}

function grid(found, names, token) {
  const cell = (row, name) => (name === "side" ? `${row.side}${row.cut ? ", cut" : ""}` : decimal(row[name], 3));
  const head = el("tr", {}, el("th", { scope: "row" }, "token"), ...found.rows.map((row) => el("th", { scope: "col", "data-token": row.number, title: `token ${row.number}` }, row.text)), el("th", { scope: "col" }, "reply"));
  const rows = names.map((name) => {
    const sum = found.rows.reduce((total, row) => total + (row[name] ?? 0), 0);
    const whole = { sum, mean: sum / found.rows.length }[SUMMED[name]];
    return el("tr", {}, el("th", { scope: "row" }, ROWS[name]), ...found.rows.map((row) => el("td", { class: "num", "data-token": row.number }, cell(row, name))),
      el("td", { class: "num" }, whole === undefined ? "" : `${SUMMED[name]} ${decimal(whole, 3)}`));
  });
  return el("div", { class: "card wide", tabindex: "0", role: "region", "aria-label": "Token by token" }, el("table", { class: "micro" }, el("thead", {}, head), el("tbody", {}, ...rows)));
}

/** What the log says of this update, computed once more from all its tokens. */
function sums(found) {
  const rows = Object.entries(found.sums).map(([name, { here, logged }]) => {
    const same = logged !== null && logged !== undefined && Math.abs(here - logged) <= 1e-5 * Math.max(1, Math.abs(logged));
    return el("tr", {}, el("th", { scope: "row" }, name), el("td", { class: "num" }, decimal(here, 6)), el("td", { class: "num" }, decimal(logged, 6)),
      el("td", { class: same ? "same" : "differs" }, logged === null || logged === undefined ? "not logged" : same ? "the same" : "differs"));
  });
  return el("section", {}, el("h2", {}, `All ${found.samples} replies of update ${found.update}`), el("div", { class: "card wide" }, el("table", { class: "micro" },
    el("thead", {}, el("tr", {}, ...["", "from the tokens", "in the log", ""].map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, ...rows))));
}

function mark(view, token, focus) {
  for (const old of view.querySelectorAll("[data-token][aria-current]")) old.removeAttribute("aria-current");
  for (const node of view.querySelectorAll(`[data-token="${token}"]`)) node.setAttribute("aria-current", "true");
  view.querySelector(`th[data-token="${token}"]`)?.scrollIntoView({ inline: "center", block: focus ? "nearest" : "nearest" });
}
