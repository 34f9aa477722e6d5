// The form of one item: an answer's state on one side, the page on the other. Three tasks: rank, compare, write.
//
// It calls `changed(state)` after every change, `submit(answer)` when the answer is whole, and `skip()`. It never talks
// to the server or to the storage: label.js and history.js do.

import { change, judge, missing, toggleFlag, type, undo, withPlaces } from "./answer.js";
import { board } from "./board.js";
import { replyCard } from "./card.js";
import { announce, button, el, letter } from "./dom.js";
import { CHOICES, judgement, STRENGTHS, VERDICTS } from "./judgement.js";
import { give, insert, step } from "./ranks.js";
import { conversation, textSwitch } from "./texts.js";
import { listed, say } from "./wording.js";
import { writing } from "./writing.js";

const LABELS = { submit: say("form.submit"), skip: say("form.skip") };

/** `view` is the server's; `start` the state to begin with; `flags` the project's list. The keyboard's handle comes back. */
export function answerForm(view, start, { flags, changed, submit, skip, labels = LABELS }) {
  const { task } = view;
  const count = view.replies.length;
  let state = start;
  let current = 0;
  let locked = false;

  const set = (next, words) => {
    if (locked) return;
    state = next;
    show();
    changed(state);
    if (words) announce(words);
  };
  const setPlaces = (reply, places) => {
    if (places.every((place, index) => place === state.now.places[index])) return;
    set(change(state, withPlaces(state.now, places)), said(reply, places));
  };
  const pick = (choice) => set(change(state, withPlaces(state.now, choice.places)), `${choice.label}.`);
  const choose = (reply, scroll = true) => {
    current = reply;
    cards[reply].node.focus({ preventScroll: true });
    if (scroll) cards[reply].node.scrollIntoView({ block: "nearest" });
    show();
  };

  const cards = view.replies.map((reply, index) => replyCard({ ...reply, position: index }, {
    task, count, flags,
    place: (place) => setPlaces(index, give(state.now.places, index, place)),
    flag: (flag) => set(change(state, toggleFlag(state.now, index, flag))),
    focused: () => {
      current = index;
      show();
    },
  }));
  const places = task !== "rank" ? null : board(count, {
    give: (reply, place) => setPlaces(reply, give(state.now.places, reply, place)),
    insert: (reply, place) => setPlaces(reply, insert(state.now.places, reply, place)),
    choose,
  });
  const whole = task === "write"
    ? writing(view.write_text ?? "", { typed: (text) => set(type(state, { text })) })
    : judgement(task, {
      choose: (choice) => pick(choice),
      strength: (value) => {
        const next = state.now.strength === value ? null : value;
        set(change(state, { ...state.now, strength: next }), next ? say("judge.it_is", { strength: STRENGTHS[value - 1] }) : say("judge.no_strength"));
      },
      verdict: (verdict) => handle.verdict(verdict),
      reason: (reason) => set(type(state, { reason })),
    });

  const undoButton = button(say("form.undo"), () => handle.undo(), { class: "quiet" });
  const keysButton = button(say("keys.title"), () => document.getElementById("keys").showModal(), { class: "quiet", "aria-keyshortcuts": "?" });
  const status = el("p", { class: "status", role: "status" });
  const actions = el("div", { class: "actions" }, task === "write" ? null : undoButton,
    button(labels.skip, () => locked || skip(), { class: "quiet" }), keysButton,
    button(labels.submit, () => handle.submit(), { class: "main" }));
  const node = el("form", { class: `item task-${task}`, autocomplete: "off", novalidate: true },
    conversation(view.prompt),
    cards.length ? el("div", { class: "replies" }, ...cards.map((card) => card.node)) : null,
    whole.node,
    el("div", { class: "side" }, places ? el("h2", {}, say("board.title")) : null, places ? places.node : null, status, actions));
  node.firstChild.prepend(textSwitch(node, view.look_alike));
  node.addEventListener("submit", (event) => event.preventDefault());
  places?.listen(node);
  // A mouse or finger leaves the focus on the reply, so that Enter submits instead of pressing the same button again.
  node.addEventListener("click", (event) => {
    const pressed = event.target.closest("[aria-pressed], .flags label");
    if (event.detail > 0 && pressed) cards[current].node.focus({ preventScroll: true });
  });

  function show() {
    cards.forEach((card, index) => card.show(state.now, index === current));
    places?.show(state.now.places, current);
    whole.show(state.now);
    undoButton.disabled = locked || state.past.length === 0;
    const ready = missing(state.now, task) === null;
    node.classList.toggle("whole", ready);
    if (ready) status.textContent = "";
  }

  /** Say what is missing, and go there. */
  function complain(open) {
    if (open === "text") {
      status.textContent = say("form.no_text");
      whole.focus();
    } else if (task === "compare") status.textContent = say("form.no_choice");
    else {
      status.textContent = say("form.unplaced", { replies: listed(open.map(letter)), count: open.length });
      choose(open[0]);
    }
  }

  const handle = {
    node,
    task,
    // Not the text field: on a phone its keyboard would cover the prompt before it is read.
    focus: () => (task === "write" ? node.firstChild : cards[current].node).focus({ preventScroll: true }),
    isLocked: () => locked,
    /** The answer as another tab left it. */
    replace(next) {
      state = next;
      show();
    },
    lock(on) {
      locked = on;
      node.inert = on;
      node.classList.toggle("locked", on);
      show();
    },
    move: (delta) => choose(Math.min(count - 1, Math.max(0, current + delta))),
    /** A digit: a place for the current reply, and on to the next one without; of two replies, the better one. */
    place(number) {
      if (task === "compare") return number > 2 ? undefined : pick(CHOICES[[1, 0, 2][number]]);
      if (number > count) {
        status.textContent = say("form.no_such_place", { place: number, count });
        return undefined;
      }
      const reply = current;
      setPlaces(reply, give(state.now.places, reply, number || null));
      const open = state.now.places.flatMap((place, index) => (place === null ? [index] : []));
      return choose(number === 0 || !open.length ? reply : (open.find((index) => index > reply) ?? open[0]));
    },
    step: (direction) => setPlaces(current, step(state.now.places, current, direction)),
    verdict(verdict) {
      const next = judge(state.now, verdict);
      set(change(state, next), next.verdict ? `${VERDICTS[verdict]}.` : say("judge.no_more", { verdict: VERDICTS[verdict] }));
    },
    undo() {
      if (state.past.length) set(undo(state), say("form.undone"));
    },
    submit() {
      if (locked) return;
      const open = missing(state.now, task);
      if (open === null) submit(state.now);
      else complain(open);
    },
  };
  show();
  return handle;
}

function said(reply, places) {
  const place = places[reply];
  if (place === null) return say("board.now_none", { reply: letter(reply) });
  const others = places.flatMap((other, index) => (other === place && index !== reply ? [letter(index)] : []));
  return say(others.length ? "board.now_tied" : "board.now", { reply: letter(reply), place, others: listed(others) });
}
