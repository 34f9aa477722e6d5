// The studio's page: which view the address names, and what all views share.

import { el, notice, clearNotice } from "./shared/dom.js";
import { ask, remember } from "./shared/server.js";
import { arena } from "./views/arena.js";
import { curves } from "./views/curves.js";
import { overview } from "./views/overview.js";
import { replies } from "./views/replies.js";
import { tokens } from "./views/tokens.js";

const VIEWS = { curves, replies, token: tokens, arena };
const NAMES = { curves: "Curves", replies: "Replies", token: "Tokens", arena: "Arena" };
const GET_MS = 120_000;
const POST_MS = 1_000_000; // models may have to be loaded
let leave = () => {};
let labels = false;

/** What a view gets: where it draws, what the address says, the server, and a way to say what must end with it. */
async function show() {
  leave();
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [kind, run, ...rest] = path.split("/").map(decodeURIComponent);
  const ends = [];
  let left = false;
  leave = () => {
    left = true;
    ends.forEach((end) => end());
  };
  const view = document.createElement("div");
  const place = { view, run, rest, query: new URLSearchParams(query), get, post, labels, onleave: (end) => (left ? end() : ends.push(end)) };
  clearNotice();
  places(kind === "run" ? run : "", rest[0] ?? "curves");
  document.title = `${run ? `${run} · ` : ""}Studio · Plaudit`;
  document.getElementById("view").replaceChildren(view);
  try {
    await (kind === "run" ? VIEWS[rest[0]] ?? curves : overview)(place);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (left) return;
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
  return answered(await ask(path, undefined, GET_MS));
}

async function post(path, body) {
  return answered(await ask(path, body, POST_MS));
}

function answered({ status, data }) {
  if (status !== 200) throw new Refusal(data);
  return data;
}

function places(run, now) {
  const base = `#/run/${encodeURIComponent(run)}`;
  const one = (href, label, here) => el("a", { href, "aria-current": here ? "page" : null }, label);
  const kinds = !run ? [] : run.includes(",") ? ["curves"] : Object.keys(VIEWS);
  document.getElementById("places").replaceChildren(one("#/", "Runs", !run), ...kinds.map((kind) => one(kind === "curves" ? base : `${base}/${kind}`, NAMES[kind], now === kind)));
}

addEventListener("hashchange", show);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
const me = await get("/api/me").catch(() => ({}));
remember({ csrf: me.csrf ?? "", name: "" });
labels = me.labels ?? false;
show();
