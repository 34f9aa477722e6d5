// What can be done about one person, in a dialog: a name, a role, what they are given, two accounts that are one.

import { button, el, notice } from "../dom.js";
import { whole } from "../numbers.js";
import { post } from "../post.js";

/** `again()` draws the page anew after a change. */
export function changePerson(person, people, own, again) {
  const path = `/api/admin/person/${person.id}`;
  const done = async (answer, words) => {
    if (!answer) return dialog.close(); // the refusal is on the page
    dialog.close();
    await again();
    return notice("good", words(answer));
  };
  const asked = (question, what, body, words) => async () => confirm(question) && done(await post(`${path}/${what}`, body), words);
  const name = el("input", { id: "person-name", value: person.name, required: true, maxlength: "64", autocomplete: "off" });
  const rename = el("form", { class: "fields" }, el("label", { for: "person-name" }, "Name to sign in with"), name, el("button", {}, "Rename"));
  rename.addEventListener("submit", async (event) => {
    event.preventDefault();
    done(await post(path, { name: name.value }), () => `They sign in as ${name.value.trim()} from now on.`);
  });
  const known = Object.entries(person.fields ?? {}).map(([kind, most]) => (most === null ? kind : `${kind} ${most}`)).join("; ");
  const quota = el("input", { id: "person-quota", type: "number", min: "0", step: "1", value: person.quota ?? "" });
  const fields = el("input", { id: "person-fields", value: known, placeholder: "medical 50; law" });
  const allow = el("form", { class: "fields" }, el("label", { for: "person-quota" }, "Most labels in all (nothing: no limit)"), quota,
    el("label", { for: "person-fields" }, "Kinds of prompts, each with a limit if it has one (nothing: all kinds)"), fields, el("button", {}, "Set quota and fields"));
  allow.addEventListener("submit", async (event) => {
    event.preventDefault();
    done(await post(path, { quota: Number(quota.value), fields: fields.value }), () => `What ${person.name} is given has changed.`);
  });
  const rest = button(person.paused ? "Give them items again" : "Pause: give them no items", async () => done(await post(path, { paused: !person.paused }),
    () => (person.paused ? `${person.name} is given items again.` : `${person.name} is given no items for now. What they hold they can still send.`)));
  const other = person.role === "admin" ? "annotator" : "admin";
  const role = button(`Make them an ${other}`, async () => done(await post(path, { role: other }), () => `${person.name} is an ${other} now.`));
  const others = people.filter((one) => one.id !== person.id);
  const into = el("select", { id: "person-into" }, ...others.map((one) => el("option", { value: one.id }, one.name)));
  const merge = el("div", { class: "fields" }, el("label", { for: "person-into" }, "The same person as"), into, button("Merge the two", () => {
    const kept = others.find((one) => String(one.id) === into.value);
    return asked(`Make ${person.name} and ${kept.name} one person? What ${person.name} answered is ${kept.name}'s then, and ${person.name} can no longer sign in. This cannot be undone.`,
      "merge", { into: kept.id }, ({ items }) => `${whole(items)} items are ${kept.name}'s now.`)();
  }));
  const items = el("p", { class: "actions" }, rest,
    person.labels ? button("Ask others about their items", asked(`Ask others about everything that ${person.name} answered? Their labels stay and do not count any more.`, "ask-others", {}, (answer) => `${whole(answer.items)} items are asked of others.`)) : null,
    person.skipped ? button("Offer their skips again", asked(`Offer ${person.name} again what they skipped?`, "offer-again", {}, (answer) => `${whole(answer.items)} skipped items may come again.`)) : null);
  const dialog = el("dialog", { class: "person", "aria-labelledby": "person-title" }, el("h2", { id: "person-title", tabindex: "-1", autofocus: true }, person.name),
    items, rename, allow, ...(person.name === own ? [] : [el("p", {}, role), ...(others.length ? [merge] : [])]), el("p", { class: "actions" }, button("Close", () => dialog.close(), { class: "main" })));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
