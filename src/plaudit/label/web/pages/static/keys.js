// The keyboard: which key asks the form for what. Text fields keep their keys, and all of them can be switched off.

const SWITCH = "plaudit:1:keys";

/** The list of keys shows those of the item's task. */
export function listKeys(view) {
  document.getElementById("keys").className = `task-${view.task}`;
  document.getElementById("last-place").textContent = Math.min(9, view.replies.length);
}

/** `formNow()` gives the form on the page, or null. */
export function listenForKeys(formNow) {
  const dialog = document.getElementById("keys");
  const box = document.getElementById("keys-on");
  let on = stored() !== "off";
  box.checked = on;
  box.addEventListener("change", () => {
    on = box.checked;
    store(on ? "on" : "off");
  });

  document.addEventListener("keydown", (event) => {
    const form = formNow();
    if (event.defaultPrevented || dialog.open || !form || event.isComposing || event.keyCode === 229) return; // 229: an input method is at work
    const action = actionOf(event, form, on);
    if (!action) return;
    event.preventDefault();
    action();
  });

  function actionOf(event, form, singles) {
    const { target } = event;
    const key = meant(event);
    const chord = event.ctrlKey || event.metaKey;
    const typing = target.matches("textarea, select, input:not([type=checkbox])");
    if (chord && key === "Enter") return () => form.submit();
    if (typing) return key === "Escape" && form.task !== "write" ? () => form.focus() : null;
    if (chord && !event.shiftKey && key === "z") return () => form.undo();
    if (chord || event.altKey || !singles) return null;
    if (key === "?") return () => dialog.showModal();
    if (form.task === "write" || form.isLocked()) return null;
    const inForm = form.node.contains(target);
    // A button, a link or a box has its own Enter; on a reply, or when nothing has the focus, Enter submits.
    if (key === "Enter" && !target.closest("button, a, summary, label, input") && (inForm || target === document.body)) return () => form.submit();
    if (/^[0-9]$/.test(key)) return () => form.place(Number(key));
    if (key === "u") return () => form.undo();
    if (key === "b") return () => form.verdict("all_bad");
    if (key === "c") return () => form.verdict("cannot_judge");
    if (key === "ArrowLeft") return () => form.move(-1);
    if (key === "ArrowRight") return () => form.move(1);
    // Up and down scroll the page as ever, unless a reply or its chip has the focus.
    if (form.task === "rank" && inForm && target.closest(".reply, .chip")) {
      if (key === "ArrowUp") return () => form.step(-1);
      if (key === "ArrowDown") return () => form.step(1);
    }
    return null;
  }
}

const ZEROS = [0x660, 0x6f0, 0x966, 0x9e6, 0xff10]; // of the digits that Arabic, Persian, Hindi, Bengali and full-width keyboards give

/**
 * The key that a person means: digits and Latin letters whatever the layout. A layout that has neither where the key is
 * (the upper row of AZERTY and Czech, the letters of Cyrillic and Greek) is read by the key's place.
 */
function meant({ key, code, shiftKey }) {
  if (key.length !== 1) return key;
  const point = key.codePointAt(0);
  const zero = ZEROS.find((first) => point >= first && point < first + 10);
  if (zero !== undefined) return String(point - zero);
  if (/^[0-9]$/.test(key)) return key;
  if (key === "؟") return "?";
  const place = /^(?:Digit|Numpad)([0-9])$|^Key([A-Z])$/.exec(code ?? "");
  if (place?.[1] && !shiftKey) return place[1];
  if (/^[a-z]$/i.test(key)) return key.toLowerCase();
  return place?.[2] && point > 127 ? place[2].toLowerCase() : key;
}

function stored() {
  try {
    return localStorage.getItem(SWITCH);
  } catch {
    return null;
  }
}

function store(value) {
  try {
    localStorage.setItem(SWITCH, value);
  } catch {
    // A browser that keeps nothing asks again after a reload: no answer depends on this.
  }
}
