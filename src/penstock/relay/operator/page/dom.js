/**
 * Elements, and how values are written. Text becomes text nodes, never markup.
 *
 * @module
 */

/**
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Record<string, string | null>} [attributes] null leaves one out
 * @param {(Node | string)[]} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function element(tag, attributes = {}, ...children) {
  return built(document.createElement(tag), attributes, children);
}

/**
 * @template {keyof SVGElementTagNameMap} T
 * @param {T} tag
 * @param {Record<string, string | null>} [attributes]
 * @param {(Node | string)[]} children
 * @returns {SVGElementTagNameMap[T]}
 */
export function drawn(tag, attributes = {}, ...children) {
  return built(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

/**
 * @param {string} label
 * @param {() => void} onClick
 * @param {Record<string, string | null>} [attributes]
 */
export function button(label, onClick, attributes = {}) {
  const made = element("button", { type: "button", ...attributes }, label);
  made.addEventListener("click", onClick);
  return made;
}

/**
 * What the page itself is made of.
 *
 * @template {Element} E
 * @param {string} id
 * @param {new () => E} kind
 * @returns {E}
 */
export function byId(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new TypeError(`the page has no ${kind.name} named ${id}`);
  return found;
}

/**
 * Sets a text where it differs: what has not changed is neither drawn nor read out again.
 *
 * @param {Element} node
 * @param {string} text
 */
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** @param {string} text For those who listen; once, and briefly. */
export function announce(text) {
  write(byId("announcements", HTMLElement), text);
}

const whole = new Intl.NumberFormat("en");

/** @param {number} value */
export const count = (value) => whole.format(value);

/** @param {number | null} seconds */
export function duration(seconds) {
  if (seconds === null || !Number.isFinite(seconds)) return "–";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 60
    ? `${minutes} min ${Math.floor(seconds % 60)} s`
    : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** @param {number} bytes */
export function size(bytes) {
  if (bytes < 1024) return `${bytes} B`;
  const steps = Math.min(Math.floor(Math.log2(bytes) / 10), 4);
  return `${(bytes / 1024 ** steps).toFixed(1)} ${["B", "KiB", "MiB", "GiB", "TiB"][steps]}`;
}

/** @param {number} perSecond */
export function rate(perSecond) {
  return perSecond === 0 ? "0" : perSecond < 10 ? perSecond.toFixed(1) : count(Math.round(perSecond));
}

/** @param {string} id */
export const short = (id) => id.slice(0, 8);

/**
 * @template {Element} E
 * @param {E} made
 * @param {Record<string, string | null>} attributes
 * @param {(Node | string)[]} children
 */
function built(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
