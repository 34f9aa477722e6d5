// One's own password, for another one.

import { el, notice } from "./dom.js";
import { deliver } from "./server.js";
import { AWAY, patiently } from "./session.js";
import { explainRefusal } from "./submit.js";
import { say } from "./wording.js";

const SHORTEST = 10;

export function passwordForm(name) {
  const [old, fresh] = [["old", "current-password"], ["new", "new-password"]].map(([id, kind]) => el("input", { id: `password-${id}`, type: "password", required: true, autocomplete: kind }));
  Object.assign(fresh, { minLength: SHORTEST, maxLength: 1000 });
  // For the browser's own keeper of passwords, which asks whose it is.
  const whose = el("input", { class: "unseen", type: "text", value: name, autocomplete: "username", readonly: true, tabindex: "-1", "aria-hidden": "true" });
  const form = el("form", { class: "fields" }, whose, el("label", { for: "password-old" }, say("password.old")), old,
    el("label", { for: "password-new" }, say("password.new", { shortest: SHORTEST })), fresh, el("button", { "aria-label": say("password.change") }, say("password.do")));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const answer = await patiently(AWAY, (wait) => deliver("/api/password", { old: old.value, new: fresh.value }, wait));
    if (answer.status === 422 || answer.status === 429) return notice("bad", say(answer.status === 422 ? "password.wrong" : "login.wait"));
    if (answer.status !== 200) return explainRefusal(answer);
    form.reset();
    return notice("good", say("password.changed"));
  });
  return el("details", { class: "card own" }, el("summary", {}, say("password.change")), form);
}
