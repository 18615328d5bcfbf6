// Covers for things that have none: drawn from title and author, coloured by category, the same for the same item
// every time. The item's id chooses the design and seeds its ornament; the style sheet holds the tones.

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT] = [200, 300];
const HORIZON = 158; // ornaments below, words above
const TONES = ["deep", "pale", "bold", "paper"];

// FNV-1a with a last stir, so that ids which differ at the end differ in the low bits too.
function hash(text) {
  let value = 2166136261;
  for (const letter of text) value = Math.imul(value ^ letter.codePointAt(0), 16777619);
  value = Math.imul(value ^ (value >>> 15), 2246822507);
  return (value ^ (value >>> 13)) >>> 0;
}

// Numbers in [0, 1) from a seed (mulberry32).
function numbers(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let value = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    value = (value + Math.imul(value ^ (value >>> 7), 61 | value)) ^ value;
    return ((value ^ (value >>> 14)) >>> 0) / 4294967296;
  };
}

function shape(name, kind, attributes) {
  const node = document.createElementNS(SVG, name);
  node.setAttribute("class", kind);
  for (const [key, value] of Object.entries(attributes)) {
    node.setAttribute(key, typeof value === "number" ? value.toFixed(1) : value);
  }
  return node;
}

const circle = (kind, cx, cy, r) => shape("circle", kind, { cx, cy, r });
const rect = (kind, x, y, width, height) => shape("rect", kind, { x, y, width, height });
const path = (kind, d) => shape("path", kind, { d });

// Each design is a list of shapes; `a` lies near the ground colour, `b` stands out, `line-` is drawn as an outline.
const DESIGNS = {
  sun(next) {
    const x = 30 + 140 * next();
    const widest = 96 + 30 * next();
    const rings = 4 + Math.floor(next() * 3);
    const drawn = [];
    for (let ring = 0; ring < rings; ring++) {
      drawn.push(circle(ring % 2 ? "b" : "a", x, HEIGHT, widest * (1 - ring / rings)));
    }
    return drawn;
  },
  hills(next) {
    const drawn = [circle("b", 35 + 130 * next(), 186 + 8 * next(), 15 + 9 * next())];
    for (let ridge = 0; ridge < 3; ridge++) {
      const y = 214 + ridge * 27;
      const [left, right] = [y - 34 + 40 * next(), y + 30 - 48 * next()];
      drawn.push(path(["a", "c", "b"][ridge], `M0 ${y} C66 ${left} 126 ${right} 200 ${y - 8} V300 H0 Z`));
    }
    return drawn;
  },
  tiles(next) {
    const drawn = [];
    const side = 50;
    for (let x = 0; x < WIDTH; x += side) {
      for (let y = 150; y < HEIGHT; y += side) {
        const kind = ["a", "b", "c", "a"][Math.floor(next() * 4)];
        const [l, t, r, b] = [x, y, x + side, y + side];
        const corners = [
          `M${l} ${t} H${r} A${side} ${side} 0 0 1 ${l} ${b} Z`,
          `M${r} ${t} V${b} A${side} ${side} 0 0 1 ${l} ${t} Z`,
          `M${r} ${b} H${l} A${side} ${side} 0 0 1 ${r} ${t} Z`,
          `M${l} ${b} V${t} A${side} ${side} 0 0 1 ${r} ${b} Z`,
        ];
        drawn.push(next() < 0.12 ? circle(kind, x + 25, y + 25, 13) : path(kind, corners[Math.floor(next() * 4)]));
      }
    }
    return drawn;
  },
  columns(next) {
    const drawn = [];
    for (let x = 18; x < WIDTH - 20; ) {
      const width = 5 + 15 * next();
      const top = HORIZON + 8 + 84 * next();
      drawn.push(rect(next() < 0.3 ? "b" : next() < 0.5 ? "c" : "a", x, top, Math.min(width, 182 - x), HEIGHT - top));
      x += width + 4;
    }
    return drawn;
  },
  orbits(next) {
    const [x, y] = [60 + 80 * next(), 228];
    const drawn = [circle("b", x, y, 11 + 7 * next())];
    for (let ring = 1; ring < 5; ring++) {
      const radius = 16 + ring * 15;
      const angle = 2 * Math.PI * next();
      drawn.push(circle("line-c", x, y, radius));
      if (y + radius * Math.sin(angle) > HORIZON) {
        drawn.push(circle("b", x + radius * Math.cos(angle), y + radius * Math.sin(angle), 2.5 + 3 * next()));
      }
    }
    return drawn;
  },
  waves(next) {
    const drawn = [];
    const swing = 7 + 9 * next();
    const rows = 7 + Math.floor(next() * 3);
    for (let row = 0; row < rows; row++) {
      const y = 178 + (row * 126) / rows;
      let d = `M-20 ${y.toFixed(1)}`;
      for (let x = -20; x < 220; x += 40) d += ` q10 ${(-swing).toFixed(1)} 20 0 t20 0`;
      drawn.push(path(row % 3 === 1 ? "line-b" : "line-c", d));
    }
    return drawn;
  },
  frame(next) {
    const [x, y] = [WIDTH / 2, 212];
    const drawn = [shape("rect", "line-b", { x: 10, y: 10, width: 180, height: 280 }),
      shape("rect", "line-c", { x: 15, y: 15, width: 170, height: 270 })];
    const petals = 5 + Math.floor(next() * 4);
    const reach = 24 + 8 * next();
    for (let petal = 0; petal < petals; petal++) {
      const turn = (360 * petal) / petals;
      drawn.push(shape("ellipse", "line-b", { cx: x, cy: y - reach * 0.62, rx: reach * 0.26, ry: reach * 0.6,
        transform: `rotate(${turn.toFixed(1)} ${x} ${y})` }));
    }
    drawn.push(circle("b", x, y, 4));
    return drawn;
  },
  bands(next) {
    const drawn = [rect("c", 0, 66, WIDTH, 5), rect("c", 0, 229, WIDTH, 5), rect("panel", 0, 71, WIDTH, 158)];
    const kind = Math.floor(next() * 3);
    for (const y of [33, 267]) {
      for (let place = 0; place < 5; place++) {
        const x = 60 + place * 20;
        if (kind === 0) drawn.push(circle(place % 2 ? "b" : "line-b", x, y, 6));
        else if (kind === 1) drawn.push(path("b", `M${x - 8} ${y + 5} l8 -11 l8 11 z`));
        else drawn.push(path("b", `M${x} ${y - 8} l7 8 l-7 8 l-7 -8 z`));
      }
    }
    return drawn;
  },
};
const NAMES = Object.keys(DESIGNS);

// The largest size, in hundredths of the cover's width, at which a title fits its lines and its longest word a line.
function size(title, room) {
  const words = title.split(/\s+/);
  for (let chosen = 17; chosen > 8; chosen -= 0.5) {
    const perLine = 80 / (0.53 * chosen);
    if (words.some((word) => word.length > perLine)) continue;
    let [lines, filled] = [1, 0];
    for (const word of words) {
      if (filled && filled + 1 + word.length > perLine) [lines, filled] = [lines + 1, word.length];
      else filled += word.length + (filled ? 1 : 0);
    }
    if (lines * chosen * 1.13 <= room) return chosen;
  }
  return 8;
}

// What is known of an item, in the words of a page: a catalogue may hold any of it or nothing.
export function described(id, attributes = {}) {
  const { title, author, year, categories, price } = attributes;
  return {
    id,
    title: String(title ?? id),
    author: Array.isArray(author) ? author.join(", ") : (author ?? ""),
    year: Number.isFinite(year) ? String(year < 0 ? `${-year} BC` : year) : "",
    categories: (Array.isArray(categories) ? categories : [categories]).filter(Boolean),
    price: Number.isFinite(price) ? price : null,
  };
}

// A cover: decoration, since whatever holds it is named in words as well.
export function cover(item) {
  const seed = hash(item.id);
  const design = NAMES[seed % NAMES.length];
  const first = item.categories[0] ?? item.id;
  const second = item.categories[1] ?? first;
  const hue = (hash(first) % 24) * 15 + ((hash(second) % 5) - 2) * 6; // near for all of a category, the same for few
  const node = document.createElement("span");
  node.className = "cover";
  node.setAttribute("aria-hidden", "true");
  node.dataset.design = design;
  node.dataset.tone = TONES[(seed >>> 8) % TONES.length];
  node.style.setProperty("--hue", hue);
  node.style.setProperty("--other", (hue + 40 + (hash(second) % 5) * 25) % 360);
  node.style.setProperty("--size", `${size(item.title, design === "bands" ? 50 : 44)}cqw`);

  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  drawing.append(...DESIGNS[design](numbers(seed)));
  const words = document.createElement("span");
  words.className = "words";
  for (const [name, text] of [["title", item.title], ["author", item.author]]) {
    if (!text) continue;
    const line = document.createElement("span");
    line.className = name;
    line.textContent = text;
    words.append(line);
  }
  node.append(drawing, words);
  return node;
}
