// Sending one answer so that it cannot be lost: kept first, then sent until the server says what became of it.

import { button, el, notice } from "./dom.js";
import { ask, deliver } from "./server.js";
import { patiently, signedOut } from "./session.js";

const KEPT = "The server cannot be reached. Your answer is kept in this browser and is sent as soon as the server is back.";

/**
 * Send what the draft holds. Returns the server's answer; `kept.sent` is written before anything else when it has the
 * label, and the draft stays for everything but that.
 */
export async function send(kept, key, draft) {
  const { path, body } = draft.pending;
  const answer = await patiently(KEPT, (wait) => deliver(path, body, wait));
  if (answer.status === 200) kept.sent(key, answer.data.seq, body);
  return answer;
}

/** What to say after a 200. */
export function sentWords(data) {
  if (data.late) return "Sent. The time for this item had run out, so your answer is kept and marked as late.";
  if (data.replayed) return "Sent: the server had this answer already.";
  return "Sent.";
}

/**
 * 409: there is another answer to this item already, from another tab or device. Nothing is thrown away: the person
 * chooses which of the two counts. `next()` goes on.
 */
export function explainConflict(kept, key, draft, answer, next) {
  const { positions } = draft.pending.body;
  const keep = () => {
    kept.drop(key);
    next();
  };
  const replace = async () => {
    const seq = answer.data.seq ?? kept.wasSent(key)?.seq ?? (await seqInHistory(key));
    if (seq === null) {
      notice("bad", "The first answer was not found in your history. This one is still kept in this browser.", button("Go on", next));
      return;
    }
    const again = kept.refused(key, draft); // a new id: this is another submit, a correction of the first
    const held = kept.sending(key, again, { path: "/api/correct", body: { client_id: again.client_id, seq, positions } });
    const outcome = await send(kept, key, held);
    if (outcome.status === 200) next();
    else explainRefusal(outcome, { goOn: next, drop: keep });
  };
  notice("bad", "You have already answered this item, in another tab or on another device. That answer counts; the one on this page has not been used.",
    button("Use the one on this page instead", replace, { class: "main" }), button("Keep the first and go on", keep));
}

/**
 * Everything that is neither sent nor a conflict: 401, 403, 422 and what nobody foresaw. The draft stays; `goOn` leaves
 * it for later, `drop` forgets it. Without them there is nothing to choose: the form is open again.
 */
export function explainRefusal(answer, { goOn = null, drop = null } = {}) {
  if (answer.signedOut) return signedOut();
  const { error, fix } = answer.data;
  const words = answer.status === 403
    ? "The server says that this item is not yours: you may have signed in as somebody else since. Your answer is kept in this browser."
    : [error ?? `The server did not take the answer (${answer.status}).`, fix ?? ""].join(" ").trim();
  if (answer.status === 403) return notice("bad", words, button("Load the page again", () => location.reload()));
  return notice("bad", words, ...(goOn ? [button("Go on", goOn)] : []), ...(drop ? [button("Throw this answer away", drop, { class: "quiet" })] : []));
}

/** Answers that were on their way when a page went away go first. The last outcome that was not a success, or how many went. */
export async function finishOld(kept) {
  let arrived = 0;
  for (const key of kept.unfinished()) {
    const draft = kept.read(key);
    const answer = await send(kept, key, draft);
    if (answer.status !== 200) return { key, draft, answer };
    arrived += 1;
  }
  return { arrived };
}

async function seqInHistory(key) {
  const answer = await ask("/api/history");
  const found = answer.data.labels?.find((label) => label.view.draft_key === key);
  return found ? found.seq : null;
}
