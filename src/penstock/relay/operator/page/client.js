/**
 * Reads a stream through a Penstock relay, and keeps it when the connection or the page goes. It depends on nothing:
 * import it from the relay, or copy the file.
 *
 *     import { penstock } from "/_penstock/client.js";
 *
 *     for await (const event of penstock("/v1/chat/completions", { body: { model, messages, stream: true } })) {
 *       if (event.data !== "[DONE]") show(JSON.parse(event.data).choices[0].delta.content);
 *     }
 *
 * or, with callbacks, and so that a page that is loaded again goes on where it was:
 *
 *     resume("chat", { onEvent }) ?? stream("/v1/chat/completions", { body, key: "chat", onEvent });
 *
 * A relay that keeps a stream names it in the header `Penstock-Stream` and gives every event an id. With the two it is
 * read on at `/_penstock/streams/<id>`, from behind the id of the last event, which goes as Last-Event-ID. Where the
 * events have ids of the upstream's own or none, it is read with `?after=0` from its start, and what was there before
 * is passed over. The upstream is not asked again, no event is lost and none comes twice.
 *
 * what happens                         what the client does
 * -----------------------------------  -------------------------------------------------------------------------------
 * 204                                  nothing follows: the end
 * the body ends as its framing says    the end; where the relay keeps the stream it is asked once whether more follows
 * the body breaks off or falls silent  waits, then reads on; error "cut" where that would lose or repeat events
 * it ends in `retry:`                  the same: the relay wants its readers to come back
 * event: penstock.gap                  onGap; without it error "gap": nothing is skipped in silence
 * event: penstock.error                error "stream": the stream itself has failed, and asking again cannot mend it
 * no answer; 408, 425, 429, 5xx        waits, then asks again, but never sends a POST twice
 * 404, 410 when it comes back          error "gone"
 * any other status                     error "refused"
 * the signal, close(), stop(), break   ends, without a word
 *
 * What it does not know: what is in the events. An error that an upstream's own dialect tells is an event like others.
 *
 * @module
 */

/**
 * @typedef {object} StreamEvent
 * @property {string} type "message", or what the event's own field says
 * @property {string} data
 * @property {string} id the place behind it; opaque
 */

/**
 * @typedef {object} Gap what the relay no longer has
 * @property {number | null} requested the first event that was asked for, by its number
 * @property {number | null} earliest the first one that is left
 */

/**
 * @typedef {"done" | "stopped" | "closed" | "error"} Reason
 * @typedef {{ reason: Reason, error?: Error }} End
 *
 * @typedef {"idle" | "connecting" | "open" | "waiting" | "ended"} State
 * @typedef {object} StateDetail
 * @property {number} [failures] connecting, waiting: attempts in a row that brought no event
 * @property {boolean} [again] connecting, open: whether this is not the first connection
 * @property {number} [delay] waiting: for how long [ms]
 * @property {Error} [error] waiting, ended: what went wrong
 * @property {Reason} [reason] ended
 */

/**
 * @typedef {object} Options
 * @property {string} [method] POST where there is a body, else GET
 * @property {HeadersInit} [headers] sent with every request, those that resume and stop included; never stored
 * @property {any} [body] a plain object or an array goes as JSON, everything else as fetch takes it
 * @property {string | null} [idempotencyKey] sent with every method but GET: it shows a relay that this reader will
 *   come back, so that a broken connection does not end the stream; a random one by default, null for none
 * @property {AbortSignal} [signal] ends the reading, silently
 * @property {RequestCredentials} [credentials] as fetch takes it
 * @property {string} [key] the name under which the stream's place is kept, for `resume`
 * @property {Pick<Storage, "getItem" | "setItem" | "removeItem">} [storage] where; the tab's sessionStorage by default
 * @property {(event: StreamEvent) => unknown} [onEvent] a promise that it returns is waited for
 * @property {(gap: Gap) => void} [onGap]
 * @property {(state: State, detail: StateDetail) => void} [onState]
 * @property {number} [retries] attempts in a row that may bring nothing; 10
 * @property {Backoff} [backoff]
 * @property {number} [silence] a connection that brings nothing for so long, keep-alives included, is taken for dead;
 *   noticed after one to two times that; 0 for never; 30 000 [ms]
 * @property {number} [maxEventLength] a security limit; 16 Mi [UTF-16 code units]
 * @property {typeof fetch} [fetch] for what every request needs, such as a fresh token
 *
 * @typedef {{ initial?: number, maximum?: number }} Backoff [ms]
 */

/** @typedef {"network" | "refused" | "type" | "gone" | "cut" | "gap" | "limit" | "stream"} Kind */

/** Why a stream has no proper end. */
export class PenstockError extends Error {
  /**
   * @param {Kind} kind
   * @param {string} message
   * @param {{ status?: number, code?: string, retryAfter?: number | null, passing?: boolean, cause?: unknown }} [more]
   */
  constructor(kind, message, { status = 0, code = "", retryAfter = null, passing = false, cause } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = "PenstockError";
    /** @type {Kind} */
    this.kind = kind;
    /** The status of a refusal; 0 for other errors. */
    this.status = status;
    /** What `event: penstock.error` calls it: "upstream_error", "error", "cancelled", "producer_lost". */
    this.code = code;
    /** What Retry-After asks for [ms]. */
    this.retryAfter = retryAfter;
    /** Whether another attempt may well succeed. */
    this.passing = passing;
  }
}

/**
 * Opens a stream, to be read by `for await`. The request is sent when the reading begins.
 *
 * @param {string | URL} url
 * @param {Options} [options]
 * @returns {Stream}
 */
export function penstock(url, options = {}) {
  return new Stream({ url: absolute(url) }, options);
}

/**
 * Opens a stream and hands its events to `onEvent`, from now on.
 *
 * @param {string | URL} url
 * @param {Options & { onEvent: NonNullable<Options["onEvent"]> }} options
 * @returns {Stream} `ended` tells how it went
 */
export function stream(url, options) {
  return penstock(url, options).start();
}

/**
 * Comes back to the stream that was kept under a key, after the page was loaded again: from its start, for a new page
 * has none of its events. With `replay: false` from behind the last event that the page before had, for pages that
 * keep events themselves. With `onEvent` it begins at once.
 *
 * @param {string} key
 * @param {Omit<Options, "key"> & { replay?: boolean }} [options]
 * @returns {Stream | null} null where nothing is kept
 */
export function resume(key, { replay = true, ...options } = {}) {
  const kept = read(storageOf(options), key);
  if (kept === null) return null;
  const place = replay ? { ...kept, last: "", events: 0 } : kept;
  const found = new Stream({ kept: place }, { ...options, key });
  return options.onEvent === undefined ? found : found.start();
}

/**
 * Forgets the stream that was kept under a key; the stream itself goes on.
 *
 * @param {string} key
 * @param {Pick<Options, "storage">} [options]
 */
export function forget(key, options = {}) {
  try {
    storageOf(options)?.removeItem(PREFIX + key);
  } catch {
    // a page that may not store has nothing to forget
  }
}

/**
 * A stream and the reading of it: iterate over it once, or `start()` it.
 *
 * @implements {AsyncIterable<StreamEvent>}
 */
export class Stream {
  /** The relay's name for it; null before the response, and where the relay does not keep it. @type {string | null} */
  id = null;
  /** Where it can be read again; null likewise. @type {string | null} */
  url = null;
  /** The id of the last event that was handed out. */
  lastEventId = "";
  /** @type {State} */
  state = "idle";
  /** How it ended, once it has; never rejected. @type {Promise<End>} */
  ended;

  /** @type {Options} */ #options;
  /** The request that began it; null after a reload. @type {{ url: string, method: string } | null} */ #request = null;
  /** @type {AbortController | null} */ #connection = null;
  /** Who has ended it from outside. @type {"stopped" | "closed" | null} */ #left = null;
  /** @type {Error | null} */ #fault = null;
  /** @type {() => void} */ #wake = () => {};
  /** @type {(end: End) => void} */ #settle = () => {};
  #started = false;
  #events = 0;
  #connections = 0;
  /** @type {number | null} */ #retry = null;

  /**
   * @param {{ url?: string, kept?: Kept }} source
   * @param {Options} options
   */
  constructor({ url, kept }, options) {
    this.#options = options;
    if (url !== undefined) {
      const method = options.method ?? (options.body === undefined ? "GET" : "POST");
      this.#request = { url, method: method.toUpperCase() };
    }
    if (kept !== undefined) {
      this.id = kept.id;
      this.url = kept.url;
      this.lastEventId = kept.last;
      this.#events = kept.events;
    }
    this.ended = new Promise((resolve) => {
      this.#settle = resolve;
    });
  }

  /**
   * Reads from now on, and hands each event to `onEvent`. Where that throws, the reading ends with its error.
   *
   * @returns {this}
   */
  start() {
    this.#push(this[Symbol.asyncIterator]());
    return this;
  }

  /** Ends the reading, silently. The stream goes on for its other readers, or as long as the relay's policy says. */
  close() {
    this.#leave("closed");
  }

  /**
   * Ends the stream itself, for all its readers and at the upstream; this reading ends at once.
   *
   * @throws {PenstockError} The relay did not hear it, or refused. It can be called again.
   */
  async stop() {
    this.#leave("stopped");
    if (this.url === null) return; // only the connection was there, and the relay sees that it has gone
    const response = await this.#fetch(this.url, { method: "DELETE", headers: this.#headers(), keepalive: true });
    // 404, 409, 410: it had ended before.
    if (!response.ok && ![404, 409, 410].includes(response.status)) throw await refusal("DELETE", response);
  }

  /** @returns {AsyncGenerator<StreamEvent, void, void>} */
  [Symbol.asyncIterator]() {
    if (this.#started) throw new TypeError("this stream is being read already; open another reader for it");
    this.#started = true;
    return this.#read();
  }

  /** @param {AsyncIterable<StreamEvent>} events */
  async #push(events) {
    const { onEvent = () => {} } = this.#options;
    try {
      for await (const event of events) {
        try {
          await onEvent(event);
        } catch (error) {
          this.#fault = /** @type {Error} */ (error);
          break;
        }
      }
    } catch {
      // `ended` and `onState` have it
    }
  }

  /** The life of a reading: whatever happens, one end. @returns {AsyncGenerator<StreamEvent, void, void>} */
  async *#read() {
    const { signal } = this.#options;
    const aborted = () => this.#leave("closed");
    const hidden = () => this.#keep();
    /** @type {End} */
    let end = { reason: "closed" }; // what a reader that breaks off leaves behind
    if (signal?.aborted) aborted();
    signal?.addEventListener("abort", aborted);
    globalThis.addEventListener?.("pagehide", hidden);
    try {
      yield* this.#readings();
      end = { reason: this.#left ?? "done" };
    } catch (error) {
      end = { reason: "error", error: /** @type {Error} */ (error) };
      throw error;
    } finally {
      signal?.removeEventListener("abort", aborted);
      globalThis.removeEventListener?.("pagehide", hidden);
      if (this.#fault !== null) end = { reason: "error", error: this.#fault };
      if (/** @type {PenstockError} */ (end.error)?.kind === "gone") this.#forget();
      else this.#keep();
      this.#settle(end);
      this.#say("ended", end);
    }
  }

  /** One connection after the other, until nothing follows. @returns {AsyncGenerator<StreamEvent, void, void>} */
  async *#readings() {
    const { retries = 10, backoff: waits, onGap, maxEventLength } = this.#options;
    let failures = 0;
    let whole = false; // the last body ended as its framing says: only the relay can know of more
    while (this.#left === null) {
      const next = /** @type {Next} */ (this.#next());
      const connection = (this.#connection = new AbortController());
      const decoder = new Decoder(next.last, { maxEventLength });
      const watch = this.#watch(connection);
      let { passed } = next;
      let opened = false;
      /** @type {unknown} */
      let fault = null;
      try {
        if (next.from !== "upstream") watch.reading(); // the relay answers for its streams at once
        const body = await this.#ask(next, failures, connection.signal);
        if (body === null) return;
        opened = true;
        for (;;) {
          watch.reading();
          const { done, value } = await body.read().catch(broken(next));
          watch.heard();
          if (done || this.#left !== null) break;
          for (const event of decoder.feed(value)) {
            if (event.type === "penstock.error") throw failure(event);
            if (event.type === "penstock.gap") {
              // Without ids there is no telling how many of those that are gone were had.
              if (onGap === undefined || next.passed > 0) throw gapError(event);
              onGap(gapOf(event));
            } else if (passed > 0) {
              passed -= 1;
            } else {
              failures = 0;
              whole = false;
              this.lastEventId = event.id;
              this.#events += 1;
              yield event;
              if (this.#left !== null) return;
            }
          }
          if (passed === 0) this.lastEventId = decoder.lastEventId;
        }
        decoder.close();
        if (decoder.comeBack) throw new PenstockError("cut", "the relay asked to come back later", { passing: true });
      } catch (error) {
        fault = error;
      } finally {
        watch.end();
        connection.abort();
        this.#connection = null;
      }
      if (this.#left !== null) return;
      this.#retry = decoder.retry ?? this.#retry;
      if (fault === null) {
        if (whole || this.#next()?.from !== "place") return; // nothing came after the end, or there is nobody to ask
        whole = true;
        continue;
      }
      if (whole && !opened) return; // it was an end, and nobody says that more follows
      whole = false;
      if (!(fault instanceof PenstockError && fault.passing)) throw fault;
      if (this.#next() === null) throw opened ? lost(next, fault) : fault;
      failures += 1;
      if (failures > retries) throw fault;
      this.#keep();
      const delay = Math.max(backoff(failures, this.#retry, waits), fault.retryAfter ?? 0);
      this.#say("waiting", { failures, delay, error: fault });
      await this.#pause(delay);
    }
  }

  /**
   * Ends a connection on which nothing comes any more. A flag per read, and one timer per connection.
   *
   * @param {AbortController} connection
   */
  #watch(connection) {
    const { silence = 30_000 } = this.#options;
    let quiet = false; // while the page itself does not read, silence says nothing
    const look = () => {
      if (quiet && this.#next() !== null) {
        connection.abort(new PenstockError("cut", `nothing came for ${silence / 1000} s`, { passing: true }));
      }
      quiet = waiting;
    };
    let waiting = false;
    const timer = silence > 0 ? setInterval(look, silence) : undefined;
    return {
      reading() {
        waiting = true;
      },
      heard() {
        waiting = quiet = false;
      },
      end() {
        clearInterval(timer);
      },
    };
  }

  /**
   * What would bring the next event and none twice; null where nothing would.
   *
   * @returns {Next | null}
   */
  #next() {
    const last = this.lastEventId;
    if (this.url !== null) {
      // An id that the relay gave begins with the stream's. An upstream's own means nothing here.
      if (last.startsWith(`1${this.id}.`)) return { method: "GET", url: this.url, from: "place", last, passed: 0 };
      return { method: "GET", url: `${this.url}?after=0`, from: "start", last: "", passed: this.#events };
    }
    if (this.#request === null) return null;
    const repeatable = this.#request.method === "GET" && (last !== "" || this.#events === 0);
    return repeatable || this.#connections === 0 ? { ...this.#request, from: "upstream", last, passed: 0 } : null;
  }

  /**
   * Sends one request; what comes back is an event stream's body, or null: nothing follows.
   *
   * @param {Next} next
   * @param {number} failures
   * @param {AbortSignal} signal
   */
  async #ask(next, failures, signal) {
    const { method, url, from, last } = next;
    const own = from !== "upstream";
    const headers = this.#headers();
    if (!headers.has("accept")) headers.set("accept", "text/event-stream");
    if (last !== "") headers.set("last-event-id", last);
    const again = this.#connections > 0;
    this.#connections += 1;
    this.#say("connecting", { failures, again });
    let body;
    if (!own && method !== "GET" && method !== "HEAD") {
      const { idempotencyKey = random() } = this.#options;
      if (idempotencyKey !== null && !headers.has("idempotency-key")) headers.set("idempotency-key", idempotencyKey);
      body = encoded(this.#options.body, headers);
    }
    const asked = this.#fetch(url, { method, headers, body, signal, cache: "no-store" });
    const response = await asked.catch(broken(next));
    if (response.status === 204 || response.body === null) return null;
    if (!response.ok) throw await refusal(method, response, own);
    const type = response.headers.get("content-type") ?? "";
    if (!/^text\/event-stream\s*(;|$)/i.test(type)) {
      throw new PenstockError("type", `${method} ${url} is no event stream: ${type || "it has no content type"}`);
    }
    if (!own) this.#found(response, url);
    this.#keep();
    this.#say("open", { again });
    return response.body.getReader();
  }

  /**
   * @param {Response} response
   * @param {string} asked
   */
  #found(response, asked) {
    const id = response.headers.get("penstock-stream") ?? "";
    this.id = this.url = null;
    if (!STREAM_ID.test(id)) return;
    const base = response.url || asked;
    const path = `/_penstock/streams/${id}`;
    const at = new URL(response.headers.get("location") ?? path, base);
    // A relay behind a prefix says so in Location. One that leads elsewhere is the upstream's: nothing is sent there.
    const ours = at.origin === new URL(base).origin && at.pathname.endsWith(path);
    this.id = id;
    this.url = ours ? at.origin + at.pathname : new URL(path, base).href;
  }

  /** The caller's headers, less those that describe a body. */
  #headers() {
    const headers = new Headers(this.#options.headers);
    if (this.url !== null) headers.delete("content-type");
    return headers;
  }

  /**
   * @param {string} url
   * @param {RequestInit} init
   */
  async #fetch(url, init) {
    const { credentials, fetch = globalThis.fetch } = this.#options;
    return fetch(url, credentials === undefined ? init : { ...init, credentials });
  }

  /** @param {"stopped" | "closed"} how */
  #leave(how) {
    this.#left ??= how;
    this.#connection?.abort();
    this.#wake();
    if (!this.#started) this.#settle({ reason: how });
  }

  /** @param {number} delay */
  #pause(delay) {
    return new Promise((/** @type {(value?: undefined) => void} */ resolve) => {
      if (this.#left !== null) return resolve(); // from within onState
      const timer = setTimeout(resolve, delay);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  /**
   * @param {State} state
   * @param {StateDetail} detail
   */
  #say(state, detail) {
    this.state = state;
    this.#options.onState?.(state, detail);
  }

  /** Once per connection and when the page goes, not once per event. */
  #keep() {
    const { key } = this.#options;
    if (key === undefined || this.url === null || this.id === null) return;
    try {
      const kept = { id: this.id, url: this.url, last: this.lastEventId, events: this.#events };
      storageOf(this.#options)?.setItem(PREFIX + key, JSON.stringify(kept));
    } catch {
      // a page that may not store loses its place with the page, and no more than that
    }
  }

  #forget() {
    if (this.#options.key !== undefined) forget(this.#options.key, this.#options);
  }
}

/**
 * How long to wait: what the server asked for by `retry:`, and from the second failure on, or where it asked for
 * nothing, a random part of `initial` × 2^(failures − 1), at most of `maximum`. By default up to 1 s, 2 s, 4 s … 30 s.
 *
 * @param {number} failures in a row, from 1
 * @param {number | null} retry what the server asked for [ms]
 * @param {Backoff} [settings]
 * @param {number} [random] from 0 up to 1
 * @returns {number} [ms]
 */
export function backoff(failures, retry, { initial = 1000, maximum = 30_000 } = {}, random = Math.random()) {
  if (failures === 1 && retry !== null) return retry;
  return (retry ?? 0) + random * Math.min(maximum, initial * 2 ** (failures - 1));
}

/**
 * Bytes to events, as WHATWG HTML interprets an event stream. The split of the bytes never changes the result.
 */
export class Decoder {
  /** The last id that a blank line has made good. @type {string} */
  lastEventId;
  /** The last `retry:` [ms]. @type {number | null} */
  retry = null;
  /** Whether a `retry:` stands behind the last event. */
  comeBack = false;

  #utf8 = new TextDecoder(); // it drops one byte-order mark, and holds back what a chunk has cut
  #limit;
  #tail = "";
  #afterCR = false;
  #type = "";
  /** @type {string} */ #id;
  /** @type {string | null} */ #data = null;
  /** @type {PenstockError | null} */ #fault = null;

  /**
   * @param {string} [lastEventId] the id in force
   * @param {{ maxEventLength?: number }} [limits]
   */
  constructor(lastEventId = "", { maxEventLength = 16 * 2 ** 20 } = {}) {
    this.lastEventId = this.#id = lastEventId;
    this.#limit = maxEventLength;
  }

  /**
   * Absorbs bytes; returns every event that they complete.
   *
   * @param {Uint8Array} bytes
   * @returns {StreamEvent[]}
   * @throws {PenstockError} "limit": an event is too long. Those before it were returned first.
   */
  feed(bytes) {
    this.close();
    const text = this.#utf8.decode(bytes, { stream: true });
    /** @type {StreamEvent[]} */
    const events = [];
    if (text === "") return events;
    let start = this.#afterCR && text[0] === "\n" ? 1 : 0;
    this.#afterCR = false;
    let cr = text.indexOf("\r", start);
    let lf = text.indexOf("\n", start);
    while (cr >= 0 || lf >= 0) {
      const end = cr < 0 || (lf >= 0 && lf < cr) ? lf : cr;
      const line = this.#tail + text.slice(start, end);
      this.#tail = "";
      start = end + 1;
      if (end === cr) {
        if (text[start] === "\n") start += 1;
        this.#afterCR = end === text.length - 1;
        cr = text.indexOf("\r", start);
      }
      if (lf >= 0 && lf < start) lf = text.indexOf("\n", start);
      this.#line(line, events);
    }
    this.#tail += text.slice(start);
    if (this.#tail.length + (this.#data?.length ?? 0) > this.#limit) {
      this.#fault ??= new PenstockError("limit", `an event is longer than ${this.#limit}; raise maxEventLength`);
    }
    if (events.length === 0) this.close();
    return events;
  }

  /** Ends the body: what no blank line has ended is no event. Throws what `feed` found behind its last events. */
  close() {
    if (this.#fault !== null) throw this.#fault;
  }

  /**
   * @param {string} line
   * @param {StreamEvent[]} events
   */
  #line(line, events) {
    if (this.#fault !== null) return;
    if (line === "") {
      this.lastEventId = this.#id;
      if (this.#data !== null) {
        events.push({ type: this.#type || "message", data: this.#data, id: this.#id });
        this.comeBack = false;
      }
      this.#data = null;
      this.#type = "";
      return;
    }
    const colon = line.indexOf(":");
    if (colon === 0) return;
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (name === "data") {
      this.#data = this.#data === null ? value : `${this.#data}\n${value}`;
      if (this.#data.length > this.#limit) {
        this.#fault = new PenstockError("limit", `an event is longer than ${this.#limit}; raise maxEventLength`);
      }
    } else if (name === "event") {
      this.#type = value;
    } else if (name === "id") {
      if (!value.includes("\0")) this.#id = value;
    } else if (name === "retry" && /^[0-9]+$/.test(value)) {
      this.retry = Math.min(Number(value), MAX_RETRY);
      this.comeBack = true;
    }
  }
}

// ------------------------------------------------------------------------------------------------------------ details

/**
 * @typedef {{ id: string, url: string, last: string, events: number }} Kept
 *
 * @typedef {object} Next
 * @property {string} method
 * @property {string} url
 * @property {"place" | "start" | "upstream"} from the stream from a place on, or from its start; or the request itself
 * @property {string} last for Last-Event-ID
 * @property {number} passed how many events are had already, and come again
 */

const PREFIX = "penstock:";
const STREAM_ID = /^[A-Za-z0-9_-]{22}$/;
const PASSING = new Set([408, 425, 429]);
const MAX_RETRY = 2 ** 31 - 1; // what a timer takes [ms]
const MAX_DETAIL = 8192;

/** @param {string | URL} url */
function absolute(url) {
  return new URL(url, globalThis.document?.baseURI ?? globalThis.location?.href).href;
}

/** @param {Pick<Options, "storage">} options */
function storageOf({ storage }) {
  try {
    return storage ?? globalThis.sessionStorage;
  } catch {
    return undefined; // a sandboxed frame may not even look
  }
}

/**
 * @param {ReturnType<typeof storageOf>} storage
 * @param {string} key
 * @returns {Kept | null}
 */
function read(storage, key) {
  try {
    const { id, url, last, events } = JSON.parse(storage?.getItem(PREFIX + key) ?? "null");
    const sound = STREAM_ID.test(id) && typeof url === "string" && typeof last === "string" && events >= 0;
    return sound ? { id, url, last, events } : null;
  } catch {
    return null;
  }
}

/** 128 random bits; crypto.randomUUID is for secure contexts only. */
function random() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * @param {any} body
 * @param {Headers} headers
 * @returns {BodyInit | undefined}
 */
function encoded(body, headers) {
  const plain = Array.isArray(body) || (body && [Object.prototype, null].includes(Object.getPrototypeOf(body)));
  if (!plain) return body;
  if (!headers.has("content-type")) headers.set("content-type", "application/json");
  return JSON.stringify(body);
}

/**
 * What a failure of the connection is: it may pass.
 *
 * @param {Next} next
 * @returns {(fault: unknown) => never}
 */
function broken({ method, url }) {
  return (fault) => {
    if (fault instanceof PenstockError) throw fault;
    const message = `${method} ${url}: ${fault instanceof Error ? fault.message : fault}`;
    throw new PenstockError("network", message, { passing: true, cause: fault });
  };
}

/**
 * @param {Next} next
 * @param {PenstockError} fault
 */
function lost({ method, url }, fault) {
  const why = "it named no stream to come back to (a relay of another origin has to expose Penstock-Stream)";
  return new PenstockError("cut", `${method} ${url} broke off and cannot be resumed: ${why}`, { cause: fault });
}

/**
 * @param {string} method
 * @param {Response} response
 * @param {boolean} [own]
 */
async function refusal(method, response, own = false) {
  const { status } = response;
  const after = Number(response.headers.get("retry-after") ?? NaN);
  const detail = await detailOf(response);
  return new PenstockError(
    own && (status === 404 || status === 410) ? "gone" : "refused",
    `${method} ${response.url} answered ${status}${detail && `: ${detail}`}`,
    {
      status,
      retryAfter: Number.isFinite(after) ? Math.min(after * 1000, MAX_RETRY) : null,
      passing: PASSING.has(status) || status >= 500,
    },
  );
}

/**
 * What a refusal says of itself, from no more than the beginning of its body.
 *
 * @param {Response} response
 */
async function detailOf(response) {
  let text = "";
  try {
    const body = response.body?.getReader();
    const utf8 = new TextDecoder();
    while (body && text.length < MAX_DETAIL) {
      const { done, value } = await body.read();
      if (done) break;
      text += utf8.decode(value, { stream: true });
    }
    body?.cancel().catch(() => {});
    const problem = JSON.parse(text);
    return String(problem.detail ?? problem.error?.message ?? problem.title ?? "");
  } catch {
    return text.includes("<") ? "" : text.trim().slice(0, 200);
  }
}

/** @param {StreamEvent} event */
function failure({ data }) {
  const { type = "error", message = "the stream failed" } = parsed(data).error ?? {};
  return new PenstockError("stream", String(message), { code: String(type) });
}

/**
 * @param {StreamEvent} event
 * @returns {Gap}
 */
function gapOf({ data }) {
  const { requested = null, earliest = null } = parsed(data);
  return { requested, earliest };
}

/** @param {StreamEvent} event */
function gapError(event) {
  const { requested, earliest } = gapOf(event);
  return new PenstockError("gap", `events ${requested} to ${earliest} are no longer kept; handle them with onGap`);
}

/** @param {string} data */
function parsed(data) {
  try {
    return JSON.parse(data) ?? {};
  } catch {
    return {};
  }
}
