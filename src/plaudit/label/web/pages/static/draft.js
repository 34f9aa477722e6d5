// Drafts: an answer that is not with the server yet, kept in the browser. No page in here; the storage is given.
//
// A draft is made with its submit's id, so that every attempt to send it is the same submit: after a lost connection,
// a reload, or from a second tab. Once an attempt has begun, `pending` holds exactly what was sent, because whether it
// arrived is unknown until the server answers: the same id with another body would be a conflict.
//
// Keys carry the form's version and the person's name: two people who share a browser do not see each other's drafts.

const KEPT_MS = 30 * 24 * 3600 * 1000;

/** `storage` is a Storage or alike; `now` gives milliseconds, `makeId` a UUID; `onFull` hears that nothing can be kept. */
export function drafts(storage, person, { now = Date.now, makeId = randomId, onFull = () => {} } = {}) {
  const draftKey = (key) => `plaudit:1:${person}:draft:${key}`;
  const sentKey = (key) => `plaudit:1:${person}:sent:${key}`;
  const keys = (kind) => {
    const prefix = kind("");
    return Object.keys(storage).filter((name) => name.startsWith(prefix)).map((name) => name.slice(prefix.length));
  };

  const read = (name) => {
    const found = storage.getItem(name);
    return found === null ? null : JSON.parse(found);
  };

  const write = (name, value) => {
    try {
      storage.setItem(name, JSON.stringify(value));
    } catch {
      onFull(); // no room: the answer can still be sent, but a reload would lose it, and the page says so
    }
    return value;
  };

  return {
    draftKey,
    sentKey,

    /** The draft under `key`, or a new one that is not stored until somebody says something. */
    open(key, state) {
      return read(draftKey(key)) ?? { client_id: makeId(), state, pending: null, saved: now() };
    },

    read: (key) => read(draftKey(key)),

    save(key, draft, state) {
      return write(draftKey(key), { ...draft, state, saved: now() });
    },

    /** An attempt begins: `pending` is { path, body } and stays as it is until the server has answered. */
    sending(key, draft, pending) {
      return write(draftKey(key), { ...draft, pending, saved: now() });
    },

    /** The server refused it without keeping it: it may be changed, under a new id. */
    refused(key, draft) {
      return write(draftKey(key), { ...draft, client_id: makeId(), pending: null, saved: now() });
    },

    /** The server has it. The mark tells other tabs, and says which label a correction would correct. */
    sent(key, seq, body) {
      write(sentKey(key), { seq, lease: body.lease ?? null, at: now() });
      storage.removeItem(draftKey(key));
    },

    wasSent: (key) => read(sentKey(key)),

    drop(key) {
      storage.removeItem(draftKey(key));
    },

    /** The keys of what was being sent when the page went away. */
    unfinished: () => keys(draftKey).filter((key) => read(draftKey(key)).pending !== null),

    /** Forget what is a month old; never what may not have arrived. */
    tidy() {
      const old = now() - KEPT_MS;
      for (const key of keys(draftKey)) {
        const draft = read(draftKey(key));
        if (draft.pending === null && draft.saved < old) storage.removeItem(draftKey(key));
      }
      for (const key of keys(sentKey)) if (read(sentKey(key)).at < old) storage.removeItem(sentKey(key));
    },
  };
}

/** localStorage, or a stand-in for as long as the page is open where the browser keeps nothing. */
export function browserStorage() {
  try {
    localStorage.setItem("plaudit:probe", "1");
    localStorage.removeItem("plaudit:probe");
    return { storage: localStorage, lasting: true };
  } catch {
    const kept = Object.create({
      getItem(name) { return Object.hasOwn(this, name) ? this[name] : null; },
      setItem(name, value) { this[name] = value; },
      removeItem(name) { delete this[name]; },
    });
    return { storage: kept, lasting: false };
  }
}

/** A random UUID (version 4). crypto.randomUUID is missing on plain http, where a server in the office may well be. */
export function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}
