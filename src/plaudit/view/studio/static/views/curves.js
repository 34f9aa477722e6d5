// Every metric of every stage, live; of several runs, over each other.

import { announce, el } from "../shared/dom.js";
import { decimal } from "../shared/numbers.js";
import { COLOURS, chart, heat } from "../charts.js";

const FIRST = ["score", "held_out_score", "gold", "kl", "explained_variance", "clip_fraction", "entropy", "loss"];
const TITLES = { "metrics.jsonl": "", "evaluations.jsonl": ", validation prompts" };
const AGAIN_MS = 1000;
const PEEK_MS = 200;
const LOOK_MS = 30_000;
const SHARE = 1000; // the doctor looks again at a run that goes on after so many times what it took: a long log costs it more
const COUNTERS = new Set(["update", "step", "member"]);
const SCORES = ["score", "held_out_score", "gold"];

export async function curves({ view, run, get, onleave }) {
  const names = run.split(",");
  const base = (name) => `/api/runs/${encodeURIComponent(name)}`;
  const all = await Promise.all(names.map((name) => get(`${base(name)}/curves`)));
  const runs = names.map((name, index) => ({ name, ...all[index] }));
  view.replaceChildren(el("h1", {}, names.join(", ")));
  if (runs.length > 1) view.append(el("p", { class: "legend" }, ...runs.map((one, index) => el("span", { class: `c${(index % COLOURS.length) + 1}` }, el("i"), one.name))));
  const said = el("div", {});
  const body = el("div", {});
  view.append(said, body);
  const choose = runs.length === 1 ? (update) => (location.hash = `#/run/${encodeURIComponent(run)}/replies?update=${update}&sort=critic_error`) : null;
  const peek = runs.length === 1 ? peeking(view, base(run), get, onleave) : null;
  const charts = new Map();
  let findings = [];
  const pinned = () => {
    for (const one of findings) if (one.update !== null) charts.get(`ppo/metrics.jsonl ${one.column}`)?.pin(findings.filter((other) => other.update !== null && other.column === one.column));
  };
  const draw = () => {
    const [focused] = [...charts].find(([, one]) => one.node === document.activeElement) ?? [];
    peek?.(null);
    for (const one of charts.values()) one.end();
    charts.clear();
    const logs = [...new Set(runs.flatMap((one) => Object.keys(one.logs)))].sort((a, b) => order(a) - order(b));
    body.replaceChildren(...logs.flatMap((log) => section(log, runs, charts, choose, peek)));
    charts.get(focused)?.node.focus({ preventScroll: true });
    pinned();
    if (!logs.length) body.replaceChildren(el("p", { class: "aside" }, "Nothing is logged yet; the first numbers appear here."));
  };
  draw();
  let next = Infinity;
  const look = async () => {
    const began = Date.now();
    findings = await get(`${base(run)}/findings`);
    inPlace(() => {
      said.replaceChildren(...findings.map(finding));
      pinned();
    });
    next = Date.now() + Math.max(LOOK_MS, SHARE * (Date.now() - began));
  };
  const told = (log) => {
    if (log !== "ppo/metrics.jsonl" || runs.length > 1 || Date.now() < next) return;
    next = Infinity; // one look at a time
    look().catch(() => (next = Date.now() + LOOK_MS));
  };
  for (const one of runs) follow(one, base(one.name), charts, draw, told, onleave);
  if (runs.length > 1) return;
  get(`${base(run)}/more`).then(({ histogram, calibration }) => {
    if (histogram.updates.length) view.append(el("div", { class: "charts" }, heat(histogram)));
    if (calibration) reliability(calibration, body, charts);
  });
  await look();
}

const order = (log) => ["ppo/evaluations", "ppo/", "reward/", "sft/"].findIndex((start) => log.startsWith(start)) + (log.startsWith("ppo") ? 0 : 10);

function section(log, runs, charts, choose, peek) {
  const [stage, file] = log.split("/");
  const counted = runs.some((one) => one.logs[log]?.columns.update) ? "update" : "step";
  const called = (name) => runs[0].names[name] ?? name.replaceAll("_", " ");
  const names = [...new Set(runs.flatMap((one) => Object.keys(one.logs[log]?.columns ?? {})))].filter((name) => !COUNTERS.has(name));
  names.sort((a, b) => rank(a) - rank(b));
  const made = [];
  if (file === "evaluations.jsonl" && names.includes("kl")) made.push(overKl(log, runs[0], charts, runs.length > 1 ? `, ${runs[0].name}` : ""));
  for (const name of names) {
    const one = chart({
      title: called(name), counted, series: seriesOf(log, runs, counted, name), range: stage === "ppo" ? runs[0].healthy[name] ?? null : null,
      ...(stage === "ppo" && file === "metrics.jsonl" ? { choose, peek } : {}),
    });
    charts.set(`${log} ${name}`, { ...one, again: () => one.set(seriesOf(log, runs, counted, name)) });
    made.push(one.node);
  }
  return [el("h2", {}, `${stage}${TITLES[file]}`), el("div", { class: "charts" }, ...made)];
}

const rank = (name) => (FIRST.includes(name) ? FIRST.indexOf(name) : FIRST.length);

function seriesOf(log, runs, counted, name) {
  return runs.filter((one) => one.logs[log]?.columns[name]).map((one) => ({ label: one.name, x: one.logs[log].columns[counted], y: one.logs[log].columns[name] }));
}

/** Proxy and held-out score over √KL: where the one rises and the other falls, the proxy is over-optimised. */
function overKl(log, run, charts, whose) {
  const make = () => {
    const { columns } = run.logs[log];
    const order = columns.kl.map((kl, index) => [Math.sqrt(Math.max(0, kl)), index]).sort((a, b) => a[0] - b[0]);
    const x = order.map(([root]) => root);
    const other = (name) => name !== "gold" || String(columns.gold) !== String(columns.held_out_score);
    return SCORES.filter((name) => columns[name] && other(name)).map((name) => ({ label: run.names[name], x, y: order.map(([, index]) => columns[name][index]) }));
  };
  const series = make();
  const one = chart({ title: `scores over √KL${whose}`, counted: "√KL", series, points: true, keys: true });
  charts.set(`${log} over KL`, { ...one, again: () => one.set(make()) });
  return one.node;
}

/** Is the reward model as right as it claims to be: its card's bins of held-out pairs. */
function reliability({ bins, ece }, body, charts) {
  const heading = [...body.querySelectorAll("h2")].find((one) => one.textContent === "reward");
  const series = [
    { label: "held-out pairs", x: bins.map((bin) => bin.confidence), y: bins.map((bin) => bin.accuracy) },
    { label: "perfectly calibrated", x: [0.5, 1], y: [0.5, 1] },
  ];
  const one = chart({ title: `calibration: accuracy by the confidence it states, ECE ${ece.toFixed(3)}`, counted: "confidence", series, points: true, keys: true });
  charts.set("calibration", { ...one, again: () => {} });
  (heading?.nextElementSibling ?? body).append(one.node);
}

/** What the hand is over: the best and the worst reply of that update, at the foot of the window. */
function peeking(view, base, get, onleave) {
  const box = el("aside", { class: "peek card", hidden: true, "aria-live": "polite" });
  view.append(box);
  let wanted = null;
  let timer = null;
  const show = async (update) => {
    const ends = await Promise.all([true, false].map((down) => get(`${base}/replies?update=${update}&sort=score&down=${down}&most=1`))).catch(() => []);
    if (wanted !== update) return;
    const rows = ends.map(({ rows: [row] }, place) => el("p", { dir: "auto" }, el("b", {}, `${place ? "worst" : "best"} ${decimal(row.score)} `), row.reply.slice(0, 300) || "(empty reply)"));
    box.replaceChildren(el("p", { class: "aside" }, ends.length ? `Update ${update}; a click shows all of its replies` : `Update ${update}: no replies are stored`), ...rows);
    box.hidden = false;
  };
  onleave(() => clearTimeout(timer));
  return (update) => {
    if (update === wanted) return;
    wanted = update;
    clearTimeout(timer);
    box.hidden = update === null || box.hidden;
    if (update !== null) timer = setTimeout(show, PEEK_MS, update);
  };
}

/** What the hand or the keys are on stays where it is, whatever comes above it: else the hand is over another curve. */
function inPlace(change) {
  const held = document.querySelector(".chart:hover, .chart:focus");
  const before = held?.getBoundingClientRect().top;
  change();
  if (held) scrollBy({ top: held.getBoundingClientRect().top - before, behavior: "instant" });
}

function finding(one) {
  return el("div", { class: "finding card" },
    el("p", {}, el("strong", {}, `${one.level}: ${one.name}`), one.update === null ? "" : ` from update ${one.update} on`, `: ${one.says}.`),
    el("p", { class: "aside" }, one.evidence), el("p", {}, `To do: ${one.change}`));
}

/** New rows as the server sees them; where the connection breaks it goes on from the last byte that was read. */
function follow(run, base, charts, draw, told, onleave) {
  const at = Object.fromEntries(Object.entries(run.logs).map(([log, { end }]) => [log, end]));
  let source = null;
  let left = false;
  const open = () => {
    if (left) return;
    source = new EventSource(`${base}/live?at=${encodeURIComponent(JSON.stringify(at))}`);
    source.addEventListener("again", () => location.reload()); // the log was cut by a resume
    source.addEventListener("error", () => {
      source.close();
      setTimeout(open, AGAIN_MS);
    });
    source.addEventListener("message", ({ data }) => take(JSON.parse(data)));
  };
  const take = ({ log, rows, end }) => {
    at[log] = end;
    const { columns } = (run.logs[log] ??= { columns: {} });
    for (const row of rows.filter((one) => !one.member)) add(columns, row);
    if (Object.keys(columns).some((name) => !COUNTERS.has(name) && !charts.has(`${log} ${name}`))) draw();
    else for (const [key, one] of charts) if (key.startsWith(`${log} `)) one.again();
    announce(`${log}: ${rows.length} new`);
    told(log);
  };
  open();
  onleave(() => {
    left = true;
    source.close();
  });
}

function add(columns, row) {
  const before = Object.values(columns)[0]?.length ?? 0;
  for (const [name, value] of Object.entries(row)) if (typeof value === "number") columns[name] ??= Array(before).fill(null);
  for (const name of Object.keys(columns)) columns[name] = [...columns[name], typeof row[name] === "number" ? row[name] : null];
}
