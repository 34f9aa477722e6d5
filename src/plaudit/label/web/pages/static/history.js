// A person's own answers, the newest first, each with its correction.

import { answerOf, begin, positionsOf } from "./answer.js";
import { announce, button, clearNotice, dateOf, el, letter, notice } from "./dom.js";
import { browserStorage, drafts } from "./draft.js";
import { filterForm } from "./filters.js";
import { answerForm } from "./form.js";
import { listenForKeys, listKeys } from "./keys.js";
import { passwordForm } from "./password.js";
import { askUntilThere } from "./server.js";
import { AWAY, patiently, signedOut, whoIsThere } from "./session.js";
import { explainRefusal, finishOld, send, sentWords } from "./submit.js";
import { excerpt, outcome } from "./summary.js";
import { conversation, replyText, textsOfProject, textSwitch } from "./texts.js";
import { locale, say } from "./wording.js";

const entries = document.getElementById("entries");
const older = document.getElementById("older");
let me = null;
let kept = null;
let filters = {};
let open = null; // { form, entry, body } of the correction on the page
let lists = 0; // asked for so far: only the last one's answer is shown, in whatever order answers come

async function start() {
  me = await whoIsThere();
  if (!me) return;
  textsOfProject(me.project);
  kept = drafts(browserStorage().storage, me.name, { onFull: () => notice("bad", say("label.no_room")) });
  listenForKeys(() => open?.form ?? null);
  document.getElementById("older").parentElement.after(passwordForm(me.name));
  const old = await finishOld(kept);
  if (old.answer) explainRefusal(old.answer, { goOn: clearNotice });
  entries.before(filterForm("own", { search: [say("history.words"), "search"], since: [say("history.since"), "date"], until: [say("history.until"), "date"] }, {}, (set) => {
    filters = asked(set);
    open = null;
    load(null);
  }));
  await load(null);
}

/** A day is this browser's day, as the list shows it. */
function asked({ search, since, until }) {
  const seconds = (day, more) => {
    const [year, month, date] = day.split("-").map(Number);
    return new Date(year, month - 1, date + more) / 1000;
  };
  return { ...(search ? { search } : {}), ...(since ? { since: seconds(since, 0) } : {}), ...(until ? { until: seconds(until, 1) } : {}) };
}

async function load(before) {
  const list = ++lists;
  older.hidden = true;
  const path = `/api/history?${new URLSearchParams({ ...filters, ...(before === null ? {} : { before }) })}`;
  const answer = await patiently(AWAY, (wait) => askUntilThere(path, undefined, wait));
  if (answer.signedOut) return signedOut();
  if (list !== lists) return undefined;
  if (answer.status !== 200) {
    older.hidden = before === null;
    return explainRefusal(answer);
  }
  if (before === null) entries.replaceChildren();
  const { labels, next } = answer.data;
  entries.append(...labels.map(entryOf));
  // A search that takes long comes in parts, some of them empty.
  if (next && !entries.children.length) return load(next);
  if (!entries.children.length) entries.append(el("p", { class: "aside" }, say(Object.keys(filters).length ? "history.none_found" : "history.none")));
  older.hidden = next === null || next === undefined;
  older.onclick = () => load(next);
  return undefined;
}

function entryOf(label) {
  const { view, positions } = label;
  const when = dateOf(label.created);
  const body = el("div", { class: "entry-body" });
  const entry = el("details", { class: "card entry" },
    el("summary", {},
      el("time", { datetime: when.toISOString() }, when.toLocaleString(locale, { dateStyle: "medium", timeStyle: "short" })),
      el("span", { class: "excerpt", dir: "auto", lang: "" }, excerpt(view.prompt)),
      el("span", { class: "outcome" }, outcome(view.task, positions)),
      label.corrected ? el("span", { class: "badge" }, say("history.corrected")) : null,
      label.late ? el("span", { class: "badge" }, say("history.late")) : null,
      el("span", { class: "open" }, say("history.read"))),
    body);
  const item = { label, entry, body };
  entry.addEventListener("toggle", () => entry.open && !body.children.length && read(item));
  return entry;
}

/** The answer as it stands. */
function read(item) {
  const { view, positions } = item.label;
  const replies = view.replies.map((reply, index) => {
    const text = replyText({ ...reply, position: index });
    const rank = positions.ranks?.[index];
    const marks = positions.flags?.[index] ?? [];
    return el("section", { class: "reply card", "aria-label": say("reply.name", { reply: letter(index) }) },
      el("header", {}, el("span", { class: "letter" }, letter(index)), el("span", { class: "given" }, rank ? say("history.place", { place: rank }) : say("history.no_place"))),
      text, marks.length ? el("p", { class: "aside" }, say("history.flags", { flags: marks.join(", ") })) : null);
  });
  const written = view.task === "write" ? el("pre", { class: "card written", dir: "auto", lang: "" }, positions.text) : null;
  const reason = positions.reason ? el("p", {}, el("b", {}, say("history.why")), positions.reason) : null;
  item.body.replaceChildren(conversation(view.prompt), written ?? el("div", { class: "replies" }, ...replies), reason ?? "",
    el("p", { class: "actions" }, button(say("history.correct"), () => correct(item))));
  item.body.prepend(textSwitch(item.body, view.look_alike));
}

function correct(item) {
  if (open) close(open);
  const { label } = item;
  const { view } = label;
  const key = `correct:${label.seq}`;
  let draft = kept.open(key, begin(answerOf(label.positions, view.replies.length)));
  const form = answerForm(view, draft.state, {
    flags: me.project.flags ?? [],
    labels: { submit: say("form.correct"), skip: say("form.cancel") },
    changed: (state) => (draft = kept.save(key, draft, state)),
    skip: () => {
      kept.drop(key);
      close(item);
    },
    submit: async (answer) => {
      draft = kept.sending(key, draft, { path: "/api/correct", body: { client_id: draft.client_id, seq: label.seq, positions: positionsOf(answer, view.task) } });
      form.lock(true);
      const done = await send(kept, key, draft);
      if (done.status === 200) return corrected(done.data);
      if (done.status === 422) {
        draft = kept.refused(key, draft);
        form.lock(false);
        return explainRefusal(done);
      }
      // 409: this very answer has been corrected from elsewhere; the list shows what counts now.
      return explainRefusal(done, { goOn: () => load(null), drop: () => { kept.drop(key); load(null); } });
    },
  });
  open = { ...item, form };
  listKeys(view);
  item.body.replaceChildren(form.node);
  form.focus();
}

function close(item) {
  open = null;
  read(item);
}

async function corrected(data) {
  open = null;
  await load(null);
  notice("good", data.late || data.replayed ? `${say("history.kept")} ${sentWords(data)}` : say("history.kept"));
  announce(say("history.kept"));
  entries.querySelector("summary")?.focus();
}

start();
