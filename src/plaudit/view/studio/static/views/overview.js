// Every run as a card. Two or more that are ticked can be laid over each other.

import { button, el } from "../shared/dom.js";
import { decimal, percent } from "../shared/numbers.js";

const EVERY_MS = 2000;
const WORDS = { gold_sft: "gold, SFT", gold_ppo: "gold, PPO", proxy_sft: "proxy, SFT", proxy_ppo: "proxy, PPO", win_rate: "win rate", kl: "KL", eos: "EOS rate" };
const SHARES = new Set(["win_rate", "eos"]);

export async function overview({ view, get, onleave }) {
  const list = el("ul", { class: "runs" });
  const over = button("Lay over each other", () => (location.hash = `#/run/${encodeURIComponent([...chosen].join(","))}`), { disabled: true });
  const chosen = new Set();
  view.append(el("h1", {}, "Runs"), el("p", { class: "actions" }, over), list);
  const draw = async () => {
    const runs = await get("/api/runs");
    const focused = document.activeElement?.dataset?.run;
    list.replaceChildren(...runs.map((run) => card(run, chosen, () => (over.disabled = chosen.size < 2))));
    if (!runs.length) list.replaceChildren(el("li", { class: "aside" }, "No run is here yet. Start one: plaudit demo"));
    if (focused) list.querySelector(`[data-run="${CSS.escape(focused)}"]`)?.focus();
  };
  await draw();
  const timer = setInterval(() => draw().catch(() => {}), EVERY_MS);
  onleave(() => clearInterval(timer));
  const runs = await get("/api/runs");
  for (const run of runs) {
    const found = await get(`/api/runs/${encodeURIComponent(run.name)}/findings`);
    if (found.length) doctor.set(run.name, found);
  }
  await draw();
}

const doctor = new Map();

function card(run, chosen, changed) {
  const tick = el("input", { type: "checkbox", "data-run": run.name, onchange: () => (chosen[tick.checked ? "add" : "delete"](run.name), changed()) });
  tick.checked = chosen.has(run.name);
  const numbers = Object.entries(run.numbers).map(([key, value]) => el("span", {}, `${WORDS[key] ?? key} `, el("b", {}, SHARES.has(key) ? percent(value) : decimal(value))));
  const left = run.left_s === null ? "" : `, about ${run.left_s < 90 ? `${Math.round(run.left_s)} s` : `${Math.round(run.left_s / 60)} min`} left`;
  const where = run.now ? `: ${run.now}${run.progress ? `, ${run.progress}` : ""}${left}` : "";
  const [worst] = doctor.get(run.name) ?? [];
  return el("li", { class: "run card" },
    el("h2", {}, el("a", { href: `#/run/${encodeURIComponent(run.name)}` }, run.name)),
    el("p", { class: `state${run.state === "going on" ? " going" : ""}` }, el("b", {}, run.state), where),
    el("p", { class: "numbers" }, ...numbers),
    worst ? el("p", {}, el("span", { class: "badge" }, `${worst.level}: ${worst.name}`)) : null,
    el("label", { class: "tick" }, tick, "compare"));
}
