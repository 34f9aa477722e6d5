// What the signed-in pages share: who is there, the way out, waiting for a server that is away.

import { announce, button, el, notice } from "./dom.js";
import { ask, askUntilThere, below, remember } from "./server.js";
import { say } from "./wording.js";

export const AWAY = say("server.away");

/** /api/me, waited for if need be; fills the header. Null when signed out: then the page says so. */
export async function whoIsThere() {
  const answer = await patiently(AWAY, (wait) => askUntilThere("/api/me", undefined, wait));
  if (answer.signedOut || answer.status !== 200) {
    signedOut();
    return null;
  }
  const me = answer.data;
  remember(me);
  document.getElementById("project").textContent = me.project?.name ?? "";
  document.getElementById("who").textContent = ` (${me.name})`;
  for (const link of document.querySelectorAll("[data-admin]")) link.hidden = me.role !== "admin";
  document.getElementById("logout").onclick = async () => {
    await ask("/logout", {});
    location.assign(below("/login"));
  };
  return me;
}

/** The draft stays where it is; after signing in, "/" brings the same item back. */
export function signedOut() {
  notice("bad", say("server.signed_out"),
    el("a", { class: "button main", href: below("/login") }, say("login.title")));
}

/**
 * Do `attempt(wait)`, which may have to wait for the server, and tell the person so meanwhile: `what` they should know,
 * a countdown, and a button. A wait ends early when the network is back.
 */
export async function patiently(what, attempt) {
  let box = null;
  const answer = await attempt((ms) => new Promise((resolve) => {
    const until = Date.now() + ms;
    const seconds = el("span", { class: "seconds", "aria-hidden": "true" });
    const done = () => {
      clearInterval(ticking);
      window.removeEventListener("online", done);
      resolve();
    };
    const tick = () => {
      const left = until - Date.now();
      seconds.textContent = say("server.trying", { seconds: Math.max(1, Math.ceil(left / 1000)) });
      if (left <= 0) done();
    };
    const ticking = setInterval(tick, 250);
    window.addEventListener("online", done);
    if (box === null) announce(what); // once, not at every attempt
    box = notice("plain", `${what} `, button(say("server.now"), done));
    box.setAttribute("role", "group");
    box.querySelector("p").append(seconds);
    tick();
  }));
  box?.remove();
  return answer;
}
