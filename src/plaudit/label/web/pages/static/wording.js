// The pages' own words, of one language: that of the project, or the one that the browser asks for. They stand in
// wording/LANGUAGE.json and come with the page.

const { language, texts } = JSON.parse(document.querySelector("meta[name=wording]").content);
const forms = new Intl.PluralRules(language);

/** How times are written: this browser's way where that is of the page's language. */
export const locale = navigator.languages.find((own) => own.split("-")[0] === language.split("-")[0]) ?? language;

/** The text under a key with its {names} filled in; of a text with several forms that of the number `count`. */
export function say(key, values = {}) {
  const text = typeof texts[key] === "string" ? texts[key] : texts[key][forms.select(values.count)] ?? texts[key].other;
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** The server's own notes in the texts of others: "(empty reply)". */
export function fillIn(node) {
  for (const note of node.querySelectorAll("[data-say]")) Object.assign(note, { textContent: say(note.dataset.say), lang: document.documentElement.lang });
}

/** "B", "B and C", "B, C and D". */
export function listed(words) {
  return words.length < 2 ? words.join("") : say("page.list", { first: words.slice(0, -1).join(", "), last: words.at(-1) });
}
