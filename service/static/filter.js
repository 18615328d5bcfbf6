// The filter's form: conditions as a request has them, offered from what the catalogue is known to hold.

import { LISTED, facts, knownIds } from "./catalogue.js";
import { make, plural } from "./shelves.js";

const SHOWN_CATEGORIES = 40;
const TYPING_MS = 180;
const SPOKEN = { any: "only these", none: "none of these" };

const [form, find, hint, categories, chips, priced, price, shownPrice, clear, count] = [
  "filter-form", "find", "find-hint", "categories", "chips", "priced", "price", "price-shown", "clear", "filter-state",
].map((id) => document.getElementById(id));
const wanted = new Map(); // category -> "any" or "none"

const plain = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase().trim();
const hasPrice = () => !priced.hidden && price.value !== price.max;

// What a request's `filter` has to say; null where nothing that is known fits the words.
export function conditions() {
  drawState();
  const filter = {};
  if (wanted.size) {
    filter.categories = { any: [], none: [] };
    for (const [name, state] of wanted) filter.categories[state].push(name);
  }
  if (hasPrice()) filter.attributes = [{ name: "price", op: "<=", value: Number(price.value) }];
  const words = plain(find.value).split(/\s+/).filter(Boolean);
  if (!words.length) return filter;
  filter.include_ids = knownIds().filter((id) => {
    const { title, author } = facts(id);
    const text = plain(`${title} ${author}`);
    return words.every((word) => text.includes(word));
  });
  return filter.include_ids.length ? filter : null; // an empty list would be no condition
}

// Offers the categories and prices that there are; what a catalogue lacks is not offered.
export function draw({ size, noun }) {
  const counts = new Map();
  const prices = [];
  for (const item of knownIds().map(facts)) {
    for (const name of item.categories) counts.set(name, (counts.get(name) ?? 0) + 1);
    if (item.price !== null) prices.push(item.price);
  }
  const common = [...counts].sort((one, other) => other[1] - one[1]).slice(0, SHOWN_CATEGORIES);
  const names = common.map(([name]) => name).sort();
  categories.hidden = names.length < 2;
  chips.replaceChildren(
    ...names.map((name) => make("button", { type: "button", class: "chip", "data-name": name }, name)));
  priced.hidden = prices.length === 0;
  if (prices.length) {
    [price.min, price.max] = [Math.floor(Math.min(...prices)), Math.ceil(Math.max(...prices))];
    price.value = price.max;
  }
  hint.hidden = size <= LISTED;
  hint.textContent = `Looks through the ${knownIds().length.toLocaleString("en")} most popular of ${plural(size, noun)}.`;
  drawState();
}

function drawState() {
  for (const chip of chips.children) {
    const state = wanted.get(chip.dataset.name);
    chip.dataset.state = state ?? "off";
    chip.setAttribute("aria-label", `${chip.dataset.name}: ${SPOKEN[state] ?? "no condition"}`);
  }
  shownPrice.textContent = hasPrice() ? price.value : "any";
  const active = wanted.size + Number(Boolean(find.value.trim())) + Number(hasPrice());
  count.textContent = active ? plural(active, "condition") : "";
  clear.disabled = !active;
}

// Calls `change` when a condition changed, for words once the typing rests.
export function listen(change) {
  let typing = 0;
  chips.addEventListener("click", ({ target }) => {
    const name = target.dataset.name;
    if (!name) return;
    const next = { undefined: "any", any: "none" }[wanted.get(name)];
    if (next) wanted.set(name, next);
    else wanted.delete(name);
    change();
  });
  find.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(change, TYPING_MS);
  });
  price.addEventListener("input", drawState);
  price.addEventListener("change", change);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", (event) => {
    event.preventDefault(); // how many to list is no condition and stays
    wanted.clear();
    find.value = "";
    price.value = price.max;
    change();
  });
}
