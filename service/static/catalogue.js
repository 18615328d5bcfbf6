// What this page knows of the catalogue: whatever an answer has told. There is no call that lists it.

import { call } from "./calls.js";
import { described } from "./covers.js";

export const LISTED = 500; // the most that one answer holds
const known = new Map(); // id -> attributes

export const knownIds = () => [...known.keys()];
export const isKnown = (id) => known.has(id);
export const facts = (id) => described(id, known.get(id));

export function learn(items) {
  for (const { item_id, attributes } of items) known.set(item_id, attributes);
}

// Learns of some items: without a history the answer is exactly those of them that the catalogue has.
export async function lookUp(ids, onWait) {
  const missing = [...new Set(ids)].filter((id) => !known.has(id));
  if (!missing.length) return;
  const body = { k: Math.min(missing.length, LISTED), consent: false, filter: { include_ids: missing } };
  const { answer } = await call("POST", "/v1/recommendations", { body, onWait });
  learn(answer.items);
}
