// A form of filters, of which some may be set.

import { button, el } from "./dom.js";
import { say } from "./wording.js";

/**
 * `fields`: name -> [label, an input's type or a list of [value, words]]; what is chosen holds at once, what is typed
 * with Enter or the button. `apply(values)` hears of those that are set.
 */
export function filterForm(id, fields, values, apply) {
  const inputs = Object.entries(fields).map(([name, [, of]]) => Array.isArray(of)
    ? el("select", { id: `${id}-${name}`, name }, ...of.map(([value, words]) => el("option", { value }, words)))
    : el("input", { id: `${id}-${name}`, name, type: of, maxlength: "200" }));
  const now = () => Object.fromEntries(inputs.map((input) => [input.name, input.value.trim()]).filter(([, value]) => value !== ""));
  const set = (to) => inputs.forEach((input) => (input.value = to[input.name] ?? ""));
  const form = el("form", { class: "filters card", role: "search", autocomplete: "off" },
    ...inputs.map((input) => el("span", { class: `filter ${input.type}` }, el("label", { for: input.id }, fields[input.name][0]), input)),
    el("span", { class: "actions" }, el("button", { class: "main" }, say("history.search")), button(say("history.clear"), () => {
      set({});
      apply({});
    }, { class: "quiet" })));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    apply(now());
  });
  form.addEventListener("change", (event) => event.target.type !== "search" && apply(now()));
  set(values);
  return form;
}
