// What an admin asks of the server: done, or the refusal is said on the page.

import { notice } from "./dom.js";
import { deliver } from "./server.js";
import { AWAY, patiently, signedOut } from "./session.js";

/** The answer's data; null where it was refused, which is said. */
export async function post(path, body) {
  const answer = await patiently(AWAY, (wait) => deliver(path, body, wait));
  if (answer.signedOut) signedOut();
  else if (answer.status !== 200) notice("bad", answer.data.error ? refusal(answer.data) : `The server refused it (${answer.status}).`);
  return answer.status === 200 ? answer.data : null;
}

/** "what is wrong; what to do." */
export const refusal = ({ error, fix }) => `${[error, fix].filter(Boolean).join("; ")}.`;
