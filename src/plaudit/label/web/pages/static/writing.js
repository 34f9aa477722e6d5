// The text field of a reply that is to be written, or edited until it is the ideal one.

import { button, el } from "./dom.js";
import { say } from "./wording.js";

/** `original` is the text to start from, "" for none; `typed(text)` is told every change. */
export function writing(original, { typed }) {
  const text = el("textarea", { id: "text", rows: "12", maxlength: "200000", dir: "auto", lang: "", oninput: () => typed(text.value) });
  const back = button(say("write.back"), () => {
    text.value = original;
    typed(original);
    text.focus();
  }, { class: "quiet small" });
  return {
    node: el("div", { class: "card fields" },
      el("label", { for: "text" }, say(original ? "write.edit" : "write.new")),
      text, original ? back : null),
    focus: () => text.focus(),
    show(answer) {
      if (text.value !== answer.text) text.value = answer.text;
      back.disabled = answer.text === original;
    },
  };
}
