// One person's answer to one item, without any page: what it holds, what is still missing, what is sent, and undo.

import { dense, unplaced } from "./ranks.js";

/** Nothing said yet, about `count` replies; `text` is where a written reply starts. */
export function emptyAnswer(count, text = "") {
  return {
    places: Array(count).fill(null),
    verdict: null,
    strength: null,
    reason: "",
    flags: Array.from({ length: count }, () => []),
    text,
  };
}

/** What was sent, as an answer again: to correct it. */
export function answerOf(positions, count) {
  const empty = emptyAnswer(count, positions.text ?? "");
  return {
    ...empty,
    places: positions.ranks ?? empty.places,
    verdict: positions.verdict ?? null,
    strength: positions.strength ?? null,
    reason: positions.reason ?? "",
    flags: positions.flags ?? empty.flags,
  };
}

/** The same verdict twice takes it back; "cannot judge" says nothing of places, so they are not kept beside it. */
export function judge(answer, verdict) {
  const next = answer.verdict === verdict ? null : verdict;
  const places = next === "cannot_judge" ? answer.places.map(() => null) : answer.places;
  const strength = next === "cannot_judge" ? null : answer.strength;
  return { ...answer, verdict: next, places, strength };
}

/** A place says that the reply can be judged. */
export function withPlaces(answer, places) {
  return { ...answer, places, verdict: answer.verdict === "cannot_judge" ? null : answer.verdict };
}

export function toggleFlag(answer, reply, flag) {
  const flags = answer.flags.map((own, index) => {
    if (index !== reply) return own;
    return own.includes(flag) ? own.filter((other) => other !== flag) : [...own, flag];
  });
  return { ...answer, flags };
}

/** The replies whose place is still needed, or "text"; null when the answer can be sent. */
export function missing(answer, task) {
  if (task === "write") return answer.text.trim() ? null : "text";
  if (answer.verdict === "cannot_judge") return null;
  const open = unplaced(answer.places);
  // "All bad" may stand without an order, but half an order is a slip.
  if (open.length === 0 || (answer.verdict === "all_bad" && open.length === answer.places.length)) return null;
  return open;
}

/** What is sent, in the order shown. */
export function positionsOf(answer, task) {
  if (task === "write") return { ranks: null, verdict: null, strength: null, reason: answer.reason, flags: [], text: answer.text };
  return {
    ranks: answer.verdict === "cannot_judge" ? null : dense(answer.places),
    verdict: answer.verdict,
    strength: answer.strength,
    reason: answer.reason,
    flags: answer.flags,
    text: null,
  };
}

const KEPT_STEPS = 50;

/** The answer with its past. Typing is no step: a text field has an undo of its own. */
export function begin(answer) {
  return { now: answer, past: [] };
}

export function change(state, answer) {
  return { now: answer, past: [...state.past, state.now].slice(-KEPT_STEPS) };
}

/** Typed text: no new step, and undoing an older step must not take it away. */
export function type(state, typed) {
  return { ...state, now: { ...state.now, ...typed } };
}

export function undo(state) {
  if (state.past.length === 0) return state;
  const { reason, text } = state.now;
  return { now: { ...state.past.at(-1), reason, text }, past: state.past.slice(0, -1) };
}
