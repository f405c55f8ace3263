// The entry point: makes the parts of the page, and gives each new state to them.

import { Feed } from "./feed.js";
import { ORDER, STATES, accepted, counted, duration, make, mark, say, size, time, whole } from "./format.js";
import { Layers } from "./layers.js";
import { NodeDetail, Problems, UnderWay, described, nodeTable } from "./lists.js";
import { Matrix } from "./matrix.js";

const main = document.querySelector("main");
const connection = document.querySelector("#connection");

class Summary {
  constructor() {
    this.title = make("h1", {}, "Rollout");
    this.lead = make("p", { class: "lead" });
    this.tools = make(
      "div",
      { class: "bar-tools no-print", hidden: true },
      make("button", { type: "button", class: "primary", onclick: () => print() }, "Print"),
      make("button", { type: "button", onclick: save }, "Save as a file"),
    );
    this.bar = make("svg", { class: "bar", viewBox: "0 0 1000 12", preserveAspectRatio: "none", role: "img" });
    this.legend = make("ul", { class: "legend" });
    this.facts = new Map();
    this.list = make("dl", { class: "facts" });
    this.spark = make("path", {});
    this.element = make("section", { class: "card summary", "aria-label": "Summary" });
    this.element.append(this.title, this.lead, this.tools, this.bar, this.legend, this.list);
    for (const name of ["State", "Ends", "Sending", "Sent", "Received"]) this.fact(name);
    this.picture = make("svg", { class: "spark no-print", viewBox: "0 0 90 24", preserveAspectRatio: "none", "aria-hidden": "true", hidden: true });
    this.picture.append(this.spark);
    this.facts.get("Sending").parentElement.append(this.picture);
  }

  fact(name) {
    const value = make("dd");
    this.list.append(make("div", {}, make("dt", {}, name), value));
    this.facts.set(name, value);
  }

  update(state) {
    const { run } = state;
    const done = run.wanted !== null && run.covered >= run.wanted;
    say(this.title, headline(run));
    this.element.classList.toggle("done", done);
    say(this.lead, this.countStates(state));
    say(this.facts.get("State"), run.ending === null ? run.state : `draining: ${run.ending}`);
    say(this.facts.get("Ends"), run.ending === null ? ends(state) : "when pulls under way have finished");
    say(this.facts.get("Sending"), `${size(state.rates.total)}/s, ${counted(run.transfers, "transfer")}`);
    say(this.facts.get("Sent"), size(run.bytes_out));
    say(this.facts.get("Received"), size(run.bytes_in));
    this.facts.get("Received").parentElement.hidden = !run.bytes_in;
    this.drawSpark(state.rates.history);
  }

  /** Draws the states as a bar with a legend, and returns their sums. */
  countStates(state) {
    const counts = {};
    let total = 0;
    for (const node of state.nodes.values()) {
      for (const letter of node.states) counts[letter] = (counts[letter] ?? 0) + 1;
      total += node.states.length;
    }
    const there = ORDER.filter((letter) => counts[letter]);
    let at = 0;
    const parts = there.map((letter) => {
      const width = (1000 * counts[letter]) / total;
      const part = make("rect", { class: `fill-${letter}`, x: at.toFixed(2), width: width.toFixed(2), height: "12" });
      at += width;
      return part;
    });
    this.bar.replaceChildren(...parts);
    this.bar.setAttribute("aria-label", there.map((letter) => `${counts[letter]} ${STATES[letter]}`).join(", "));
    this.legend.replaceChildren(
      ...there.map((letter) => make("li", {}, mark(letter), `${STATES[letter]}`, " ", make("strong", {}, whole(counts[letter])))),
    );
    const placed = there.filter((letter) => state.accepted.has(letter)).reduce((sum, letter) => sum + counts[letter], 0);
    if (!total) return "No node has asked for an image yet.";
    return `${Math.floor((100 * placed) / total)} % in place: ${whole(placed)} of ${whole(total)} images on nodes.`;
  }

  drawSpark(history) {
    const most = Math.max(...history, 1);
    const points = history.map((rate, at) => `${90 - history.length + at},${(23 - (22 * rate) / most).toFixed(1)}`);
    const some = points.length > 2;
    const before = ["0,23", `${90 - history.length},23`]; // nothing was sent before the page was open
    this.spark.setAttribute("d", some ? `M${[...before, ...points].join("L")}` : "");
    this.picture.toggleAttribute("hidden", !some);
  }

  showEnd(state) {
    const { run } = state;
    const lacking = run.wanted !== null && run.covered < run.wanted;
    this.element.classList.toggle("short", lacking);
    say(this.lead, `The server has ended: ${run.ending ?? "it was stopped"}. This page needs it no longer.`);
    say(this.facts.get("State"), "ended");
    const end = this.facts.get("Ends");
    say(end.previousElementSibling, "Ended");
    say(end, time(state.now));
    this.facts.get("Sending").parentElement.hidden = true;
    this.tools.hidden = false;
  }
}

function headline(run) {
  if (run.wanted === null) return "Serving images";
  const have = run.covered === 1 ? "has" : "have";
  return `${whole(run.covered)} of ${counted(run.wanted, "node")} ${have} every image`;
}

function ends(state) {
  const now = Date.now() / 1000 + state.skew;
  const shown = state.run.ends.map(({ text, at }) => (at === null ? text : `${text} (in ${duration(at - now)})`));
  return shown.join(", or ") || "when it is stopped";
}

class Nodes {
  constructor(onChoose) {
    this.matrix = new Matrix((name, image) => described(this.state, name, image), onChoose);
    this.filter = make("input", { type: "search", id: "filter", placeholder: "Node or image", autocomplete: "off", spellcheck: "false" });
    this.which = make(
      "select",
      { id: "which" },
      make("option", { value: "all" }, "All nodes"),
      make("option", { value: "lacking" }, "Without every image"),
      make("option", { value: "u" }, "Pulling"),
      make("option", { value: "f" }, "Failed"),
    );
    this.filter.addEventListener("input", () => this.render());
    this.which.addEventListener("change", () => this.render());
    const tools = make(
      "div",
      { class: "bar-tools" },
      make("h2", {}, "Nodes and images"),
      make("label", { for: "filter", class: "hidden-text" }, "Filter by node or image"),
      this.filter,
      make("label", { for: "which", class: "hidden-text" }, "Which nodes"),
      this.which,
    );
    this.more = make("p", { class: "hint", hidden: true });
    this.element = make("section", { class: "card no-print", "aria-label": "Nodes and images" }, tools, this.matrix.element, this.more);
  }

  update(state) {
    this.state = state;
    this.render();
    const { nodes_left_out: nodes, images_left_out: images } = state.run;
    this.more.hidden = !nodes && !images;
    const left = [nodes ? counted(nodes, "node") : "", images ? counted(images, "image") : ""];
    say(this.more, `Not shown: ${left.filter(Boolean).join(" and ")}.`);
  }

  render() {
    if (!this.state) return;
    const { nodes, served } = this.state;
    const text = this.filter.value.trim().toLowerCase();
    const has = (name) => name.toLowerCase().includes(text);
    const named = [...nodes.keys()].filter(has);
    const matching = served.images.flatMap((image, place) => (has(image.name) ? [place] : []));
    let rows = text && !named.length && matching.length ? [...nodes.keys()] : named;
    const columns = matching.length ? matching : named.length ? served.images.map((_, place) => place) : [];
    const which = this.which.value;
    if (which === "lacking") rows = rows.filter((name) => [...nodes.get(name).states].some((letter) => !this.state.accepted.has(letter)));
    else if (which !== "all") rows = rows.filter((name) => nodes.get(name).states.includes(which));
    const nothing = nodes.size ? "Nothing matches." : "No node has asked for an image yet.";
    this.matrix.show(this.state, rows, columns, nothing);
  }
}

const summary = new Summary();
const problems = new Problems();
const nodes = new Nodes(choose);
const underWay = new UnderWay();
const detail = new NodeDetail(() => choose(null));
const layers = new Layers();
const printed = make("section", { class: "card only-print" });
let latest = null;

main.replaceChildren(
  summary.element,
  problems.element,
  nodes.element,
  make("div", { class: "two" }, make("div", { class: "stack" }, detail.element, underWay.element), layers.element),
  printed,
);
main.setAttribute("aria-busy", "true");

function choose(name) {
  detail.show(name);
  nodes.matrix.highlight(name);
  if (name === null) nodes.matrix.scroller.focus();
  else if (latest) {
    detail.update(latest);
    detail.title.focus({ preventScroll: innerWidth > 640 });
  }
}

function update(state) {
  latest = state;
  state.accepted = accepted(state.run.accept);
  main.removeAttribute("aria-busy");
  summary.update(state);
  problems.update(state);
  nodes.update(state);
  underWay.update(state);
  detail.update(state);
  layers.update(state.served);
  const share = state.run.wanted ? `${state.run.covered}/${state.run.wanted} · ` : "";
  document.title = `${share}Rollout · Mayfly`;
}

const CONNECTIONS = {
  live: "Live",
  waiting: "The server does not answer; trying again",
  refused: "Your session has ended.",
  ended: "Ended",
};

function connected(how) {
  say(connection, CONNECTIONS[how]);
  connection.className = `connection ${how}`;
  if (how === "refused") connection.append(" ", make("a", { href: "./" }, "Log in again"));
  if (how === "ended" && latest) {
    latest.rates.end();
    summary.showEnd(latest);
    nodes.render();
    detail.update(latest);
    underWay.element.hidden = true;
    document.querySelector(".session")?.remove();
  }
}

/** Saves the page as a file that needs no server: its texts, its style, and the nodes as a table. */
function save() {
  fillPrinted();
  const rules = [...document.styleSheets].flatMap((sheet) => [...sheet.cssRules].map((rule) => rule.cssText));
  const copy = main.cloneNode(true);
  copy.querySelectorAll(".no-print").forEach((element) => element.remove());
  copy.querySelectorAll(".only-print").forEach((element) => element.classList.remove("only-print"));
  const policy = "default-src 'none'; style-src 'unsafe-inline'";
  const text = [
    '<!doctype html><html lang="en"><head><meta charset="utf-8">',
    `<meta http-equiv="Content-Security-Policy" content="${policy}">`,
    '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Rollout · Mayfly</title>',
    `<style>${rules.join("\n")}</style></head><body>${copy.outerHTML}</body></html>`,
  ].join("");
  const url = URL.createObjectURL(new Blob([text], { type: "text/html" }));
  make("a", { href: url, download: "mayfly-rollout.html" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

function fillPrinted() {
  if (latest) printed.replaceChildren(make("h2", {}, "Nodes"), nodeTable(latest));
}

addEventListener("beforeprint", fillPrinted);
setInterval(() => {
  // The time to a deadline shrinks without events.
  if (latest && latest.run.ending === null) say(summary.facts.get("Ends"), ends(latest));
}, 1000);

// The server may be gone before a browser has loaded the page again, so this one stays.
const refusal = make("p", { role: "alert", class: "notice", hidden: true });
document.querySelector(".stop form")?.append(refusal);
document.querySelector(".stop form")?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  const answer = await fetch(form.action, { method: "POST" }).catch(() => null); // it may end at once
  const refused = answer !== null && !answer.ok;
  if (refused) say(refusal, `The server refused to stop (${answer.status}); load the page again.`);
  refusal.hidden = !refused;
  form.closest("details").open = refused;
});

new Feed(`${main.dataset.base}events`, update, connected).run();
