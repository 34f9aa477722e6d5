// What the signed-in pages share: who is there, the way out, waiting for a server that is away.

import { announce, button, clearNotice, el, notice } from "./dom.js";
import { ask, askUntilThere, rememberToken } from "./server.js";

/** /api/me, waited for if need be; fills the header. Null when signed out: then the page says so. */
export async function whoIsThere() {
  const answer = await askUntilThere("/api/me", undefined, waiting("The server cannot be reached."));
  if (answer.signedOut || answer.status !== 200) {
    signedOut();
    return null;
  }
  clearNotice();
  const me = answer.data;
  rememberToken(me.csrf);
  document.getElementById("project").textContent = me.project?.name ?? "";
  document.getElementById("who").textContent = ` (${me.name})`;
  for (const link of document.querySelectorAll("[data-admin]")) link.hidden = me.role !== "admin";
  document.getElementById("logout").onclick = async () => {
    await ask("/logout", {});
    location.assign("/login");
  };
  return me;
}

/** The draft stays where it is; after signing in, "/" brings the same item back. */
export function signedOut() {
  notice("bad", "You are signed out. What you had begun is kept in this browser, and is here again once you have signed in.",
    el("a", { class: "button main", href: "/login" }, "Sign in"));
}

/**
 * A wait for askUntilThere: counts down in a notice, ends early when the network is back or "now" is pressed. `what` is
 * what the person should know meanwhile.
 */
export function waiting(what) {
  let told = false;
  return (ms) =>
    new Promise((resolve) => {
      const until = Date.now() + ms;
      const seconds = el("span", { class: "seconds", "aria-hidden": "true" });
      const done = () => {
        clearInterval(ticking);
        window.removeEventListener("online", done);
        resolve();
      };
      const tick = () => {
        const left = until - Date.now();
        seconds.textContent = `Trying again in ${Math.max(1, Math.ceil(left / 1000))} s.`;
        if (left <= 0) done();
      };
      const ticking = setInterval(tick, 250);
      window.addEventListener("online", done);
      const box = notice("plain", `${what} `, button("Try now", done));
      box.querySelector("p").append(seconds);
      box.setAttribute("role", "group"); // read out once below, not at every attempt
      if (!told) announce(what);
      told = true;
      tick();
    });
}
