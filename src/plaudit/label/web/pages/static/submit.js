// Sending one answer so that it cannot be lost: kept first, then sent until the server says what became of it.

import { button, el, notice } from "./dom.js";
import { ask, deliver } from "./server.js";
import { patiently, signedOut } from "./session.js";
import { say } from "./wording.js";

/**
 * Send what the draft holds. Returns the server's answer; `kept.sent` is written before anything else when it has the
 * label, and the draft stays for everything but that.
 */
export async function send(kept, key, draft) {
  const { path, body } = draft.pending;
  const answer = await patiently(say("server.kept"), (wait) => deliver(path, body, wait));
  if (answer.status === 200) kept.sent(key, answer.data.seq, body);
  return answer;
}

/** What to say after a 200. */
export function sentWords(data) {
  return say(data.late ? "sent.late" : data.replayed ? "sent.replayed" : "sent.done");
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
      notice("bad", say("conflict.not_found"), button(say("page.go_on"), next));
      return;
    }
    const again = kept.refused(key, draft); // a new id: this is another submit, a correction of the first
    const held = kept.sending(key, again, { path: "/api/correct", body: { client_id: again.client_id, seq, positions } });
    const outcome = await send(kept, key, held);
    if (outcome.status === 200) next();
    else explainRefusal(outcome, { goOn: next, drop: keep });
  };
  notice("bad", say("conflict.twice"),
    button(say("conflict.use"), replace, { class: "main" }), button(say("conflict.keep"), keep));
}

/**
 * Everything that is neither sent nor a conflict: 401, 403, 422 and what nobody foresaw. The draft stays; `goOn` leaves
 * it for later, `drop` forgets it. Without them there is nothing to choose: the form is open again.
 */
export function explainRefusal(answer, { goOn = null, drop = null } = {}) {
  if (answer.signedOut) return signedOut();
  const { error, field, fix } = answer.data;
  const load = button(say("refused.load"), () => location.reload());
  if (answer.status === 403) return notice("bad", say("refused.not_yours"), load);
  const actions = [goOn ? button(say("page.go_on"), goOn) : null, drop ? button(say("refused.drop"), drop, { class: "quiet" }) : null].filter(Boolean);
  if (answer.status === 409) return notice("bad", say("conflict.other"), ...actions);
  const flags = answer.status === 422 && field === "flags";
  const box = notice("bad", say(flags ? "refused.flags" : "refused.other", { status: answer.status }), ...actions, ...(flags ? [load] : []));
  if (error) box.firstChild.append(el("span", { lang: "en" }, ` ${[error, fix].filter(Boolean).join(" ")}`)); // the server's, for whoever mends it
  return box;
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
