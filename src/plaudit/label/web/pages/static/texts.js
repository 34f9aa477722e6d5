// The texts of an item: the conversation and the replies, each formatted or as plain text. One switch for all of them,
// remembered in this browser; before anybody uses it the project says how texts are shown.

import { button, el, letter, trusted } from "./dom.js";
import { typeset } from "./maths.js";
import { fillIn, say } from "./wording.js";

const LONG = 1100; // pixels: a longer text starts folded, so that the other replies can be reached
const ROLES = { system: say("text.system"), user: say("text.user"), assistant: say("text.assistant") };
const KEY = "plaudit:1:plain";
let asked = null; // what this person chose, if the browser keeps nothing
let byProject = false;

/** How the project shows texts where nobody has used the switch. */
export function textsOfProject({ plain_text: plain = false }) {
  byProject = plain;
}

/** The switch, for the texts in `root`; `alike`: formatted, two replies could not be told apart. */
export function textSwitch(root, alike = false) {
  const toggle = button(say("text.plain"), () => {
    asked = toggle.getAttribute("aria-pressed") !== "true";
    store(asked ? "on" : "off");
    show(asked);
  }, { class: "quiet small plain-switch" });
  const show = (plain) => {
    toggle.setAttribute("aria-pressed", plain);
    for (const part of root.querySelectorAll(".said > .rendered")) part.hidden = plain;
    for (const part of root.querySelectorAll(".said > .plain")) part.hidden = !plain;
  };
  show(alike || (asked ?? (stored() === null ? byProject : stored() === "on")));
  const note = alike ? el("span", { class: "aside" }, say("text.look_alike")) : null;
  return el("p", { class: "text-switch" }, note, toggle);
}

/** The conversation that the replies continue. */
export function conversation(prompt) {
  const turns = prompt.map((turn) =>
    el(
      "article",
      { class: `turn from-${turn.role in ROLES ? turn.role : "other"}` },
      el("h3", {}, ROLES[turn.role] ?? turn.role),
      folded(said(turn.html), say("text.more")),
    ),
  );
  return el("section", { class: "conversation card", "aria-label": say("text.conversation"), tabindex: "-1" }, el("h2", { class: "unseen" }, say("text.conversation")), ...turns);
}

/** A reply's text. */
export function replyText(reply) {
  return folded(said(reply.html), say("text.more_of_reply", { reply: letter(reply.position) }));
}

function said(html) {
  const node = trusted("div", { class: "said" }, html);
  fillIn(node);
  typeset(node);
  return node;
}

function stored() {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null;
  }
}

function store(value) {
  try {
    localStorage.setItem(KEY, value);
  } catch {
    // A browser that keeps nothing remembers it for as long as the page is open.
  }
}

function folded(said, words) {
  const more = button(words, () => {
    said.classList.remove("folded");
    more.remove();
  });
  more.className = "quiet small";
  more.hidden = true;
  // How long it is, is known when it is on the page.
  requestAnimationFrame(() => {
    if (said.scrollHeight <= LONG) return;
    said.classList.add("folded");
    more.hidden = false;
  });
  const box = el("div", { class: "fold" }, said, more);
  box.addEventListener("focusin", (event) => event.target !== more && said.contains(event.target) && more.click());
  return box;
}
