// Every metric of every stage, live; of several runs, over each other.

import { announce, el } from "./shared/dom.js";
import { COLOURS, chart, heat } from "./charts.js";

const FIRST = ["score", "held_out_score", "gold", "kl", "explained_variance", "clip_fraction", "entropy", "loss"];
const TITLES = { "metrics.jsonl": "", "evaluations.jsonl": ", validation prompts" };
const AGAIN_MS = 1000;
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
  const charts = new Map();
  let findings = [];
  const draw = () => {
    for (const one of charts.values()) one.end();
    charts.clear();
    const logs = [...new Set(runs.flatMap((one) => Object.keys(one.logs)))].sort((a, b) => order(a) - order(b));
    body.replaceChildren(...logs.flatMap((log) => section(log, runs, findings, charts, choose)));
    if (!logs.length) body.replaceChildren(el("p", { class: "aside" }, "Nothing is logged yet; the first numbers appear here."));
  };
  draw();
  if (runs.length > 1) return;
  const [only] = runs;
  follow(only, base(run), charts, draw, onleave);
  const look = async () => {
    findings = await get(`${base(run)}/findings`);
    said.replaceChildren(...findings.map(finding));
    draw();
  };
  get(`${base(run)}/histogram`).then((found) => found.updates.length && body.append(el("div", { class: "charts" }, heat(found))));
  await look();
}

const order = (log) => ["ppo/evaluations", "ppo/", "reward/", "sft/"].findIndex((start) => log.startsWith(start)) + (log.startsWith("ppo") ? 0 : 10);

function section(log, runs, findings, charts, choose) {
  const [stage, file] = log.split("/");
  const counted = runs.some((one) => one.logs[log]?.columns.update) ? "update" : "step";
  const names = [...new Set(runs.flatMap((one) => Object.keys(one.logs[log]?.columns ?? {})))].filter((name) => name !== counted);
  names.sort((a, b) => rank(a) - rank(b));
  const made = [];
  if (file === "evaluations.jsonl" && names.includes("kl")) made.push(overKl(log, runs[0], charts));
  for (const name of names) {
    const pins = findings.filter((one) => one.update !== null && (stage === "ppo" && file === "metrics.jsonl") && one.column === name);
    const one = chart({
      title: name, counted, series: seriesOf(log, runs, counted, name), range: stage === "ppo" ? runs[0].healthy[name] ?? null : null, pins,
      choose: stage === "ppo" && file === "metrics.jsonl" ? choose : null,
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
function overKl(log, run, charts) {
  const make = () => {
    const { columns } = run.logs[log];
    const order = columns.kl.map((kl, index) => [Math.sqrt(Math.max(0, kl)), index]).sort((a, b) => a[0] - b[0]);
    const x = order.map(([root]) => root);
    const other = (name) => name !== "gold" || String(columns.gold) !== String(columns.held_out_score);
    return SCORES.filter((name) => columns[name] && other(name)).map((name) => ({ label: name, x, y: order.map(([, index]) => columns[name][index]) }));
  };
  const series = make();
  const one = chart({ title: "scores over √KL", counted: "√KL", series, points: true, keys: true });
  charts.set(`${log} over KL`, { ...one, again: () => one.set(make()) });
  return one.node;
}

function finding(one) {
  return el("div", { class: "finding card" },
    el("p", {}, el("strong", {}, `${one.level}: ${one.name}`), one.update === null ? "" : ` from update ${one.update} on`, `. ${one.says}.`),
    el("p", { class: "aside" }, one.evidence), el("p", {}, `To do: ${one.change}`));
}

/** New rows as the server sees them; where the connection breaks it goes on from the last byte that was read. */
function follow(run, base, charts, draw, onleave) {
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
    const isNew = !(log in run.logs);
    const { columns } = (run.logs[log] ??= { columns: {} });
    for (const row of rows.filter((one) => !one.member)) add(columns, row);
    if (isNew) draw();
    else for (const [key, one] of charts) if (key.startsWith(`${log} `)) one.again();
    announce(`${log}: ${rows.length} new`);
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
