// One's own password, for another one.

import { el, notice } from "./dom.js";
import { deliver } from "./server.js";
import { AWAY, patiently } from "./session.js";
import { explainRefusal } from "./submit.js";

export function passwordForm(name) {
  const [old, fresh] = [["old", "current-password"], ["new", "new-password"]].map(([id, kind]) => el("input", { id: `password-${id}`, type: "password", required: true, autocomplete: kind }));
  // For the browser's own keeper of passwords, which asks whose it is.
  const whose = el("input", { class: "unseen", type: "text", value: name, autocomplete: "username", readonly: true, tabindex: "-1", "aria-hidden": "true" });
  const form = el("form", { class: "fields" }, whose, el("label", { for: "password-old" }, "Old password"), old,
    el("label", { for: "password-new" }, "New password (10 characters or more)"), fresh, el("button", { "aria-label": "Change your password" }, "Change"));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const answer = await patiently(AWAY, (wait) => deliver("/api/password", { old: old.value, new: fresh.value }, wait));
    if (answer.status !== 200) return explainRefusal(answer);
    form.reset();
    return notice("good", "Your password is changed. Elsewhere you are signed out.");
  });
  return el("details", { class: "card own" }, el("summary", {}, "Change your password"), form);
}
