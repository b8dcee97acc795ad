/**
 * One reader of a stream: what it has read, how it arrived, and what became of its connections.
 *
 * A connection is cut for real: what aborts the fetch is not the client's own doing, so that to the client the network
 * has failed, and it comes back as it would from anywhere.
 *
 * @module
 */

import { penstock, resume } from "./client.js";
import { Chart, Timeline } from "./charts.js";
import { announce, button, count, duration, element, write } from "./dom.js";

const MOST_TEXT = 200_000; // characters; what is older is dropped from the page
const CATCHING_UP = 100; // what comes at once behind a connection's beginning tells nothing of the upstream's pace [ms]

/**
 * @typedef {object} Source
 * @property {string} title
 * @property {string} [url]
 * @property {Omit<import("./client.js").Options, "onEvent" | "onGap" | "onState" | "fetch">} [options]
 * @property {string} [key] of the stream that the page had before it was loaded again
 */

/**
 * @typedef {object} Callbacks
 * @property {(reader: Reader) => void} another
 * @property {(reader: Reader) => void} closed
 * @property {(seconds: number) => void} gap
 */

export class Reader {
  /** @type {HTMLElement} */ element;
  /** @type {import("./client.js").Stream | null} */ stream = null;
  events = 0;

  #name;
  /** @type {Callbacks} */ #callbacks;
  #wire = new AbortController();
  #gaps = 0;
  #cuts = 0;
  #began = performance.now();
  /** @type {number | null} */ #first = null;
  /** @type {number | null} */ #last = null;
  #joined = 0;
  /** @type {number | null} */ #cutAt = null;
  #answered = false;
  /** Why there is no connection now. */ #trouble = "";
  #timeline = new Timeline(60, 3);
  /** Stretches without a connection, as seconds from the beginning. @type {[number, number][]} */ #away = [];
  /** @type {import("./client.js").End | null} */ #end = null;
  /** What the relay says of the stream's end. @type {{ events: number, reason: string } | null} */ #relays = null;
  #pending = "";
  #written = 0;
  #scheduled = false;

  #state = element("p", { class: "state" });
  #where = element("p", { class: "where" });
  #output = element("div", { class: "output", tabindex: "0", role: "region" });
  #verdict = element("p", { class: "verdict" });
  #chart = new Chart("");
  #figures = {
    events: element("dd", {}, "0"),
    gaps: element("dd", {}, "0"),
    cuts: element("dd", {}, "0"),
    first: element("dd", {}, "–"),
  };
  #cut = button("Cut the connection", () => this.#sever());
  #another = button("Second reader", () => this.#callbacks.another(this));
  #stop = button("Stop", () => this.#halt(), { title: "End the stream, for all its readers" });

  /**
   * @param {number} number
   * @param {Source} source
   * @param {Callbacks} callbacks
   */
  constructor(number, source, callbacks) {
    this.#name = `Reader ${number}`;
    this.#callbacks = callbacks;
    const title = element("h3", { id: `reader-${number}` }, this.#name);
    const close = button("Close", () => this.close(), {
      class: "plain",
      "aria-label": `Close ${this.#name.toLowerCase()}`,
    });
    this.#output.setAttribute("aria-label", `What ${this.#name.toLowerCase()} has read`);
    const pairs = { events: "events", gaps: "gaps", cuts: "cuts", first: "first event" };
    const figures = Object.entries(pairs).map(([name, label]) =>
      element("div", {}, element("dt", {}, label), this.#figures[/** @type {keyof typeof pairs} */ (name)]),
    );
    this.element = element(
      "article",
      { class: "reader", "aria-labelledby": title.id },
      element("header", {}, title, this.#state, close),
      this.#where,
      element("dl", { class: "figures" }, ...figures),
      this.#chart.element,
      this.#output,
      this.#verdict,
      element("div", { class: "actions" }, this.#cut, this.#another, this.#stop),
    );
    this.#open(source);
  }

  /** Stops reading; the stream goes on. */
  close() {
    this.stream?.close();
    this.#callbacks.closed(this);
  }

  /**
   * What the relay says of the stream, for comparison.
   *
   * @param {number} events
   * @param {string} reason of its end
   */
  compare(events, reason) {
    if (this.#end === null || this.#relays?.events === events) return;
    this.#relays = { events, reason };
    this.#schedule();
  }

  get ended() {
    return this.#end !== null;
  }

  /** @param {Source} source */
  #open({ title, url, options = {}, key }) {
    write(this.#where, title);
    /** @type {import("./client.js").Options} */
    const heard = {
      ...options,
      onEvent: (event) => this.#onEvent(event),
      onGap: (gap) => this.#onGap(gap),
      onState: (state, detail) => this.#onState(state, detail),
      fetch: (input, init = {}) => {
        this.#wire = new AbortController();
        const signals = [this.#wire.signal, ...(init.signal ? [init.signal] : [])];
        return fetch(input, { ...init, signal: AbortSignal.any(signals) });
      },
    };
    this.stream = url === undefined ? resume(key ?? "", heard) : penstock(url, heard).start();
  }

  #sever() {
    if (this.stream?.state !== "open" && this.stream?.state !== "connecting") return;
    this.#wire.abort();
  }

  async #halt() {
    try {
      await this.stream?.stop();
    } catch (error) {
      write(this.#verdict, /** @type {Error} */ (error).message);
    }
  }

  // ---------------------------------------------------------------------------------------------- what the stream says

  /** @param {import("./client.js").StreamEvent} event */
  #onEvent(event) {
    const now = performance.now();
    this.events += 1;
    if (this.#first === null) this.#first = this.#joined = now;
    if (this.#cutAt !== null) this.#rejoined(now);
    if (this.#last !== null && now - this.#joined > CATCHING_UP) this.#callbacks.gap((now - this.#last) / 1000);
    this.#last = now;
    this.#timeline.add((now - this.#began) / 1000);
    const [text, prose] = textOf(event);
    if (prose) this.#output.classList.add("prose");
    this.#pending += text;
    if (this.#pending.length > 2 * MOST_TEXT) this.#pending = this.#pending.slice(-MOST_TEXT); // the page is not seen
    this.#schedule();
  }

  /** @param {number} now */
  #rejoined(now) {
    const from = /** @type {number} */ (this.#cutAt);
    this.#cutAt = null;
    this.#joined = now;
    this.#away.push(this.#stretch(from, now));
    this.#flush();
    const seam = `cut, and resumed ${duration((now - from) / 1000)} later`;
    this.#output.append(element("span", { class: "seam" }, seam));
    announce(`${this.#name}: ${seam}.`);
  }

  /** @param {import("./client.js").Gap} gap */
  #onGap({ requested, earliest }) {
    this.#gaps += 1;
    this.#flush();
    const text = `gap: from ${requested} to ${earliest} nothing is kept`;
    this.#output.append(element("span", { class: "seam" }, text));
    announce(`${this.#name}: ${text}.`);
    this.#schedule();
  }

  /**
   * @param {import("./client.js").State} state
   * @param {import("./client.js").StateDetail} detail
   */
  #onState(state, detail) {
    this.#answered ||= state === "open";
    this.#trouble = state === "waiting" ? (detail.error?.message ?? "") : state === "open" ? "" : this.#trouble;
    if (state === "waiting" && this.#answered && this.#cutAt === null) {
      this.#cuts += 1;
      this.#cutAt = performance.now();
      announce(`${this.#name}: the connection is cut.`);
    }
    if (state === "ended") {
      this.#end = { reason: detail.reason ?? "done", error: detail.error };
      if (this.#cutAt !== null) this.#away.push(this.#stretch(this.#cutAt, performance.now()));
      if (this.#end.reason === "error") announce(`${this.#name}: ${detail.error?.message}.`);
    }
    const words = {
      idle: "",
      connecting: detail.again ? "coming back" : "connecting",
      open: "live",
      waiting: `${this.#answered ? "cut, back" : "again"} in ${duration((detail.delay ?? 0) / 1000)}`,
      ended: { done: "done", stopped: "stopped", closed: "closed", error: "failed" }[detail.reason ?? "done"],
    };
    write(this.#state, words[state]);
    this.#state.dataset.state = state === "ended" ? (detail.reason ?? "done") : state;
    if (state === "ended")
      this.#draw(); // who reads that it is done finds all of it
    else this.#schedule();
  }

  // ------------------------------------------------------------------------------------------------ what is to be seen

  /** Draws with the next frame: however many events come, once per frame. */
  #schedule() {
    if (this.#scheduled) return;
    this.#scheduled = true;
    requestAnimationFrame(() => {
      this.#scheduled = false;
      this.#draw();
      if (this.#end === null && this.element.isConnected) setTimeout(() => this.#schedule(), 250);
    });
  }

  #draw() {
    const output = this.#output;
    const following = output.scrollHeight - output.scrollTop - output.clientHeight < 24;
    this.#flush();
    if (following) output.scrollTop = output.scrollHeight;
    write(this.#figures.events, count(this.events));
    write(this.#figures.gaps, count(this.#gaps));
    write(this.#figures.cuts, count(this.#cuts));
    if (this.#first !== null) write(this.#figures.first, duration((this.#first - this.#began) / 1000));
    if (this.stream?.id) this.element.dataset.stream = this.stream.id;
    this.#strip();
    const over = this.#end !== null;
    this.element.toggleAttribute("data-over", over);
    this.#output.dataset.empty = over ? "No event came." : "Waiting for the first event …";
    for (const each of [this.#cut, this.#stop]) each.disabled = over;
    this.#another.disabled = !this.stream?.url;
    const [words, tone] = this.#words();
    write(this.#verdict, words);
    this.#verdict.dataset.tone = tone;
  }

  #flush() {
    const output = this.#output;
    if (this.#pending === "") return;
    output.append(this.#pending);
    this.#written += this.#pending.length;
    this.#pending = "";
    while (this.#written > MOST_TEXT && output.firstChild !== null && output.firstChild !== output.lastChild) {
      this.#written -= output.firstChild.textContent?.length ?? 0;
      output.firstChild.remove();
    }
  }

  #strip() {
    const now = performance.now();
    const timeline = this.#timeline;
    if (this.#end === null) timeline.reach((now - this.#began) / 1000);
    this.#chart.bars(timeline.bins, timeline.bins.length, timeline.usual);
    const away =
      this.#cutAt === null || this.#end !== null ? this.#away : [...this.#away, this.#stretch(this.#cutAt, now)];
    this.#chart.mark(away.map(([from, to]) => [from / timeline.span, Math.min(to / timeline.span, 1)]));
    this.#chart.label = `How the events of ${this.#name.toLowerCase()} arrived over ${duration(timeline.span)}`;
  }

  /**
   * @param {number} from
   * @param {number} to
   * @returns {[number, number]}
   */
  #stretch(from, to) {
    return [(from - this.#began) / 1000, (to - this.#began) / 1000];
  }

  /** @returns {[text: string, tone: "" | "whole" | "wrong"]} */
  #words() {
    if (this.#end === null) return [this.#answered ? "" : this.#trouble, "wrong"];
    const { reason, error } = this.#end;
    if (reason === "error") return [error?.message ?? "", "wrong"];
    const so = { done: "Done", stopped: "Stopped", closed: "Closed" }[reason];
    const cuts = this.#cuts === 0 ? "no cut" : this.#cuts === 1 ? "one cut" : `${this.#cuts} cuts`;
    const gaps = this.#gaps === 0 ? "no gap" : this.#gaps === 1 ? "one gap" : `${this.#gaps} gaps`;
    const told = `${so}: ${count(this.events)} events, ${cuts}, ${gaps}.`;
    if (reason !== "done" || this.#relays === null) return [told, ""];
    const { events, reason: ended } = this.#relays;
    // A failure that is told in a model's own words is an event like others: the relay knows better.
    if (ended !== "done") return [`${told} The stream has ended as ${ended.replace("_", " ")}.`, "wrong"];
    return events === this.events
      ? [`${told} Nothing lost: the relay counted ${count(events)}.`, "whole"]
      : [`${told} The relay counted ${count(events)}.`, "wrong"];
  }
}

/**
 * What of an event is for people: the text, where it is a model's, else the data on a line.
 *
 * @param {import("./client.js").StreamEvent} event
 * @returns {[text: string, prose: boolean]}
 */
function textOf({ type, data }) {
  try {
    const value = JSON.parse(data);
    if (Array.isArray(value?.choices)) return [String(value.choices[0]?.delta?.content ?? ""), true];
    if (value?.type === "content_block_delta") return [String(value.delta?.text ?? ""), true];
    if (value?.type === "response.output_text.delta" || value?.type === "text-delta")
      return [String(value.delta ?? ""), true];
  } catch {
    if (data === "[DONE]") return ["", true];
  }
  return [`${type === "message" ? "" : `${type}: `}${data}\n`, false];
}
