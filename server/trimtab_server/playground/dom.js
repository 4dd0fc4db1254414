/** Elements without markup: whatever comes from the server is set as text. */

/**
 * @param {string} id
 * @returns {any} the element of the page with this id
 */
export const by = (id) => document.getElementById(id);

const SVG = "http://www.w3.org/2000/svg";

/**
 * An HTML element.
 * @param {string} tag
 * @param {Record<string, string | number | boolean | undefined>} [attributes] `text` is its text
 * @param {(Node | string)[]} [children]
 * @returns {any}
 */
export function element(tag, attributes = {}, children = []) {
  return filled(document.createElement(tag), attributes, children);
}

/**
 * An element of a drawing.
 * @param {string} tag
 * @param {Record<string, string | number | boolean | undefined>} [attributes] `text` is its text
 * @param {Node[]} [children]
 * @returns {any}
 */
export function drawn(tag, attributes = {}, children = []) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

/**
 * @param {Element} node
 * @param {Record<string, string | number | boolean | undefined>} attributes
 * @param {(Node | string)[]} children
 */
function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === false) continue;
    if (name === "text") node.textContent = String(value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children);
  return node;
}

/**
 * A number for reading: a true minus sign, and as many digits as make sense.
 * @param {number} value
 * @param {number} [digits]
 */
export function number(value, digits = 2) {
  return value.toFixed(digits).replace(/^-(?=0\.?0*$)/, "").replace("-", "−");
}

/** @param {number} value */
export function signed(value) {
  const text = number(value);
  return value > 0 && !/^0\.?0*$/.test(text) ? `+${text}` : text;
}

/**
 * A probability as a percentage.
 * @param {number} p
 */
export function percent(p) {
  if (p <= 0) return "0";
  if (p < 0.001) return "< 0.1 %";
  return `${(100 * p).toFixed(p < 0.0995 ? 1 : 0)} %`;
}

/**
 * A token's text with its spaces and line breaks visible.
 * @param {string} text
 */
export function visible(text) {
  const shown = text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥");
  return shown === "" ? "∅" : shown;
}

/**
 * Say something to screen readers, when they have time for it.
 * @param {string} text
 */
export function announce(text) {
  by("live").textContent = text;
}
