// Talking to the server. Every answer is one of: there (status and data), away (try again), or signed out.

const TIMEOUT_MS = 20_000;
const LONGEST_WAIT_MS = 30_000;
const AWAY = new Set([408, 425, 429, 500, 502, 503, 504]);

let csrf = "";
let who = "";

/** The token that every POST carries, and whose it is. */
export function remember({ csrf: token, name }) {
  csrf = token;
  who = name;
}

/** An address of the server's: every page with a script is one step below where the service begins, which a proxy may
 *  have put below a path. */
export const below = (path) => `.${path}`;

/** { status, data, away, signedOut, after }: never throws for what a network or a server may do. `patience` in ms. */
export async function ask(path, body = undefined, patience = TIMEOUT_MS) {
  const post = body !== undefined;
  let response;
  try {
    response = await fetch(below(path), {
      method: post ? "POST" : "GET",
      headers: post ? { "Content-Type": "application/json", "X-CSRF-Token": csrf } : {},
      body: post ? JSON.stringify(body) : undefined,
      cache: "no-store",
      credentials: "same-origin",
      redirect: "manual", // a redirect from an address under /api/ can only lead to the login
      signal: AbortSignal.timeout(patience),
    });
    const json = (response.headers.get("Content-Type") ?? "").startsWith("application/json");
    const data = json ? await response.json() : null; // reading can fail too: the connection may break half-way
    return {
      status: response.status,
      data: data ?? {},
      away: AWAY.has(response.status),
      signedOut: response.status === 401 || response.type === "opaqueredirect",
      after: 1000 * Number(response.headers.get("Retry-After") ?? 0) || 0,
    };
  } catch {
    return { status: 0, data: {}, away: true, signedOut: false, after: 0 };
  }
}

/** Milliseconds to wait before attempt `count` + 1: doubling, spread at random so that fifty pages do not come back at once. */
export function pause(count, random, after = 0) {
  const doubled = Math.min(LONGEST_WAIT_MS, 1000 * 2 ** count);
  return Math.max(after, doubled * (0.5 + random / 2));
}

/** Ask until the server is there. `wait(ms)` resolves when it is time, or sooner when somebody presses "now". */
export async function askUntilThere(path, body, wait, patience = TIMEOUT_MS) {
  for (let count = 0; ; count += 1) {
    const answer = await ask(path, body, patience);
    if (!answer.away) return answer;
    await wait(pause(count, Math.random(), answer.after));
  }
}

/**
 * A POST that a new login in another tab does not stop: a token that is out of date is fetched anew once. If somebody
 * else has signed in, nothing is sent in their name: the 403 comes back.
 */
export async function deliver(path, body, wait) {
  const answer = await askUntilThere(path, body, wait);
  if (answer.status !== 403) return answer;
  const me = await askUntilThere("/api/me", undefined, wait);
  if (me.signedOut) return me;
  if (me.status !== 200 || me.data.name !== who || me.data.csrf === csrf) return answer;
  csrf = me.data.csrf;
  return askUntilThere(path, body, wait);
}
