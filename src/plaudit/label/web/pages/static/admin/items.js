// The dashboard's room of items: what everybody said of each, side by side, and what an admin can do about one.
// The filters are in the address, so a list can be sent to a colleague.

import { button, el, letter, notice } from "../dom.js";
import { filterForm } from "../filters.js";
import { inUtc, seconds, whole } from "../numbers.js";
import { post } from "../post.js";
import { askUntilThere } from "../server.js";
import { AWAY, patiently, signedOut } from "../session.js";
import { excerpt, outcome } from "../summary.js";
import { table } from "../tables.js";
import { conversation, replyText, textSwitch } from "../texts.js";

const ONLY = {
  disagree: "people disagree", gold: "gold items", skipped: "skipped", unanswered: "without an answer", all_bad: "all bad", cannot_judge: "cannot judge",
  late: "late answers", "set aside": "answers that do not count", withdrawn: "withdrawn",
};
const ORDERS = [["", "as they were added"], ["latest", "latest answers first"]];
const STRENGTHS = ["", "slightly", "clearly", "very clearly"];
const list = el("div", { class: "found" });
const more = button("Show more items", () => {}, { hidden: true });
let asked = "";
let lists = 0; // begun so far: what comes late for one that is left is not shown

/** The room's parts; `enterItems` fills them. */
export const itemsRoom = () => el("section", { class: "part", "data-room": "items" }, el("h2", {}, "Items and answers"), el("div", { class: "filters-of-items" }), list, el("p", {}, more));

/** Show what the address asks for: "search=…&person=…". `people` are those of the dashboard. */
export async function enterItems(query, people) {
  const place = document.querySelector(".filters-of-items");
  if (place.childElementCount && query === asked) return;
  asked = query;
  const own = ++lists;
  const first = await fetched(query);
  if (own !== lists) return;
  if (!first) {
    asked = null; // the next time it is asked again
    return;
  }
  place.replaceChildren(form(first.offers, people, Object.fromEntries(new URLSearchParams(query))));
  list.replaceChildren();
  await show(query, first, own);
}

function form({ flags, kinds, splits, tasks }, people, values) {
  const any = (words, names) => [["", words], ...names.map((name) => [name, name])];
  const filters = filterForm("items", {
    search: ["Search in texts, reasons and ids", "search"],
    only: ["Which", [["", "every item"], ...Object.entries(ONLY)]],
    person: ["Person", [["", "anybody"], ...people.map((person) => [String(person.id), person.name])]],
    flag: ["Flag", any("any or none", flags)],
    since: ["From day (UTC)", "date"],
    until: ["To day (UTC)", "date"],
    ...(tasks.length > 1 ? { task: ["Task", any("every task", tasks)] } : {}),
    ...(kinds.length > 1 ? { kind: ["Kind", any("every kind", kinds)] } : {}),
    ...(splits.length > 1 ? { split: ["Split", any("every split", splits)] } : {}),
    order: ["Order", ORDERS],
  }, values, (set) => {
    const query = new URLSearchParams(set).toString();
    location.hash = query ? `#items?${query}` : "#items";
  });
  // On a phone they would take the whole screen.
  const set = Object.keys(values).length;
  return el("details", { class: "filters-fold", open: !matchMedia("(max-width: 640px)").matches },
    el("summary", {}, `Search and filters${set ? `, ${set} set` : ""}`), filters);
}

async function fetched(query) {
  const answer = await patiently(AWAY, (wait) => askUntilThere(`/api/admin/items?${query}`, undefined, wait));
  if (answer.signedOut) signedOut();
  else if (answer.status !== 200) notice("bad", answer.data.error ?? `The server refused it (${answer.status}).`);
  else return answer.data;
  return null;
}

/** Put a page's items on the page. A search that takes long comes in parts, some of them empty. */
async function show(query, page, own) {
  more.hidden = true;
  list.append(...page.items.map(entryOf));
  const next = async () => {
    more.hidden = true; // pressed twice, the same items would come twice
    const data = await fetched(`${query ? `${query}&` : ""}after=${page.next}`);
    if (own !== lists) return;
    if (data) await show(query, data, own);
    else more.hidden = false;
  };
  if (page.next !== null && !page.items.length) {
    notice("plain", "Still looking …");
    return next();
  }
  document.querySelector("#notices .plain")?.remove();
  if (!list.childElementCount) list.append(el("p", { class: "aside" }, "There is no such item."));
  more.hidden = page.next === null;
  more.onclick = next;
  return undefined;
}

function entryOf(item) {
  const standing = item.answers.filter((answer) => answer.stands);
  const count = new Set(standing.filter((answer) => !answer.aside).map((answer) => answer.person)).size;
  const badge = (words, on) => (on ? el("span", { class: "badge" }, words) : null);
  const body = el("div", { class: "entry-body" });
  const entry = el("details", { class: "card entry" },
    el("summary", {},
      el("span", { class: "aside" }, `No. ${whole(item.number)}`),
      el("span", { class: "excerpt", dir: "auto" }, excerpt(item.prompt)),
      el("span", { class: "said-by" }, standing.map((answer) => `${answer.name}: ${outcome(item.task, answer)}`).join("; ") || "no answer yet"),
      badge("gold", item.gold), badge("people disagree", item.disagree), badge("withdrawn", item.withdrawn), badge(`${item.skipped.length} skips`, item.skipped.length),
      item.gold ? null : el("span", { class: "aside" }, `${count} of ${item.wanted}`)),
    body);
  entry.addEventListener("toggle", () => entry.open && !body.childElementCount && body.append(...read(item, entry)));
  return entry;
}

function read(item, entry) {
  const replies = item.replies.map((reply, index) => el("section", { class: "reply card", "aria-label": `Reply ${letter(index)}` },
    el("header", {}, el("span", { class: "letter" }, letter(index)), reply.source ? el("span", { class: "aside" }, reply.source) : null,
      item.gold ? el("span", { class: "given" }, `known: place ${item.gold[index]}`) : null),
    replyText({ ...reply, position: index })));
  const texts = el("div", { class: "entry-body" }, conversation(item.prompt), replies.length ? el("div", { class: "replies" }, ...replies) : "", written(item));
  texts.prepend(textSwitch(texts));
  return [texts, answersTable(item, entry), el("p", { class: "aside" }, facts(item)), acts(item, entry)];
}

function written(item) {
  const texts = item.answers.filter((answer) => answer.text !== null);
  return texts.length ? el("div", { class: "replies" }, ...texts.map((answer) => el("section", { class: `reply card${answer.stands ? "" : " replaced"}`, "aria-label": `Written by ${answer.name}` },
    el("header", {}, el("span", { class: "given" }, answer.name), answer.stands ? null : el("span", { class: "aside" }, "replaced since")), replyText({ html: answer.text, position: 0 })))) : "";
}

/** A row an answer; one that was replaced stands above what replaced it. */
function answersTable(item, entry) {
  if (!item.answers.length) return el("p", {}, "Nobody has answered yet.");
  const ranked = item.task !== "write";
  const heads = ["Person", "When (UTC)", ...(ranked ? [...item.replies.map((_, index) => `#${letter(index)}`), "Verdict", "Flags"] : []), "Why", "#At work", "#Guidelines", "Counts"];
  const built = table("Answers", heads, item.answers.map((answer) => [
    answer.name, inUtc(answer.created),
    ...(ranked ? [...item.replies.map((_, index) => (answer.ranks ? String(answer.ranks[index]) : "–")), verdict(answer), el("td", { class: "detail" }, marks(answer))] : []),
    el("td", { class: "detail", dir: "auto" }, answer.reason), seconds(answer.active ?? answer.seconds), answer.guidelines === null ? "–" : `v${answer.guidelines}`, el("td", {}, ...counts(item, answer, entry)),
  ]));
  built.querySelectorAll("tbody tr").forEach((row, index) => row.classList.toggle("replaced", !item.answers[index].stands));
  return built;
}

const verdict = ({ verdict: said, strength }) => [{ all_bad: "all bad", cannot_judge: "cannot judge" }[said], STRENGTHS[strength ?? 0]].filter(Boolean).join(", ") || "–";
const marks = ({ flags }) => flags.flatMap((own, index) => (own.length ? [`${letter(index)}: ${own.join(", ")}`] : [])).join("; ") || "–";

function counts(item, answer, entry) {
  if (!answer.stands) return ["replaced"];
  if (answer.aside) return ["no: others are asked"];
  if (answer.late) return ["no: late"];
  if (answer.purpose !== "normal") return [answer.purpose === "gold" ? "gold" : "asked twice"];
  if (item.withdrawn) return ["no: withdrawn"];
  return ["yes ", button("Ask somebody else", act(item, entry, `/api/admin/answer/${answer.seq}`, "ask others",
    `Ask somebody else instead of ${answer.name}? This answer stays in the records and does not count any more.`), { class: "small", "aria-label": `Ask somebody else instead of ${answer.name}` })];
}

function facts(item) {
  const people = (rows) => rows.map((row) => `${row.name} (${inUtc(row.at)})`).join(", ");
  return [
    "Letters are in the order of the file; each person saw an order of their own.",
    item.skipped.length ? `Skipped by ${people(item.skipped)}.` : "", item.open.length ? `Now with ${people(item.open)}.` : "",
    `Prompt ${item.prompt_id}, kind ${item.kind}, split ${item.split}${item.source_file ? `, from ${item.source_file}` : ""}, item ${item.id}.`,
  ].filter(Boolean).join(" ");
}

/** What can be done about the item as a whole. */
function acts(item, entry) {
  const path = `/api/admin/item/${item.id}`;
  const out = item.withdrawn
    ? button("Put back", act(item, entry, path, "put back"))
    : button("Withdraw this item", act(item, entry, path, "withdraw", "Take this item out? Nobody is given it any more, and its answers stay in the records and do not count."));
  return el("p", { class: "actions" }, item.gold || item.withdrawn ? null : button("Ask one more person", act(item, entry, path, "another opinion")), out);
}

/** Do it, and show the item as it is now. */
function act(item, entry, path, what, question = null) {
  return async () => {
    if (question && !confirm(question)) return;
    if (!(await post(path, { do: what }))) return;
    const now = (await fetched(`search=${item.id}`))?.items.find((other) => other.id === item.id);
    if (now) {
      const shown = entryOf(now);
      entry.replaceWith(shown);
      shown.open = true;
      shown.querySelector("summary").focus();
    }
    notice("good", { withdraw: "The item is withdrawn.", "put back": "The item is back.", "another opinion": "One person more is asked, before other items.", "ask others": "Somebody else is asked." }[what]);
  };
}
