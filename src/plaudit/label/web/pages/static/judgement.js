// What is said of the replies together: which of two is better, how clear it is, a verdict, a reason.

import { button, el } from "./dom.js";

export const STRENGTHS = ["slightly", "clearly", "very clearly"];
export const VERDICTS = { all_bad: "All bad", cannot_judge: "Cannot judge" };
export const CHOICES = [
  { label: "A is better", places: [1, 2] },
  { label: "About the same", places: [1, 1] },
  { label: "B is better", places: [2, 1] },
];

/** `choose(choice)`, `strength(1..3)`, `verdict(name)` and `reason(text)` are told what was pressed or typed. */
export function judgement(task, { choose, strength, verdict, reason }) {
  const choices = CHOICES.map((choice) => ({ choice, node: button(choice.label, () => choose(choice)) }));
  const strengths = STRENGTHS.map((word, index) => ({ value: index + 1, node: button(word, () => strength(index + 1)) }));
  const verdicts = Object.entries(VERDICTS).map(([name, label]) => ({ name, node: button(label, () => verdict(name)) }));
  const text = el("textarea", { id: "reason", rows: "2", maxlength: "5000", dir: "auto", oninput: () => reason(text.value) });
  const row = (label, name, parts) =>
    el("div", { class: `row ${name}`, role: "group", "aria-label": label },
      name === "strength" ? el("span", { class: "row-name", "aria-hidden": "true" }, label) : null, ...parts.map((part) => part.node));

  return {
    node: el("div", { class: "decide" },
      task === "compare" ? row("Which reply is better?", "choices", choices) : null,
      row("How clear is it?", "strength", strengths),
      row("Instead of an order, or beside it", "verdicts", verdicts),
      el("div", { class: "fields" }, el("label", { for: "reason" }, "Why? (optional)"), text)),
    show(answer) {
      const press = (part, on) => part.node.setAttribute("aria-pressed", on);
      choices.forEach((part) => press(part, part.choice.places.every((place, index) => place === answer.places[index])));
      strengths.forEach((part) => press(part, answer.strength === part.value));
      verdicts.forEach((part) => press(part, answer.verdict === part.name));
      if (text.value !== answer.reason) text.value = answer.reason;
    },
  };
}
