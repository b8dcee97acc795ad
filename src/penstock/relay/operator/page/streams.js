/**
 * The relay's streams and breakers, asked for once a second while the page is seen.
 *
 * @module
 */

import { Chart, Sample } from "./charts.js";
import { announce, button, byId, count, duration, element, rate, short, size, write } from "./dom.js";

const EVERY = 1000; // [ms]
const HISTORY = 120;
const FIRSTS = 40;
const MOST_ROWS = 100;
const OVER = "ended";

/**
 * @typedef {object} Listed a stream, as the relay tells of it; times in seconds
 * @property {string} id
 * @property {string | null} key
 * @property {string | null} owner
 * @property {string} state
 * @property {string | null} reason
 * @property {number} events
 * @property {number} bytes
 * @property {number} readers
 * @property {number} started_at
 * @property {number | null} first_event
 * @property {number | null} duration
 * @property {number} events_per_second
 *
 * @typedef {{ streams: Listed[], breaker: Record<string, string>, now: number }} Listing
 *
 * @typedef {object} Callbacks
 * @property {(stream: Listed) => void} read
 * @property {(stream: Listed) => Promise<void>} stop
 * @property {(streams: Listed[]) => void} seen
 */

/** The table, the charts above it, and the breakers. */
export class Streams {
  #callbacks;
  /** @type {Map<string, Row>} */ #rows = new Map();
  /** @type {Map<string, number>} */ #before = new Map();
  #then = 0;
  /** @type {number[]} */ #rates = [];
  #gaps = new Sample(2000);
  #gapsChanged = false;
  #rateChart = chart("rate-chart", "Events per second");
  #firstChart = chart("first-chart", "Time to first event");
  #gapChart = chart("gap-chart", "Between events");

  /** @param {Callbacks} callbacks */
  constructor(callbacks) {
    this.#callbacks = callbacks;
  }

  /** Asks again and again; a page that nobody sees does not. */
  async watch() {
    for (;;) {
      if (!document.hidden) await this.#look();
      await new Promise((resolve) => setTimeout(resolve, EVERY));
    }
  }

  /** @param {number} seconds between two events of a reader's */
  gap(seconds) {
    this.#gaps.add(seconds);
    this.#gapsChanged = true;
  }

  async #look() {
    const trouble = byId("trouble", HTMLElement);
    try {
      const response = await fetch("streams", { cache: "no-store" });
      if (!response.ok) throw new Error(`the relay answered ${response.status}`);
      this.#show(await response.json());
      trouble.hidden = true;
    } catch (error) {
      write(trouble, `The list of streams did not come: ${/** @type {Error} */ (error).message}. Asking again.`);
      trouble.hidden = false;
    }
  }

  /** @param {Listing} listing */
  #show({ streams, breaker, now }) {
    this.#showBreakers(breaker);
    this.#showRates(streams, now);
    this.#showFirsts(streams);
    this.#showGaps();
    this.#showRows(streams, now);
    this.#callbacks.seen(streams);
  }

  /** @param {Record<string, string>} breaker */
  #showBreakers(breaker) {
    const list = byId("breakers", HTMLElement);
    const told = Object.entries(breaker)
      .map(([origin, state]) => `${origin} ${state}`)
      .join("\n");
    if (list.dataset.told === told) return;
    list.dataset.told = told;
    list.replaceChildren(
      ...Object.entries(breaker).map(([origin, state]) => {
        const word = element("b", { "data-breaker": state }, state.replace("_", "-"));
        return element("li", {}, element("span", { class: "hint" }, "breaker of "), origin, " ", word);
      }),
    );
  }

  /**
   * @param {Listed[]} streams
   * @param {number} now
   */
  #showRates(streams, now) {
    const since = now - this.#then;
    let sum = 0;
    for (const { id, events, started_at } of streams) {
      const before = this.#before.get(id) ?? (started_at >= this.#then ? 0 : events);
      sum += Math.max(events - before, 0);
    }
    if (this.#then > 0 && since > 0) {
      this.#rates.push(sum / since);
      if (this.#rates.length > HISTORY) this.#rates.shift();
      this.#rateChart.area(this.#rates, HISTORY);
      const last = rate(sum / since);
      write(byId("rate-now", HTMLElement), last);
      this.#rateChart.label = `Events per second: ${last} now, ${rate(Math.max(...this.#rates))} at most`;
    }
  }

  /** @param {Listed[]} streams */
  #showFirsts(streams) {
    const known = streams.filter(({ first_event }) => first_event !== null);
    const recent = known.sort((a, b) => a.started_at - b.started_at).slice(-FIRSTS);
    const firsts = recent.map(({ first_event }) => /** @type {number} */ (first_event));
    this.#firstChart.bars([...new Array(FIRSTS - firsts.length).fill(0), ...firsts], FIRSTS);
    const median = firsts.toSorted((a, b) => a - b)[Math.floor(firsts.length / 2)] ?? null;
    write(byId("first-median", HTMLElement), duration(median));
    if (median !== null) {
      const most = duration(Math.max(...firsts));
      const hint = firsts.length === 1 ? "one stream" : `median of ${firsts.length} streams, max ${most}`;
      write(byId("first-hint", HTMLElement), hint);
    }
    this.#firstChart.label = `Time to first event: ${duration(median)} at the median of ${firsts.length} streams`;
  }

  #showGaps() {
    if (!this.#gapsChanged) return;
    this.#gapsChanged = false;
    const [median, tail, most] = this.#gaps.quantiles([0.5, 0.99, 1]);
    this.#gapChart.bars(this.#gaps.spread(40, -3, 1), 40);
    write(byId("gap-median", HTMLElement), duration(median ?? null));
    const rest = `median, p99 ${duration(tail ?? null)}, max ${duration(most ?? null)}`;
    write(byId("gap-tail", HTMLElement), rest);
    this.#gapChart.label = `Between events at the readers of this page: ${duration(median ?? null)} ${rest}`;
  }

  /**
   * @param {Listed[]} streams
   * @param {number} now
   */
  #showRows(streams, now) {
    const newest = streams.toSorted((a, b) => b.started_at - a.started_at).slice(0, MOST_ROWS);
    const body = byId("rows", HTMLElement);
    /** @type {Element | null} */
    let place = body.firstElementChild;
    for (const listed of newest) {
      let row = this.#rows.get(listed.id);
      if (row === undefined) {
        row = new Row(listed, this.#callbacks);
        this.#rows.set(listed.id, row);
      }
      const before = this.#before.get(listed.id);
      const since = now - this.#then;
      row.show(listed, before === undefined || since <= 0 ? null : (listed.events - before) / since, now);
      // What stands where it belongs is not moved: it would lose the focus.
      if (row.element === place) place = place.nextElementSibling;
      else body.insertBefore(row.element, place);
    }
    const listed = new Set(newest.map(({ id }) => id));
    for (const [id, row] of this.#rows) {
      if (listed.has(id)) continue;
      row.element.remove();
      this.#rows.delete(id);
    }
    this.#before = new Map(streams.map(({ id, events }) => [id, events]));
    this.#then = now;
    byId("table", HTMLElement).hidden = newest.length === 0;
    byId("no-stream", HTMLElement).hidden = newest.length > 0;
  }
}

/** One stream's line. */
class Row {
  element;
  #cells;
  #stop;
  /** @type {HTMLButtonElement | null} */ #again = null;

  /**
   * @param {Listed} listed
   * @param {Callbacks} callbacks
   */
  constructor(listed, { read, stop }) {
    const name = short(listed.id);
    const cell = (/** @type {string} */ label, number = true) =>
      element("td", { role: "cell", "data-label": label, class: number ? "number" : null });
    this.#cells = {
      state: cell("state", false),
      events: cell("events"),
      rate: cell("per second"),
      bytes: cell("size"),
      readers: cell("readers"),
      first: cell("first event"),
      time: cell("time"),
    };
    const said = [listed.key, listed.owner === null || listed.owner === "" ? null : `of ${listed.owner}`];
    const more = said.filter((each) => each !== null && each !== "").join(", ");
    const title = element("th", { role: "rowheader", scope: "row", title: listed.id }, element("code", {}, name));
    if (more) title.append(" ", element("span", { class: "hint" }, more));
    this.#stop = button("Stop", () => this.#halt(stop, listed), {
      class: "plain",
      "aria-label": `Stop stream ${name}`,
    });
    const actions = element("td", { role: "cell", class: "do" }, this.#stop);
    // Whose streams have owners has asked that nobody else reads them.
    if (!listed.owner) {
      this.#again = button("Read", () => read(listed), {
        class: "plain",
        "aria-label": `Read stream ${name} from its start`,
      });
      actions.append(this.#again);
    }
    this.element = element(
      "tr",
      { role: "row", "data-stream": listed.id },
      title,
      ...Object.values(this.#cells),
      actions,
    );
  }

  /**
   * @param {Listed} listed
   * @param {number | null} perSecond since the last time
   * @param {number} now
   */
  show(listed, perSecond, now) {
    const over = listed.state === OVER;
    const cells = this.#cells;
    const state = over ? (listed.reason ?? OVER).replace("_", " ") : listed.state;
    write(cells.state, state);
    cells.state.dataset.state = over ? (listed.reason ?? OVER) : listed.state;
    write(cells.events, count(listed.events));
    write(cells.rate, rate(over ? listed.events_per_second : (perSecond ?? listed.events_per_second)));
    write(cells.bytes, size(listed.bytes));
    write(cells.readers, count(listed.readers));
    write(cells.first, duration(listed.first_event));
    write(cells.time, duration(over || listed.duration !== null ? listed.duration : now - listed.started_at));
    this.#allow(!over);
  }

  /** @param {boolean} stopping */
  #allow(stopping) {
    if (!stopping && this.#stop === document.activeElement) this.#again?.focus();
    this.#stop.disabled = !stopping;
  }

  /**
   * @param {Callbacks["stop"]} stop
   * @param {Listed} listed
   */
  async #halt(stop, listed) {
    this.#allow(false);
    try {
      await stop(listed);
      announce(`Stream ${short(listed.id)} is stopped.`);
    } catch (error) {
      this.#allow(true);
      announce(`Stream ${short(listed.id)} could not be stopped: ${/** @type {Error} */ (error).message}.`);
    }
  }
}

/**
 * @param {string} id
 * @param {string} label
 */
function chart(id, label) {
  const made = new Chart(label);
  byId(id, HTMLElement).querySelector(".axis")?.before(made.element);
  return made;
}
