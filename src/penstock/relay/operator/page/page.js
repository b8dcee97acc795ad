/**
 * The relay's page: start a stream, watch it, cut its connection, read it twice; and what the relay is doing.
 *
 * It is served by the admin listener, and reads through the public one, as any other page would.
 *
 * @module
 */

import { forget } from "./client.js";
import { byId, write } from "./dom.js";
import { Reader } from "./reader.js";
import { Streams } from "./streams.js";

const KEY = "page";
const QUESTION = "Why does a mill have a penstock?";

/** @typedef {{ name: string, method: string, path: string, headers: string, body: string }} Preset */

/** @type {Preset[]} */
const PRESETS = [
  {
    name: "Chat completion",
    method: "POST",
    path: "/v1/chat/completions?tokens=240&interval=.06",
    headers: "",
    body: `{
  "model": "sample",
  "stream": true,
  "messages": [
    { "role": "user", "content": "${QUESTION}" }
  ]
}`,
  },
  { name: "Numbered events", method: "GET", path: "/events?count=120&interval=0.1", headers: "", body: "" },
  {
    name: "An agent's events",
    method: "POST",
    path: "/trigger_invocation?interval=1",
    headers: "",
    body: JSON.stringify({ query: QUESTION }, null, 2),
  },
  { name: "An upstream that fails", method: "GET", path: "/events?status=503", headers: "", body: "" },
  { name: "Something else", method: "GET", path: "/", headers: "", body: "" },
];

class Invalid extends Error {
  /**
   * @param {"path" | "headers" | "body"} field
   * @param {string} message
   */
  constructor(field, message) {
    super(message);
    this.field = field;
  }
}

class Page {
  #relay = location.origin;
  #number = 0;
  /** @type {Set<Reader>} */ #readers = new Set();
  #streams = new Streams({
    read: ({ id }) => this.#read(id),
    stop: ({ id }) => this.#stop(id),
    seen: (streams) => {
      const events = new Map(streams.map((each) => [each.id, each]));
      for (const reader of this.#readers) {
        const listed = events.get(reader.stream?.id ?? "");
        if (listed?.state === "ended") reader.compare(listed.events, listed.reason ?? "done");
      }
    },
  });

  async begin() {
    this.#fillForm();
    await this.#introduce();
    this.#open({ title: "the stream from before the page was loaded again", key: KEY });
    await this.#streams.watch();
  }

  async #introduce() {
    try {
      const response = await fetch("info", { cache: "no-store" });
      const info = await response.json();
      this.#relay = new URL(info.public || location.origin).origin;
      for (const name of ["version", "store", "promise"]) write(byId(name, HTMLElement), String(info[name] ?? "–"));
    } catch (error) {
      const trouble = byId("trouble", HTMLElement);
      write(trouble, `The relay did not say where it is: ${/** @type {Error} */ (error).message}`);
      trouble.hidden = false;
    }
    for (const name of ["public", "through"]) write(byId(name, HTMLElement), this.#relay);
  }

  // -------------------------------------------------------------------------------------------------------- the form

  #fillForm() {
    const preset = byId("preset", HTMLSelectElement);
    preset.append(...PRESETS.map(({ name }) => new Option(name)));
    preset.addEventListener("change", () => this.#choose(PRESETS[preset.selectedIndex]));
    this.#choose(PRESETS[0]);
    const form = byId("start", HTMLFormElement);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#start();
    });
    // What is typed in several lines is sent from where one is, too.
    form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
  }

  /** @param {Preset} preset */
  #choose({ method, path, headers, body }) {
    byId("method", HTMLSelectElement).value = method;
    byId("path", HTMLInputElement).value = path;
    byId("headers", HTMLTextAreaElement).value = headers;
    byId("body", HTMLTextAreaElement).value = body;
    this.#complain(null);
  }

  #start() {
    try {
      const { title, url, options } = this.#asked();
      this.#complain(null);
      forget(KEY);
      for (const reader of this.#readers) if (reader.ended) this.#close(reader);
      this.#open({ title, url, options: { ...options, key: KEY } });
      byId("panes", HTMLElement).scrollIntoView({ block: "nearest" });
    } catch (error) {
      if (!(error instanceof Invalid)) throw error;
      this.#complain(error);
    }
  }

  /** What the form asks for. */
  #asked() {
    const method = byId("method", HTMLSelectElement).value;
    const path = byId("path", HTMLInputElement).value.trim();
    const url = URL.canParse(path, this.#relay) ? new URL(path, this.#relay) : null;
    if (!path.startsWith("/") || url?.origin !== this.#relay) throw new Invalid("path", "A path begins with one /.");
    const headers = new Headers();
    for (const line of byId("headers", HTMLTextAreaElement)
      .value.split("\n")
      .filter((each) => each.trim())) {
      const [name, ...value] = line.split(":");
      try {
        if (value.length === 0) throw new TypeError();
        headers.append(name.trim(), value.join(":").trim());
      } catch {
        throw new Invalid("headers", `“${line.trim()}” is no header: write Name: value.`);
      }
    }
    const text = byId("body", HTMLTextAreaElement).value.trim();
    /** @type {import("./client.js").Options} */
    const options = { method, headers };
    if (method !== "GET" && text !== "") {
      try {
        JSON.parse(text);
      } catch (error) {
        throw new Invalid("body", `This is not JSON: ${/** @type {Error} */ (error).message}.`);
      }
      options.body = text; // as it was written
      if (!headers.has("content-type")) headers.set("content-type", "application/json");
    }
    return { title: `${method} ${path}`, url: url.href, options };
  }

  /** @param {Invalid | null} invalid */
  #complain(invalid) {
    for (const field of ["path", "headers", "body"]) {
      const here = invalid?.field === field;
      const told = byId(`${field}-error`, HTMLElement);
      told.hidden = !here;
      write(told, here ? /** @type {Invalid} */ (invalid).message : "");
      const input = byId(field, HTMLElement);
      input.setAttribute("aria-invalid", String(here));
      if (here) input.focus();
    }
  }

  // ----------------------------------------------------------------------------------------------------- the readers

  /** @param {import("./reader.js").Source} source */
  #open(source) {
    const reader = new Reader(this.#number + 1, source, {
      another: ({ stream }) => stream?.id && this.#read(stream.id),
      closed: (closed) => this.#close(closed),
      gap: (seconds) => this.#streams.gap(seconds),
    });
    if (reader.stream === null) return; // nothing was kept
    this.#number += 1;
    this.#readers.add(reader);
    byId("panes", HTMLElement).append(reader.element);
    this.#settle();
  }

  /** @param {string} id */
  #read(id) {
    this.#open({ title: `stream ${id}`, url: `${this.#address(id)}?after=0` });
    byId("readers", HTMLElement).scrollIntoView({ block: "nearest" });
  }

  /** @param {Reader} reader */
  #close(reader) {
    const held = reader.element.contains(document.activeElement);
    this.#readers.delete(reader);
    reader.element.remove();
    this.#settle();
    if (held) byId("readers", HTMLElement).focus();
  }

  #settle() {
    byId("no-reader", HTMLElement).hidden = this.#readers.size > 0;
  }

  /** @param {string} id */
  async #stop(id) {
    // Of the admin listener: an operator may stop what is not theirs to read.
    const response = await fetch(`streams/${id}`, { method: "DELETE" });
    if (!response.ok && response.status !== 409) throw new Error(`the relay answered ${response.status}`);
  }

  /** @param {string} id */
  #address(id) {
    return `${this.#relay}/_penstock/streams/${id}`;
  }
}

await new Page().begin();
