/**
 * Small charts, by hand. Each is one path in a box that is stretched to its place; its numbers stand beside it as text.
 *
 * @module
 */

import { drawn } from "./dom.js";

const WIDTH = 240;
const HEIGHT = 56;

/** A chart of bars or an area, and marks below it. */
export class Chart {
  /** @type {SVGSVGElement} */ element;
  #shape = drawn("path", { class: "shape" });
  #line = drawn("path", { class: "line" });
  #marks = drawn("path", { class: "marks" });

  /** @param {string} label what it shows, for those who do not see it */
  constructor(label) {
    const box = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label };
    const ground = drawn("path", { class: "ground", d: `M0 ${HEIGHT - 0.5}H${WIDTH}` });
    this.element = drawn("svg", { class: "chart", ...box }, ground, this.#shape, this.#line, this.#marks);
  }

  /** @param {string} label */
  set label(label) {
    this.element.setAttribute("aria-label", label);
  }

  /**
   * @param {number[]} values the newest on the right
   * @param {number} room how many there is room for
   */
  area(values, room) {
    const top = Math.max(1, ...values);
    const step = WIDTH / (room - 1);
    const start = WIDTH - (values.length - 1) * step;
    const high = (/** @type {number} */ value) => tidy(HEIGHT - 1 - (value / top) * (HEIGHT - 4));
    const points = values.map((value, at) => `${tidy(start + at * step)} ${high(value)}`);
    const line = points.length > 1 ? `M${points.join("L")}` : "";
    this.#line.setAttribute("d", line);
    this.#shape.setAttribute("d", line && `${line}L${WIDTH} ${HEIGHT}L${tidy(start)} ${HEIGHT}Z`);
  }

  /**
   * @param {number[]} values from the left
   * @param {number} room
   * @param {number} [top] what the highest bar stands for; what is more is cut off
   */
  bars(values, room, top = Math.max(...values)) {
    const step = WIDTH / room;
    const width = Math.max(step - 1.2, step * 0.6);
    const bar = (/** @type {number} */ value, /** @type {number} */ at) => {
      if (value <= 0) return "";
      const high = Math.max(Math.min(value / top, 1) * (HEIGHT - 4), 1.5);
      return `M${tidy(at * step)} ${HEIGHT - 1}v${tidy(-high)}h${tidy(width)}v${tidy(high)}Z`;
    };
    this.#shape.setAttribute("d", values.map(bar).join(""));
  }

  /**
   * Stretches in which there was no connection.
   *
   * @param {[number, number][]} stretches from 0 to 1
   */
  mark(stretches) {
    const bar = (/** @type {[number, number]} */ [from, to]) => {
      const [left, right] = [tidy(from * WIDTH), tidy(Math.max(to * WIDTH, from * WIDTH + 2))];
      return `M${left} 0H${right}V${HEIGHT}H${left}Z`;
    };
    this.#marks.setAttribute("d", stretches.map(bar).join(""));
  }
}

/** How many events came when: a fixed number of bins, which grow wider as time goes by. */
export class Timeline {
  /** @type {number[]} */ bins;
  #width;

  /**
   * @param {number} bins
   * @param {number} seconds that they span at first
   */
  constructor(bins, seconds) {
    this.bins = new Array(bins).fill(0);
    this.#width = seconds / bins;
  }

  /** Three times what is usual: a burst does not flatten the rest. */
  get usual() {
    const some = this.bins.filter((count) => count > 0).sort((a, b) => a - b);
    return 3 * (some[some.length >> 1] ?? 1);
  }

  /** All that they span. */
  get span() {
    return this.bins.length * this.#width;
  }

  /** @param {number} seconds since the beginning */
  add(seconds) {
    this.reach(seconds);
    this.bins[Math.floor(seconds / this.#width)] += 1;
  }

  /** @param {number} seconds */
  reach(seconds) {
    const { bins } = this;
    while (seconds >= this.span) {
      for (let at = 0; at < bins.length; at++) bins[at] = (bins[2 * at] ?? 0) + (bins[2 * at + 1] ?? 0);
      this.#width *= 2;
    }
  }
}

/** What was measured last, and how it is spread. */
export class Sample {
  #values = /** @type {number[]} */ ([]);
  #at = 0;
  #room;

  /** @param {number} room how many are kept */
  constructor(room) {
    this.#room = room;
  }

  get values() {
    return this.#values;
  }

  /** @param {number} value */
  add(value) {
    this.#values[this.#at] = value;
    this.#at = (this.#at + 1) % this.#room;
  }

  /**
   * @param {number[]} parts from 0 to 1
   * @returns {(number | null)[]}
   */
  quantiles(parts) {
    const sorted = this.#values.toSorted((a, b) => a - b);
    return parts.map((part) => sorted[Math.min(Math.floor(part * sorted.length), sorted.length - 1)] ?? null);
  }

  /**
   * How many lie in each of `bins` bins between two powers of ten.
   *
   * @param {number} bins
   * @param {number} low
   * @param {number} high
   */
  spread(bins, low, high) {
    const counts = new Array(bins).fill(0);
    for (const value of this.#values) {
      const at = ((Math.log10(Math.max(value, 1e-9)) - low) / (high - low)) * bins;
      counts[Math.min(Math.max(Math.floor(at), 0), bins - 1)] += 1;
    }
    return counts;
  }
}

/** @param {number} value */
const tidy = (value) => Math.round(value * 100) / 100;
