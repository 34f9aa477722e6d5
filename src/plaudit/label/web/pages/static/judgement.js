// What is said of the replies together: which of two is better, how clear it is, a verdict, a reason.

import { button, el } from "./dom.js";
import { say } from "./wording.js";

export const STRENGTHS = [say("judge.slightly"), say("judge.clearly"), say("judge.very_clearly")];
export const VERDICTS = { all_bad: say("judge.all_bad"), cannot_judge: say("judge.cannot_judge") };
export const CHOICES = [
  { label: say("judge.first"), places: [1, 2] },
  { label: say("judge.same"), places: [1, 1] },
  { label: say("judge.second"), places: [2, 1] },
];

/** `choose(choice)`, `strength(1..3)`, `verdict(name)` and `reason(text)` are told what was pressed or typed. */
export function judgement(task, { choose, strength, verdict, reason }) {
  const choices = CHOICES.map((choice) => ({ choice, node: button(choice.label, () => choose(choice)) }));
  const strengths = STRENGTHS.map((word, index) => ({ value: index + 1, node: button(word, () => strength(index + 1)) }));
  const verdicts = Object.entries(VERDICTS).map(([name, label]) => ({ name, node: button(label, () => verdict(name)) }));
  const text = el("textarea", { id: "reason", rows: "2", maxlength: "5000", dir: "auto", lang: "", oninput: () => reason(text.value) });
  const row = (label, name, parts) =>
    el("div", { class: `row ${name}`, role: "group", "aria-label": label },
      name === "strength" ? el("span", { class: "row-name", "aria-hidden": "true" }, label) : null, ...parts.map((part) => part.node));

  return {
    node: el("div", { class: "decide" },
      task === "compare" ? row(say("judge.which"), "choices", choices) : null,
      row(say("judge.how_clear"), "strength", strengths),
      row(say("judge.instead"), "verdicts", verdicts),
      el("div", { class: "fields" }, el("label", { for: "reason" }, say("judge.why")), text)),
    show(answer) {
      const press = (part, on) => part.node.setAttribute("aria-pressed", on);
      choices.forEach((part) => press(part, part.choice.places.every((place, index) => place === answer.places[index])));
      strengths.forEach((part) => press(part, answer.strength === part.value));
      verdicts.forEach((part) => press(part, answer.verdict === part.name));
      if (text.value !== answer.reason) text.value = answer.reason;
    },
  };
}
