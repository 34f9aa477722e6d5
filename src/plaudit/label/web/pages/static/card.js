// One reply: its letter, its place, its text, its flags.

import { button, el, letter } from "./dom.js";
import { replyText } from "./texts.js";

/** `place(number)` gives the reply that place, `flag(name)` flips a flag, `focused()` makes it the current reply. */
export function replyCard(reply, { task, count, flags, place, flag, focused }) {
  const index = reply.position;
  const name = letter(index);
  const ranked = task === "rank";
  const text = replyText(reply);
  const picks = Array.from({ length: ranked ? count : 0 }, (_, at) =>
    button(String(at + 1), () => place(at + 1), { "aria-label": `Place ${at + 1} for reply ${name}` }));
  const boxes = flags.map((label) => ({ label, box: el("input", { type: "checkbox", onchange: () => flag(label) }) }));
  const drag = ranked ? { "data-drag": index, "data-letter": name, title: "Drag me to a place" } : {};
  const node = el("section", { class: "reply card", role: "group", tabindex: "0", "data-reply": index },
    el("header", {},
      el("span", { class: "letter", ...drag }, name),
      ranked ? el("span", { class: count > 6 ? "pick many" : "pick", role: "group", "aria-label": `Place of reply ${name}` }, ...picks) : null),
    text,
    boxes.length ? el("fieldset", { class: "flags" }, el("legend", { class: "unseen" }, `Flags for reply ${name}`),
      ...boxes.map(({ label, box }) => el("label", { class: "tick" }, box, ` ${label}`))) : null);
  node.addEventListener("focusin", focused);

  return {
    node,
    show(answer, current) {
      const own = answer.places[index];
      const words = own === null ? "no place yet" : `place ${own} of ${count}`;
      node.setAttribute("aria-label", ranked ? `Reply ${name}, ${words}` : `Reply ${name}`);
      // Of two replies only the better one is marked; of more, those that have a place.
      node.classList.toggle("placed", ranked ? own !== null : own === 1);
      node.classList.toggle("current", current);
      picks.forEach((pick, at) => pick.setAttribute("aria-pressed", own === at + 1));
      boxes.forEach(({ label, box }) => (box.checked = answer.flags[index].includes(label)));
    },
  };
}
