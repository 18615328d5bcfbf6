// The playground: who reads, what was clicked, what follows. Read `press` for the story of one click.

import { Problem, call, useKey } from "./calls.js";
import { LISTED, facts, isKnown, learn, lookUp } from "./catalogue.js";
import * as filter from "./filter.js";
import { fly, glide } from "./motion.js";
import { account, card, make, moves, plural, settle, shares, thumb, timing } from "./shelves.js";

const REASONS = {
  no_history: "nothing is known of this reader yet, so these are the most popular. Press one to begin.",
  store_unavailable: "the session store is away, so the stored history could not be read.",
  generator_late: "the generator took too long, so these are from the model beside it.",
  generator_failed: "the generator could not answer, so these are from the model beside it.",
  deadline: "the time was over before the model answered, so these are the most popular.",
  encoder_failed: "the model could not answer, so these are the most popular.",
  ranker_short: "there was time to rank only some of what was found.",
  ranker_late: "there was no time to rank what was found.",
  ranker_failed: "the ranker could not answer, so these are in the order in which they were found.",
};
const SHOWN_HISTORY = 60;
const LONGEST_HISTORY = 1000; // what a request may carry
const SIMILAR = 12;
const DAY_S = 86_400;
const ARM_MS = 6000; // how long the second press of “Forget me” is waited for

const at = Object.fromEntries([...document.querySelectorAll("[id]")].map((node) => [node.id, node]));

// What the page remembers over a reload of this tab; without storage it forgets.
const memory = {
  read(name) {
    try { return sessionStorage.getItem(`sequitur-${name}`); } catch { return null; }
  },
  write(name, value) {
    try { sessionStorage.setItem(`sequitur-${name}`, value); } catch { /* a page without storage works until it is left */ }
  },
};

function random() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

const visit = memory.read("visit") ?? `visit-${random()}`;
memory.write("visit", visit);

let noun = "item"; // what this catalogue holds: books, where they have authors
let readers = []; // those whose books are all in the catalogue
let reader = null; // one of them, or null for somebody new
let turn = 0; // grows when somebody else reads; what was begun for another turn is not shown
let history = []; // {id, isPending}, oldest first
let listed = []; // the items of the answer that is shown, and its id
let listedId = null;
let asking = new AbortController();
let writing = Promise.resolve(); // clicks are stored one after the other, in the order of the clicks
let armed = 0;
let failed = null; // what the shown trouble came from

const user = () => (reader ? `${visit}-${reader.user_id}` : visit);
const hasConsent = () => at.consent.checked;

function say(sentence) {
  at.announcement.textContent = sentence;
}

// Shows why something did not work, and how to try it again.
function fail(error, again) {
  if (error.name === "AbortError") return;
  if (!(error instanceof Problem)) console.error(error);
  failed = again;
  at["trouble-text"].textContent = error.message;
  at["key-form"].hidden = error.status !== 401;
  at.again.hidden = error.status === 401;
  at.again.onclick = () => {
    recover();
    again();
  };
  at["key-form"].onsubmit = (event) => {
    event.preventDefault();
    useKey(at.key.value.trim());
    recover();
    again();
  };
  at.trouble.hidden = false;
  if (error.status === 401) at.key.focus();
}

function recover() {
  failed = null;
  at.trouble.hidden = true;
}

const onWait = (seconds) => say(`The service is busy; asking again in ${plural(seconds, "second")}.`);

// Asks what follows and shows it. A question that has been overtaken is withdrawn, and its answer never shown.
async function ask() {
  asking.abort();
  const own = (asking = new AbortController());
  const allowed = filter.conditions();
  if (!allowed) {
    show([], null);
    at.follows.removeAttribute("aria-busy");
    at.degraded.hidden = true;
    at.short.textContent = `No ${noun} that this page knows has “${at.find.value.trim()}” in its title or author.`;
    at.short.hidden = false;
    return;
  }
  const body = { k: Number(at.k.value), filter: allowed, placement: "playground" };
  if (hasConsent()) body.user_id = user();
  else Object.assign(body, { consent: false, history: history.slice(-LONGEST_HISTORY).map(({ id }) => id) });
  at.follows.setAttribute("aria-busy", "true");
  try {
    const { answer, roundTrip_ms } = await call("POST", "/v1/recommendations", { body, signal: own.signal, onWait });
    if (own !== asking) return;
    show(answer.items, answer.recommendation_id);
    at.degraded.textContent = answer.degraded_reasons
      .map((reason) => `A simpler answer: ${REASONS[reason] ?? `${reason}.`}`).join(" ");
    at.degraded.hidden = !answer.degraded;
    at.short.hidden = answer.items.length >= body.k;
    at.short.textContent = answer.items.length
      ? `Only ${plural(answer.items.length, noun)} ${answer.items.length === 1 ? "is" : "are"} left to show here.`
      : `No ${noun} fits this filter.`;
    timing(at.bar, at.stages, at.total, answer.timings_ms, roundTrip_ms);
    at.timing.hidden = false;
    if (failed === ask) recover();
  } catch (error) {
    if (own === asking) fail(error, ask);
  } finally {
    if (own === asking) at.follows.removeAttribute("aria-busy");
  }
}

function show(items, id) {
  learn(items);
  const [bars, changes] = [shares(items), moves(items, listed)];
  const near = ({ reason }) => (reason?.kind === "near" ? facts(reason.item_id) : null);
  const cards = items.map((found, i) => card(facts(found.item_id), found,
    { share: bars[i], move: changes[i], near: near(found) }));
  glide(at.follows, () => settle(at.follows, cards));
  const fresh = changes.filter((change) => change === "new").length;
  const first = items.length ? ` First: ${facts(items[0].item_id).title}.` : "";
  say(`${plural(items.length, noun)}${listed.length ? `, ${fresh} of them new` : ""}.${first}`);
  [listed, listedId] = [items, id];
}

// One click: it joins the history at once, is stored, and the list is asked for again with it.
async function press(id, picture, event_id = random()) {
  const own = turn;
  const entry = { id, isPending: hasConsent() };
  history.push(entry);
  drawHistory();
  fly(at.history.firstElementChild.querySelector(".cover"), picture);
  if (!entry.isPending) return ask();
  const event = { user_id: user(), item_id: id, event_type: "view", event_id };
  if (listedId && listed.some(({ item_id }) => item_id === id)) event.recommendation_id = listedId;
  writing = writing.then(() => call("POST", "/v1/events", { body: { events: [event] }, onWait }));
  const stored = writing;
  writing = writing.catch(() => {}); // the next click is tried all the same
  try {
    await stored;
    entry.isPending = false;
    if (own !== turn) return;
    recover();
    drawHistory();
    await ask();
  } catch (error) {
    if (own !== turn) return;
    history = history.filter((other) => other !== entry);
    drawHistory();
    fail(error, () => press(id, null, event_id)); // with the same id, in case it was stored all the same
  }
}

// Somebody reads: a reader of the list with a past that is given to them, or somebody new.
async function choose(chosen, { isReturning = false } = {}) {
  const own = ++turn;
  reader = chosen;
  [history, listed, listedId] = [[], [], null];
  memory.write("reader", chosen?.user_id ?? "");
  at.similar.hidden = true;
  disarm();
  recover();
  drawReaders();
  try {
    if (!hasConsent()) {
      history = (chosen?.history ?? []).map((id) => ({ id, isPending: false }));
    } else {
      await writing;
      if (chosen && !isReturning) await endow(chosen);
      await recall(own);
    }
  } catch (error) {
    if (own === turn) fail(error, () => choose(chosen, { isReturning }));
  }
  if (own !== turn) return;
  drawHistory();
  await ask();
}

// Gives this visit's copy of a reader the books that they have read, a day apart; what is there already stays single.
async function endow({ history: books }) {
  const now_s = Math.floor(Date.now() / 1000);
  const events = books.map((id, place) => ({ user_id: user(), item_id: id, event_id: `read-${place}`,
    timestamp: now_s - (books.length - place) * DAY_S }));
  await call("POST", "/v1/events", { body: { events }, onWait });
}

async function recall(own) {
  const { answer } = await call("GET", `/v1/users/${encodeURIComponent(user())}/history`, { onWait });
  await lookUp(answer.events.slice(-SHOWN_HISTORY).map(({ item_id }) => item_id), onWait);
  if (own === turn) history = answer.events.map(({ item_id }) => ({ id: item_id, isPending: false }));
}

async function forget() {
  if (!armed) {
    armed = setTimeout(disarm, ARM_MS);
    at.forget.textContent = "Really forget everything?";
    at.forget.classList.add("armed");
    say("Press once more to forget everything that was clicked.");
    return;
  }
  disarm();
  const own = turn;
  try {
    await writing;
    await call("DELETE", `/v1/users/${encodeURIComponent(user())}`, { onWait });
    if (own !== turn) return;
    history = [];
    at.similar.hidden = true;
    drawHistory();
    await ask();
    say("Forgotten: nothing is remembered any more.");
  } catch (error) {
    fail(error, forget);
  }
}

function disarm() {
  clearTimeout(armed);
  armed = 0;
  at.forget.textContent = "Forget me";
  at.forget.classList.remove("armed");
}

async function like(id) {
  const own = turn;
  try {
    const { answer } = await call("GET", `/v1/items/${encodeURIComponent(id)}/similar?k=${SIMILAR}`, { onWait });
    if (own !== turn) return;
    learn(answer.items);
    const bars = shares(answer.items);
    at["similar-title"].textContent = `Like ${facts(id).title}`;
    at["similar-list"].replaceChildren(
      ...answer.items.map((found, i) => card(facts(found.item_id), found, { share: bars[i] })));
    at.similar.hidden = false;
    at["similar-list"].querySelector("button")?.focus({ preventScroll: true });
    say(`${plural(answer.items.length, noun)} like ${facts(id).title}.`);
  } catch (error) {
    fail(error, () => like(id));
  }
}

function drawHistory() {
  const newest = history.slice(-SHOWN_HISTORY).reverse(); // the newest first, where it is seen
  at.history.replaceChildren(...newest.map(({ id, isPending }) => thumb(facts(id), isPending)));
  at.history.hidden = !history.length;
  at["history-empty"].hidden = history.length > 0;
  at["past-count"].textContent = history.length ? `${plural(history.length, noun)}, newest first` : "";
}

function drawReaders() {
  const choice = (who, name, about) => {
    const pressed = (reader?.user_id ?? "") === (who?.user_id ?? "");
    const button = make("button", { type: "button", class: "reader", "aria-pressed": String(pressed) },
      make("b", {}, name), make("span", {}, about));
    button.addEventListener("click", () => choose(who));
    return button;
  };
  const isFocused = at.readers.contains(document.activeElement);
  at.readers.replaceChildren(choice(null, "Somebody new", "Start empty: nothing is known yet."),
    ...readers.map((one) => choice(one, one.name, one.about)));
  if (isFocused) at.readers.querySelector("[aria-pressed=true]").focus();
}

// Arrows go to the nearest button in their direction, wherever the lines of a shelf break.
function walk(event) {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const all = [...event.currentTarget.querySelectorAll("button")];
  const here = all.indexOf(document.activeElement);
  let target = { Home: all[0], End: all.at(-1) }[event.key];
  const step = steps[event.key];
  if (step && here >= 0) {
    // Offsets of the list's own children: they do not follow a movement that is still going on.
    const middle = (node) => {
      const box = node.closest("li") ?? node;
      return [box.offsetLeft + box.offsetWidth / 2, box.offsetTop + box.offsetHeight / 2];
    };
    const [x, y] = middle(all[here]);
    const distance = (node) => Math.abs(middle(node)[0] - x) + Math.abs(middle(node)[1] - y);
    if (step[0]) target = all[here + step[0]];
    else target = all.filter((node) => (middle(node)[1] - y) * step[1] > all[here].offsetHeight / 3)
      .sort((one, other) => distance(one) - distance(other))[0];
  }
  if (!target) return;
  event.preventDefault();
  target.focus();
}

function listen() {
  for (const shelf of [at.follows, at["similar-list"]]) {
    shelf.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) press(button.parentElement.dataset.id, button.querySelector(".cover").getBoundingClientRect());
    });
  }
  at.history.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) like(button.parentElement.dataset.id);
  });
  for (const shelf of [at.follows, at.history, at["similar-list"], at.readers, at.chips]) shelf.addEventListener("keydown", walk);
  at.k.addEventListener("change", ask);
  filter.listen(ask);
  at.consent.addEventListener("change", () => {
    memory.write("consent", hasConsent() ? "yes" : "no");
    at["consent-note"].hidden = hasConsent();
    if (hasConsent()) choose(reader, { isReturning: true });
    else ask();
  });
  at.forget.addEventListener("click", forget);
  at.forget.addEventListener("blur", disarm);
  at["similar-close"].addEventListener("click", closeSimilar);
  at.dismiss.addEventListener("click", recover);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      disarm();
      if (at.similar.contains(document.activeElement)) closeSimilar();
    }
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input:not([type=range], [type=checkbox]), textarea, select")) return;
    event.preventDefault();
    at.filter.open = true;
    at.find.focus();
  });
}

function closeSimilar() {
  at.similar.hidden = true;
  (at.history.querySelector("button") ?? at.follows).focus();
}

// What the page needs before anybody reads: the model, the catalogue's best known, and the readers it knows.
async function begin() {
  try {
    const [model, popular, told] = await Promise.all([
      call("GET", "/v1/model", { onWait }),
      call("POST", "/v1/recommendations", { body: { k: LISTED, consent: false }, onWait }),
      call("GET", "/static/readers.json").catch(() => ({ answer: [] })), // an installation may have none
    ]);
    learn(popular.answer.items);
    noun = popular.answer.items.some(({ attributes }) => attributes?.author) ? "book" : "item";
    await lookUp(told.answer.flatMap((one) => one.history), onWait);
    readers = told.answer.filter((one) => one.history.every(isKnown));
    account(at.model, model.answer, noun);
    filter.draw({ size: model.answer.catalog_items, noun });
  } catch (error) {
    return fail(error, begin);
  }
  at.reading.hidden = readers.length === 0;
  const before = readers.find((one) => one.user_id === memory.read("reader")) ?? null;
  await choose(before, { isReturning: true });
}

const isWide = matchMedia("(min-width: 60rem)").matches;
at.filter.open = isWide;
at.served.open = isWide;
at.consent.checked = memory.read("consent") !== "no";
at["consent-note"].hidden = hasConsent();
listen();
await begin();
