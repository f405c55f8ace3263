// Nodes and images on a canvas: only visible cells are drawn, so that 500 nodes with 100 images
// scroll as three do. Keys move a cursor, and a live region announces the cell under it.

import { ORDER, STATES, counted, make, say, size } from "./format.js";

const LABEL = "500 13px system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif";
const SMALL = "11px system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif";
const TEXT = "12px system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif";
const LEVELS = 12; // of the progress of a pull
const LEAST_LEVEL = 3; // lower ones look like a missing image
const MOST_MARKS = 200; // pictures that are kept
const MOST_FITS = 5000; // texts of which the part that fits is kept
const COLOURS = [...ORDER.map((letter) => `state-${letter}`), "card", "raised", "line", "ink", "soft", "mark", "focus"];

export class Matrix {
  /**
   * @param {(node: string, image: number) => string[]} describe lines about a cell
   * @param {(node: string) => void} choose is called for a node that is clicked or entered
   */
  constructor(describe, choose) {
    this.describe = describe;
    this.choose = choose;
    this.rows = []; // names of nodes
    this.columns = []; // places of images
    this.content = ""; // all of the texts that the layout depends on
    this.state = null;
    this.cursor = null; // row and column
    this.chosen = null;
    this.marks = new Marks();
    this.fits = new Map(); // text and width → the part that fits
    this.canvas = make("canvas", { "aria-hidden": "true" });
    this.space = make("div", {}, this.canvas);
    this.scroller = make(
      "div",
      {
        class: "grid-scroll",
        tabindex: "0",
        role: "application",
        "aria-label": "Nodes and images. Arrow keys move, Enter shows the node.",
      },
      this.space,
    );
    this.said = make("p", { class: "hidden-text", "aria-live": "polite" });
    this.tip = make("div", { class: "tip", hidden: true, "aria-hidden": "true" });
    this.empty = make("p", { class: "hint", hidden: true });
    this.element = make("div", { class: "grid-frame" }, this.scroller, this.empty, this.said, this.tip);
    this.listen();
  }

  listen() {
    const { scroller } = this;
    scroller.addEventListener("scroll", () => this.redraw(), { passive: true });
    scroller.addEventListener("keydown", (event) => this.key(event));
    scroller.addEventListener("pointermove", (event) => this.hover(event));
    scroller.addEventListener("pointerleave", () => this.hideTip());
    scroller.addEventListener("click", (event) => this.click(event));
    scroller.addEventListener("blur", () => this.hideTip());
    new ResizeObserver(() => this.lay()).observe(this.element);
    const repaint = () => {
      this.colours = null;
      this.marks.clear();
      this.redraw();
    };
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
    matchMedia("(resolution: 1dppx)").addEventListener("change", repaint);
  }

  /** Shows these nodes and images: names, and places of images. */
  show(state, rows, columns, nothing) {
    const [row, column] = this.cursor ?? [];
    const cursor = [rows.indexOf(this.rows[row]), columns.indexOf(this.columns[column])];
    this.cursor = Math.min(...cursor) < 0 ? null : cursor; // it stays at its node and image
    this.state = state;
    this.rows = rows;
    this.columns = columns;
    this.content = [rows.length, ...columns.map((place) => state.served.images[place].name)].join("\n");
    const empty = !rows.length || !columns.length;
    this.scroller.hidden = empty;
    this.empty.hidden = !empty;
    if (empty) say(this.empty, nothing);
    if (this.view?.content === this.content) this.redraw();
    else this.lay();
  }

  highlight(node) {
    this.chosen = node;
    this.redraw();
  }

  /** Measures, and decides how large cells are. */
  lay() {
    const width = this.element.clientWidth - 2;
    if (width <= 0 || this.state === null) return;
    const narrow = width < 600;
    const label = Math.min(narrow ? width * 0.36 : 260, this.widest() + (narrow ? 28 : 88));
    const room = width - label;
    const column = Math.max(Math.min(room / Math.max(this.columns.length, 1), 340), narrow ? 18 : 16);
    const worded = column >= 96;
    const dense = column < 24;
    this.fits.clear();
    this.heads = this.columns.map((place) => short(this.state.served.images[place].name, dense));
    const head = worded ? 36 : Math.min(this.tallest(dense) + 20, narrow ? 120 : 176);
    const row = worded || this.rows.length < 60 ? 28 : 20;
    const height = Math.min(head + this.rows.length * row + 1, Math.max(innerHeight * 0.72, 240));
    this.view = { content: this.content, width, height, label, column, row, head, worded, dense, narrow };
    this.space.style.width = `${Math.max(label + column * this.columns.length, width)}px`;
    this.space.style.height = `${head + row * this.rows.length}px`;
    this.scroller.style.height = `${height + 2}px`;
    const bar = this.scroller.offsetHeight - this.scroller.clientHeight - 2;
    this.scroller.style.height = `${height + 2 + Math.max(bar, 0)}px`;
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${height}px`;
    this.redraw();
  }

  widest() {
    const pen = this.canvas.getContext("2d");
    pen.font = LABEL;
    return Math.max(60, ...this.rows.slice(0, 2000).map((name) => pen.measureText(name).width));
  }

  tallest(dense) {
    const pen = this.canvas.getContext("2d");
    pen.font = dense ? SMALL : TEXT;
    return Math.max(40, ...this.heads.map((name) => pen.measureText(name).width));
  }

  redraw() {
    if (this.drawing) return;
    this.drawing = true;
    requestAnimationFrame(() => {
      this.drawing = false;
      if (this.view && this.state) this.draw();
    });
  }

  draw() {
    const { width, height, label, column, row, head } = this.view;
    const ratio = devicePixelRatio || 1;
    const { canvas } = this;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    this.colours ??= colours();
    const paint = this.colours;
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.fillStyle = paint.card;
    pen.fillRect(0, 0, width, height);
    const left = this.scroller.scrollLeft;
    const top = this.scroller.scrollTop;
    const firstRow = Math.floor(top / row);
    const lastRow = Math.min(this.rows.length, Math.ceil((top + height - head) / row));
    const firstColumn = Math.floor(left / column);
    const lastColumn = Math.min(this.columns.length, Math.ceil((left + width - label) / column));

    pen.save();
    pen.beginPath();
    pen.rect(0, head, width, height - head);
    pen.clip();
    for (let at = firstRow; at < lastRow; at += 1) {
      const y = head + at * row - top;
      const name = this.rows[at];
      const node = this.state.nodes.get(name);
      if (name === this.chosen || this.cursor?.[0] === at) {
        pen.fillStyle = paint.raised;
        pen.fillRect(0, y, width, row);
      }
      if (this.view.worded && at < this.rows.length - 1) {
        pen.fillStyle = paint.line;
        pen.fillRect(0, y + row - 1, width, 1);
      }
      this.drawCells(pen, paint, ratio, name, node, y, firstColumn, lastColumn, left);
    }
    pen.restore();
    this.drawLabels(pen, paint, firstRow, lastRow, top);
    this.drawHeads(pen, paint, firstColumn, lastColumn, left);
    this.drawCursor(pen, paint, left, top);
  }

  drawCells(pen, paint, ratio, name, node, y, first, last, left) {
    const { label, column, row, worded } = this.view;
    const edge = Math.min(14, row - 5, Math.floor(column) - 3);
    const onPixel = (place) => Math.round(place * ratio) / ratio;
    const top = onPixel(y + (row - edge) / 2);
    const pulling = new Map((node?.pulling ?? []).map(([image, has, total]) => [image, total ? has / total : 0.5]));
    for (let at = first; at < last; at += 1) {
      const image = this.columns[at];
      const letter = node?.states[image] ?? "m";
      const x = label + at * column - left;
      const px = worded ? x + 12 : x + (column - edge) / 2;
      const found = this.marks.find(paint, letter, edge, pulling.get(image), ratio);
      pen.drawImage(found, onPixel(px), top, edge, edge);
      if (worded) {
        pen.font = TEXT;
        pen.textBaseline = "middle";
        pen.fillStyle = letter === "m" ? paint.soft : paint.ink;
        const text = this.cellText(name, image, letter, pulling.get(image));
        pen.fillText(this.fitted(pen, text, column - edge - 28), px + edge + 8, y + row / 2);
      }
    }
  }

  cellText(name, image, letter, share) {
    if (letter !== "u" || share === undefined) return STATES[letter];
    const rate = this.state.rates.of(name, image);
    const done = `${Math.min(Math.round(share * 100), 99)} %`;
    return rate ? `${done}, ${size(rate)}/s` : done;
  }

  drawLabels(pen, paint, first, last, top) {
    const { label, row, head, height } = this.view;
    pen.save();
    pen.beginPath();
    pen.rect(0, head, label, height - head);
    pen.clip();
    pen.textBaseline = "middle";
    for (let at = first; at < last; at += 1) {
      const name = this.rows[at];
      const y = head + at * row - top;
      const lit = name === this.chosen || this.cursor?.[0] === at;
      pen.fillStyle = lit ? paint.raised : paint.card;
      pen.fillRect(0, y, label, this.view.worded && at < this.rows.length - 1 ? row - 1 : row);
      const states = this.state.nodes.get(name)?.states ?? "";
      let has = 0;
      for (const letter of states) if (this.state.accepted.has(letter)) has += 1;
      const count = `${has}/${states.length}`;
      let taken = 0;
      if (!this.view.narrow) {
        pen.font = TEXT;
        pen.fillStyle = paint.soft;
        pen.textAlign = "right";
        pen.fillText(count, label - 10, y + row / 2);
        taken = pen.measureText(count).width + 16;
        pen.textAlign = "left";
      }
      pen.font = LABEL;
      pen.fillStyle = paint.ink;
      pen.fillText(this.fitted(pen, name, label - taken - 18), 12, y + row / 2);
    }
    pen.restore();
  }

  drawHeads(pen, paint, first, last, left) {
    const { width, label, column, head, worded } = this.view;
    pen.fillStyle = paint.card;
    pen.fillRect(0, 0, width, head);
    pen.save();
    pen.beginPath();
    pen.rect(label, 0, width - label, head);
    pen.clip();
    pen.font = this.view.dense ? SMALL : TEXT;
    pen.textBaseline = "middle";
    for (let at = first; at < last; at += 1) {
      const name = this.heads[at];
      const x = label + at * column - left;
      pen.fillStyle = this.cursor?.[1] === at ? paint.ink : paint.soft;
      if (worded) {
        pen.fillText(this.fitted(pen, name, column - 20), x + 12, head / 2);
      } else {
        pen.save();
        pen.translate(x + column / 2, head - 8);
        pen.rotate(-Math.PI / 2);
        pen.fillText(this.fitted(pen, name, head - 12), 0, 0);
        pen.restore();
      }
    }
    pen.restore();
    pen.fillStyle = paint.card;
    pen.fillRect(0, 0, label, head);
    pen.fillStyle = paint.soft;
    pen.font = TEXT;
    pen.textBaseline = "alphabetic";
    pen.fillText(counted(this.rows.length, "node"), 12, head - 12);
    pen.fillStyle = paint.line;
    pen.fillRect(0, head - 1, width, 1);
    pen.fillRect(label - 1, 0, 1, this.view.height);
  }

  /** As much of a text as fits into a width. */
  fitted(pen, text, width) {
    const key = `${Math.round(width)} ${pen.font} ${text}`;
    let found = this.fits.get(key);
    if (found === undefined) {
      if (this.fits.size >= MOST_FITS) this.fits.clear();
      found = fitted(pen, text, width);
      this.fits.set(key, found);
    }
    return found;
  }

  drawCursor(pen, paint, left, top) {
    if (this.cursor === null || document.activeElement !== this.scroller) return;
    const { label, column, row, head } = this.view;
    const [at, to] = this.cursor;
    pen.strokeStyle = paint.focus;
    pen.lineWidth = 2;
    pen.strokeRect(label + to * column - left + 1, head + at * row - top + 1, column - 2, row - 2);
  }

  key(event) {
    const page = Math.max(Math.floor((this.view.height - this.view.head) / this.view.row) - 1, 1);
    const [row, column] = this.cursor ?? [0, 0];
    const moves = {
      ArrowUp: [row - 1, column],
      ArrowDown: [row + 1, column],
      ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1],
      PageUp: [row - page, column],
      PageDown: [row + page, column],
      Home: event.ctrlKey ? [0, 0] : [row, 0],
      End: event.ctrlKey ? [this.rows.length, column] : [row, this.columns.length],
    };
    if (event.key === "Enter" || event.key === " ") {
      if (this.cursor) this.choose(this.rows[row]);
    } else if (event.key === "Escape") {
      this.hideTip();
    } else if (moves[event.key]) {
      const [to, across] = this.cursor === null ? [0, 0] : moves[event.key];
      this.move(to, across);
    } else {
      return;
    }
    event.preventDefault();
  }

  move(row, column) {
    const { head, label, width, height } = this.view;
    const at = Math.min(Math.max(row, 0), this.rows.length - 1);
    const to = Math.min(Math.max(column, 0), this.columns.length - 1);
    this.cursor = [at, to];
    const y = at * this.view.row;
    const x = to * this.view.column;
    const { scroller } = this;
    const tall = height - head - this.view.row;
    const wide = width - label - this.view.column;
    scroller.scrollTop = Math.min(Math.max(scroller.scrollTop, y - tall), y);
    scroller.scrollLeft = Math.min(Math.max(scroller.scrollLeft, x - wide), x);
    say(this.said, this.describe(this.rows[at], this.columns[to]).join(", "));
    this.redraw();
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const { label, column, row, head } = this.view;
    const x = event.clientX - box.left;
    const y = event.clientY - box.top;
    if (y < head) return [-1, -1];
    const at = Math.floor((y - head + this.scroller.scrollTop) / row);
    const to = x < label ? -1 : Math.floor((x - label + this.scroller.scrollLeft) / column);
    return [at < this.rows.length ? at : -1, to < this.columns.length ? to : -1];
  }

  hover(event) {
    if (!this.view || event.pointerType === "touch") return;
    const [row, column] = this.at(event);
    if (row < 0 || column < 0) {
      this.hideTip();
      return;
    }
    const lines = this.describe(this.rows[row], this.columns[column]);
    this.tip.replaceChildren(...lines.map((text) => make("div", {}, text)));
    this.tip.hidden = false;
    const beyond = event.clientX > innerWidth - 320;
    this.tip.style.left = beyond ? "auto" : `${event.clientX + 14}px`;
    this.tip.style.right = beyond ? `${innerWidth - event.clientX + 14}px` : "auto";
    const below = event.clientY < innerHeight - 140;
    this.tip.style.top = below ? `${event.clientY + 16}px` : "auto";
    this.tip.style.bottom = below ? "auto" : `${innerHeight - event.clientY + 12}px`;
  }

  click(event) {
    const [row, column] = this.at(event);
    if (row < 0) return;
    this.cursor = [row, Math.max(column, 0)];
    this.choose(this.rows[row]);
  }

  hideTip() {
    this.tip.hidden = true;
    this.redraw();
  }
}

/** An image's name without the parts that most of them share; the tag where there is room. */
function short(name, dense) {
  const last = name.slice(name.lastIndexOf("/") + 1);
  return dense ? last.replace(/(@sha256)?:.*$/, "") : last;
}

function colours() {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries(COLOURS.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

function fitted(pen, text, width) {
  if (pen.measureText(text).width <= width) return text;
  let low = 0;
  let high = text.length;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (pen.measureText(`${text.slice(0, middle)}…`).width <= width) low = middle;
    else high = middle - 1;
  }
  return low ? `${text.slice(0, low)}…` : "";
}

/** The marks of the states as pictures: to copy one is much less work than to draw it. */
class Marks {
  constructor() {
    this.made = new Map();
  }

  /** Forgets all, after a change of colours. */
  clear() {
    this.made.clear();
  }

  find(paint, letter, edge, share, ratio) {
    const level = letter === "u" ? Math.max(Math.round((share ?? 0.5) * LEVELS), LEAST_LEVEL) : 0;
    const key = `${letter} ${level} ${edge} ${ratio}`;
    let found = this.made.get(key);
    if (found === undefined) {
      if (this.made.size >= MOST_MARKS) this.made.clear();
      found = document.createElement("canvas");
      found.width = found.height = Math.ceil(edge * ratio);
      const pen = found.getContext("2d");
      pen.scale(ratio, ratio);
      glyph(pen, paint, letter, 0, 0, edge, level / LEVELS);
      this.made.set(key, found);
    }
    return found;
  }
}

/** The mark of a state: the same shapes as the style has. */
function glyph(pen, paint, letter, x, y, edge, share) {
  const colour = paint[`state-${letter}`];
  pen.fillStyle = colour;
  pen.strokeStyle = colour;
  pen.lineWidth = 1.5;
  const box = () => {
    pen.beginPath();
    pen.roundRect(x + 0.75, y + 0.75, edge - 1.5, edge - 1.5, 3);
  };
  const dot = (fill) => {
    pen.fillStyle = fill;
    pen.beginPath();
    pen.arc(x + edge / 2, y + edge / 2, edge / 5.5, 0, 7);
    pen.fill();
  };
  if ("sp".includes(letter)) {
    box();
    pen.fill();
    pen.stroke();
    if (letter === "p") dot(paint.mark);
    return;
  }
  if (letter === "f") {
    box();
    pen.fill();
    pen.stroke();
    pen.strokeStyle = paint.mark;
    const inset = edge * 0.3;
    pen.beginPath();
    pen.moveTo(x + inset, y + inset);
    pen.lineTo(x + edge - inset, y + edge - inset);
    pen.moveTo(x + edge - inset, y + inset);
    pen.lineTo(x + inset, y + edge - inset);
    pen.stroke();
    return;
  }
  pen.save();
  box();
  pen.clip();
  if (letter === "u") {
    const tall = edge * share;
    pen.fillRect(x, y + edge - tall, edge, tall);
  } else if (letter === "i") {
    for (let at = 3; at < edge; at += 4) pen.fillRect(x + at, y, 1.5, edge);
  } else if (letter === "c") {
    pen.beginPath();
    pen.moveTo(x, y);
    pen.lineTo(x + edge, y);
    pen.lineTo(x, y + edge);
    pen.fill();
  } else if (letter === "a") {
    pen.beginPath();
    pen.moveTo(x, y);
    pen.lineTo(x + edge, y + edge);
    pen.stroke();
  }
  pen.restore();
  if (letter === "m") pen.globalAlpha = 0.75;
  box();
  pen.stroke();
  pen.globalAlpha = 1;
  if (letter === "b") dot(colour);
}
