// Dragging by pointer events: one code for mouse, pen and finger.
//
// Listens on one element for everything inside it with data-drag (a reply's number). While dragging, `over(target)`
// is told where it would land, and `drop(reply, target)` where it did. A press that does not move is left alone: it
// is a click.

const SLOP = 6; // pixels: less is a click with an unsteady hand

/** `targetAt(x, y)` says what is under the pointer, or null. Escape, or a drop on nothing, changes nothing. */
export function draggable(root, { targetAt, over, drop }) {
  let held = null;

  const finish = () => {
    if (!held) return;
    held.ghost?.remove();
    held.source.classList.remove("held");
    document.removeEventListener("keydown", cancelled, true);
    over(null);
    held = null;
  };

  const cancelled = (event) => {
    if (event.key !== "Escape") return;
    event.preventDefault();
    event.stopPropagation();
    finish();
  };

  root.addEventListener("pointerdown", (event) => {
    const source = event.target.closest("[data-drag]");
    if (!source || event.button !== 0 || held || source.disabled) return;
    held = { source, id: event.pointerId, reply: Number(source.dataset.drag), x: event.clientX, y: event.clientY, ghost: null };
    source.setPointerCapture(event.pointerId);
  });

  root.addEventListener("pointermove", (event) => {
    if (!held || event.pointerId !== held.id) return;
    if (!held.ghost) {
      if (Math.hypot(event.clientX - held.x, event.clientY - held.y) < SLOP) return;
      held.ghost = ghostOf(held.source);
      held.source.classList.add("held");
      document.addEventListener("keydown", cancelled, true);
    }
    held.ghost.style.transform = `translate(${event.clientX}px, ${event.clientY}px)`;
    over(targetAt(event.clientX, event.clientY));
  });

  root.addEventListener("pointerup", (event) => {
    if (!held || event.pointerId !== held.id) return;
    const target = held.ghost ? targetAt(event.clientX, event.clientY) : null;
    const { reply, ghost } = held;
    finish();
    if (ghost) swallowClick();
    if (target) drop(reply, target);
  });

  root.addEventListener("pointercancel", finish);
  // The chip under the finger was drawn anew (another tab changed the answer): the browser tells the document.
  document.addEventListener("lostpointercapture", (event) => event.target === document && finish());
  root.addEventListener("dragstart", (event) => event.preventDefault());
}

/** What hangs at the pointer. It takes no pointer events, so the target under it is found. */
function ghostOf(source) {
  const ghost = document.createElement("div");
  ghost.className = "chip ghost";
  ghost.textContent = source.dataset.letter;
  ghost.setAttribute("aria-hidden", "true");
  document.body.append(ghost);
  return ghost;
}

/** The click that a browser may send after a drag would press the button that was dragged. */
function swallowClick() {
  const stop = (event) => {
    event.preventDefault();
    event.stopPropagation();
  };
  document.addEventListener("click", stop, { capture: true, once: true });
  setTimeout(() => document.removeEventListener("click", stop, { capture: true }), 0);
}
