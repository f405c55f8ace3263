// Words, numbers and elements. Text enters the page by text nodes only.

export const STATES = {
  p: "proven",
  b: "present before",
  s: "served",
  c: "claimed",
  u: "pulling",
  i: "incomplete",
  f: "failed",
  m: "missing",
  a: "not in the registry",
};

/** The letters in the order of bar and legend: states of images that a node has come first. */
export const ORDER = Object.keys(STATES);

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** Bytes as text: "512 B", "1.4 GiB". */
export function size(bytes) {
  let amount = bytes;
  let unit = 0;
  while (amount >= 1024 && unit < UNITS.length - 1) {
    amount /= 1024;
    unit += 1;
  }
  return unit === 0 ? `${Math.round(bytes)} B` : `${amount.toFixed(1)} ${UNITS[unit]}`;
}

/** Seconds as text: "42 s", "12 min", "3 h 5 min". */
export function duration(seconds) {
  const rounded = Math.max(Math.round(seconds), 0);
  if (rounded < 60) return `${rounded} s`;
  const minutes = Math.round(rounded / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

const WHOLE = new Intl.NumberFormat("en");

/** A whole number as text: "25,959". */
export function whole(number) {
  return WHOLE.format(number);
}

/** A number with its noun: "1 node", "3 nodes". */
export function counted(count, noun, plural = `${noun}s`) {
  return `${whole(count)} ${count === 1 ? noun : plural}`;
}

export function time(unix) {
  return new Date(unix * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
}

/** The letters by which a node counts as having an image (--accept). */
export function accepted(weakest) {
  const ranked = ["claimed", "served", "proven"];
  return new Set([...ranked.slice(ranked.indexOf(weakest)).map((word) => word[0]), "b"]);
}

const SVG = new Set(["svg", "rect", "path", "title"]);

/** An element with attributes and children; texts among these become text nodes. */
export function make(tag, attributes = {}, ...children) {
  const element = SVG.has(tag)
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** The mark of a state, as the legend has it. */
export function mark(letter) {
  return make("span", { class: `cell s-${letter}`, "aria-hidden": "true" });
}

/** Sets the text of an element if it differs: screen readers announce a text that is set again. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
