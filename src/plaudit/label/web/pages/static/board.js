// The board: K places from best to worst, and the chips of the replies in them. It shows an answer's places and says
// what a person wants changed; it holds no state of its own.

import { draggable } from "./drag.js";
import { button, el, letter } from "./dom.js";
import { unplaced } from "./ranks.js";
import { say } from "./wording.js";

const MANY = 5; // more places than this are narrow on a phone: numbers without words
const EDGE = 0.28; // the outer part of a taken place: a drop there goes between places instead of making a tie

/** `give(reply, place)` and `insert(reply, place)` are wishes; `choose(reply, scroll)` makes a reply the current one. */
export function board(count, { give, insert, choose }) {
  const slots = Array.from({ length: count }, (_, index) => {
    const chips = el("span", { class: "chips", "data-tie": say("board.tie") });
    const name = index === 0 ? say("board.best") : index === count - 1 ? say("board.worst") : "";
    const label = el("span", { class: "place-name" }, el("b", {}, String(index + 1)), name ? ` ${name}` : "");
    return { node: el("li", { class: "slot", "data-place": index + 1 }, label, chips), chips };
  });
  const tray = el("span", { class: "chips" });
  const trayNode = el("p", { class: "tray", "data-place": 0 }, el("span", { class: "place-name" }, say("board.tray")), tray);
  const list = el("ol", { class: count > MANY ? "slots many" : "slots", "aria-label": say("board.places") }, ...slots.map((slot) => slot.node));
  const node = el("div", { class: "board" }, list, trayNode);
  let shown = [];

  const targetAt = (x, y) => {
    const found = document.elementFromPoint(x, y)?.closest("[data-place]");
    if (!found || !node.contains(found)) return null;
    const place = Number(found.dataset.place);
    if (place === 0) return { node: found, place: null, edge: "" };
    return { node: found, place, edge: shown.includes(place) ? edgeOf(found, x, y, list) : "" };
  };

  const over = (target) => {
    for (const marked of node.querySelectorAll(".over, .before, .after")) marked.classList.remove("over", "before", "after");
    target?.node.classList.add(target.edge || "over");
  };

  const drop = (reply, target) => {
    choose(reply, false); // the page does not move under a finger that has just let go
    if (target.edge === "before") insert(reply, target.place);
    else if (target.edge === "after") insert(reply, target.place + 1);
    else give(reply, target.place);
  };

  const chip = (reply, place) =>
    button(letter(reply), () => choose(reply), {
      class: "chip",
      "data-drag": reply,
      "data-letter": letter(reply),
      "aria-label": say(place === null ? "board.chip_unplaced" : "board.chip", { reply: letter(reply), place }),
    });

  return {
    node,
    /** Also makes the letters on the cards draggable: `root` holds both the cards and the board. */
    listen: (root) => draggable(root, { targetAt, over, drop }),
    show(places, current) {
      shown = places;
      const focused = node.contains(document.activeElement) ? document.activeElement.dataset.drag : undefined;
      slots.forEach((slot, index) => {
        const here = places.flatMap((place, reply) => (place === index + 1 ? [reply] : []));
        slot.chips.replaceChildren(...here.map((reply) => chip(reply, index + 1)));
        slot.node.classList.toggle("tie", here.length > 1);
      });
      tray.replaceChildren(...unplaced(places).map((reply) => chip(reply, null)));
      trayNode.classList.toggle("empty", !places.includes(null));
      for (const one of node.querySelectorAll(".chip")) one.classList.toggle("current", Number(one.dataset.drag) === current);
      if (focused !== undefined) node.querySelector(`.chip[data-drag="${focused}"]`).focus(); // the chips are new
    },
  };
}

/** "before", "after" or "" by where in a place the pointer is; places lie side by side on a phone. */
function edgeOf(slot, x, y, list) {
  const box = slot.getBoundingClientRect();
  const sideways = getComputedStyle(list).gridAutoFlow.startsWith("column");
  const share = sideways ? (x - box.left) / box.width : (y - box.top) / box.height;
  return share < EDGE ? "before" : share > 1 - EDGE ? "after" : "";
}
