// The annotator's page: one item after the other. It keeps the draft, asks for items, and sends answers.

import { stopwatch } from "./active.js";
import { begin, emptyAnswer, positionsOf } from "./answer.js";
import { announce, button, clearNotice, el, notice, trusted } from "./dom.js";
import { browserStorage, drafts } from "./draft.js";
import { answerForm } from "./form.js";
import { listenForKeys, listKeys } from "./keys.js";
import { typeset } from "./maths.js";
import { ask, below, deliver } from "./server.js";
import { AWAY, patiently, signedOut, whoIsThere } from "./session.js";
import { explainConflict, explainRefusal, finishOld, send, sentWords } from "./submit.js";
import { textsOfProject } from "./texts.js";
import { fillIn, locale, say } from "./wording.js";

const GUIDELINES_READ = "plaudit:1:guidelines";
const work = document.getElementById("work");
const { storage, lasting } = browserStorage();
let me = null;
let kept = null;
const worked = stopwatch();
let shown = null; // { lease, key, form, draft } of the item on the page

async function start() {
  me = await whoIsThere();
  if (!me) return;
  kept = drafts(storage, me.name, { onFull: () => notice("bad", say("label.no_room")) });
  kept.tidy();
  progress(me.progress);
  textsOfProject(me.project);
  guidelines(me.project.guidelines_html ?? "");
  listenForKeys(() => shown?.form ?? null);
  window.addEventListener("storage", otherTab);
  window.addEventListener("pageshow", (event) => event.persisted && comeBack());
  const old = await finishOld(kept);
  if (old.answer) return failed(old.key, old.draft, old.answer, () => next());
  const words = [
    new URLSearchParams(location.search).get("for") === "admins" ? say("label.for_admins") : "",
    !lasting ? say("label.no_drafts") : old.arrived ? say("label.arrived") : "",
  ];
  if (location.search) history.replaceState(null, "", below("/")); // said once, and not again after a reload
  return next(words.filter(Boolean).join(" "));
}

/** The next item; `words` stay on the page beside it, `spoken` are only read out. */
async function next(words = "", spoken = words) {
  shown = null;
  const answer = await patiently(AWAY, (wait) => deliver("/api/claim", { task: null }, wait));
  if (answer.signedOut) return signedOut();
  if (words) notice("good", words);
  else clearNotice();
  if (answer.status === 204) return nothingLeft();
  if (answer.status !== 200) return explainRefusal(answer, { goOn: () => next() });
  if (answer.data.settings !== me.project.settings) await settingsChanged();
  return show(answer.data, spoken);
}

/** An admin has changed something since this page was loaded: the guidelines, the flags, how texts are shown. */
async function settingsChanged() {
  const answer = await ask("/api/me");
  if (answer.status !== 200) return;
  const before = me.project.guidelines_version;
  me.project = answer.data.project;
  me.completion = answer.data.completion;
  textsOfProject(me.project);
  guidelines(me.project.guidelines_html);
  if (me.project.guidelines_version !== before) notice("plain", say("label.changed"), button(say("label.changed_read"), clearNotice));
}

function show({ lease, seconds_left: left, item: view }, spoken = "") {
  worked.begin();
  const key = view.draft_key;
  const begun = kept.read(key) !== null;
  const draft = kept.open(key, begin(emptyAnswer(view.replies.length, view.write_text ?? "")));
  const form = answerForm(view, draft.state, {
    flags: me.project.flags ?? [],
    changed: (state) => (shown.draft = kept.save(key, shown.draft, state)),
    submit,
    skip,
  });
  shown = { lease, key, form, draft, task: view.task };
  listKeys(view);
  work.replaceChildren(form.node);
  window.scrollTo(0, 0);
  form.focus();
  reserved(left);
  const what = say({ rank: "label.rank", compare: "label.compare", write: "label.write" }[view.task], { count: view.replies.length });
  announce(`${spoken} ${say(begun ? "label.again" : "label.new", { what })}`);
}

async function submit(answer) {
  const item = shown;
  if (kept.wasSent(item.key)?.lease === item.lease) return answeredElsewhere(item);
  const positions = positionsOf(answer, item.task);
  item.draft = kept.sending(item.key, item.draft, { path: "/api/submit", body: { client_id: item.draft.client_id, lease: item.lease, positions, active_seconds: worked.seconds() } });
  item.form.lock(true);
  const outcome = await send(kept, item.key, item.draft);
  if (outcome.status === 200) {
    const words = sentWords(outcome.data);
    refreshProgress();
    guidelinesRead();
    return next(outcome.data.late || outcome.data.replayed ? words : "", words);
  }
  return failed(item.key, item.draft, outcome, () => next());
}

/** Not sent. Only a 422 gives the form back: the server kept nothing, so the answer may change under a new id. */
function failed(key, draft, answer, goOn) {
  if (answer.status === 409) return explainConflict(kept, key, draft, answer, goOn);
  const drop = () => {
    kept.drop(key);
    goOn();
  };
  if (answer.status !== 422) return explainRefusal(answer, { goOn, drop });
  const again = kept.refused(key, draft);
  if (shown?.key !== key) return explainRefusal(answer, { goOn, drop });
  shown.draft = again;
  shown.form.lock(false);
  return explainRefusal(answer);
}

async function skip() {
  const item = shown;
  item.form.lock(true);
  const answer = await patiently(AWAY, (wait) => deliver("/api/release", { lease: item.lease }, wait));
  if (answer.signedOut) return signedOut();
  kept.drop(item.key);
  await next();
  return notice("plain", say("label.skipped"), button(say("label.take_back"), () => takeBack(item)), button(say("page.close"), clearNotice, { class: "quiet" }));
}

async function takeBack(item) {
  const answer = await patiently(AWAY, (wait) => deliver("/api/take-back", { lease: item.lease }, wait));
  if (answer.signedOut) return signedOut();
  if (answer.status === 409) return notice("bad", say("label.taken"), button(say("page.close"), clearNotice, { class: "quiet" }));
  return answer.status === 200 ? next(say("label.taken_back")) : explainRefusal(answer, { goOn: clearNotice });
}

async function nothingLeft() {
  await settingsChanged();
  clearTimeout(timer);
  document.getElementById("reserved").textContent = "";
  work.replaceChildren(el("section", { class: "card done" },
    el("h2", { tabindex: "-1" }, say(me.project.paused ? "label.paused" : "label.nothing")),
    el("p", {}, say(me.project.paused ? "label.paused_more" : "label.nothing_more")),
    me.completion ? el("p", { class: "completion" }, say("label.code"), el("b", {}, me.completion)) : null,
    el("p", { class: "actions" }, button(say("label.look_again"), () => next(), { class: "main" }), el("a", { class: "button", href: below("/history") }, say("nav.history")))));
  work.querySelector("h2").focus();
}

// --- two tabs, and the way back ---

/** Another tab of this browser changed the storage: both tabs show one answer, and a sent item is over in both. */
function otherTab(event) {
  if (!shown || event.storageArea !== localStorage) return;
  if (event.key === kept.sentKey(shown.key) && kept.wasSent(shown.key)?.lease === shown.lease) answeredElsewhere(shown);
  else if (event.key === kept.draftKey(shown.key) && event.newValue !== null && !shown.form.isLocked()) {
    shown.draft = JSON.parse(event.newValue);
    shown.form.replace(shown.draft.state);
    if (shown.draft.pending) {
      shown.form.lock(true);
      notice("plain", say("label.other_tab"), button(say("label.send_here"), () => resend(shown)));
    }
  }
}

function answeredElsewhere(item) {
  item.form.lock(true);
  notice("plain", say("label.sent_elsewhere"), button(say("label.next"), () => next(), { class: "main" }));
  refreshProgress();
}

async function resend(item) {
  const outcome = await send(kept, item.key, item.draft);
  if (outcome.status === 200) return next();
  return failed(item.key, item.draft, outcome, () => next());
}

/** The browser's back button may bring an old page back to life: is its item still the one the server has in mind? */
async function comeBack() {
  const answer = await ask("/api/claim", { task: null });
  if (answer.signedOut) return signedOut();
  if (answer.away || (answer.status === 200 && answer.data.lease === shown?.lease)) return undefined;
  return answer.status === 200 ? show(answer.data) : next();
}

// --- the header and the guidelines ---

let timer = null;

/** Until when the item is this person's, whatever their clock says; after that it can still be sent, and counts as late. */
function reserved(seconds) {
  const place = document.getElementById("reserved");
  const left = 1000 * seconds;
  const clock = new Date(Date.now() + left).toLocaleTimeString(locale, { hour: "2-digit", minute: "2-digit" });
  const over = say("label.over");
  clearTimeout(timer);
  place.textContent = left > 0 ? say("label.reserved", { time: clock }) : over;
  if (left > 0 && left < 2 ** 31) timer = setTimeout(() => (place.textContent = over), left);
}

function progress({ done, available }) {
  const all = done + available;
  document.getElementById("progress").hidden = all === 0;
  Object.assign(document.getElementById("bar"), { max: Math.max(1, all), value: done });
  document.getElementById("progress-text").textContent = say("label.progress", { done, available });
}

async function refreshProgress() {
  const answer = await ask("/api/me");
  if (answer.status === 200) progress(answer.data.progress);
}

/** Open the first time, and again when they have changed. */
function guidelines(html) {
  const box = document.getElementById("guidelines");
  box.hidden = !html.trim();
  box.querySelector(".prose").replaceWith(trusted("div", { class: "prose" }, html));
  fillIn(box);
  typeset(box);
  box.open = !box.hidden && storage.getItem(GUIDELINES_READ) !== html;
  box.ontoggle = () => box.open || storage.setItem(GUIDELINES_READ, html);
}

/** On a phone they would stand before every item: who has answered one has had them before their eyes. */
function guidelinesRead() {
  if (matchMedia("(max-width: 860px)").matches) document.getElementById("guidelines").open = false;
}

start();
