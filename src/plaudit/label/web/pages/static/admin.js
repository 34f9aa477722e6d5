// The admin's page: what the labels say so far, who gave them, and the project's switches.

import { enterItems, itemsRoom } from "./admin/items.js";
import { bars } from "./charts.js";
import { button, el, notice } from "./dom.js";
import { decimal, inUtc, percent, shareInWords, whole } from "./numbers.js";
import { adminLog, exportPanel, invitePanel, peopleTable, settingsPanel } from "./panels.js";
import { askUntilThere } from "./server.js";
import { AWAY, patiently, signedOut, whoIsThere } from "./session.js";
import { agreementTable, qualityTable, sourceTable, table } from "./tables.js";

const PATIENCE = 300_000; // ms: the numbers of a large ledger are computed while we wait
const NO_LABELS = { labels: 0, week: 0, late: 0, corrected: 0, skipped: 0, last: null, seconds: null, ties: null, cannot_judge: null };
const place = document.getElementById("dashboard");
const numbers = el("div", {});
let me = null;
let people = [];

async function start() {
  me = await whoIsThere();
  if (!me) return;
  const [data, settings] = [await numbersNow(), await fetched("/api/admin/project")];
  if (!data || !settings) return;
  const logged = el("div", {});
  place.replaceChildren(roomLinks(), numbers, itemsRoom(),
    el("div", { class: "panels" }, panel("people", "Invite somebody", invitePanel()),
      panel("export", "Export", exportPanel(data.people, settings.flags)), panel("settings", "Project", settingsPanel(settings))),
    room("settings", "What admins did", logged));
  draw(data);
  window.addEventListener("hashchange", enter);
  enter();
  const told = await fetched("/api/admin/log");
  if (told) logged.replaceChildren(adminLog(told.log, data.people));
}

// --- rooms: one page, of which one part is shown; each has an address of its own ---

const ROOMS = { progress: "Progress", people: "People", quality: "Quality", items: "Items", sources: "Sources", settings: "Settings", export: "Export" };

function roomLinks() {
  return el("nav", { class: "rooms", "aria-label": "Parts of the dashboard" }, ...Object.entries(ROOMS).map(([name, label]) => el("a", { href: `#${name}` }, label)));
}

/** Show the part that the address names. */
function enter() {
  const [asked, query = ""] = location.hash.slice(1).split(/\?(.*)/s);
  const name = asked in ROOMS ? asked : "progress";
  for (const part of place.querySelectorAll("[data-room]")) part.hidden = part.dataset.room !== name;
  for (const link of place.querySelectorAll(".rooms a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (name === "items") enterItems(query, people);
}

async function fetched(path) {
  const answer = await patiently(AWAY, (wait) => askUntilThere(path, undefined, wait, PATIENCE));
  if (answer.signedOut) signedOut();
  else if (answer.status !== 200) notice("bad", answer.data.error ?? `The server refused it (${answer.status}).`);
  else return answer.data;
  return null;
}

/** The numbers may be older (the server keeps the last ones), unless we wait; who is there, and who may sign in, is asked anew. */
async function numbersNow(wait = false) {
  const data = await fetched(`/api/admin/dashboard${wait ? "?wait=true" : ""}`);
  const present = data && (await fetched("/api/admin/people"));
  if (!present) return null;
  const known = new Map(data.people.map((person) => [person.id, person]));
  const rows = present.people.map((person) => ({ ...(known.get(person.id) ?? NO_LABELS), ...person }));
  return { ...data, people: rows.sort((a, b) => b.labels - a.labels || a.name.localeCompare(b.name)) };
}

async function again() {
  const data = await numbersNow(true);
  if (data) draw(data);
  enter();
}

/** Only the numbers are drawn anew: what somebody is typing below stays. */
function draw(data) {
  const { progress, agreement } = data;
  people = data.people;
  numbers.replaceChildren(
    el("p", { class: "aside actions" }, `As of ${inUtc(data.generated)} UTC`, button("Refresh", again, { class: "small" })),
    el("div", { class: "tiles", "data-room": "progress" },
      tile(`${whole(progress.given)} of ${whole(progress.wanted)}`, "labels given", el("progress", { max: Math.max(1, progress.wanted), value: progress.given, "aria-label": "Labels given" })),
      tile(`${whole(progress.done)} of ${whole(progress.items)}`, `items complete, ${whole(progress.open)} being worked on, ${whole(progress.skipped)} skips`),
      tile(progress.days_left === null ? "–" : decimal(progress.days_left, progress.days_left < 10 ? 1 : 0), "days left at this week's pace"),
      tile(decimal(agreement.alpha), "Krippendorff's alpha: 0 is chance, 1 is full agreement"),
      tile(agreement.pairs ? percent(agreement.pairs.share) : "–", "of the pairs that two people ordered, they ordered alike")),
    room("progress", "What to look at", alarms(data.alarms)),
    room("progress", "Labels a day (UTC)", el("div", { class: "card plot" }, bars(data.days)), taskTable(progress.tasks)),
    room("people", "People", peopleTable(data.people, me.name, again)),
    ...(data.people.some((person) => person.labels) ? [room("quality", "Quality", el("p", { class: "aside" },
      "Points with their 95 % intervals, from 0 to 100 %. The dashed line is one half: which reply was shown first should not matter, so an interval that leaves it there is drawn in colour. Longer replies may deserve to win: compare people with one another."), qualityTable(data.people))] : []),
    room("quality", "Agreement", el("p", {}, agreementInWords(agreement, progress)), ...(agreement.between.length ? [agreementTable(agreement.between)] : [])),
    room("sources", "Which source wins", ...sources(data)),
    room("progress", "Verdicts and flags", el("p", {}, verdictsInWords(data))));
}

function tile(big, words, more = null) {
  return el("div", { class: "card tile" }, el("p", { class: "big" }, big), el("p", {}, words), more);
}

function room(name, title, ...parts) {
  return el("section", { class: "part", "data-room": name }, el("h2", {}, title), ...parts);
}

function panel(name, title, form) {
  return el("section", { class: "card panel", "data-room": name }, el("h2", {}, title), form);
}

/** Alarms with the same advice stand together: the advice once, and under it who. */
function alarms(list) {
  if (!list.length) return el("p", {}, "Nothing stands out.");
  const groups = Map.groupBy ? Map.groupBy(list, (alarm) => alarm.do) : list.reduce((found, alarm) => found.set(alarm.do, [...(found.get(alarm.do) ?? []), alarm]), new Map());
  return el("div", {}, ...[...groups].map(([advice, group]) => el("div", { class: `card alarm ${group[0].level}` },
    ...group.map((alarm) => el("p", {}, el("b", {}, alarm.who === null ? (alarm.level === "bad" ? "Alarm: " : "Note: ") : `${alarm.who}: `), `${alarm.what}.`)), el("p", { class: "aside" }, `To do: ${advice}.`))));
}

function taskTable(tasks) {
  return table("Progress by task", ["Task", "#Items", "#Complete", "#Labels given", "#Wanted"], tasks.map((row) => [row.task, whole(row.items), whole(row.done), whole(row.given), whole(row.wanted)]));
}

function agreementInWords(agreement, progress) {
  if (!agreement.pairs) {
    const wait = progress.wanted > progress.items; // some items are for more than one person already
    return `No pair of replies was ordered by two people yet. ${wait ? "Agreement is measured once a second person has labelled the same items." : "Raise the number of people for each item to measure agreement."}`;
  }
  const ceiling = agreement.best_accuracy === null ? "" : ` At that agreement no reward model can expect more than ${percent(agreement.best_accuracy)}.`;
  return `${agreement.people} people share ${whole(agreement.items)} items and order ${shareInWords(agreement.pairs)} of their pairs alike. Krippendorff's alpha is ${decimal(agreement.alpha)} on pairs and ${decimal(agreement.alpha_ranks)} on ranks.${ceiling}`;
}

function sources({ sources: rows, compare }) {
  const parts = [];
  if (compare) {
    const { at_equal_length: even } = compare;
    parts.push(el("p", { class: "verdict" }, `People prefer ${compare.first} to ${compare.second} in ${percent(compare.win_rate)} of the comparisons (95 % interval ${Math.round(100 * compare.low)} to ${percent(compare.high)}; ties, ${percent(compare.ties)}, count half; ${whole(compare.labels)} labels on ${whole(compare.prompts)} prompts). ${enoughInWords(compare)}`));
    parts.push(el("p", { class: "aside" }, `The interval holds after every label at once: look as often as you like, and stop when it tells. If both had written as much: ${percent(even.win_rate)} (${Math.round(100 * even.low)} to ${percent(even.high)}).`));
  }
  parts.push(rows.length ? sourceTable(rows) : el("p", {}, "No two sources have been compared yet."));
  if (rows.length) parts.push(el("p", { class: "aside" }, "Strengths of a Bradley-Terry model: 0 is the average source, a difference of 1 wins 73 % of the time. Only admins see the names of sources."));
  return parts;
}

function enoughInWords({ enough, more }) {
  if (enough === "neither") return "Enough labels: neither is preferred.";
  if (enough !== null) return `Enough labels: ${enough} is preferred.`;
  return more === null ? "Not enough labels yet." : `Not enough labels yet: about ${whole(more)} more at this rate.`;
}

function verdictsInWords({ verdicts, flags }) {
  const marks = flags.map((flag) => `${flag.flag} (${whole(flag.replies)})`).join(", ");
  return `${whole(verdicts.ranked)} ranked, ${whole(verdicts.written)} written, ${whole(verdicts.all_bad)} “all bad”, ${whole(verdicts.cannot_judge)} “cannot judge”. Flagged replies: ${marks || "none"}.`;
}

start();
