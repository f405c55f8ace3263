// Lists beside the matrix: problems, pulls under way, one node, and the nodes as they are printed.

import { STATES, counted, duration, make, mark, say, size, time, whole } from "./format.js";

const MOST = 12; // entries of a list
const PRINTED = 8; // images that a node lacks

export class Problems {
  constructor() {
    this.element = make("section", { class: "card problems", "aria-label": "Problems", hidden: true });
    this.shown = "";
  }

  update(state) {
    const { run, served, nodes } = state;
    const failed = [];
    for (const [name, node] of nodes) {
      for (const [image, why] of node.failed ?? []) {
        failed.push([name, `${served.images[image].name}: ${shortened(why)}`]);
      }
    }
    const absent = served.images.filter((image) => image.digest === null).map((image) => [image.name, ""]);
    const refused = run.denied.map((one) => [
      one.user || "no name",
      `at ${one.address}: ${counted(one.requests, "request")} refused`,
    ]);
    const groups = [
      ["f", "Failed pulls", failed],
      ["f", "Corrupt content", run.corrupt.map((text) => ["", text])],
      ["a", "Not in the registry", absent],
      ["i", "Warnings", run.warnings.map((text) => ["", text])],
      ["a", "Refused", refused],
    ].filter(([, , entries]) => entries.length);
    const text = JSON.stringify(groups);
    if (text === this.shown) return;
    this.shown = text;
    this.element.hidden = !groups.length;
    this.element.classList.toggle("grave", groups.some(([letter]) => letter === "f"));
    this.element.replaceChildren(...groups.map(group));
  }
}

/** A text with the first digits of each digest only. */
function shortened(text) {
  return text.replace(/(sha\d+:[0-9a-f]{12})[0-9a-f]{20,}/g, "$1…");
}

function group([letter, title, entries]) {
  const items = entries.slice(0, MOST).map(([name, text]) =>
    make("li", {}, name ? make("strong", {}, name) : null, name && text ? ": " : "", text),
  );
  if (entries.length > MOST) items.push(make("li", {}, `and ${entries.length - MOST} more`));
  const heading = make("h2", {}, mark(letter), title, " ", make("span", { class: "count" }, String(entries.length)));
  return make("div", { class: letter === "f" ? "list long" : "list" }, heading, make("ul", {}, ...items));
}

/** Lines that describe a node with an image: both names, the state, progress, a fault. */
export function described(state, name, image) {
  const node = state.nodes.get(name);
  const letter = node?.states[image] ?? "m";
  const lines = [name, state.served.images[image].name, STATES[letter]];
  const pull = (node?.pulling ?? []).find(([place]) => place === image);
  if (pull) lines.push(pulled(state, name, pull));
  const fault = (node?.failed ?? []).find(([place]) => place === image);
  if (fault) lines.push(fault[1]);
  return lines;
}

function pulled(state, name, [image, has, total]) {
  const rate = state.rates.of(name, image);
  const amount = total ? `${size(has)} of ${size(total)}` : size(has);
  if (!rate) return amount;
  const left = total > has ? `, ${duration((total - has) / rate)} left` : "";
  return `${amount}, ${size(rate)}/s${left}`;
}

export class UnderWay {
  constructor() {
    this.count = make("span", { class: "count" });
    this.rows = make("div", { class: "rows" });
    this.none = make("p", { class: "hint" }, "Nothing is being pulled.");
    this.more = make("p", { class: "hint", hidden: true });
    const title = make("h2", {}, "Under way ", this.count);
    this.element = make("section", { class: "card no-print", "aria-label": "Under way" }, title, this.none, this.rows, this.more);
  }

  update(state) {
    const pulls = [];
    for (const [name, node] of state.nodes) {
      for (const pull of node.pulling ?? []) pulls.push([name, pull]);
    }
    // Pulls that have all bytes come last: their runtime unpacks them.
    const rests = ([, [, has, total]]) => Number(total > 0 && has >= total);
    pulls.sort((one, other) => rests(one) - rests(other));
    say(this.count, whole(pulls.length));
    this.none.hidden = pulls.length > 0;
    const shown = pulls.slice(0, MOST);
    while (this.rows.childElementCount > shown.length) this.rows.lastElementChild.remove();
    while (this.rows.childElementCount < shown.length) this.rows.append(pullRow());
    shown.forEach(([name, pull], at) => fill(this.rows.children[at], state, name, pull));
    this.rows.hidden = !shown.length;
    this.more.hidden = pulls.length <= MOST;
    say(this.more, `and ${whole(pulls.length - MOST)} more`);
  }
}

function pullRow() {
  return make(
    "div",
    { class: "row" },
    make("span", { class: "name" }, make("strong"), " ", make("span")),
    make("span", { class: "amount" }),
    make("progress", { max: "1000", "aria-label": "bytes of the image" }),
  );
}

function fill(row, state, name, pull) {
  const [title, amount, bar] = row.children;
  const [image, has, total] = pull;
  const [node, what] = title.children;
  say(node, name);
  say(what, state.served.images[image].name);
  title.title = `${name} ${what.textContent}`;
  say(amount, pulled(state, name, pull));
  if (total) bar.value = Math.min((1000 * has) / total, 1000);
  else bar.removeAttribute("value");
}

export class NodeDetail {
  constructor(onClose) {
    this.name = null;
    this.title = make("h2", { tabindex: "-1" });
    this.lead = make("p", { class: "hint" });
    this.states = make("ul", { class: "states", tabindex: "0", "aria-label": "Images of the node" });
    const close = make("button", { type: "button", class: "quiet", onclick: onClose }, "Close");
    const head = make("div", { class: "bar-tools" }, this.title, close);
    this.element = make("section", { class: "card no-print", "aria-label": "One node", hidden: true }, head, this.lead, this.states);
  }

  show(name) {
    this.name = name;
    this.element.hidden = name === null;
  }

  update(state) {
    const node = state.nodes.get(this.name);
    if (this.name === null) return;
    say(this.title, this.name);
    if (!node) {
      say(this.lead, "This node is not shown any more.");
      this.states.replaceChildren();
      return;
    }
    const proof = node.proof;
    const own = proof
      ? `Its own answer: ${counted(proof[1], "image")}, ${proof[2]} pinned, ${size(proof[3])} free (${time(proof[0])}).`
      : "It has not proved which images it has.";
    say(this.lead, own);
    const letters = [...node.states];
    while (this.states.childElementCount > letters.length) this.states.lastElementChild.remove();
    while (this.states.childElementCount < letters.length) {
      this.states.append(make("li", {}, make("span"), make("span", { class: "name" }), make("span", { class: "what" })));
    }
    letters.forEach((letter, image) => {
      const [box, name, what] = this.states.children[image].children;
      const shape = `cell s-${letter}`;
      if (box.className !== shape) box.className = shape;
      say(name, state.served.images[image].name);
      say(what, described(state, this.name, image).slice(2).join(", "));
    });
  }
}

/** The last part of an image's name. */
function last(image) {
  return image.slice(image.lastIndexOf("/") + 1);
}

/** All nodes as a table, for paper and for a saved page. */
export function nodeTable(state) {
  const rows = [...state.nodes].map(([name, node]) => {
    const lacking = [...node.states]
      .map((letter, image) => [letter, state.served.images[image].name])
      .filter(([letter]) => !state.accepted.has(letter))
      .map(([letter, image]) => (letter === "m" ? last(image) : `${last(image)} (${STATES[letter]})`));
    const more = lacking.length > PRINTED ? ` and ${lacking.length - PRINTED} more` : "";
    const some = lacking.slice(0, PRINTED).join(", ") + more;
    const shown = /^m{2,}$/.test(node.states) ? "every image" : some;
    return make(
      "tr",
      {},
      make("th", { scope: "row" }, name),
      make("td", { class: "number" }, `${node.states.length - lacking.length} of ${node.states.length}`),
      make("td", {}, shown || "nothing"),
    );
  });
  const heads = ["Node", "Images", "Lacks"].map((text) => make("th", { scope: "col" }, text));
  return make(
    "table",
    { class: "counts" },
    make("thead", {}, make("tr", {}, ...heads)),
    make("tbody", {}, ...rows),
  );
}
