// The form of one item: an answer's state on one side, the page on the other. Three tasks: rank, compare, write.
//
// It calls `changed(state)` after every change, `submit(answer)` when the answer is whole, and `skip()`. It never talks
// to the server or to the storage: label.js and history.js do.

import { change, judge, missing, toggleFlag, type, undo, withPlaces } from "./answer.js";
import { board } from "./board.js";
import { announce, button, el, letter, listed } from "./dom.js";
import { give, insert, step } from "./ranks.js";
import { conversation, replyText } from "./texts.js";

const STRENGTHS = ["slightly", "clearly", "very clearly"];
const NEVER = { submit: "Submit", skip: "Skip" };

/** `view` is the server's; `start` the state to begin with; `flags` the project's list. */
export function answerForm(view, start, { flags, changed, submit, skip, labels = NEVER }) {
  const { task } = view;
  const count = view.replies.length;
  let state = start;
  let current = 0;
  let locked = false;

  const node = el("form", { class: `item task-${task}`, autocomplete: "off", novalidate: true });
  node.addEventListener("submit", (event) => event.preventDefault());

  const set = (next, words) => {
    if (locked) return;
    state = next;
    show();
    changed(state);
    if (words) announce(words);
  };
  const say = (reply, places) => {
    const place = places[reply];
    if (place === null) return `Reply ${letter(reply)}: no place.`;
    const others = places.flatMap((other, index) => (other === place && index !== reply ? [letter(index)] : []));
    return `Reply ${letter(reply)}: place ${place}${others.length ? `, tied with ${listed(others)}` : ""}.`;
  };
  const setPlaces = (reply, places) => {
    if (places.some((place, index) => place !== state.now.places[index])) {
      set(change(state, withPlaces(state.now, places)), say(reply, places));
    }
  };

  const places = task === "rank" ? board(count, {
    give: (reply, place) => setPlaces(reply, give(state.now.places, reply, place)),
    insert: (reply, place) => setPlaces(reply, insert(state.now.places, reply, place)),
    choose: (reply) => choose(reply),
  }) : null;

  const cards = view.replies.map((reply, index) => card(reply, index));
  const choose = (reply, focus = true) => {
    current = reply;
    if (focus && cards[reply]) {
      cards[reply].node.focus({ preventScroll: true });
      cards[reply].node.scrollIntoView({ block: "nearest" });
    }
    show();
  };

  function card(reply, index) {
    const name = letter(index);
    const { text, toggle } = replyText(reply);
    const pick = task !== "rank" ? null : el("span", { class: "pick", role: "group", "aria-label": `Place of reply ${name}` },
      ...view.replies.map((_, at) => button(String(at + 1), () => {
        current = index;
        setPlaces(index, give(state.now.places, index, state.now.places[index] === at + 1 ? null : at + 1));
      }, { "aria-label": `Place ${at + 1} for reply ${name}` })));
    const marks = flags.map((flag) => {
      const box = el("input", { type: "checkbox", onchange: () => set(change(state, toggleFlag(state.now, index, flag))) });
      return { flag, box, label: el("label", { class: "tick" }, box, ` ${flag}`) };
    });
    const mark = el("span", task === "rank" ? { class: "letter", "data-drag": index, "data-letter": name, title: "Drag me to a place" } : { class: "letter" }, name);
    const node = el("section", { class: "reply card", role: "group", tabindex: "0", "data-reply": index },
      el("header", {}, mark, pick, toggle), text,
      marks.length ? el("fieldset", { class: "flags" }, el("legend", { class: "unseen" }, `Flags for reply ${name}`), ...marks.map((one) => one.label)) : null);
    node.addEventListener("focusin", () => {
      if (current !== index) { current = index; show(); }
    });
    return { node, picks: pick ? [...pick.children] : [], marks };
  }

  // --- the parts that belong to the whole answer ---
  const verdicts = { all_bad: "All bad", cannot_judge: "Cannot judge" };
  const verdictButtons = Object.entries(verdicts).map(([verdict, label]) => ({
    verdict, node: button(label, () => handle.verdict(verdict)),
  }));
  const strengthButtons = STRENGTHS.map((word, index) => ({
    strength: index + 1,
    node: button(word, () => set(change(state, { ...state.now, strength: state.now.strength === index + 1 ? null : index + 1 }), `Strength: ${word}.`)),
  }));
  const choices = task !== "compare" ? [] : [["A is better", [1, 2]], ["About the same", [1, 1]], ["B is better", [2, 1]]].map(([label, ranks]) => ({
    ranks, node: button(label, () => set(change(state, withPlaces(state.now, ranks)), `${label}.`)),
  }));
  const reason = el("textarea", { id: "reason", rows: "2", maxlength: "5000", dir: "auto", oninput: () => set(type(state, { reason: reason.value })) });
  const text = el("textarea", { id: "text", rows: "12", maxlength: "100000", dir: "auto", oninput: () => set(type(state, { text: text.value })) });
  const undoButton = button("Undo", () => handle.undo(), { class: "quiet" });
  const skipButton = button(labels.skip, () => locked || skip(), { class: "quiet" });
  const keysButton = button("Keys", () => document.getElementById("keys").showModal(), { class: "quiet", "aria-keyshortcuts": "?" });
  const submitButton = button(labels.submit, () => handle.submit(), { class: "main" });
  const status = el("p", { class: "status", role: "status" });

  if (task === "write") {
    const original = view.write_text ?? "";
    const back = original ? button("Back to the given text", () => { text.value = original; set(type(state, { text: original }), "The given text is back."); }, { class: "quiet small" }) : null;
    node.append(conversation(view.prompt), el("div", { class: "card fields" },
      el("label", { for: "text" }, original ? "Edit this reply until it is the ideal one" : "Write the ideal reply"), text, back));
  } else {
    node.append(conversation(view.prompt), el("div", { class: "replies" }, ...cards.map((one) => one.node)));
    const strength = el("div", { class: "row", role: "group", "aria-label": "How clear is it?" }, el("span", { class: "row-name" }, "How clear is it?"), ...strengthButtons.map((one) => one.node));
    const verdict = el("div", { class: "row", role: "group", "aria-label": "Instead of an order, or beside it" }, ...verdictButtons.map((one) => one.node));
    const choice = choices.length ? el("div", { class: "row choices", role: "group", "aria-label": "Which reply is better?" }, ...choices.map((one) => one.node)) : null;
    node.append(el("div", { class: "decide" }, choice, strength, verdict,
      el("div", { class: "fields" }, el("label", { for: "reason" }, "Why? (optional)"), reason)));
  }
  const actions = el("div", { class: "actions" }, task === "write" ? null : undoButton, skipButton, task === "write" ? null : keysButton, submitButton);
  node.append(el("div", { class: "side" }, places ? el("h2", {}, "Your order") : null, places ? places.node : null, status, actions));
  places?.listen(node);
  // A mouse or finger leaves the focus on the reply, so that Enter submits instead of pressing the same button again.
  node.addEventListener("click", (event) => {
    if (event.detail > 0 && event.target.closest("[aria-pressed], .flags label") && task !== "write") cards[current].node.focus({ preventScroll: true });
  });

  function show() {
    const { now } = state;
    const pressed = (one, on) => one.node.setAttribute("aria-pressed", on);
    cards.forEach((one, index) => {
      const place = now.places[index];
      one.node.setAttribute("aria-label", `Reply ${letter(index)}${task === "rank" ? `, ${place === null ? "no place yet" : `place ${place} of ${count}`}` : ""}`);
      one.node.classList.toggle("placed", place !== null);
      one.node.classList.toggle("current", index === current);
      one.picks.forEach((pick, at) => pick.setAttribute("aria-pressed", place === at + 1));
      one.marks.forEach((mark) => (mark.box.checked = now.flags[index].includes(mark.flag)));
    });
    places?.show(now.places, current);
    verdictButtons.forEach((one) => pressed(one, now.verdict === one.verdict));
    strengthButtons.forEach((one) => pressed(one, now.strength === one.strength));
    choices.forEach((one) => pressed(one, one.ranks.every((rank, index) => rank === now.places[index])));
    if (reason.value !== now.reason) reason.value = now.reason;
    if (text.value !== now.text) text.value = now.text;
    undoButton.disabled = locked || state.past.length === 0;
    node.classList.toggle("whole", missing(now, task) === null);
    if (missing(now, task) === null) status.textContent = "";
  }

  const handle = {
    node,
    task,
    element: node,
    // Not the text field: on a phone its keyboard would cover the prompt before it is read.
    focus: () => (task === "write" ? node.firstChild : cards[current].node).focus({ preventScroll: true }),
    isLocked: () => locked,
    /** The answer as another tab left it. */
    replace(next) { state = next; show(); },
    lock(on) {
      locked = on;
      node.inert = on;
      node.classList.toggle("locked", on);
      show();
    },
    move: (delta) => choose(Math.min(count - 1, Math.max(0, current + delta))),
    place(number) {
      if (task === "compare") return choices[[1, 0, 2][number]]?.node.click();
      if (number > count) return undefined;
      const reply = current;
      setPlaces(reply, give(state.now.places, reply, number || null));
      const next = number ? state.now.places.findIndex((place, index) => place === null && index > reply) : -1;
      const open = next < 0 && number ? state.now.places.indexOf(null) : next;
      return choose(open < 0 ? reply : open);
    },
    step: (direction) => setPlaces(current, step(state.now.places, current, direction)),
    verdict(verdict) {
      const next = judge(state.now, verdict);
      set(change(state, next), next.verdict ? `${verdicts[verdict]}.` : `Not: ${verdicts[verdict]}.`);
    },
    undo() {
      if (!locked && state.past.length) set(undo(state), "Undone.");
    },
    submit() {
      if (locked) return;
      const open = missing(state.now, task);
      if (open === null) return void submit(state.now);
      const words = open === "text" ? "The reply is still empty." : task === "compare" ? "Choose A, B or “about the same” first."
        : `${listed(open.map(letter))} ${open.length > 1 ? "have" : "has"} no place yet.`;
      status.textContent = words; // a status line is read out by itself
      if (open === "text") text.focus();
      else if (task === "rank") choose(open[0]);
    },
  };
  show();
  return handle;
}
