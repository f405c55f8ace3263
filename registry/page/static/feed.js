// Follows the server's events and keeps the state that they add up to.

const SILENCE_MS = 40_000; // the server says something every 15 s
const LONGEST_PAUSE_MS = 10_000;
const GONE_AFTER = 3; // failed attempts while it drained

export class Feed {
  /**
   * @param {string} url of the events
   * @param {(state: object) => void} onState
   * @param {(connection: "live"|"waiting"|"refused"|"ended") => void} onConnection
   */
  constructor(url, onState, onConnection) {
    this.url = url;
    this.onState = onState;
    this.onConnection = onConnection;
    this.id = null;
    this.state = null;
    this.retry = 1000; // milliseconds until the next request; the server sets them
    this.rates = new Rates();
  }

  async run() {
    let failures = 0;
    for (;;) {
      const how = await this.follow(() => {
        failures = 0;
        this.onConnection("live");
      });
      if (how === "refused") {
        this.onConnection("refused");
        return;
      }
      const drains = this.state?.run.state === "draining";
      if (how === "failed") {
        failures += 1;
        if (drains && failures >= GONE_AFTER) {
          this.onConnection("ended");
          return;
        }
        this.onConnection("waiting");
      }
      const pause = failures ? Math.min(1000 * 2 ** (failures - 1), LONGEST_PAUSE_MS) : this.retry;
      await new Promise((resume) => setTimeout(resume, drains ? 1000 : pause));
    }
  }

  /** Reads one stream to its end; returns "closed", "refused" or "failed". */
  async follow(onBegin) {
    const abort = new AbortController();
    let silence = setTimeout(() => abort.abort(), SILENCE_MS);
    try {
      const headers = { Accept: "text/event-stream" };
      if (this.id !== null) headers["Last-Event-ID"] = this.id;
      const response = await fetch(this.url, { headers, cache: "no-store", signal: abort.signal });
      if (response.status === 401 || response.status === 403) return "refused";
      if (!response.ok) return "failed";
      onBegin();
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return "closed";
        clearTimeout(silence);
        silence = setTimeout(() => abort.abort(), SILENCE_MS);
        text += value;
        const events = text.split("\n\n");
        text = events.pop();
        events.forEach((event) => this.take(event));
      }
    } catch {
      return "failed";
    } finally {
      clearTimeout(silence);
      abort.abort();
    }
  }

  take(event) {
    let id = null;
    let data = null;
    for (const line of event.split("\n")) {
      if (line.startsWith("id: ")) id = line.slice(4);
      else if (line.startsWith("data: ")) data = line.slice(6);
      else if (line.startsWith("retry: ")) this.retry = Number(line.slice(7));
    }
    if (data === null) return;
    const change = JSON.parse(data);
    if (change.whole || this.state === null) {
      this.state = { run: null, served: null, nodes: new Map(), now: 0 };
    }
    const state = this.state;
    state.run = change.run ?? state.run;
    state.served = change.served ?? state.served;
    state.now = change.now;
    state.skew = change.now - Date.now() / 1000;
    for (const name of change.gone ?? []) state.nodes.delete(name);
    for (const [name, node] of Object.entries(change.nodes ?? {})) state.nodes.set(name, node);
    state.rates = this.rates;
    this.rates.take(state);
    this.id = id;
    this.onState(state);
  }
}

const WEIGHT = 0.3;
const STALE_SECONDS = 6;

/** Bytes a second: of all that is sent, and of each pull. */
class Rates {
  constructor() {
    this.known = new Map();
    this.history = [];
    this.total = 0;
    this.before = null;
  }

  take(state) {
    const now = performance.now() / 1000;
    const fresh = new Map();
    for (const [name, node] of state.nodes) {
      for (const [image, bytes] of node.pulling ?? []) {
        const key = `${image} ${name}`;
        const last = this.known.get(key);
        fresh.set(key, this.moved(last, bytes, now));
      }
    }
    this.known = fresh;
    const sent = state.run.bytes_out;
    if (this.before !== null && now - this.before.at > 0.2) {
      const rate = Math.max(sent - this.before.sent, 0) / (now - this.before.at);
      this.total = this.total * (1 - WEIGHT) + rate * WEIGHT;
      this.history.push(this.total);
      if (this.history.length > 90) this.history.shift();
      this.before = { sent, at: now };
    }
    this.before ??= { sent, at: now };
  }

  moved(last, bytes, now) {
    if (last === undefined || bytes < last.bytes) return { bytes, at: now, rate: 0 };
    if (bytes === last.bytes) return last;
    const rate = (bytes - last.bytes) / Math.max(now - last.at, 0.2);
    return { bytes, at: now, rate: last.rate ? last.rate * (1 - WEIGHT) + rate * WEIGHT : rate };
  }

  /** Forgets all pulls, since none is under way any more. */
  end() {
    this.known.clear();
  }

  /** Of one pull; 0 if that is not known, or if nothing moves. */
  of(name, image) {
    const found = this.known.get(`${image} ${name}`);
    if (found === undefined || performance.now() / 1000 - found.at > STALE_SECONDS) return 0;
    return found.rate;
  }
}
