// What is drawn: cards in the grid, books in a strip, stage times, the account of the model.

import { cover } from "./covers.js";

export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") node.className = value;
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

export const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

const SHORT_STAGE_MS = 0.005; // below it, two decimals show nothing
const duration = (ms) => `${ms < 10 ? ms.toFixed(2) : ms.toFixed(1)} ms`;
const number = (value) => (Number.isInteger(value) || Math.abs(value) >= 1000
  ? Math.round(value).toLocaleString("en") : value.toFixed(2));

// How far each score lies between the least and the greatest of its source, 0..1: only those compare.
export function shares(items) {
  const ends = new Map();
  for (const { source, score } of items) {
    const [low, high] = ends.get(source) ?? [score, score];
    ends.set(source, [Math.min(low, score), Math.max(high, score)]);
  }
  return items.map(({ source, score }) => {
    const [low, high] = ends.get(source);
    return high > low ? (score - low) / (high - low) : 1;
  });
}

// What became of each item's rank since the list before: a number of places up (or down, negative), "new" or null.
export function moves(items, before) {
  const ranks = new Map(before.map(({ item_id, rank }) => [item_id, rank]));
  return items.map(({ item_id, rank }) => {
    if (ranks.has(item_id)) return ranks.get(item_id) - rank;
    return before.length && rank <= before.length ? "new" : null; // a longer list has room for what was there all along
  });
}

const moved = (move) => {
  if (move === "new") return ["new", "new", "new in the list"];
  if (move > 0) return ["up", `▲ ${move}`, `up ${move}`];
  if (move < 0) return ["down", `▼ ${-move}`, `down ${-move}`];
  return null;
};

// Why an item is in the list, in words; nothing where the source says it all. `near` is what it is near to, described.
function because({ item_id, reason }, near) {
  if (!near) return reason?.kind ?? "";
  return reason.item_id === item_id ? "seen before" : `because of ${near.title}`;
}

// A recommendation as a button. `item` is described (covers.js), `found` is what the service said of it, `near` the
// book of the history that it is said to be near to, described.
export function card(item, found, { share, move = null, near = null }) {
  const [change, why] = [moved(move), because(found, near)];
  const facts = [item.year, item.price === null ? "" : item.price.toFixed(2)].filter(Boolean).join(" · ");
  const spoken = [`${found.rank}. ${item.title}`, item.author && `by ${item.author}`, item.year,
    `from ${found.source}`, why, `score ${number(found.score)}`, change?.[2]].filter(Boolean).join(", ");
  const fill = make("span", { class: "fill" });
  fill.style.setProperty("--share", 0.04 + 0.96 * share);
  return make("li", { "data-id": item.id },
    make("button", { type: "button", class: "card", "aria-label": spoken, title: item.title },
      cover(item),
      make("span", { class: "facts" },
        make("span", { class: "rank" }, String(found.rank)),
        change && make("span", { class: `move ${change[0]}` }, change[1]),
        make("span", { class: `source ${found.source}` }, (!near && why) || found.source)),
      make("span", { class: "score" }, make("span", { class: "track" }, fill), make("span", {}, number(found.score))),
      make("span", { class: "sub" }, facts || item.categories.slice(0, 2).join(", ") || "\u00a0"),
      near && make("span", { class: "sub because" }, why)));
}

// A book of the history; pressed, it shows what is like it.
export function thumb(item, isPending) {
  return make("li", { "data-id": item.id },
    make("button", { type: "button", class: isPending ? "thumb pending" : "thumb", title: item.title,
      "aria-label": `${item.title}${item.author ? ` by ${item.author}` : ""}: show what is like it` },
      cover(item), make("span", { class: "caption" }, item.title)));
}

// Replaces the cards of a list by others for the same ids where they are there already, so that focus and place stay.
export function settle(root, cards) {
  const present = new Map([...root.children].map((child) => [child.dataset.id, child]));
  const next = cards.map((fresh) => {
    const old = present.get(fresh.dataset.id);
    if (!old) return fresh;
    const [was, is] = [old.firstElementChild, fresh.firstElementChild];
    was.setAttribute("aria-label", is.getAttribute("aria-label"));
    was.replaceChildren(was.querySelector(".cover"), ...[...is.children].slice(1));
    return old;
  });
  const focused = root.contains(document.activeElement) ? document.activeElement : null;
  const place = focused ? [...root.children].indexOf(focused.closest("li")) : -1;
  root.replaceChildren(...next);
  if (!focused) return;
  // Moving a node takes its focus away, and what was pressed may have left the list: its place is where one goes on.
  const target = root.contains(focused) ? focused : root.children[Math.min(place, next.length - 1)]?.firstElementChild;
  (target ?? root).focus({ preventScroll: true });
}

const STAGES = {
  filter: "turning the filter into the set of items that may be shown",
  state: "reading the history from the session store",
  queue: "waiting for the model",
  prefill: "the generator reads the history",
  decode: "the generator says what comes next",
  beam: "keeping to codes of items that may be shown",
  encode: "the model reads the history",
  retrieve: "searching the nearest items",
  merge: "merging what was generated and what was found",
  rank: "ordering the candidates",
  arrange: "carrying out the rules of the placement",
  respond: "putting the answer together",
};

// The stages of one answer as parts of a bar, longest dark, and as a list of names and milliseconds.
export function timing(bar, list, total, timings_ms, roundTrip_ms) {
  const stages = Object.entries(timings_ms);
  const sum = stages.reduce((all, [, ms]) => all + ms, 0);
  const order = [...stages].sort((one, other) => other[1] - one[1]).map(([name]) => name);
  bar.replaceChildren();
  list.replaceChildren();
  for (const [name, ms] of stages) {
    const strength = Math.max(100 - 17 * order.indexOf(name), 15);
    const [part, swatch] = [make("span"), make("span", { class: "swatch" })];
    part.style.flexGrow = ms / (sum || 1);
    for (const node of [part, swatch]) node.style.setProperty("--strength", `${strength}%`);
    bar.append(part);
    list.append(make("div", { title: STAGES[name] ?? name }, make("dt", {}, swatch, name),
      make("dd", {}, ms < SHORT_STAGE_MS ? "< 0.01 ms" : duration(ms))));
  }
  total.replaceChildren(make("b", {}, duration(sum)), " in the service · ", make("b", {}, duration(roundTrip_ms)),
    " round trip");
}

const day = (seconds) => {
  const date = new Date(seconds * 1000);
  return Number.isNaN(date.getTime()) ? "?" : date.toISOString().slice(0, 10);
};

// What is being served, in a few lines.
export function account(list, model, noun) {
  const { data = {}, metrics = {} } = model;
  const lines = [
    ["Model", `${model.name} (${model.kind})`],
    ["Bundle", model.bundle],
    ["Made", String(model.created).slice(0, 10)],
    ["Catalogue", plural(model.catalog_items, noun)],
  ];
  if (Number.isFinite(data.events)) lines.push(["Learnt from", `${plural(data.events, "event")} of ${plural(data.users, "user")}`]);
  if (Number.isFinite(data.first) && Number.isFinite(data.last)) lines.push(["Data", `${day(data.first)} to ${day(data.last)}`]);
  for (const [split, measured] of Object.entries(metrics)) {
    const values = Object.entries(measured ?? {}).filter(([name, value]) => /@10$/.test(name) && Number.isFinite(value?.value ?? value));
    for (const [name, value] of values) lines.push([name, `${(value?.value ?? value).toFixed(3)} (${split})`]);
  }
  list.replaceChildren(...lines.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}
