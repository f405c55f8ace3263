// The served images: each is a bar of its layers, and a layer in several images has one colour.

import { counted, make, say, size } from "./format.js";

const SHADES = 6; // layers with a colour of their own
const AT_FIRST = 12;

export class Layers {
  constructor() {
    this.shown = null;
    this.all = false;
    this.title = make("h2", {}, "Images");
    this.count = make("span", { class: "count" });
    this.title.append(" ", this.count);
    this.lead = make("p", { class: "hint" });
    this.legend = make("ul", { class: "legend" });
    this.rows = make("div", { class: "rows" });
    this.more = make("button", { type: "button", class: "quiet no-print", hidden: true, onclick: () => this.toggle() });
    this.element = make("section", { class: "card", "aria-label": "Images and their layers" });
    this.element.append(this.title, this.lead, this.legend, this.rows, this.more);
  }

  toggle() {
    this.all = !this.all;
    this.render();
  }

  update(served) {
    if (served === this.shown) return;
    this.shown = served;
    this.render();
  }

  render() {
    const { images, layers, sources } = this.shown;
    const uses = new Map();
    for (const image of images) {
      for (const place of image.layers) uses.set(place, (uses.get(place) ?? 0) + 1);
    }
    const saved = (place) => layers[place][1] * (uses.get(place) - 1);
    const shared = [...uses.keys()].filter((place) => uses.get(place) > 1);
    shared.sort((one, other) => saved(other) - saved(one));
    const shades = new Map(shared.slice(0, SHADES).map((place, at) => [place, at]));
    const all = images.reduce((sum, image) => sum + (image.size ?? 0), 0);
    const stored = layers.reduce((sum, layer) => sum + layer[1], 0);
    say(this.count, String(images.length));
    const from = sources.length ? ` From ${sources.join(", ")}.` : "";
    const less = all > stored ? `, of which ${size(all - stored)} is shared` : "";
    say(this.lead, `${size(all)} in all${less}: ${size(stored)} to store.${from}`);
    this.legend.replaceChildren(
      ...(shared.length ? [legendEntry("shade-0", "shared, by colour")] : []),
      ...(shared.length > SHADES ? [legendEntry("shade-shared", "other shared")] : []),
      legendEntry("shade-own", "of one image only"),
    );
    const sorted = [...images].sort((one, other) => (other.size ?? 0) - (one.size ?? 0));
    const largest = Math.max(sorted[0]?.size ?? 0, 1);
    const shown = this.all ? sorted : sorted.slice(0, AT_FIRST);
    this.rows.replaceChildren(...shown.map((image) => bar(image, layers, uses, shades, largest)));
    this.more.hidden = sorted.length <= AT_FIRST;
    say(this.more, this.all ? "Show the largest only" : `Show all ${sorted.length}`);
  }
}

function legendEntry(shade, text) {
  const box = make("svg", { class: "swatch", viewBox: "0 0 12 12", "aria-hidden": "true" });
  box.append(make("rect", { class: shade, width: "12", height: "12", rx: "3" }));
  return make("li", {}, box, text);
}

function bar(image, layers, uses, shades, largest) {
  const parts = [];
  let at = 0;
  const places = [...image.layers].sort((one, other) => uses.get(other) - uses.get(one));
  for (const place of places) {
    const [digest, bytes] = layers[place];
    const width = (1000 * bytes) / largest;
    if (width >= 0.5) {
      const count = uses.get(place);
      const shade = count < 2 ? "own" : (shades.get(place) ?? "shared");
      const also = count > 1 ? `, in ${counted(count, "image")}` : "";
      const part = make("rect", { class: `shade-${shade}`, x: at.toFixed(2), width: width.toFixed(2), height: "14" });
      part.append(make("title", {}, `${digest.slice(0, 19)}…, ${size(bytes)}${also}`));
      parts.push(part);
    }
    at += width;
  }
  const together = image.layers.filter((place) => uses.get(place) > 1).length;
  const label = `${counted(image.layers.length, "blob")}, ${together} of them shared`;
  const picture = make("svg", { viewBox: "0 0 1000 14", preserveAspectRatio: "none", role: "img", "aria-label": label });
  picture.append(...parts);
  const amount = image.digest === null ? "not in the registry" : image.size === null ? "" : size(image.size);
  return make(
    "div",
    { class: "row" },
    make("span", { class: "name", title: image.name }, image.name),
    make("span", { class: "amount" }, amount),
    image.size === null ? null : picture,
  );
}
