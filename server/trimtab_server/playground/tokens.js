/** The tokens of an answer: a list box whose options are coloured by what guidance did. */

import { element } from "./dom.js";
import { expected, score } from "./steps.js";

/** @typedef {import("./steps.js").Token} Token */

const MOST_NATS = 1; // the full colour
const BATCH = 50; // new tokens a frame
const REPAINTED = 250; // coloured anew a frame

/**
 * A token's text; the colour is on its word, not on the space before it.
 * @param {string} text
 */
function parts(text) {
  const space = /^\s*(?=\S)/.exec(text)?.[0] ?? "";
  return [space, element("i", { text: text.slice(space.length) })];
}

/**
 * The name of a token without letters; an empty one ends the answer, or is a part of a character.
 * @param {string} text
 */
function unseen(text) {
  if (text.includes("\n")) return "line break";
  return text === "" ? "no text" : "space";
}

export class TokenList {
  /**
   * @param {HTMLElement} box
   * @param {(index: number, pinned: boolean) => void} show called for the token that is pointed at
   */
  constructor(box, show) {
    this.box = box;
    this.show = show;
    /** @type {Token[]} */
    this.tokens = [];
    this.colour = "kl";
    this.deviation = 1;
    this.active = -1;
    this.pinned = false;
    this.painted = 0; // tokens that have their colour
    box.addEventListener("pointerover", (event) => {
      const index = this.index(event.target);
      if (index >= 0 && !this.pinned && event.pointerType !== "touch") this.point(index, false);
    });
    box.addEventListener("click", (event) => {
      const index = this.index(event.target);
      if (index >= 0) this.point(index, true);
    });
    box.addEventListener("keydown", (event) => this.move(event));
    box.addEventListener("focus", () => {
      if (this.active < 0 && this.tokens.length && box.matches(":focus-visible")) {
        this.point(0, true);
      }
    });
  }

  /** @param {any} target */
  index(target) {
    const option = target.closest?.("[role=option]");
    return option ? Number(option.dataset.index) : -1;
  }

  /** @param {KeyboardEvent} event */
  move(event) {
    const last = this.tokens.length - 1;
    const steps = { ArrowRight: 1, ArrowDown: 10, ArrowLeft: -1, ArrowUp: -10 };
    const ends = { Home: 0, End: last };
    if (last < 0) return;
    if (event.key in steps) {
      const index = Math.max(this.active, 0) + (this.active < 0 ? 0 : steps[event.key]);
      this.point(Math.min(Math.max(index, 0), last), true);
    } else if (event.key in ends) this.point(ends[event.key], true);
    else return;
    event.preventDefault();
    this.box.children[this.active]?.scrollIntoView({ block: "nearest" });
  }

  /**
   * @param {number} index
   * @param {boolean} pinned whether it stays when the pointer moves on
   */
  point(index, pinned) {
    this.box.children[this.active]?.setAttribute("aria-selected", "false");
    this.active = index;
    this.pinned = pinned;
    const option = this.box.children[index];
    option.setAttribute("aria-selected", "true");
    this.box.setAttribute("aria-activedescendant", option.id);
    this.show(index, pinned);
  }

  /** No token is pointed at. */
  leave() {
    this.box.children[this.active]?.setAttribute("aria-selected", "false");
    this.box.removeAttribute("aria-activedescendant");
    this.active = -1;
    this.pinned = false;
  }

  /** @param {Token[]} tokens those of another answer */
  replace(tokens) {
    this.leave();
    this.box.replaceChildren();
    this.tokens = tokens;
    this.previous = null;
    this.painted = 0;
  }

  /**
   * Draw the tokens that have arrived since.
   * @returns {boolean} whether all are drawn
   */
  grow() {
    if (!this.paintNext()) return false;
    const { scrollTop, scrollHeight, clientHeight } = this.box;
    const follows = scrollTop + clientHeight > scrollHeight - 40;
    const from = this.box.children.length;
    if (from > 0) this.box.children[from - 1].replaceChildren(...parts(this.tokens[from - 1].text));
    const fresh = this.tokens.slice(from, from + BATCH);
    this.box.append(...fresh.map((token, i) => this.option(token, from + i)));
    if (follows && fresh.length) this.box.scrollTop = this.box.scrollHeight;
    return this.whole;
  }

  /** Whether all tokens that have arrived are drawn, in their colours. */
  get whole() {
    const { length } = this.box.children;
    return length === this.tokens.length && this.painted === length;
  }

  /**
   * @param {Token} token
   * @param {number} index
   */
  option(token, index) {
    const attributes = {
      role: "option",
      id: `token-${index}`,
      "data-index": index,
      "aria-selected": "false",
      "aria-label": token.text.trim() === "" ? unseen(token.text) : undefined,
      class: token.chosen ? "chosen" : undefined,
    };
    const option = element("span", attributes, parts(token.text));
    this.paint(option, token);
    this.painted = index + 1;
    return option;
  }

  /**
   * Colour all tokens anew.
   * @param {string} colour "kl", "none", or a scorer's name after "score:"
   * @param {number} deviation of the scorer's scores: the full colour
   */
  repaint(colour, deviation) {
    this.colour = colour;
    this.deviation = deviation || 1;
    this.previous = null;
    this.painted = 0;
  }

  /** Colour the next tokens that still have another colour. */
  paintNext() {
    const until = Math.min(this.painted + REPAINTED, this.box.children.length);
    for (; this.painted < until; this.painted++) {
      this.paint(this.box.children[this.painted], this.tokens[this.painted]);
    }
    return this.painted === this.box.children.length;
  }

  /**
   * @param {HTMLElement} option
   * @param {Token} token the one after the token that was painted last
   */
  paint(option, token) {
    let share = 0;
    if (this.colour === "kl") share = (token.step?.kl ?? 0) / MOST_NATS;
    else if (this.colour !== "none") {
      const name = this.colour.replace(/^score:/, "");
      const now = score(token, name);
      const before = this.previous ?? expected(token, name);
      if (now !== null) share = (now - before) / this.deviation;
      this.previous = now ?? this.previous;
    }
    const heat = Math.sqrt(Math.min(Math.abs(share), 1));
    option.dataset.heat = heat < 0.05 ? "none" : this.colour === "kl" ? "kl" : share > 0 ? "up" : "down";
    option.style.setProperty("--heat", heat.toFixed(2));
  }
}
