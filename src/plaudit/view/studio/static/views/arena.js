// Policies of the run answer a prompt side by side and blind: who wrote what is told once somebody has chosen.

import { button, clearNotice, el, letter, notice } from "../shared/dom.js";
import { decimal } from "../shared/numbers.js";

export async function arena({ view, run, get, post, labels }) {
  const base = `/api/runs/${encodeURIComponent(run)}/arena`;
  const { policies } = await get(base);
  view.append(el("h1", {}, "Arena", el("small", {}, run)));
  if (!policies.length) return view.append(el("p", { class: "aside" }, "No policy is there yet: the first one is the SFT model, when its stage has ended."));
  const first = ["SFT", "PPO"].every((name) => policies.includes(name)) ? ["SFT", "PPO"] : policies.slice(0, 2);
  const ticks = policies.map((name) => el("input", { type: "checkbox", value: name, checked: first.includes(name) }));
  const prompt = el("textarea", { rows: "3", required: true, maxlength: "20000", id: "asked", dir: "auto" });
  const length = el("input", { type: "number", min: "1", max: "2048", value: "128" });
  const warmth = el("input", { type: "number", min: "0.01", max: "5", step: "0.01", value: "0.7" });
  const go = el("button", { type: "submit", class: "main" }, "Ask");
  const board = el("div", { "aria-live": "polite" });
  const ask = async (event) => {
    event.preventDefault();
    const names = ticks.filter((one) => one.checked).map((one) => one.value);
    if (!names.length) return notice("bad", "Tick at least one policy.");
    clearNotice();
    go.disabled = true;
    board.replaceChildren(el("p", { class: "aside" }, "The models answer, in a process of their own; the first time they are loaded."));
    try {
      const found = await post(base, { prompt: prompt.value, policies: names, max_new_tokens: Number(length.value), temperature: Number(warmth.value) });
      board.replaceChildren(...match(found, base, post, labels));
    } catch (error) {
      board.replaceChildren();
      notice("bad", `${error.message}. ${error.fix ?? ""}`);
    } finally {
      go.disabled = false;
    }
  };
  view.append(el("form", { class: "ask", onsubmit: ask },
    el("label", { for: "asked" }, "Prompt"), prompt,
    el("fieldset", {}, el("legend", {}, "Who answers"), ...policies.map((name, place) => el("label", { class: "tick" }, ticks[place], name))),
    el("div", { class: "filters" }, el("label", {}, "Longest reply, tokens", length), el("label", {}, "Temperature", warmth), go)), board);
}

/** The replies without names, and what can be said of them. */
function match(found, base, post, labels) {
  const cards = found.replies.map((reply, place) => el("article", { class: "card reply" }, el("h2", {}, letter(place)),
    el("p", { class: "text", dir: "auto" }, reply.text || "(empty reply)", reply.finished ? "" : " ✂"), el("p", { class: "aside told" })));
  const store = el("input", { type: "checkbox", checked: labels, disabled: !labels });
  const actions = el("p", { class: "actions" });
  const choose = async (best) => {
    for (const one of actions.querySelectorAll("button")) one.disabled = true;
    try {
      const told = await post(`${base}/choice`, { match: found.match, best, store: store.checked && best.length > 0 });
      told.replies.forEach((reply, place) => {
        cards[place].classList.toggle("best", best.length > 0 && best.length < told.replies.length && best.includes(place));
        cards[place].querySelector("h2").textContent = `${letter(place)}: ${reply.policy}`;
        cards[place].querySelector(".told").textContent = `score ${decimal(reply.score)} · KL ${decimal(reply.kl)} nats · ${reply.length} tokens`;
      });
      const kept = told.stored === null ? (store.checked && best.length ? "All replies say the same: there is no label." : "") : told.stored ? "Stored as a label." : "This label was there already.";
      actions.replaceChildren(el("span", { class: "aside" }, kept));
    } catch (error) {
      for (const one of actions.querySelectorAll("button")) one.disabled = false;
      notice("bad", `${error.message}. ${error.fix ?? ""}`);
    }
  };
  const every = found.replies.map((_, place) => place);
  if (every.length > 1) actions.append(...every.map((place) => button(`${letter(place)} is best`, () => choose([place]))), button("equally good", () => choose(every)));
  actions.append(button(every.length > 1 ? "only show who wrote them" : "show score and KL", () => choose([]), { class: "quiet" }));
  const keep = every.length > 1 ? el("label", { class: "tick" }, store, labels ? "store the choice as a label" : "store the choice as a label: start the studio with --labels FILE") : null;
  return [el("div", { class: "board" }, ...cards), actions, ...(keep ? [keep] : [])];
}
