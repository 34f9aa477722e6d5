// The table of replies: rollouts of an update, or the replies to the validation prompts; searched, filtered, sorted.

import { button, el } from "../shared/dom.js";
import { decimal, whole } from "../shared/numbers.js";

const COLUMNS = { update: "Update", score: "Score", gold: "Gold", kl: "KL", length: "Tokens", advantage: "Mean Â", critic_error: "Critic error", disagreement: "Disagreement" };

export async function replies({ view, run, query, get, post, labels }) {
  const base = `/api/runs/${encodeURIComponent(run)}`;
  const there = await get(`${base}/updates`);
  const source = query.get("source") ?? (there.rollout.length ? "rollout" : "validation");
  const updates = there[source] ?? [];
  const update = query.get("update") ?? String(updates.at(-1) ?? "");
  const sort = query.get("sort") ?? "score";
  const down = query.get("down") !== "false";
  const go = (changes) => {
    const next = new URLSearchParams({ source, update, search: query.get("search") ?? "", sort, down, ...changes });
    location.hash = `#/run/${encodeURIComponent(run)}/replies?${next}`;
  };
  const choose = (label, value, options, changed) => {
    const select = el("select", { onchange: () => changed(select.value) }, ...options.map(([key, text]) => el("option", { value: key, selected: key === value }, text)));
    return el("label", {}, label, select);
  };
  const search = el("input", { type: "search", value: query.get("search") ?? "", maxlength: "500", onchange: () => go({ search: search.value }) });
  const body = el("div", {}, el("p", { class: "aside" }, "Reading …"));
  view.append(el("h1", {}, "Replies", el("small", {}, run)), el("form", { class: "filters", role: "search", onsubmit: (event) => (event.preventDefault(), go({ search: search.value })) },
    choose("Replies", source, [["rollout", "rollouts"], ["validation", "validation prompts"]], (to) => go({ source: to, update: "" })),
    choose("Update", update, [["all", `all ${updates.length}`], ...updates.map((one) => [String(one), String(one)]).reverse()], (to) => go({ update: to })),
    choose("Sorted by", sort, Object.entries(COLUMNS), (to) => go({ sort: to })),
    button(down ? "largest first ↓" : "smallest first ↑", () => go({ down: !down })),
    el("label", { class: "grow" }, "Search in prompts and replies", search)), body);
  if (!updates.length) return body.replaceChildren(el("p", { class: "aside" }, "No replies are stored yet."));
  const asked = new URLSearchParams({ source, sort, down, search: query.get("search") ?? "" });
  // An address may name an update without stored replies: what is there decides.
  const chosen = update === "all" ? updates : updates.filter((one) => one === Number(update || updates.at(-1)));
  for (const one of chosen) asked.append("update", one);
  const found = await get(`${base}/replies?${asked}`);
  const columns = Object.keys(COLUMNS).filter((name) => found.rows.some((row) => row[name] !== undefined));
  body.replaceChildren(el("p", { class: "aside" }, `${whole(found.count)} replies${found.count > found.rows.length ? `, the first ${found.rows.length} are shown` : ""}.`),
    ...(labels ? [sending(found.rows, body, base, post)] : []),
    el("div", { class: "card wide", tabindex: "0", role: "region", "aria-label": "Replies" }, table(found.rows, columns, run, labels, (row, cell) => same(row, cell, base, get))));
}

/** Ticked rows go into the label database: replies to one prompt to be ranked, one alone to be improved. */
function sending(rows, body, base, post) {
  const said = el("span", { class: "aside", role: "status" });
  const send = button("Send to labelling", async () => {
    const ticked = [...body.querySelectorAll("tbody input:checked")].map((tick) => rows[Number(tick.value)]);
    if (!ticked.length) return void (said.textContent = "Tick the replies first.");
    send.disabled = true;
    try {
      const { added, known } = await post(`${base}/label`, { chosen: ticked.map(({ source, update, sample }) => ({ source, update, sample })) });
      said.textContent = `${added} new to label${known ? `, ${known} were there already` : ""}.`;
    } catch (error) {
      said.textContent = `${error.message}. ${error.fix ?? ""}`;
    }
    send.disabled = false;
  });
  return el("p", { class: "actions" }, send, said);
}

function table(rows, columns, run, labels, onsame) {
  const head = el("tr", {}, el("th", { scope: "col" }, "Reply"), ...columns.map((name) => el("th", { scope: "col", class: "num" }, COLUMNS[name])));
  return el("table", { class: "replies" }, el("thead", {}, head), el("tbody", {}, ...rows.map((row, place) => {
    const cell = el("td", { class: "text", dir: "auto" }, el("span", { class: "asked" }, row.prompt), row.reply || "(empty reply)", row.finished ? "" : " ✂");
    const actions = el("p", { class: "actions" });
    if (labels) actions.append(el("label", { class: "tick" }, el("input", { type: "checkbox", value: place }), "label"));
    if (row.source === "rollout") {
      const token = row.critic_error_token ? `?token=${row.critic_error_token}&by=critic_error` : "";
      actions.append(el("a", { href: `#/run/${encodeURIComponent(run)}/token/${row.update}/${row.sample}${token}` }, "token by token"));
    }
    actions.append(button("this prompt across updates", () => onsame(row, cell), { class: "small" }));
    cell.append(actions);
    return el("tr", {}, cell, ...columns.map((name) => el("td", { class: "num", "data-name": COLUMNS[name] }, ["update", "length"].includes(name) ? String(row[name] ?? "–") : decimal(row[name]))));
  })));
}

/** Old beside new: what the prompt got at every update that asked it. */
async function same(row, cell, base, get) {
  const found = await get(`${base}/same?source=${row.source}&update=${row.update}&sample=${row.sample}`);
  const list = el("dl", { class: "card wide" }, ...found.flatMap((one) => [
    el("dt", {}, `update ${one.update}, score ${decimal(one.score)}, KL ${decimal(one.kl)}`), el("dd", { dir: "auto" }, one.reply || "(empty reply)")]));
  cell.querySelector("dl")?.remove();
  cell.append(list);
}
