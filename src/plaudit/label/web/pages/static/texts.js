// The texts of an item: the conversation, and a reply with its switch between rendered and plain.

import { button, el, letter, trusted } from "./dom.js";

const LONG = 1100; // pixels: a longer text starts folded, so that the other replies can be reached
const ROLES = { system: "System", user: "Person", assistant: "Assistant" };

/** The conversation that the replies continue. */
export function conversation(prompt) {
  const turns = prompt.map((turn) =>
    el(
      "article",
      { class: `turn from-${turn.role in ROLES ? turn.role : "other"}` },
      el("h3", {}, ROLES[turn.role] ?? turn.role),
      folded(trusted("div", { class: "said", dir: "auto" }, turn.html), "the text"),
    ),
  );
  return el("section", { class: "conversation card", "aria-label": "Conversation", tabindex: "-1" }, ...turns);
}

/** A reply's text, and the button that shows its characters instead of what Markdown makes of them. */
export function replyText(reply) {
  const said = trusted("div", { class: "said", dir: "auto" }, reply.html);
  const rendered = said.querySelector(":scope > .rendered");
  const plain = said.querySelector(":scope > .plain");
  const toggle = button("Plain text", () => {
    const on = toggle.getAttribute("aria-pressed") !== "true";
    toggle.setAttribute("aria-pressed", on);
    rendered.hidden = on;
    plain.hidden = !on;
  });
  toggle.className = "quiet small plain-switch";
  toggle.setAttribute("aria-pressed", "false");
  toggle.setAttribute("aria-label", `Reply ${letter(reply.position)} as plain text`);
  return { text: folded(said, `reply ${letter(reply.position)}`), toggle: plain ? toggle : null };
}

function folded(said, what) {
  const more = button(`Show all of ${what}`, () => {
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
