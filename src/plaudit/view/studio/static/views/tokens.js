// The microscope in the studio: which update and which reply of a run.

import { el } from "../shared/dom.js";
import { magnify } from "../microscope.js";

export async function tokens({ view, run, rest, query, get }) {
  const base = `/api/runs/${encodeURIComponent(run)}`;
  const there = (await get(`${base}/updates`)).rollout;
  if (!there.length) return view.append(el("h1", {}, "Tokens"), el("p", { class: "aside" }, "No rollout is stored yet."));
  const update = Number(rest[1] ?? there.at(-1));
  const found = await get(`${base}/tokens/${update}/${Number(rest[2] ?? 1)}`);
  let by = query.get("by") ?? "advantage";
  const to = (u, s) => (location.hash = `#/run/${encodeURIComponent(run)}/token/${u}/${s}?by=${by}`);
  const number = (label, value, low, high, changed) => {
    const input = el("input", { type: "number", min: low, max: high, value, onchange: () => changed(Math.min(high, Math.max(low, Number(input.value)))) });
    return el("label", {}, label, input);
  };
  magnify(view, { ...found, run }, {
    by, token: Number(query.get("token") ?? 0), onby: (row) => (by = row),
    above: [number(`Update, ${there[0]} to ${there.at(-1)}`, update, there[0], there.at(-1), (u) => to(u, found.sample)), number(`Reply, 1 to ${found.samples}`, found.sample, 1, found.samples, (s) => to(update, s))],
  });
}
