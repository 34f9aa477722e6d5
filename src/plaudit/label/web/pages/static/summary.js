// An item and an answer in few words, for lists.

import { letter } from "./dom.js";
import { fillIn, say } from "./wording.js";

/** "B > A = C", best first. */
export function outcome(task, { ranks, verdict }) {
  if (task === "write") return say("history.written");
  const words = verdict === "cannot_judge" ? say("history.cannot_judge") : verdict === "all_bad" ? say("history.all_bad") : "";
  if (!ranks) return words;
  const order = [...ranks.keys()].sort((a, b) => ranks[a] - ranks[b] || a - b);
  const text = order.map((reply, at) => `${at === 0 ? "" : ranks[reply] === ranks[order[at - 1]] ? " = " : " > "}${letter(reply)}`).join("");
  return words ? `${text}, ${words}` : text;
}

/** The last turn in few words. A template's content is inert: nothing in it is fetched or runs. */
export function excerpt(prompt) {
  const template = document.createElement("template");
  template.innerHTML = prompt.at(-1)?.html ?? "";
  template.content.querySelector(".plain")?.remove(); // the same text again
  fillIn(template.content);
  const text = template.content.textContent.trim().replace(/\s+/g, " ");
  return text.length > 110 ? `${text.slice(0, 110)}…` : text;
}
