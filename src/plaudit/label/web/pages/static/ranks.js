// Places of replies, without any page: pure functions from places to places.
//
// A place is a number from 1 (best) to K, or null while the reply has none. Two replies in one place are a tie, and
// places may be left empty (1, 3, 3): what is sent is dense (1, 2, 2). Every reply keeps its own number in the list,
// which is where the server showed it.

/** Put `reply` in `place`, whoever is there already; null takes its place away. */
export function give(places, reply, place) {
  return places.map((old, index) => (index === reply ? place : old));
}

/** Put `reply` in a place of its own before the group that is in `place` now; `place` K + 1 means after the last. */
export function insert(places, reply, place) {
  const groups = groupsOf(give(places, reply, null));
  const at = groups.findIndex((group) => group.place >= place);
  groups.splice(at < 0 ? groups.length : at, 0, { place, replies: [reply] });
  return spread(groups, places.length);
}

/**
 * Half a step up (-1) or down (+1): alone in its place a reply joins its neighbour's (a tie), in a tie it leaves for a
 * place of its own on that side. So every order, with or without ties, can be reached with two keys. A reply without a
 * place comes last.
 */
export function step(places, reply, direction) {
  if (places[reply] === null) return insert(places, reply, places.length + 1);
  const groups = groupsOf(places);
  const at = groups.findIndex((group) => group.replies.includes(reply));
  const own = groups[at];
  if (own.replies.length > 1) {
    own.replies = own.replies.filter((other) => other !== reply);
    groups.splice(direction < 0 ? at : at + 1, 0, { place: own.place + direction, replies: [reply] });
    return spread(groups, places.length);
  }
  const neighbour = groups[at + direction];
  return neighbour ? give(places, reply, neighbour.place) : places;
}

/** Ranks to send: 1 is best, equal is a tie, no gaps; null while a reply has no place. */
export function dense(places) {
  if (places.includes(null)) return null;
  const used = [...new Set(places)].sort((a, b) => a - b);
  return places.map((place) => used.indexOf(place) + 1);
}

/** The replies without a place, in the order shown. */
export function unplaced(places) {
  return places.flatMap((place, reply) => (place === null ? [reply] : []));
}

function groupsOf(places) {
  const used = [...new Set(places.filter((place) => place !== null))].sort((a, b) => a - b);
  return used.map((place) => ({ place, replies: places.flatMap((own, reply) => (own === place ? [reply] : [])) }));
}

/** Groups in order back to places: each keeps its own where it can, moves down for the one above, up for want of room. */
function spread(groups, count) {
  let last = 0;
  const down = groups.map((group) => (last = Math.max(group.place, last + 1)));
  const at = down.map((place, index) => Math.min(place, count - (groups.length - 1 - index)));
  const places = Array(count).fill(null);
  groups.forEach((group, index) => {
    for (const reply of group.replies) places[reply] = at[index];
  });
  return places;
}
