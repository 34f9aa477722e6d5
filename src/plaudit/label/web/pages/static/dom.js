// Small helpers for building the page. Text goes in as text; only the server's sanitised HTML goes in as HTML.

/** el("p", { class: "x", onclick: f, "aria-label": "y" }, "text", child): attributes with on… are listeners. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** HTML that render.py has sanitised. The policy of the page stops scripts and styles even if it had not. It is what
 *  people or models wrote, in whatever language. */
export function trusted(tag, attributes, html) {
  const node = el(tag, { lang: "", ...attributes });
  node.innerHTML = html;
  return node;
}

/** Say it to people who do not see the page. Cleared first: the same words twice are two messages. */
export function announce(text) {
  const live = document.getElementById("live");
  live.textContent = "";
  requestAnimationFrame(() => (live.textContent = text));
}

/** Replace what stands under the heading: one notice at a time. `kind` is good, bad or plain. */
export function notice(kind, text, ...actions) {
  const place = document.getElementById("notices");
  const box = el("div", { class: `notice ${kind}`, role: kind === "bad" ? "alert" : "status" }, el("p", {}, text));
  if (actions.length) box.append(el("p", { class: "actions" }, ...actions));
  place.replaceChildren(box);
  return box;
}

export function clearNotice() {
  document.getElementById("notices").replaceChildren();
}

export function button(label, onclick, attributes = {}) {
  return el("button", { type: "button", onclick, ...attributes }, label);
}

/** A, B, C … Z, then numbers: how a reply is called on the page. It says nothing of where the reply came from. */
export function letter(position) {
  return position < 26 ? String.fromCharCode(65 + position) : String(position + 1);
}

/** A time of the server's: seconds since 1970. */
export function dateOf(seconds) {
  return new Date(1000 * seconds);
}
