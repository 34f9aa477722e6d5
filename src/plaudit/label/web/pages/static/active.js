// How long somebody was at work on an item: while the page is to be seen, until a minute and a half after the last sign.

const IDLE_MS = 90_000;
const SIGNS = ["pointermove", "pointerdown", "keydown", "wheel", "scroll", "touchstart"];

/** { begin(), seconds() }: from the item's showing on. */
export function stopwatch(now = () => performance.now(), page = document) {
  let total = 0;
  let last = null; // when somebody was last known to be there; null when nobody is
  const sign = () => {
    const at = now();
    if (last !== null) total += Math.min(at - last, IDLE_MS);
    last = page.hidden ? null : at;
  };
  for (const name of SIGNS) page.addEventListener(name, sign, { passive: true, capture: true });
  page.addEventListener("visibilitychange", sign);
  return {
    begin() {
      total = 0;
      last = now();
    },
    seconds() {
      sign();
      return total / 1000;
    },
  };
}
