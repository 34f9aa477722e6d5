// The studio's page: which view the address names, and what all views share.

import { el, notice, clearNotice } from "./shared/dom.js";
import { ask } from "./shared/server.js";
import { overview } from "./overview.js";
import { curves } from "./curves.js";
import { replies } from "./replies.js";
import { microscope } from "./microscope.js";

let leave = () => {};

/** What a view gets: where it draws, what the address says, the server, and a way to say what must end with it. */
async function show() {
  leave();
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [kind, run, ...rest] = path.split("/").map(decodeURIComponent);
  const ends = [];
  leave = () => ends.forEach((end) => end());
  const view = document.createElement("div");
  const place = { view, run, rest, query: new URLSearchParams(query), get, onleave: (end) => ends.push(end) };
  clearNotice();
  places(kind === "run" ? run : "", rest[0] ?? "curves");
  document.title = `${run ? `${run} · ` : ""}Studio · Plaudit`;
  document.getElementById("view").replaceChildren(view);
  try {
    if (kind !== "run") await overview(place);
    else if (rest[0] === "replies") await replies(place);
    else if (rest[0] === "token") await microscope(place);
    else await curves(place);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    view.replaceChildren();
    notice("bad", `${error.message}. ${error.fix}`);
  }
}

class Refusal extends Error {
  constructor({ error, fix }) {
    super(error ?? "The studio does not answer: is it still running?");
    this.fix = fix ?? "";
  }
}

async function get(path) {
  const answer = await ask(path, undefined, 120_000);
  if (answer.status !== 200) throw new Refusal(answer.data);
  return answer.data;
}

function places(run, now) {
  const base = `#/run/${encodeURIComponent(run)}`;
  const one = (href, label, here) => el("a", { href, "aria-current": here ? "page" : null }, label);
  const within = run && !run.includes(",") ? [one(`${base}/replies`, "Replies", now === "replies"), one(`${base}/token`, "Tokens", now === "token")] : [];
  document.getElementById("places").replaceChildren(one("#/", "Runs", !run), ...(run ? [one(base, "Curves", now === "curves")] : []), ...within);
}

addEventListener("hashchange", show);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
show();
