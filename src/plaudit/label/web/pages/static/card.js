// One reply: its letter, its place, its text, its flags.

import { button, el, letter } from "./dom.js";
import { replyText } from "./texts.js";
import { say } from "./wording.js";

/** `place(number)` gives the reply that place, `flag(name)` flips a flag, `focused()` makes it the current reply. */
export function replyCard(reply, { task, count, flags, place, flag, focused }) {
  const index = reply.position;
  const name = letter(index);
  const ranked = task === "rank";
  const text = replyText(reply);
  const picks = Array.from({ length: ranked ? count : 0 }, (_, at) =>
    button(String(at + 1), () => place(at + 1), { "aria-label": say("reply.place", { place: at + 1, reply: name }) }));
  const boxes = flags.map((label) => ({ label, box: el("input", { type: "checkbox", onchange: () => flag(label) }) }));
  const drag = ranked ? { "data-drag": index, "data-letter": name, title: say("reply.drag") } : {};
  const node = el("section", { class: "reply card", role: "group", tabindex: "0", "data-reply": index },
    el("header", {},
      el("span", { class: "letter", ...drag }, name),
      ranked ? el("span", { class: count > 6 ? "pick many" : "pick", role: "group", "aria-label": say("reply.places", { reply: name }) }, ...picks) : null),
    text,
    boxes.length ? el("fieldset", { class: "flags" }, el("legend", { class: "unseen" }, say("reply.flags", { reply: name })),
      ...boxes.map(({ label, box }) => el("label", { class: "tick" }, box, ` ${label}`))) : null);
  node.addEventListener("focusin", focused);

  return {
    node,
    show(answer, current) {
      const own = answer.places[index];
      const known = !ranked ? "reply.name" : own === null ? "reply.unplaced" : "reply.placed";
      node.setAttribute("aria-label", say(known, { reply: name, place: own, count }));
      // Of two replies only the better one is marked; of more, those that have a place.
      node.classList.toggle("placed", ranked ? own !== null : own === 1);
      node.classList.toggle("current", current);
      picks.forEach((pick, at) => pick.setAttribute("aria-pressed", own === at + 1));
      boxes.forEach(({ label, box }) => (box.checked = answer.flags[index].includes(label)));
    },
  };
}
