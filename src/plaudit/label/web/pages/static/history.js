// A person's own answers, the newest first, each with its correction.

import { answerOf, begin, positionsOf } from "./answer.js";
import { announce, button, clearNotice, dateOf, el, letter, notice } from "./dom.js";
import { browserStorage, drafts } from "./draft.js";
import { answerForm } from "./form.js";
import { listenForKeys, listKeys } from "./keys.js";
import { passwordForm } from "./password.js";
import { askUntilThere } from "./server.js";
import { AWAY, patiently, signedOut, whoIsThere } from "./session.js";
import { explainRefusal, finishOld, send, sentWords } from "./submit.js";
import { conversation, replyText, textsOfProject, textSwitch } from "./texts.js";

const entries = document.getElementById("entries");
const older = document.getElementById("older");
let me = null;
let kept = null;
let open = null; // { form, entry, body } of the correction on the page

async function start() {
  me = await whoIsThere();
  if (!me) return;
  textsOfProject(me.project);
  kept = drafts(browserStorage().storage, me.name, { onFull: () => notice("bad", "This browser has no room for drafts: send before you leave the page.") });
  listenForKeys(() => open?.form ?? null);
  document.getElementById("older").parentElement.after(passwordForm(me.name));
  const old = await finishOld(kept);
  if (old.answer) explainRefusal(old.answer, { goOn: clearNotice });
  await load(null);
}

async function load(before) {
  const path = before === null ? "/api/history" : `/api/history?before=${before}`;
  const answer = await patiently(AWAY, (wait) => askUntilThere(path, undefined, wait));
  if (answer.signedOut) return signedOut();
  if (answer.status !== 200) return explainRefusal(answer);
  if (before === null) entries.replaceChildren();
  const { labels, next } = answer.data;
  entries.append(...labels.map(entryOf));
  if (!entries.children.length) entries.append(el("p", { class: "aside" }, "You have not answered anything yet."));
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
      el("time", { datetime: when.toISOString() }, when.toLocaleString([], { dateStyle: "medium", timeStyle: "short" })),
      el("span", { class: "excerpt", dir: "auto" }, excerpt(view.prompt)),
      el("span", { class: "outcome" }, outcome(view, positions)),
      label.corrected ? el("span", { class: "badge" }, "corrected") : null,
      label.late ? el("span", { class: "badge" }, "late") : null,
      el("span", { class: "open" }, "Read or correct")),
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
    return el("section", { class: "reply card", "aria-label": `Reply ${letter(index)}` },
      el("header", {}, el("span", { class: "letter" }, letter(index)), el("span", { class: "given" }, rank ? `place ${rank}` : "no place")),
      text, marks.length ? el("p", { class: "aside" }, `Flags: ${marks.join(", ")}`) : null);
  });
  const written = view.task === "write" ? el("pre", { class: "card written", dir: "auto" }, positions.text) : null;
  const reason = positions.reason ? el("p", {}, el("b", {}, "Why: "), positions.reason) : null;
  item.body.replaceChildren(conversation(view.prompt), written ?? el("div", { class: "replies" }, ...replies), reason ?? "",
    el("p", { class: "actions" }, button("Correct this answer", () => correct(item))));
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
    labels: { submit: "Correct", skip: "Cancel" },
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
  notice("good", data.late || data.replayed ? `Your correction is kept. ${sentWords(data)}` : "Your correction is kept.");
  announce("Your correction is kept.");
  entries.querySelector("summary")?.focus();
}

/** "B > A = C", best first. */
function outcome(view, { ranks, verdict }) {
  if (view.task === "write") return "written";
  const words = verdict === "cannot_judge" ? "cannot judge" : verdict === "all_bad" ? "all bad" : "";
  if (!ranks) return words;
  const order = [...ranks.keys()].sort((a, b) => ranks[a] - ranks[b] || a - b);
  const text = order.map((reply, at) => `${at === 0 ? "" : ranks[reply] === ranks[order[at - 1]] ? " = " : " > "}${letter(reply)}`).join("");
  return words ? `${text}, ${words}` : text;
}

/** The last turn in few words. A template's content is inert: nothing in it is fetched or runs. */
function excerpt(prompt) {
  const template = document.createElement("template");
  template.innerHTML = prompt.at(-1)?.html ?? "";
  template.content.querySelector(".plain")?.remove(); // the same text again
  const text = template.content.textContent.trim().replace(/\s+/g, " ");
  return text.length > 110 ? `${text.slice(0, 110)}…` : text;
}

start();
