// What an admin can do: invite, switch people off and on, change the project, take the labels out.

import { changePerson } from "./admin/person.js";
import { button, el, notice } from "./dom.js";
import { DASH, inUtc, percent, seconds, whole } from "./numbers.js";
import { post, refusal } from "./post.js";
import { below } from "./server.js";
import { AWAY, signedOut } from "./session.js";
import { table } from "./tables.js";

/** A number that leads to what it counts. */
const listOf = (count, filters) => (count ? el("a", { href: `#items?${new URLSearchParams(filters)}` }, whole(count)) : "0");

/** Who is there, how much they did, and the switch. `again()` draws the page anew. */
export function peopleTable(people, own, again) {
  return table("People", ["Name", "#Labels", "#This week", "#Median time", "#Ties", "#Cannot judge", "#Skipped", "#Late", "#Corrected", "Last answer (UTC)", "Change"], people.map((person) => {
    const flip = async () => {
      if (await post(`/api/admin/person/${person.id}`, { active: !person.active })) {
        await again();
        notice("good", person.active ? `${person.name} can no longer sign in. Their labels are kept.` : `${person.name} can sign in again.`);
      }
    };
    return [
      el("span", {}, person.name, el("small", {}, [person.role === "admin" ? "admin" : "", person.invited ? "not here yet" : "", person.paused ? "paused" : "", person.active ? "" : "disabled", person.name === own ? "you" : ""].filter(Boolean).join(", "))), listOf(person.labels, { person: person.id, order: "latest" }), whole(person.week), el("td", { class: "num", "data-sort": person.seconds?.median ?? "" }, seconds(person.seconds?.median)), percent(person.ties), percent(person.cannot_judge),
      listOf(person.skipped, { person: person.id, only: "skipped" }), whole(person.late), whole(person.corrected), el("td", { "data-sort": person.last ?? 0 }, person.last === null ? DASH : inUtc(person.last)),
      el("td", { class: "acts" }, person.name === own ? "" : button(person.active ? "Disable" : "Enable", flip, { class: "small", "aria-label": `${person.active ? "Disable" : "Enable"} ${person.name}` }),
        button("Change", () => changePerson(person, people, own, again), { class: "small", "aria-label": `Change ${person.name}` })),
    ];
  }));
}

export function invitePanel() {
  const name = el("input", { id: "invite-name", required: true, maxlength: "64", autocomplete: "off" });
  const role = el("select", { id: "invite-role" }, el("option", { value: "annotator" }, "annotator"), el("option", { value: "admin" }, "admin"));
  const link = el("input", { id: "invite-link", readonly: true, onfocus: () => link.select() });
  const made = el("div", { hidden: true, class: "fields" }, el("label", { for: "invite-link" }, "The link: send it to this person only. It works once."), link,
    button("Copy", async () => {
      link.select();
      // The clipboard's own interface is there on https alone; a server in the office may have none.
      const copied = await (navigator.clipboard?.writeText(link.value).then(() => true, () => false) ?? document.execCommand("copy"));
      if (copied) notice("good", "The link is copied.");
      else notice("bad", "The browser did not let the page copy: the link is marked, copy it with Ctrl+C.");
    }));
  const form = el("form", { class: "fields" }, el("label", { for: "invite-name" }, "Name"), name, el("label", { for: "invite-role" }, "Role"), role,
    el("button", { class: "main" }, "Make an invitation link"), made);
  const many = el("input", { id: "invite-many", type: "file", accept: ".csv,text/csv", onchange: async () => {
    const data = await post("/api/admin/invites", { csv: await many.files[0].text() });
    many.value = "";
    if (!data) return;
    saveAs("links.csv", new Blob([data.links], { type: "text/csv" }));
    notice("good", "The links are in your downloads: links.csv. Send each to its person only.");
  } });
  form.append(el("label", { for: "invite-many" }, "Many at once: a CSV file with the columns name, role, quota, fields"), many);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const data = await post("/api/admin/invite", { name: name.value.trim(), role: role.value });
    if (!data) return;
    link.value = data.link;
    made.hidden = false;
    link.focus();
  });
  return form;
}

/** What admins did, the newest first. */
export function adminLog(rows, people) {
  const name = (id) => people.find((person) => person.id === id)?.name ?? `person ${id}`;
  const words = ({ what, detail }) => Object.entries(detail).map(([key, value]) => (key === "person" ? name(value) : `${key}: ${Array.isArray(value) ? value.map(short).join(" → ") : short(value)}`)).join("; ");
  if (!rows.length) return el("p", {}, "Nothing was changed yet.");
  return table("What admins did", ["When (UTC)", "Who", "What", "Which"], rows.map((row) => [inUtc(row.at), row.person === null ? "command line" : name(row.person), row.what, el("td", { class: "detail" }, words(row))]));
}

const short = (value) => {
  const text = typeof value === "string" ? value : JSON.stringify(value);
  return text.length > 60 ? `${text.slice(0, 60)}…` : text;
};

const FORMATS = {
  rankings: "rankings, one a label", comparisons: "comparisons of two replies", pairs: "pairs: prompt, chosen, rejected", hh: "pairs as HH text",
  demonstrations: "demonstrations: written replies", table: "a spreadsheet (CSV), one row a label", ledger: "the whole ledger, as an archive",
};
const OF_ITEMS = { kind: "Kind of prompt", split: "Split", source: "Source of a reply" };
const VERDICTS = { "": "of any sort", ranked: "with an order alone", all_bad: "all bad", cannot_judge: "cannot judge", written: "written replies" };
const AGGREGATES = { "": "every label", mean: "one ranking an item: mean ranks", reliability: "one ranking an item, by reliability" };

/** `flags` are the project's. What is left empty is no filter, and does not belong in the address. */
export function exportPanel(people, flags) {
  const choose = (id, options) => el("select", { id: `export-${id}`, name: id }, ...options.map(([value, label]) => el("option", { value }, label)));
  const tick = (name, value, label) => el("label", { class: "tick" }, el("input", { type: "checkbox", name, value }), label);
  const form = el("form", { class: "fields" },
    el("label", { for: "export-format" }, "Format"), choose("format", Object.entries(FORMATS)),
    el("label", { for: "export-aggregate" }, "Several people's labels"), choose("aggregate", Object.entries(AGGREGATES)),
    el("label", { for: "export-annotator" }, "Person"), choose("annotator", [["", "everybody"], ...people.map((person) => [person.name, person.name])]),
    el("label", { for: "export-min_agreement" }, "Least agreement of an item (0 to 1)"), el("input", { id: "export-min_agreement", name: "min_agreement", type: "number", min: "0", max: "1", step: "any" }),
    el("label", { for: "export-since" }, "From day (UTC)"), el("input", { id: "export-since", name: "since", type: "date" }),
    el("label", { for: "export-until" }, "To day (UTC; it counts)"), el("input", { id: "export-until", name: "until", type: "date" }),
    ...(flags.length ? [el("fieldset", {}, el("legend", {}, "Leave out replies flagged as"), ...flags.map((flag) => tick("without_flag", flag, flag)))] : []),
    ...Object.entries(OF_ITEMS).flatMap(([name, label]) => [el("label", { for: `export-${name}` }, label), el("input", { id: `export-${name}`, name, type: "text", maxlength: "64" })]),
    el("label", { for: "export-verdict" }, "Answers"), choose("verdict", Object.entries(VERDICTS)),
    tick("late", "true", "Late labels too"),
    el("button", { class: "main" }, "Export"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const { since, until } = form.elements;
    if (since.value && until.value && since.value > until.value) return notice("bad", "“From day” is after “To day”: exchange them.");
    const filters = [...new FormData(form)].filter(([, value]) => value !== "");
    return download(`/api/admin/export?${new URLSearchParams(filters)}`);
  });
  return form;
}

function saveAs(name, blob) {
  const address = URL.createObjectURL(blob);
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

/** Fetched by the script and not by a link, so that a refusal is said here instead of replacing the page. */
async function download(path) {
  notice("plain", "The export is being made …");
  let response;
  // Asked in small pieces of time, since proxies wait for a minute or so; the server goes on with the same export.
  while ((response = await fetch(below(`${path}&wait=10`)).catch(() => null))?.status === 202) {
    notice("plain", `The export is being made, for ${Math.round((await response.json()).seconds)} s so far …`);
  }
  if (response === null) return notice("bad", AWAY);
  if (response.status === 401) return signedOut();
  if (!response.ok) {
    const told = await response.json().catch(() => ({})); // a proxy's own page is no JSON
    notice("bad", told.error ? refusal(told) : `The export was not made (${response.status}): a proxy may have waited too long. \`plaudit label export\` makes it on the server.`);
  } else {
    const summary = response.headers.get("X-Plaudit-Export") ?? "";
    if (summary.startsWith("0 rows")) return notice("bad", `There is nothing to export: ${summary}`);
    const name = /filename="([^"]+)"/.exec(response.headers.get("Content-Disposition") ?? "")?.[1] ?? "export.jsonl";
    saveAs(name, await response.blob());
    notice("good", `The export is in your downloads: ${name}. ${summary}`);
  }
}

const NUMBERS = {
  overlap: ["People for each item", { min: "1", step: "1" }],
  lease_minutes: ["Minutes an item is reserved", { min: "1", step: "any" }],
  gold_rate: ["Share of gold items (0 to 1)", { min: "0", max: "1", step: "any" }],
  consistency_rate: ["Share of items shown to a person twice (0 to 1)", { min: "0", max: "1", step: "any" }],
};

/** `settings` is the server's; only what was changed is sent. */
export function settingsPanel(settings) {
  const name = el("input", { id: "set-name", value: settings.name, required: true, maxlength: "64" });
  const guidelines = el("textarea", { id: "set-guidelines", rows: "10" });
  guidelines.value = settings.guidelines;
  const picture = el("input", { id: "set-picture", type: "file", accept: "image/png,image/jpeg,image/gif,image/webp", onchange: async () => {
    const bytes = new Uint8Array(await picture.files[0].arrayBuffer());
    picture.value = "";
    const data = await post("/api/admin/picture", { data: btoa(bytes.reduce((text, byte) => text + String.fromCharCode(byte), "")) });
    if (data) guidelines.setRangeText(`\n\n${data.markdown}\n\n`, guidelines.selectionStart, guidelines.selectionEnd, "end");
  } });
  const flags = el("input", { id: "set-flags", value: settings.flags.join(", ") });
  const view = el("select", { id: "set-view" }, el("option", { value: "formatted" }, "formatted (Markdown, maths, code)"), el("option", { value: "plain" }, "as plain text"));
  view.value = settings.plain_text ? "plain" : "formatted";
  const language = el("select", { id: "set-language" }, ...Object.entries({ browser: "each browser's own", ...settings.languages }).map(([value, words]) => el("option", { value }, words)));
  language.value = settings.language;
  const paused = el("input", { type: "checkbox", id: "set-paused" });
  paused.checked = settings.paused;
  const fields = Object.entries(NUMBERS).map(([key, [label, limits]]) => ({ key, label, input: el("input", { id: `set-${key}`, type: "number", required: true, value: settings[key], ...limits }) }));
  const form = el("form", { class: "fields" },
    el("label", { for: "set-name" }, "Name of the project"), name, el("label", { for: "set-guidelines" }, "Guidelines (Markdown)"), guidelines, el("label", { for: "set-picture" }, "Picture: put one into the guidelines (1 MiB at most)"), picture,
    el("label", { for: "set-flags" }, "Flags for a reply, with commas between"), flags,
    el("label", { class: "tick" }, paused, "Paused: nobody is given an item"),
    el("label", { for: "set-view" }, "Texts are shown at first"), view, el("label", { for: "set-language" }, "Language of the annotators' pages"), language,
    ...fields.flatMap(({ key, label, input }) => [el("label", { for: `set-${key}` }, label), input]), el("button", { class: "main" }, "Save"));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const now = {
      name: name.value.trim(), guidelines: guidelines.value, flags: flags.value.split(",").map((flag) => flag.trim()).filter(Boolean), plain_text: view.value === "plain", language: language.value, paused: paused.checked,
      ...Object.fromEntries(fields.map(({ key, input }) => [key, Number(input.value)])),
    };
    const changed = Object.fromEntries(Object.entries(now).filter(([key, value]) => JSON.stringify(value) !== JSON.stringify(settings[key])));
    const saved = await post("/api/admin/project", { ...changed, version: settings.version });
    if (!saved) return;
    Object.assign(settings, saved);
    notice("good", "The settings are saved. They hold for every item that is given out from now on.");
  });
  return form;
}
